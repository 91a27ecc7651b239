"""What the tests of the clients share. .ci/clients starts the servers and sets the variables."""

import base64
import json
import os
import socket
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

PHOTOS = Path(__file__).parent.parent.parent / "assets"
PHOTO = PHOTOS / "cat.jpg"
IMAGE = PHOTO.read_bytes()
BASE64 = base64.b64encode(IMAGE).decode()
DATA_URI = f"data:image/jpeg;base64,{BASE64}"
MODEL = os.environ.get("CUTLINE_MODEL", "cutline-small")

# Without keys; with keys, and fetching images; with memory for a few small images and room for one image in the queue.
URL = os.environ["CUTLINE_URL"]
KEYED = os.environ["CUTLINE_KEYED_URL"]
SMALL = os.environ["CUTLINE_SMALL_URL"]
KEY = os.environ["CUTLINE_KEY"]

# Photos for the server that fetches images.
PHOTO_URL = os.environ["CUTLINE_PHOTOS"] + "/cat.jpg"

# MAX_IMAGE_SIZE and MAX_INFLIGHT_BYTES of the small server.
SMALL_IMAGE = 262_144
SMALL_MEMORY = 5 * SMALL_IMAGE

SECONDS = 10


def get(url, path):
    with urllib.request.urlopen(url + path, timeout=SECONDS) as answer:
        return json.load(answer)


def native(path=PHOTO, **parameters):
    """The caption that the native endpoint gives, which all contracts must give."""
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    request = urllib.request.Request(
        f"{URL}/caption/generate?{query}", data=path.read_bytes(), headers={"content-type": "image/jpeg"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)


def held(url):
    """Images that the server works on, has in its queue, or is receiving."""
    health = get(url, "/health")
    queue = health["queue"]
    return health["in_flight"] + queue["depth"] + queue["reserved"]


def becomes_idle(url):
    """Waits until the server holds nothing, and fails if it does not let go."""
    end = time.monotonic() + SECONDS
    while held(url):
        assert time.monotonic() < end, get(url, "/health")
        time.sleep(0.02)


# A caption that takes long: so many tokens, and nothing from the caches. More beams take longer, and write
# nothing before the end.
SLOW = {"min_new_tokens": 128, "max_new_tokens": 128, "cache": "bypass"}
SLOWER = {**SLOW, "num_beams": 10}

# Seconds after which an impatient client gives up, long before such a caption.
PATIENCE = 0.1


def written(url):
    """Tokens in all captions that the server has finished."""
    with urllib.request.urlopen(url + "/metrics", timeout=SECONDS) as answer:
        lines = answer.read().decode().splitlines()
    return next(line for line in lines if line.startswith("cutline_generated_tokens_total"))


@contextmanager
def gives_up(url=URL):
    """A client gives up here: the server drops its work, and finishes no caption."""
    before = written(url)
    yield
    becomes_idle(url)
    assert written(url) == before, "the work went on"


class Full:
    """Keeps the small server full: uploads that were announced and do not arrive hold all its memory."""

    def __enter__(self):
        host, port = SMALL.removeprefix("http://").split(":")
        head = (
            "POST /caption/generate HTTP/1.1\r\nhost: small\r\ncontent-type: image/jpeg\r\n"
            f"content-length: {SMALL_IMAGE}\r\n\r\n"
        )
        self.uploads = []
        end = time.monotonic() + SECONDS
        # The question whether it is full takes memory as well, so more uploads may be needed than fit.
        while len(self.uploads) < SMALL_MEMORY // SMALL_IMAGE or not self.refuses():
            assert time.monotonic() < end, "the server still accepts images"
            upload = socket.create_connection((host, int(port)), timeout=SECONDS)
            upload.sendall(head.encode() + b"\xff")
            self.uploads.append(upload)
        return self

    @staticmethod
    def refuses():
        request = urllib.request.Request(
            f"{SMALL}/image/process", data=IMAGE, headers={"content-type": "image/jpeg"}
        )
        try:
            urllib.request.urlopen(request, timeout=SECONDS).close()
        except urllib.error.HTTPError as error:
            assert error.code == 429, error
            return True
        return False

    def release(self):
        for upload in self.uploads:
            upload.close()
        self.uploads = []

    def __exit__(self, *_):
        self.release()


@pytest.fixture
def full():
    with Full() as server:
        yield server
    becomes_idle(SMALL)


@pytest.fixture(scope="session")
def caption():
    return native()["caption"]


@pytest.fixture(scope="session")
def alt_text():
    return native(style="alt_text")["caption"]
