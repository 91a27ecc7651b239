"""KServe's client, over REST and gRPC."""

import asyncio
import os

import httpx
import numpy as np
import pytest
from conftest import BASE64, IMAGE, KEY, KEYED, MODEL, PATIENCE, SLOWER, SMALL, URL, gives_up
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

GRPC = os.environ.get("CUTLINE_GRPC")
needs_grpc = pytest.mark.skipif(not GRPC, reason="this binary was built without the feature grpc")


def request(binary=True, content=IMAGE):
    image = InferInput("image", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[content if binary else BASE64]], dtype=object), binary_data=binary)
    return InferRequest(model_name=MODEL, infer_inputs=[image], request_id="mine")


def rest(work):
    async def run():
        client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=30))
        async with client:
            return await work(client)

    return asyncio.run(run())


def text(answer):
    found = answer.outputs[0].as_numpy().ravel()[0]
    return found.decode() if isinstance(found, bytes) else str(found)


def test_the_server_and_the_model_are_ready():
    assert rest(lambda client: client.is_server_ready(URL))
    assert rest(lambda client: client.is_server_live(URL))
    assert rest(lambda client: client.is_model_ready(URL, MODEL))


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_a_caption(binary, caption):
    answer = rest(lambda client: client.infer(URL, request(binary), model_name=MODEL))
    assert answer.outputs[0].name == "caption" and text(answer) == caption
    assert answer.id == "mine" and answer.model_name == MODEL


def test_a_caption_from_plain_json(caption):
    data = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [BASE64]}]}
    answer = rest(lambda client: client.infer(URL, data, model_name=MODEL))
    assert text(answer) == caption


def test_errors_show_the_reason():
    with pytest.raises(httpx.HTTPStatusError, match="not found") as caught:
        rest(lambda client: client.infer(URL, request(), model_name="nothing"))
    assert caught.value.response.status_code == 404
    with pytest.raises(httpx.HTTPStatusError, match="key"):
        rest(lambda client: client.infer(KEYED, request(), model_name=MODEL))
    headers = {"authorization": f"Bearer {KEY}"}
    assert rest(lambda client: client.infer(KEYED, request(), model_name=MODEL, headers=headers)).outputs


def test_a_full_queue(full):
    with pytest.raises(httpx.HTTPStatusError) as caught:
        rest(lambda client: client.infer(SMALL, request(), model_name=MODEL))
    assert caught.value.response.status_code == 429


def test_a_client_that_gives_up_stops_the_work():
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [BASE64]}
    data = {"inputs": [image], "parameters": SLOWER}
    with gives_up(), pytest.raises(asyncio.TimeoutError):
        rest(lambda client: asyncio.wait_for(client.infer(URL, data, model_name=MODEL), PATIENCE))


def grpc(work):
    async def run():
        async with InferenceGRPCClient(GRPC, timeout=30) as client:
            return await work(client)

    return asyncio.run(run())


@needs_grpc
def test_grpc(caption):
    assert grpc(lambda client: client.is_server_ready())
    assert grpc(lambda client: client.is_server_live())
    assert grpc(lambda client: client.is_model_ready(MODEL))
    assert text(grpc(lambda client: client.infer(request()))) == caption
