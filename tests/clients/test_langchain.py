"""LangChain's ChatOpenAI."""

import openai
import pytest
from conftest import DATA_URI, KEY, KEYED, MODEL, SLOW, SMALL, URL, gives_up
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

MESSAGE = HumanMessage(
    [
        {"type": "text", "text": "Describe this image."},
        {"type": "image_url", "image_url": {"url": DATA_URI}},
    ]
)


def model(url=URL, key="any", **options):
    return ChatOpenAI(base_url=f"{url}/v1", api_key=key, model=MODEL, max_retries=0, **options)


def test_an_answer_and_its_usage(caption):
    answer = model().invoke([MESSAGE])
    assert answer.content == caption
    usage = answer.usage_metadata
    assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"] > 100
    assert answer.response_metadata["finish_reason"] == "stop"


def test_a_system_message_is_an_instruction(alt_text):
    assert model().invoke([SystemMessage("You write alt text."), MESSAGE]).content == alt_text


def test_a_stream(caption):
    chunks = list(model(stream_usage=True).stream([MESSAGE]))
    assert "".join(chunk.content for chunk in chunks) == caption
    assert sum((chunk.usage_metadata or {}).get("total_tokens", 0) for chunk in chunks) > 100


def test_images_in_langchains_own_form(caption):
    image = {"type": "image", "base64": DATA_URI.split(",")[1], "mime_type": "image/jpeg"}
    assert model().invoke([HumanMessage([{"type": "text", "text": "What is it?"}, image])]).content == caption


def test_a_batch(caption):
    assert [answer.content for answer in model().batch([[MESSAGE]] * 4)] == [caption] * 4


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_structured_output(method):
    class Photo(BaseModel):
        caption: str

    assert model().with_structured_output(Photo, method=method).invoke([MESSAGE]).caption


def test_the_responses_api(caption):
    answer = model(use_responses_api=True).invoke([MESSAGE])
    assert answer.text == caption
    chunks = model(use_responses_api=True).stream([MESSAGE])
    assert "".join(chunk.text for chunk in chunks) == caption


def test_a_closed_stream_stops_the_work():
    with gives_up():
        stream = model(extra_body={"cutline": SLOW}).stream([MESSAGE])
        next(stream)
        stream.close()


def test_errors(full):
    with pytest.raises(openai.BadRequestError, match="image"):
        model().invoke("Tell me a joke.")
    with pytest.raises(openai.AuthenticationError):
        model(KEYED, "wrong").invoke([MESSAGE])
    assert model(KEYED, KEY).invoke([MESSAGE]).content
    with pytest.raises(openai.RateLimitError):
        model(SMALL).invoke([MESSAGE])
