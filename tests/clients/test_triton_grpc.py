"""Triton's gRPC client, for KServe's protocol version 2."""

import os

import numpy as np
import pytest
import tritonclient.grpc as triton
from conftest import IMAGE, KEY, MODEL, PATIENCE, PHOTO_URL, SLOWER, gives_up
from tritonclient.utils import InferenceServerException

OPEN = os.environ["CUTLINE_GRPC"]
KEYED = os.environ["CUTLINE_KEYED_GRPC"]
SMALL = os.environ["CUTLINE_SMALL_GRPC"]


def image(content=IMAGE, count=1):
    tensor = triton.InferInput("image", [count, 1], "BYTES")
    return tensor.set_data_from_numpy(np.array([[content]] * count, dtype=object))


def infer(inputs=None, server=OPEN, model=MODEL, **options):
    with triton.InferenceServerClient(server) as client:
        return client.infer(model, inputs or [image()], client_timeout=30, **options)


def texts(answer):
    return [text.decode() for text in answer.as_numpy("caption").ravel()]


def test_the_server_and_the_model_are_described():
    with triton.InferenceServerClient(OPEN) as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
        assert client.get_server_metadata().name == "cutline"
        model = client.get_model_metadata(MODEL)
        assert model.name == MODEL and list(model.versions) == ["1"]
        assert [(one.name, one.datatype, list(one.shape)) for one in model.inputs][0] == ("image", "BYTES", [-1, 1])


def test_a_caption(caption):
    answer = infer(request_id="mine")
    assert texts(answer) == [caption]
    confidence = answer.as_numpy("confidence")
    assert confidence.dtype == np.float32 and 0 < confidence.ravel()[0] < 1
    assert answer.get_response().id == "mine"


def test_a_batch_and_parameters(caption, alt_text):
    assert texts(infer([image(count=2)])) == [caption] * 2
    assert texts(infer(parameters={"style": "alt_text"})) == [alt_text]


def test_only_the_wanted_output():
    answer = infer(outputs=[triton.InferRequestedOutput("confidence")])
    assert answer.as_numpy("caption") is None and answer.as_numpy("confidence") is not None


def fails(code, **options):
    with pytest.raises(InferenceServerException) as caught:
        infer(**options)
    assert caught.value.status() == f"StatusCode.{code}", caught.value


def test_errors():
    fails("NOT_FOUND", model="nothing")
    fails("INVALID_ARGUMENT", inputs=[image(b"noise")])


def test_keys(caption):
    fails("UNAUTHENTICATED", server=KEYED)
    assert texts(infer(server=KEYED, headers={"authorization": f"Bearer {KEY}"})) == [caption]


def test_an_address_as_a_tensor(caption):
    headers = {"authorization": f"Bearer {KEY}"}
    assert texts(infer([image(PHOTO_URL.encode())], server=KEYED, headers=headers)) == [caption]


def test_a_full_queue(full):
    fails("RESOURCE_EXHAUSTED", server=SMALL)


def test_a_client_that_gives_up_stops_the_work():
    with gives_up(), triton.InferenceServerClient(OPEN) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.infer(MODEL, [image()], client_timeout=PATIENCE, parameters=SLOWER)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
