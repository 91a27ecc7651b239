"""Triton's HTTP client, for KServe's protocol version 2."""

import numpy as np
import pytest
import tritonclient.http as triton
from conftest import BASE64, IMAGE, KEY, KEYED, MODEL, PATIENCE, SLOWER, SMALL, URL, gives_up
from tritonclient.utils import InferenceServerException


def client(url=URL):
    return triton.InferenceServerClient(url.removeprefix("http://"), network_timeout=30)


def image(count=1, binary=True, shape=None):
    tensor = triton.InferInput("image", shape or [count, 1], "BYTES")
    content = IMAGE if binary else BASE64
    data = np.array([content] * count, dtype=object).reshape(shape or [count, 1])
    return tensor.set_data_from_numpy(data, binary_data=binary)


def infer(inputs=None, url=URL, model=MODEL, **options):
    return client(url).infer(model, inputs or [image()], **options)


def texts(answer):
    return [text.decode() if isinstance(text, bytes) else text for text in answer.as_numpy("caption").ravel()]


def test_the_server_and_the_model_are_described():
    with client() as server:
        assert server.is_server_live() and server.is_server_ready() and server.is_model_ready(MODEL)
        described = server.get_server_metadata()
        assert described["name"] == "cutline" and "binary_tensor_data" in described["extensions"]
        model = server.get_model_metadata(MODEL)
        assert (model["name"], model["versions"]) == (MODEL, ["1"])
        assert model["inputs"][0] == {"name": "image", "datatype": "BYTES", "shape": [-1, 1]}
        assert {output["name"] for output in model["outputs"]} == {"caption", "confidence"}
        config = server.get_model_config(MODEL)
        assert config["name"] == MODEL and config["max_batch_size"] > 0
        assert not server.is_model_ready("nothing")


def test_a_binary_image(caption):
    answer = infer()
    assert texts(answer) == [caption]
    assert answer.as_numpy("caption").shape == (1, 1)
    confidence = answer.as_numpy("confidence")
    assert confidence.dtype == np.float32 and 0 < confidence[0][0] < 1


def test_an_image_in_json(caption):
    outputs = [triton.InferRequestedOutput(name, binary_data=False) for name in ("caption", "confidence")]
    answer = infer([image(binary=False)], outputs=outputs)
    assert texts(answer) == [caption]
    assert "data" in answer.get_output("caption")


def test_binary_and_json_may_be_mixed(caption):
    wanted = triton.InferRequestedOutput("caption", binary_data=False)
    answer = infer([image(binary=True)], outputs=[wanted])
    assert texts(answer) == [caption]
    assert answer.as_numpy("confidence") is None
    assert texts(infer([image(binary=False)])) == [caption]


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_a_batch(shape, caption):
    assert texts(infer([image(2, shape=shape)])) == [caption] * 2


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_request(algorithm, caption):
    assert texts(infer(request_compression_algorithm=algorithm)) == [caption]


def test_ids_versions_and_parameters(caption, alt_text):
    answer = infer(request_id="mine", model_version="1")
    assert answer.get_response()["id"] == "mine"
    assert texts(infer(parameters={"style": "alt_text"})) == [alt_text]
    assert texts(infer(parameters={"max_new_tokens": 3}))[0] in caption


def test_a_prompt():
    prompt = triton.InferInput("prompt", [1, 1], "BYTES")
    prompt.set_data_from_numpy(np.array([[b"a photo of"]], dtype=object))
    assert texts(infer([image(), prompt]))[0].startswith("a photo of")


def fails(status, words, **options):
    with pytest.raises(InferenceServerException) as caught:
        infer(**options)
    assert caught.value.status() == status
    assert words in caught.value.message()


def test_errors():
    fails("404", "not found", model="nothing")
    wrong = triton.InferInput("picture", [1, 1], "BYTES")
    wrong.set_data_from_numpy(np.array([[IMAGE]], dtype=object))
    fails("400", "image", inputs=[wrong])
    noise = triton.InferInput("image", [1, 1], "BYTES")
    noise.set_data_from_numpy(np.array([[b"noise"]], dtype=object))
    with pytest.raises(InferenceServerException) as caught:
        infer([noise])
    assert caught.value.status() in ("400", "415")


def test_keys(caption):
    with pytest.raises(InferenceServerException) as caught:
        infer(url=KEYED)
    assert caught.value.status() == "401"
    assert texts(infer(url=KEYED, headers={"Authorization": f"Bearer {KEY}"})) == [caption]


def test_a_full_queue(full, caption):
    fails("429", "full", url=SMALL)
    full.release()


def test_a_client_that_gives_up_stops_the_work():
    impatient = triton.InferenceServerClient(URL.removeprefix("http://"), network_timeout=PATIENCE)
    with gives_up():
        with pytest.raises(Exception, match="timed out"):
            impatient.infer(MODEL, [image()], parameters=SLOWER)
        impatient.close()


def test_concurrent_requests(caption):
    with triton.InferenceServerClient(URL.removeprefix("http://"), concurrency=4, network_timeout=30) as server:
        work = [server.async_infer(MODEL, [image()]) for _ in range(8)]
        assert [texts(one.get_result()) for one in work] == [[caption]] * 8
