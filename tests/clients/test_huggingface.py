"""Hugging Face's InferenceClient."""

import pytest
from conftest import DATA_URI, IMAGE, KEY, KEYED, MODEL, PATIENCE, PHOTO, SLOWER, SMALL, URL, gives_up
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError


def client(url=URL, key="any"):
    return InferenceClient(model=url, token=key)


@pytest.mark.parametrize("image", [IMAGE, PHOTO, str(PHOTO)], ids=["bytes", "path", "name"])
def test_image_to_text(image, caption):
    assert client().image_to_text(image).generated_text == caption


@pytest.mark.parametrize("path", ["/pipeline/image-to-text", f"/models/{MODEL}", "/predict"])
def test_image_to_text_at_other_addresses(path, caption):
    assert client(URL + path).image_to_text(IMAGE).generated_text == caption


def test_image_classification():
    labels = client().image_classification(IMAGE, top_k=2)
    assert len(labels) == 2
    assert labels[0].label == "cat" and labels[0].score >= labels[1].score > 0
    # Without parameters, the request for labels is the same as that for a caption.
    labels = client(f"{URL}/pipeline/image-classification").image_classification(IMAGE)
    assert labels[0].label == "cat"


def test_zero_shot_image_classification():
    labels = client().zero_shot_image_classification(IMAGE, candidate_labels=["a car", "a cat", "a hot dog"])
    assert [label.label for label in labels][0] == "a cat"
    assert abs(sum(label.score for label in labels) - 1) < 1e-4


def test_chat_completions(caption):
    content = [{"type": "text", "text": "Describe it."}, {"type": "image_url", "image_url": {"url": DATA_URI}}]
    messages = [{"role": "user", "content": content}]
    # Without a name of the model, it makes one up.
    for name in [None, MODEL]:
        assert client().chat_completion(messages, model=name).choices[0].message.content == caption


def test_a_stream_of_a_chat(caption):
    content = [{"type": "image_url", "image_url": {"url": DATA_URI}}]
    # It ends the stream when it is dropped.
    open_client = client()
    stream = open_client.chat_completion(
        [{"role": "user", "content": content}], stream=True, extra_body={"cutline": {"cache": "bypass"}}
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == caption and len(pieces) > 3


def test_a_client_that_gives_up_stops_the_work():
    content = [{"type": "image_url", "image_url": {"url": DATA_URI}}]
    impatient = InferenceClient(model=URL, token="any", timeout=PATIENCE)
    with gives_up(), pytest.raises(InferenceTimeoutError):
        impatient.chat_completion([{"role": "user", "content": content}], extra_body={"cutline": SLOWER})


def test_the_endpoint_is_described():
    # It makes these two calls only if the provider is named.
    endpoint = InferenceClient(model=URL, token="any", provider="hf-inference")
    assert endpoint.get_endpoint_info()["model_id"] == MODEL
    assert endpoint.health_check()


def status(work):
    with pytest.raises(HfHubHTTPError) as caught:
        work()
    return caught.value.response.status_code, caught.value.response.json()["error"]


def test_what_the_model_cannot_do_is_an_error():
    code, error = status(lambda: client().visual_question_answering(IMAGE, question="Is it a dog?"))
    assert code == 400 and "question" in error
    code, error = status(lambda: client().image_to_text(b"not an image"))
    assert code == 415


def test_keys(caption):
    assert client(KEYED, KEY).image_to_text(IMAGE).generated_text == caption
    assert status(lambda: client(KEYED, "wrong").image_to_text(IMAGE))[0] in (401, 403)


def test_a_full_queue(full):
    assert status(lambda: client(SMALL).image_to_text(IMAGE))[0] == 429
