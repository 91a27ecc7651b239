"""The package websockets, for our own contract over a WebSocket."""

import json

import pytest
from conftest import BASE64, IMAGE, KEY, KEYED, SMALL, URL, becomes_idle
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

LONG = {"min_new_tokens": 100, "max_new_tokens": 100, "cache": "bypass"}


def address(url):
    return url.replace("http://", "ws://") + "/api/realtime"


def connected(url=URL, **options):
    return connect(address(url), open_timeout=10, max_size=None, **options)


def send(socket, id, binary=True, **parameters):
    head = json.dumps({"type": "caption", "id": id, **parameters})
    if binary:
        socket.send(head.encode() + b"\n" + IMAGE)
    else:
        socket.send(json.dumps({"type": "caption", "id": id, "image": BASE64, **parameters}))


def receive(socket):
    return json.loads(socket.recv(timeout=30))


def until(socket, kind, id=None):
    """Events up to the one of this kind."""
    events = []
    while not events or (events[-1]["type"], events[-1].get("id")) != (kind, id):
        events.append(receive(socket))
    return events


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_a_caption_arrives_word_by_word(binary, caption):
    with connected() as socket:
        send(socket, "one", binary, cache="bypass")
        events = until(socket, "done", "one")
    tokens = [event["text"] for event in events if event["type"] == "token"]
    assert len(tokens) > 3 and all(caption.startswith(text) for text in tokens)
    assert events[-1]["result"]["caption"] == caption


def test_several_requests_on_one_connection(caption):
    with connected() as socket:
        for number in range(6):
            send(socket, str(number), cache="bypass", stream=False)
        found = {}
        while len(found) < 6:
            event = receive(socket)
            if event["type"] == "done":
                found[event["id"]] = event["result"]["caption"]
    assert found == {str(number): caption for number in range(6)}


def test_a_request_is_cancelled():
    with connected() as socket:
        send(socket, "long", **LONG)
        until(socket, "token", "long")
        socket.send(json.dumps({"type": "cancel", "id": "long"}))
        until(socket, "cancelled", "long")
        becomes_idle(URL)
        send(socket, "long")
        until(socket, "done", "long")


def test_a_client_that_leaves_stops_the_work():
    with connected() as socket:
        send(socket, "long", **LONG)
        until(socket, "token", "long")
    becomes_idle(URL)


def test_pings_of_both_kinds():
    with connected() as socket:
        assert socket.ping().wait(10)
        socket.send(json.dumps({"type": "ping", "id": "here"}))
        assert receive(socket) == {"type": "pong", "id": "here"}


def test_errors_belong_to_their_request(caption):
    with connected() as socket:
        send(socket, "bad", num_beams=11)
        (event,) = until(socket, "error", "bad")
        assert event["error"]["code"] == "invalid_parameter"
        socket.send("{")
        assert receive(socket)["error"]["code"] == "malformed_request"
        send(socket, "good")
        assert until(socket, "done", "good")[-1]["result"]["caption"] == caption


def test_keys(caption):
    for headers in [{}, {"Authorization": "Bearer wrong"}]:
        with pytest.raises(InvalidStatus) as caught, connected(KEYED, additional_headers=headers):
            pass
        assert caught.value.response.status_code in (401, 403)
    with connected(KEYED, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
        send(socket, "one")
        assert until(socket, "done", "one")[-1]["result"]["caption"] == caption


def test_a_full_queue(full):
    with connected(SMALL) as socket:
        send(socket, "one")
        (event,) = until(socket, "error", "one")
        assert event["error"]["code"] == "queue_full" and event["retry_after"] >= 1
