"""LiteLLM, as a client of OpenAI's and of Ollama's contract."""

import asyncio

import litellm
import pytest
from conftest import DATA_URI, KEY, KEYED, MODEL, PATIENCE, SLOWER, SMALL, URL, gives_up

MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Describe this image."},
            {"type": "image_url", "image_url": {"url": DATA_URI}},
        ],
    }
]
OPENAI = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": "any"}
OLLAMA = {"model": f"ollama/{MODEL}", "api_base": URL}
OLLAMA_CHAT = {"model": f"ollama_chat/{MODEL}", "api_base": URL}


@pytest.mark.parametrize("route", [OPENAI, OLLAMA, OLLAMA_CHAT], ids=["openai", "ollama", "ollama_chat"])
def test_an_answer(route, caption):
    answer = litellm.completion(**route, messages=MESSAGES)
    assert answer.choices[0].message.content == caption
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens > 100
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("route", [OPENAI, OLLAMA, OLLAMA_CHAT], ids=["openai", "ollama", "ollama_chat"])
def test_a_stream(route, caption):
    chunks = list(litellm.completion(**route, messages=MESSAGES, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == caption


def test_the_async_client(caption):
    answer = asyncio.run(litellm.acompletion(**OPENAI, messages=MESSAGES))
    assert answer.choices[0].message.content == caption


def test_a_client_that_gives_up_stops_the_work():
    async def cancelled():
        work = litellm.acompletion(**OPENAI, messages=MESSAGES, extra_body={"cutline": SLOWER})
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(work, PATIENCE)

    with gives_up():
        asyncio.run(cancelled())


def test_errors(full):
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**OPENAI, "model": "openai/gpt-4o"}, messages=MESSAGES)
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**OPENAI, messages=[{"role": "user", "content": "Hello"}])
    keyed = {**OPENAI, "api_base": f"{KEYED}/v1"}
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**keyed, "api_key": "wrong"}, messages=MESSAGES)
    assert litellm.completion(**{**keyed, "api_key": KEY}, messages=MESSAGES).choices
    small = {**OPENAI, "api_base": f"{SMALL}/v1", "num_retries": 0, "max_retries": 0}
    with pytest.raises(litellm.RateLimitError):
        litellm.completion(**small, messages=MESSAGES)
