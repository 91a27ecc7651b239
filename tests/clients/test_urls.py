"""Images by URL, as clients send them to a server that fetches them."""

import asyncio
import json

import httpx2
import litellm
import numpy as np
import openai
import pytest
import tritonclient.http as triton
from conftest import KEY, KEYED, MODEL, PHOTO_URL
from langchain_openai import ChatOpenAI
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from websockets.sync.client import connect

HEADERS = {"Authorization": f"Bearer {KEY}"}
MISSING = PHOTO_URL.replace("cat", "no-such-cat")
ELSEWHERE = "http://localhost:1/cat.jpg"


def client():
    return openai.OpenAI(base_url=f"{KEYED}/v1", api_key=KEY, max_retries=0)


def messages(url):
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def chat(url=PHOTO_URL, **options):
    return client().chat.completions.create(model=MODEL, messages=messages(url), **options)


def respond(url=PHOTO_URL):
    content = [{"type": "input_image", "image_url": url, "detail": "auto"}]
    return client().responses.create(model=MODEL, input=[{"role": "user", "content": content}])


def test_chat_completions_fetch_an_image(caption):
    assert chat().choices[0].message.content == caption
    pieces = [chunk.choices[0].delta.content or "" for chunk in chat(stream=True)]
    assert "".join(pieces) == caption


def test_responses_fetch_an_image(caption):
    assert respond().output_text == caption


@pytest.mark.parametrize("ask", [chat, respond])
def test_openai_says_why_an_image_was_not_fetched(ask):
    for url, code, word in [(MISSING, "fetch_failed", "404"), (ELSEWHERE, "invalid_parameter", "FETCH_HOSTS")]:
        with pytest.raises(openai.BadRequestError, match=word) as caught:
            ask(url)
        assert caught.value.code == code


def test_langchain_and_litellm_pass_addresses_on(caption):
    model = ChatOpenAI(base_url=f"{KEYED}/v1", api_key=KEY, model=MODEL, max_retries=0)
    assert model.invoke(messages(PHOTO_URL)).content == caption
    answer = litellm.completion(
        f"openai/{MODEL}", messages=messages(PHOTO_URL), api_base=f"{KEYED}/v1", api_key=KEY
    )
    assert answer.choices[0].message.content == caption


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_triton_sends_an_address_as_a_tensor(binary, caption):
    image = triton.InferInput("image", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[PHOTO_URL]], dtype=object), binary_data=binary)
    server = triton.InferenceServerClient(KEYED.removeprefix("http://"))
    # It writes into the headers.
    answer = server.infer(MODEL, [image], headers=dict(HEADERS))
    assert answer.as_numpy("caption").tolist() == [[caption.encode()]]


def test_a_tool_takes_an_address(caption):
    async def call(url):
        async with httpx2.AsyncClient(headers=HEADERS) as http:
            transport = streamable_http_client(f"{KEYED}/mcp", http_client=http)
            async with Client(transport, read_timeout_seconds=30) as server:
                tools = (await server.list_tools()).tools
                assert all("url" in tool.input_schema["properties"] for tool in tools)
                return await server.call_tool("caption_image", {"url": url})

    assert asyncio.run(call(PHOTO_URL)).content[0].text == caption
    failed = asyncio.run(call(MISSING))
    assert failed.is_error and "404" in failed.content[0].text


def test_a_websocket_takes_an_address(caption):
    address = KEYED.replace("http://", "ws://") + "/api/realtime"
    with connect(address, additional_headers=HEADERS, open_timeout=10) as socket:
        for id, url in [("photo", PHOTO_URL), ("none", MISSING)]:
            socket.send(json.dumps({"type": "caption", "id": id, "image_url": url}))
        last = {}
        while len(last) < 2:
            event = json.loads(socket.recv(timeout=30))
            if event["type"] in ("done", "error"):
                last[event["id"]] = event
    assert last["photo"]["result"]["caption"] == caption
    assert last["none"]["error"]["code"] == "fetch_failed"
