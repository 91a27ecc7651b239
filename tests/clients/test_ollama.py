"""Ollama's Python client."""

import asyncio
import json

import ollama
import pytest
from conftest import BASE64, IMAGE, KEY, KEYED, MODEL, PHOTO, SMALL, URL, becomes_idle, native

LATEST = f"{MODEL}:latest"
SCHEMA = {
    "type": "object",
    "properties": {"description": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["description", "tags"],
}


def client(url=URL, **options):
    return ollama.Client(host=url, **options)


def message(text="Describe this image.", image=PHOTO):
    return [{"role": "user", "content": text, "images": [image]}]


def test_models_are_listed():
    (model,) = client().list().models
    assert model.model == LATEST
    assert model.details.family == "blip" and len(model.digest) == 64 and model.size > 0
    (running,) = client().ps().models
    assert running.model == LATEST and running.context_length > 0 and running.expires_at


@pytest.mark.parametrize("name", [MODEL, LATEST])
def test_a_model_is_shown(name):
    shown = client().show(name)
    assert shown.capabilities == ["completion", "vision"]
    assert shown.modelinfo["general.architecture"] == "blip"
    assert any(key.endswith(".context_length") for key in shown.modelinfo)


def test_a_known_model_can_be_pulled():
    assert client().pull(LATEST).status == "success"
    assert [part.status for part in client().pull(LATEST, stream=True)][-1] == "success"
    with pytest.raises(ollama.ResponseError) as caught:
        client().pull("llava")
    assert caught.value.status_code == 404


@pytest.mark.parametrize("image", [IMAGE, BASE64, PHOTO, str(PHOTO)], ids=["bytes", "base64", "path", "name"])
def test_generate(image, caption):
    answer = client().generate(model=MODEL, prompt="Describe this image.", images=[image])
    assert answer.response == caption
    assert answer.done and answer.done_reason == "stop"
    assert answer.prompt_eval_count > 100
    assert answer.eval_count == native()["captions"][0]["tokens"]
    assert answer.total_duration > 0


def test_generate_streams(caption):
    # A limit of its own, because an answer from the cache comes in one piece.
    options = {"num_predict": 19}
    parts = list(client().generate(model=MODEL, prompt="", images=[PHOTO], stream=True, options=options))
    assert "".join(part.response for part in parts) == caption
    assert len(parts) > 3
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count > 0


def test_chat(caption, alt_text):
    answer = client().chat(model=LATEST, messages=message())
    assert answer.message.content == caption and answer.message.role == "assistant"
    assert answer.done_reason == "stop"
    answer = client().chat(model=LATEST, messages=message("Write alt text for it."))
    assert answer.message.content == alt_text


def test_chat_streams(caption):
    parts = list(client().chat(model=MODEL, messages=message(), stream=True, options={"num_predict": 18}))
    assert "".join(part.message.content for part in parts) == caption
    assert parts[-1].done and len(parts) > 3


def test_structured_outputs(caption):
    answer = client().chat(model=MODEL, messages=message(), format=SCHEMA)
    filled = json.loads(answer.message.content)
    assert filled["description"] and "cat" in filled["tags"]
    answer = client().generate(model=MODEL, prompt="", images=[PHOTO], format="json")
    assert json.loads(answer.response) == {"caption": caption}


def test_options(caption):
    answer = client().generate(model=MODEL, images=[PHOTO], options={"num_predict": 3})
    assert answer.done_reason == "length" and caption.startswith(answer.response)
    options = {"temperature": 0.1, "num_ctx": 8192, "repeat_penalty": 1.1, "stop": ["\n"], "num_predict": -1}
    answer = client().generate(
        model=MODEL, images=[PHOTO], options=options, suffix="", keep_alive="5m", think=False
    )
    assert answer.response == caption


def test_a_raw_prompt_is_a_prefix():
    answer = client().generate(model=MODEL, prompt="a photo of", images=[PHOTO], raw=True)
    assert answer.response == native(prompt="a%20photo%20of")["caption"]


def test_a_model_is_loaded_and_unloaded_without_an_image():
    assert client().generate(model=MODEL).done_reason == "load"
    assert client().generate(model=MODEL, keep_alive=0).done_reason == "unload"


def test_errors():
    for status, work in [
        (404, lambda: client().generate(model="llava", prompt="x", images=[IMAGE])),
        (404, lambda: client().chat(model="llava", messages=message())),
        (404, lambda: client().show("llava")),
        (400, lambda: client().chat(model=MODEL, messages=[{"role": "user", "content": "Hello"}])),
        (415, lambda: client().generate(model=MODEL, images=["aGVsbG8="])),
        (404, lambda: client().embed(model=MODEL, input="x")),
    ]:
        with pytest.raises(ollama.ResponseError) as caught:
            work()
        assert caught.value.status_code == status, caught.value
        assert caught.value.error


def test_keys(caption, monkeypatch):
    for headers in [{}, {"Authorization": "Bearer wrong"}]:
        with pytest.raises(ollama.ResponseError) as caught:
            client(KEYED, headers=headers).list()
        assert caught.value.status_code in (401, 403)
    keyed = client(KEYED, headers={"Authorization": f"Bearer {KEY}"})
    assert keyed.chat(model=MODEL, messages=message()).message.content == caption
    monkeypatch.setenv("OLLAMA_API_KEY", KEY)
    assert client(KEYED).list().models


def test_a_full_queue(full, caption):
    with pytest.raises(ollama.ResponseError) as caught:
        client(SMALL).generate(model=MODEL, images=[IMAGE])
    assert caught.value.status_code == 429
    full.release()
    becomes_idle(SMALL)
    assert client(SMALL).generate(model=MODEL, images=[IMAGE]).response == caption


def test_a_cancelled_stream_stops_the_work():
    async def cancelled():
        async for _ in await ollama.AsyncClient(host=URL).generate(
            model=MODEL, images=[PHOTO], options={"temperature": 1.5, "num_predict": 100}, stream=True
        ):
            break

    asyncio.run(cancelled())
    becomes_idle(URL)
