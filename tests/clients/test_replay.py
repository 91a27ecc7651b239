"""What Open WebUI, PhotoPrism and Home Assistant ask, as raw requests.

These programs are too large to run here. The requests have the fields that their sources send, and the
tests read the fields of the answers that their sources read.
"""

import json
import urllib.error
import urllib.request

import pytest
from conftest import BASE64, DATA_URI, KEY, KEYED, MODEL, SECONDS, URL

LATEST = f"{MODEL}:latest"


def exchange(method, path, body=None, url=URL, key=None, **headers):
    """Status, headers and text of the answer."""
    if body is not None:
        body = json.dumps(body).encode()
        headers.setdefault("content-type", "application/json")
    if key:
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url + path, data=body, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def ok(method, path, body=None, **options):
    status, _, text = exchange(method, path, body, **options)
    assert status == 200, text
    return json.loads(text)


def events(text):
    """The data of server-sent events, as Open WebUI reads them: line by line."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


class TestOpenWebUi:
    """A connection of the kind OpenAI and one of the kind Ollama, their lists of models, a chat with a
    picture, and the background tasks after it."""

    def test_an_openai_connection(self):
        models = ok("GET", "/v1/models", key="any")["data"]
        assert [model["id"] for model in models] == [MODEL]
        # Without a key in the connection it sends an empty one.
        assert exchange("GET", "/v1/models", authorization="Bearer ")[0] == 200

    def test_an_openai_connection_with_a_wrong_key(self):
        status, headers, text = exchange("GET", "/v1/models", url=KEYED, key="wrong")
        assert status == 401 and json.loads(text)["error"]["message"]
        assert headers["content-type"] == "application/json"

    def test_a_chat_with_a_picture(self, caption):
        body = {
            "stream": True,
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "User context: none"},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hello! How can I help?"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What do you see?"},
                        {"type": "image_url", "image_url": {"url": DATA_URI}},
                    ],
                },
            ],
            "stream_options": {"include_usage": True},
            "metadata": {"chat_id": "1"},
            "features": {"web_search": False},
        }
        status, headers, text = exchange("POST", "/v1/chat/completions", body)
        assert status == 200 and headers["content-type"].startswith("text/event-stream")
        *chunks, end = events(text)
        assert end == "[DONE]"
        chunks = [json.loads(chunk) for chunk in chunks]
        words = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
        assert "".join(words) == caption
        assert chunks[-1]["usage"]["total_tokens"] > 100

    @pytest.mark.parametrize(
        "task",
        [
            "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.",
            "### Task:\nGenerate 1-3 broad tags categorizing the main themes of the chat history.",
            "### Task:\nSuggest 3-5 relevant follow-up questions.",
        ],
    )
    def test_its_background_tasks_have_no_image_and_fail_at_once(self, task):
        body = {"model": MODEL, "messages": [{"role": "user", "content": task}], "stream": False}
        status, _, text = exchange("POST", "/v1/chat/completions", body)
        error = json.loads(text)["error"]
        assert (status, error["code"]) == (400, "image_required")

    def test_an_ollama_connection(self):
        assert ok("GET", "/api/version")["version"].count(".") == 2
        (model,) = ok("GET", "/api/tags")["models"]
        assert model["name"] == model["model"] == LATEST
        (running,) = ok("GET", "/api/ps")["models"]
        assert running["name"] == LATEST and running["expires_at"]

    def test_a_chat_over_ollama(self, caption):
        body = {
            "model": LATEST,
            "messages": [{"role": "user", "content": "What do you see?", "images": [BASE64]}],
            "options": {"num_ctx": 4096},
            "stream": True,
            "keep_alive": "5m",
        }
        status, headers, text = exchange("POST", "/api/chat", body)
        assert status == 200 and headers["content-type"] == "application/x-ndjson"
        # It reads line by line, and an empty line is an error.
        lines = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
        assert "".join(line["message"]["content"] for line in lines) == caption
        assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


# The schema that PhotoPrism sends with its prompt for labels.
LABELS = {
    "type": "object",
    "properties": {
        "labels": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 1},
                    "confidence": {"type": "number", "minimum": 0, "maximum": 1},
                    "topicality": {"type": "number", "minimum": 0, "maximum": 1},
                },
                "required": ["name", "confidence", "topicality"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["labels"],
    "additionalProperties": False,
}


def check_labels(labels):
    assert labels
    for label in labels:
        assert label["name"] and " " not in label["name"]
        assert 0 <= label["confidence"] <= 1 and 0 <= label["topicality"] <= 1
    assert "cat" in [label["name"] for label in labels]


class TestPhotoPrism:
    """Its own vision service, and its engines for Ollama and OpenAI."""

    VISION = {
        "id": "a-request",
        "model": "cutline",
        "version": "latest",
        "prompt": "",
        "suffix": "",
        "format": "",
        "options": {},
        "stream": False,
        "images": [DATA_URI],
    }

    def test_a_caption_of_the_vision_service(self, caption):
        answer = ok("POST", "/api/v1/vision/caption", self.VISION)
        assert (answer["id"], answer["code"]) == ("a-request", 200)
        assert answer["model"]["name"]
        result = answer["result"]["caption"]
        assert result["text"] == caption and result["source"] == "image"
        assert 0 < result["confidence"] <= 1

    def test_labels_of_the_vision_service(self):
        answer = ok("POST", "/api/v1/vision/labels", self.VISION)
        labels = answer["result"]["labels"]
        check_labels(labels)
        assert all(label["source"] == "image" for label in labels)

    def test_errors_of_the_vision_service(self):
        for images in [[], ["data:image/jpeg;base64,aGVsbG8="]]:
            status, _, text = exchange("POST", "/api/v1/vision/caption", {**self.VISION, "images": images})
            answer = json.loads(text)
            assert status == answer["code"] >= 400 and answer["error"]
        status, _, text = exchange("POST", "/api/v1/vision/caption", self.VISION, url=KEYED, key="wrong")
        assert status in (401, 403) and json.loads(text)["error"]
        answer = ok("POST", "/api/v1/vision/caption", self.VISION, url=KEYED, key=KEY)
        assert answer["result"]["caption"]["text"]

    def test_a_caption_of_the_ollama_engine(self, caption):
        body = {
            "id": "a-request",
            "model": LATEST,
            "prompt": "Create a caption with exactly one sentence in the active voice.",
            "suffix": "",
            "format": "",
            "options": {"temperature": 0.1, "num_ctx": 4096, "num_predict": 512},
            "stream": False,
            "images": [BASE64],
        }
        answer = ok("POST", "/api/generate", body)
        assert answer["response"] == caption and answer["done"]

    def test_labels_of_the_ollama_engine(self):
        body = {
            "model": LATEST,
            "system": "You are a PhotoPrism vision model. Output concise JSON that matches the schema.",
            "prompt": "Analyze the image and return label objects with name, confidence (0-1), and topicality (0-1).",
            "suffix": "",
            "format": LABELS,
            "options": {"temperature": 0.1, "num_predict": 512},
            "stream": False,
            "images": [BASE64],
        }
        check_labels(json.loads(ok("POST", "/api/generate", body)["response"])["labels"])

    def responses(self, prompt, **more):
        content = [{"type": "input_text", "text": prompt}]
        content.append({"type": "input_image", "image_url": DATA_URI, "detail": "low"})
        body = {
            "model": MODEL,
            "input": [{"role": "user", "content": content}],
            "max_output_tokens": 512,
            "temperature": 0.1,
            **more,
        }
        answer = ok("POST", "/v1/responses", body, key="any")
        assert answer["model"] and not answer["error"]
        return answer["output"][0]["content"][0]["text"]

    def test_a_caption_of_the_openai_engine(self, caption):
        assert self.responses("Create a caption for this image.") == caption

    def test_labels_of_the_openai_engine(self):
        schema = {"type": "json_schema", "name": "labels", "schema": LABELS, "strict": True}
        text = self.responses("Return labels for this image.", text={"format": schema})
        check_labels(json.loads(text)["labels"])


class TestHomeAssistant:
    """Its Ollama integration: the check of the connection, the coordinator, and an AI task."""

    def test_the_connection_is_checked(self):
        # A name that is listed is not pulled.
        assert LATEST in [model["model"] for model in ok("GET", "/api/tags")["models"]]
        assert exchange("HEAD", "/")[0] == 200

    def test_the_coordinator(self):
        for path in ["/api/tags", "/api/ps"]:
            assert ok("GET", path, url=KEYED, key=KEY)["models"]
            # It asks the user for a new key after these two.
            assert exchange("GET", path, url=KEYED, key="wrong")[0] in (401, 403)

    def task(self, **more):
        body = {
            "model": LATEST,
            "messages": [
                {"role": "system", "content": "You are a Home Assistant expert."},
                {"role": "user", "content": "What does the camera see?", "images": [BASE64]},
            ],
            "stream": True,
            "keep_alive": -1,
            "options": {"num_ctx": 8192},
            "think": False,
            **more,
        }
        status, _, text = exchange("POST", "/api/chat", body)
        assert status == 200, text
        return "".join(json.loads(line)["message"]["content"] for line in text.splitlines())

    def test_a_task_with_a_picture(self, caption):
        assert self.task() == caption

    def test_a_task_with_a_structure(self, caption):
        schema = {
            "type": "object",
            "properties": {"description": {"type": "string", "description": "What is seen"}},
            "required": ["description"],
        }
        assert json.loads(self.task(format=schema)) == {"description": caption}
