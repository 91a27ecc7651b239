"""The native contract: sends recorded requests and compares the answers with the recorded ones.

    python native.py compare BINARY
    python native.py record BINARY

Answers are compared byte for byte, except for ids, times, memory, the number of threads, and the last digits of confidences,
which change with the order of sums. `record` writes native.json again; do that only for a change of the contract that users
were told about.
"""

import base64
import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
RECORDED = HERE / "native.json"
PHOTOS = HERE.parent.parent / "assets"
KEY = "sesame-of-the-native-contract"

# These kernels give the same bits on every machine.
SETTINGS = {
    "CPU_KERNELS": "portable",
    "PRECISION": "f32",
    "MAX_IMAGE_SIZE": "1048576",
    "SHUTDOWN_DELAY": "0",
    "LOG_LEVEL": "error",
}
BOUNDARY = "a-boundary-that-no-photo-contains"
# Headers that differ from answer to answer.
VOLATILE = {"date", "x-request-id", "server-timing", "content-length"}
MASKS = [
    (re.compile(r'("request_id":)"[^"]*"'), r'\1"…"'),
    (re.compile(r'("(?:\w+_ms|images_per_second|memory_bytes|threads)":)[\d.e+-]+'), r"\1…"),
]
CONFIDENCE = re.compile(r'(?<="confidence":)[\d.e+-]+')
MEMORY = re.compile(r'"memory":\{[^}]*\}')


def photo(name):
    return (PHOTOS / name).read_bytes()


def text(name):
    return base64.b64encode(photo(name)).decode()


def form(*parts):
    """A multipart body; a part is a name with a text, or with the name of a photo."""
    lines = []
    for name, value in parts:
        head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"'
        if value.endswith((".jpg", ".md")):
            content = photo(value)
            head += f'; filename="{value}"\r\ncontent-type: application/octet-stream'
        else:
            content = value.encode()
        lines.append(head.encode() + b"\r\n\r\n" + content + b"\r\n")
    body = b"".join(lines) + f"--{BOUNDARY}--\r\n".encode()
    return {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}, body


def raw(name):
    return {"content-type": "image/jpeg"}, photo(name)


def as_json(**fields):
    return {"content-type": "application/json"}, json.dumps(fields).encode()


def nothing(**headers):
    return {name.replace("_", "-"): value for name, value in headers.items()}, None


GENERATE = "/caption/generate"
# What the request shows, whether the server has keys, method, path, headers and body. The order matters,
# because the caches fill.
REQUESTS = [
    ("a form", False, "POST", GENERATE, form(("image", "cat.jpg"))),
    ("the same photo as raw bytes: a hit", False, "POST", GENERATE, raw("cat.jpg")),
    ("JSON and beams", False, "POST", GENERATE, as_json(image=text("cat.jpg"), num_beams=3, num_captions=3)),
    ("a data URI and a prompt", False, "POST", GENERATE,
     as_json(image=f"data:image/jpeg;base64,{text('cat.jpg')}", prompt="a photo of", colors=False)),
    ("alternative text", False, "POST", f"{GENERATE}?style=alt_text&max_chars=40", raw("rocket.jpg")),
    ("samples with a seed", False, "POST", GENERATE,
     form(("image", "cat.jpg"), ("do_sample", "true"), ("num_captions", "2"), ("seed", "7"), ("temperature", "1.5"))),
    ("a stream", False, "POST", GENERATE, form(("image", "coffee.jpg"), ("stream", "true"))),
    ("a stream from the cache", False, "POST", f"{GENERATE}?stream=true", raw("coffee.jpg")),
    ("a cache that is bypassed", False, "POST", f"{GENERATE}?cache=bypass&max_new_tokens=4", raw("cat.jpg")),
    ("no token too many", False, "POST", f"{GENERATE}?max_new_tokens=9&min_new_tokens=9&repetition_penalty=1.5",
     raw("cat.jpg")),
    ("a batch", False, "POST", "/caption/batch",
     form(("images", "cat.jpg"), ("images", "README.md"), ("images", "rocket.jpg"))),
    ("a batch in JSON", False, "POST", "/caption/batch", as_json(images=[text("cat.jpg")], num_beams=3)),
    ("a batch in lines", False, "POST", "/caption/batch",
     ({"accept": "application/x-ndjson", **form(("images", "cat.jpg"))[0]}, form(("images", "cat.jpg"))[1])),
    ("an image without a caption", False, "POST", "/image/process", raw("astronaut.jpg")),
    ("the model", False, "GET", "/model/info", nothing()),
    ("the health", False, "GET", "/health", nothing()),
    ("alive", False, "GET", "/health/live", nothing()),
    ("ready", False, "GET", "/health/ready", nothing()),
    ("no image", False, "POST", GENERATE, form(("num_beams", "3"))),
    ("not an image", False, "POST", GENERATE, form(("image", "README.md"))),
    ("a broken image", False, "POST", GENERATE, ({"content-type": "image/jpeg"}, photo("cat.jpg")[:5000])),
    ("an image that is too large", False, "POST", GENERATE, ({"content-type": "image/jpeg"}, bytes(1_100_000))),
    ("broken JSON", False, "POST", GENERATE, ({"content-type": "application/json"}, b'{"image": ')),
    ("broken base64", False, "POST", GENERATE, as_json(image="????")),
    ("JSON without an image", False, "POST", GENERATE, as_json(prompt="a")),
    ("another type", False, "POST", GENERATE, ({"content-type": "text/plain"}, b"a photo")),
    ("an unknown parameter", False, "POST", f"{GENERATE}?beams=3", raw("cat.jpg")),
    ("a parameter out of range", False, "POST", f"{GENERATE}?num_beams=11", raw("cat.jpg")),
    ("a contradiction", False, "POST", f"{GENERATE}?num_captions=2", raw("cat.jpg")),
    ("an empty batch", False, "POST", "/caption/batch", as_json(images=[])),
    ("another method", False, "GET", GENERATE, nothing()),
    ("another address", False, "GET", "/nowhere", nothing()),
    ("another address, posted to", False, "POST", "/caption/nowhere", raw("cat.jpg")),
    ("no key", True, "POST", GENERATE, raw("cat.jpg")),
    ("a wrong key", True, "POST", GENERATE, ({"authorization": "Bearer wrong", **raw("cat.jpg")[0]}, raw("cat.jpg")[1])),
    ("no key for the model", True, "GET", "/model/info", nothing()),
    ("the right key", True, "GET", "/model/info", nothing(x_api_key=KEY)),
]


def mask(body):
    text = body.decode()
    for pattern, replacement in MASKS:
        text = pattern.sub(replacement, text)
    text = CONFIDENCE.sub(lambda number: f"{float(number[0]):.5g}", text)
    return MEMORY.sub(lambda memory: re.sub(r":\d+", ":…", memory[0]), text)


@contextlib.contextmanager
def server(binary, **settings):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], **SETTINGS, **settings}
    process = subprocess.Popen([binary, "serve", "--port", str(port)], env=environment)
    try:
        end = time.monotonic() + 60
        while exchange(port, "GET", "/health/ready", ({}, None))[0] != 200:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("the server did not start")
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def exchange(port, method, path, request):
    """Status, headers and body of the answer; status 0 if nobody listens."""
    headers, body = request
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    except ConnectionRefusedError:
        return 0, [], b""
    finally:
        connection.close()


def answers(binary):
    """What the server answers to each request, without what differs from time to time."""
    found = {}
    with server(binary) as plain, server(binary, API_KEYS=KEY) as keyed:
        for name, with_keys, method, path, request in REQUESTS:
            status, headers, body = exchange(keyed if with_keys else plain, method, path, request)
            kept = sorted(f"{key}: {value}" for key, value in headers if key not in VOLATILE)
            found[name] = {
                "request": f"{method} {path}",
                "status": status,
                "headers": kept,
                "body": mask(body),
            }
        listed = json.loads(exchange(plain, "GET", "/", ({"accept": "application/json"}, None))[2])
        found["endpoints"] = sorted(f"{one['method']} {one['path']}" for one in listed["endpoints"])
    return found


def differences(old, new):
    """One line for each answer that changed. There may be more endpoints than before."""
    gone = set(old.pop("endpoints")) - set(new.pop("endpoints"))
    lines = [f"{endpoint} is no longer listed at GET /" for endpoint in sorted(gone)]
    for name, before in old.items():
        for part, value in before.items():
            if new[name][part] != value:
                lines.append(f"{name}, {part}:\n  before: {value}\n  now:    {new[name][part]}")
    return lines


def main():
    command, binary = sys.argv[1:]
    found = answers(binary)
    if command == "record":
        RECORDED.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(f"recorded {len(REQUESTS)} answers")
        return
    lines = differences(json.loads(RECORDED.read_text()), found)
    print("\n".join(lines) or f"{len(REQUESTS)} answers are the same")
    raise SystemExit(bool(lines))


if __name__ == "__main__":
    main()
