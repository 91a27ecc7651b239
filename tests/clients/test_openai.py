"""OpenAI's Python SDK."""

import asyncio
import math

import httpx
import openai
import pytest
from conftest import BASE64, DATA_URI, KEY, KEYED, MODEL, SMALL, SMALL_IMAGE, URL, becomes_idle, native
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

# An answer that takes long: so many tokens, and nothing from the caches.
LONG = {"cutline": {"min_new_tokens": 100, "max_new_tokens": 100, "cache": "bypass"}}
FRESH = {"cutline": {"cache": "bypass"}}


def client(url=URL, key="any", retries=0, **options):
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=retries, **options)


def ask(text="Describe this image.", *urls):
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls or [DATA_URI]]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *images]}]


def chat(messages=None, client=client(), **parameters):
    return client.chat.completions.create(model=MODEL, messages=messages or ask(), **parameters)


class Described(BaseModel):
    description: str
    tags: list[str]


def test_models_are_listed():
    models = client().models.list()
    assert [model.id for model in models] == [MODEL]
    model = client().models.retrieve(MODEL)
    assert (model.id, model.object) == (MODEL, "model")
    with pytest.raises(openai.NotFoundError) as caught:
        client().models.retrieve("Salesforce/nothing")
    assert caught.value.code == "model_not_found"


def test_a_chat_is_answered_with_the_caption(caption):
    answer = chat()
    choice = answer.choices[0]
    assert choice.message.content == caption
    assert (choice.message.role, choice.finish_reason, choice.index) == ("assistant", "stop", 0)
    assert answer.model == MODEL and answer.object == "chat.completion"
    assert answer._request_id


def test_usage_counts_the_tokens_of_the_image():
    usage = chat().usage
    assert usage.prompt_tokens >= usage.prompt_tokens_details.image_tokens > 100
    assert usage.completion_tokens == native()["captions"][0]["tokens"]
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("url", [f"data:;base64,{BASE64}", f"data:image/png;base64,{BASE64}"])
def test_the_declared_type_of_an_image_does_not_matter(url, caption):
    assert chat(ask("", url)).choices[0].message.content == caption


@pytest.mark.parametrize(
    ("instruction", "intent"),
    [
        ("Describe this image in detail, as a poet would.", "caption"),
        ("Write alt text for a screen reader, at most 40 characters.", "alt_text"),
        ("Give me five keywords.", "tags"),
    ],
)
def test_instructions_choose_the_kind_of_text(instruction, intent, caption):
    raw = client().chat.completions.with_raw_response.create(model=MODEL, messages=ask(instruction))
    assert raw.headers["x-cutline-intent"] == intent
    text = raw.parse().choices[0].message.content
    if intent == "caption":
        assert text == caption
    elif intent == "alt_text":
        assert text == native(style="alt_text", max_chars=40)["caption"] and len(text) <= 40
    else:
        assert "cat" in text.split(", ")


def test_an_assistant_message_at_the_end_is_a_prefix():
    messages = [*ask(), {"role": "assistant", "content": "a photo of"}]
    assert chat(messages).choices[0].message.content == native(prompt="a%20photo%20of")["caption"]


def test_only_the_last_images_count(caption):
    broken = "data:image/png;base64,AAAA"
    messages = [*ask("First", broken), {"role": "assistant", "content": "a dog"}, *ask("Second")]
    messages.append({"role": "user", "content": "Are you sure?"})
    assert chat(messages).choices[0].message.content == caption


def test_each_image_has_a_line(caption):
    answer = chat(ask("Describe", DATA_URI, DATA_URI))
    assert answer.choices[0].message.content == f"{caption}\n{caption}"


def test_several_choices():
    answer = chat(n=3)
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_what_clients_always_send_is_accepted(caption):
    answer = chat(
        max_tokens=4096, temperature=0.1, top_p=0.9, frequency_penalty=0.5, presence_penalty=0.5, seed=7,
        stop=["\n"], user="someone", metadata={"a": "b"}, tools=[
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        ],
    )
    assert answer.choices[0].message.content == caption


def test_the_probabilities_of_tokens(caption):
    tokens = chat(logprobs=True).choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == caption
    assert all(token.logprob <= 0 for token in tokens)
    # The end has no text.
    assert len(tokens) == native()["captions"][0]["tokens"] - 1
    *_, last = chat(logprobs=True, stream=True)
    assert [token.token for token in last.choices[0].logprobs.content] == [token.token for token in tokens]


@pytest.mark.parametrize("beams", [1, 3])
def test_the_most_probable_tokens(beams):
    # The defaults of the embedded model forbid pairs of words to repeat, which may cost a token its first place.
    options = {"logprobs": True, "extra_body": {"cutline": {"num_beams": beams, "no_repeat_ngram_size": 0}}}
    tokens = chat(top_logprobs=20, **options).choices[0].logprobs.content
    for token in tokens:
        others = token.top_logprobs
        assert len(others) == 20
        assert [other.logprob for other in others] == sorted((o.logprob for o in others), reverse=True)
        assert sum(math.exp(other.logprob) for other in others) <= 1.0001
        assert bytes(others[0].bytes).decode() == others[0].token
        assert (token.token, token.logprob) in [(other.token, other.logprob) for other in others]
    if beams == 1:
        assert all(token.top_logprobs[0].token == token.token for token in tokens)
    plain = chat(**options).choices[0].logprobs.content
    assert [(token.token, token.logprob) for token in plain] == [(token.token, token.logprob) for token in tokens]
    assert all(token.top_logprobs == [] for token in plain)
    with pytest.raises(openai.BadRequestError, match="between 0 and 20") as caught:
        chat(logprobs=True, top_logprobs=21)
    assert caught.value.param == "top_logprobs"


def test_max_tokens_cuts_the_caption(caption):
    choice = chat(max_tokens=3).choices[0]
    assert choice.finish_reason == "length"
    assert caption.startswith(choice.message.content)


def test_sampling_with_a_seed_repeats():
    first, second = (chat(temperature=1.5, seed=3).choices[0].message.content for _ in range(2))
    assert first == second


def test_a_stream_has_the_words_of_the_caption(caption):
    chunks = list(chat(stream=True, extra_body=FRESH))
    assert chunks[0].choices[0].delta.role == "assistant"
    words = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(words) == caption
    assert sum(map(bool, words)) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_ends_with_the_usage_if_asked():
    *chunks, last = chat(stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage == chat().usage
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_the_stream_helper_accumulates(caption):
    with client().chat.completions.stream(model=MODEL, messages=ask()) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == caption


def test_structured_outputs(caption):
    answer = client().chat.completions.parse(model=MODEL, messages=ask(), response_format=Described)
    parsed = answer.choices[0].message.parsed
    assert "cat" in parsed.tags
    assert parsed.description
    text = chat(response_format={"type": "json_object"}).choices[0].message.content
    assert text == f'{{"caption":"{caption}"}}'


def test_a_schema_that_cannot_be_filled_is_refused():
    class Age(BaseModel):
        age: int

    with pytest.raises(openai.BadRequestError) as caught:
        client().chat.completions.parse(model=MODEL, messages=ask(), response_format=Age)
    assert "age" in caught.value.message


def test_answers_pass_strict_validation(caption):
    strict = client(_strict_response_validation=True)
    assert chat(client=strict).choices[0].message.content == caption
    assert [chunk.object for chunk in chat(client=strict, stream=True)][0] == "chat.completion.chunk"
    assert strict.responses.create(model=MODEL, input=responses_input()).output_text == caption
    assert list(strict.responses.create(model=MODEL, input=responses_input(), stream=True))
    assert [model.id for model in strict.models.list()] == [MODEL]


def test_errors_have_openais_classes():
    with pytest.raises(openai.BadRequestError) as caught:
        chat([{"role": "user", "content": "Suggest a title for this chat."}])
    error = caught.value
    assert (error.code, error.type) == ("image_required", "invalid_request_error")
    assert error.request_id
    with pytest.raises(openai.NotFoundError) as caught:
        client().chat.completions.create(model="gpt-4o", messages=ask())
    assert (caught.value.code, caught.value.type) == ("model_not_found", "not_found_error")
    with pytest.raises(openai.BadRequestError):
        chat(ask("", "data:image/jpeg;base64,????"))
    with pytest.raises(openai.APIStatusError) as caught:
        chat(ask("", "data:image/jpeg;base64,aGVsbG8="))
    assert caught.value.status_code == 415
    with pytest.raises(openai.NotFoundError):
        client().embeddings.create(model=MODEL, input="x")


def test_images_by_url_are_off():
    with pytest.raises(openai.BadRequestError) as caught:
        chat(ask("", "https://example.com/cat.jpg"))
    assert "send the image itself" in caught.value.message


def test_keys(caption):
    assert chat(client=client(KEYED, KEY)).choices[0].message.content == caption
    for wrong in ["wrong", "any"]:
        with pytest.raises(openai.AuthenticationError) as caught:
            chat(client=client(KEYED, wrong))
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client(KEYED, wrong).models.list()


def counting(retries=2):
    """A client that counts its requests."""
    statuses = []
    count = httpx.Client(event_hooks={"response": [lambda answer: statuses.append(answer.status_code)]})
    return client(SMALL, retries=retries, http_client=count), statuses


def test_a_full_queue_is_a_rate_limit(full):
    with pytest.raises(openai.RateLimitError) as caught:
        chat(client=client(SMALL))
    assert caught.value.code == "rate_limit_exceeded"
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_the_client_tries_again_when_the_queue_was_full(full, caption):
    patient, statuses = counting()
    with pytest.raises(openai.RateLimitError):
        chat(client=patient)
    assert statuses == [429, 429, 429]
    statuses.clear()
    hooks = patient._client.event_hooks
    patient._client.event_hooks = {"response": [*hooks["response"], lambda _: full.release()]}
    assert chat(client=patient).choices[0].message.content == caption
    assert statuses == [429, 200]


def test_the_client_does_not_repeat_an_image_that_is_too_large():
    eager, statuses = counting()
    padding = "A" * (SMALL_IMAGE * 2)
    with pytest.raises(openai.APIStatusError):
        chat(ask("", DATA_URI + padding), client=eager)
    assert statuses == [413]


def test_a_closed_stream_stops_the_work():
    stream = chat(stream=True, extra_body=LONG)
    next(iter(stream))
    stream.close()
    becomes_idle(URL)


def test_a_cancelled_request_stops_the_work():
    async def cancelled():
        async with AsyncOpenAI(base_url=f"{URL}/v1", api_key="any", max_retries=0) as client:
            work = client.chat.completions.create(model=MODEL, messages=ask(), extra_body=LONG)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(work, 0.05)

    asyncio.run(cancelled())
    becomes_idle(URL)


def test_the_async_client(caption):
    async def answers():
        async with AsyncOpenAI(base_url=f"{URL}/v1", api_key="any") as client:
            asks = [client.chat.completions.create(model=MODEL, messages=ask()) for _ in range(8)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asks)]

    assert asyncio.run(answers()) == [caption] * 8


def responses_input(text="Describe this image."):
    content = [{"type": "input_text", "text": text}, {"type": "input_image", "image_url": DATA_URI}]
    return [{"role": "user", "content": content}]


def test_responses(caption):
    answer = client().responses.create(model=MODEL, input=responses_input())
    assert answer.output_text == caption
    assert (answer.status, answer.object, answer.model) == ("completed", "response", MODEL)
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.input_tokens == chat().usage.prompt_tokens


def test_the_instructions_of_a_response_choose_the_kind_of_text(alt_text):
    answer = client().responses.create(
        model=MODEL, input=responses_input("What is this?"), instructions="You write alt text."
    )
    assert answer.output_text == alt_text


def test_the_events_of_a_response_come_in_order(caption):
    events = list(
        client().responses.create(model=MODEL, input=responses_input(), stream=True, extra_body=FRESH)
    )
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(deltas) == caption and len(deltas) > 3
    final = events[-1].response
    assert final.id == events[0].response.id
    assert final.output_text == caption


def test_the_responses_helper_accumulates(caption):
    with client().responses.stream(model=MODEL, input=responses_input()) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == caption


def test_the_probabilities_of_a_response():
    # Without the model's default for repeated words, each token of a greedy search is the most probable one.
    options = {
        "input": responses_input(), "include": ["message.output_text.logprobs"], "top_logprobs": 3,
        "extra_body": {"cutline": {"no_repeat_ngram_size": 0}},
    }
    answer = client().responses.create(model=MODEL, **options)
    tokens = answer.output[0].content[0].logprobs
    assert "".join(token.token for token in tokens) == answer.output_text
    assert all(len(token.top_logprobs) == 3 and token.top_logprobs[0].token == token.token for token in tokens)
    with client().responses.stream(model=MODEL, **options) as stream:
        for event in stream:
            if event.type == "response.output_text.done":
                assert [token.logprob for token in event.logprobs] == [token.logprob for token in tokens]
        assert stream.get_final_response().output[0].content[0].logprobs == tokens


def test_responses_that_are_cut_off():
    answer = client().responses.create(model=MODEL, input=responses_input(), max_output_tokens=16)
    assert answer.status == "completed"
    answer = client().responses.create(model=MODEL, input=responses_input(), max_output_tokens=3)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    *_, last = client().responses.create(
        model=MODEL, input=responses_input(), max_output_tokens=3, stream=True
    )
    assert last.type == "response.incomplete"


def test_structured_responses():
    answer = client().responses.parse(model=MODEL, input=responses_input(), text_format=Described)
    assert "cat" in answer.output_parsed.tags


def test_responses_are_not_stored():
    with pytest.raises(openai.BadRequestError) as caught:
        client().responses.create(
            model=MODEL, input=responses_input(), previous_response_id="resp_1"
        )
    assert caught.value.param == "previous_response_id"
