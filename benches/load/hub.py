"""A local server that speaks the protocol of the Hugging Face hub, and can hang or lie."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "model.safetensors"

# What it does instead of answering well.
TROUBLES = {
    "silent": "accepts connections and never answers",
    "stalls": "stops in the middle of the weights, and sends nothing more when asked for the rest",
    "drips": "sends the weights at a byte per second",
    "breaks": "breaks off every answer after one byte more",
    "fails": "answers 500",
    "page": "answers every request with a web page and 200",
    "loop": "redirects to itself",
    "short": "announces more bytes than the weights have",
    "endless": "never ends the weights",
    "garbage": "sends other bytes of the announced length as weights",
    "config": "sends a configuration that is no JSON",
    "deep": "sends a configuration of 100,000 nested arrays",
    "escape": "names a commit that leaves the folder",
    "gigantic": "announces weights of 8 EiB",
}


class Hub:
    """A running hub with one model; with `trouble`, one that misbehaves."""

    def __init__(self, folder, repo, trouble=None):
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.stop = threading.Event()
        handler = type("Handler", (Handler,), {"files": files, "repo": repo, "trouble": trouble, "stop": self.stop})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        # A client may leave at any time.
        self.server.handle_error = lambda *_: None
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, with_body):
        trouble = self.trouble
        if trouble == "silent":
            self.stop.wait(PATIENCE)
            self.close_connection = True
        elif trouble == "fails":
            self.reply(500, b"", {}, with_body)
        elif trouble == "page":
            self.reply(200, b"<html><body>Please sign in</body></html>", {"content-type": "text/html"}, with_body)
        elif trouble == "loop":
            self.reply(302, b"", {"location": self.path}, with_body)
        else:
            self.file(with_body)

    def file(self, with_body):
        prefix, _, name = self.path.rpartition("/")
        body = self.files.get(name)
        if not prefix.startswith(f"/{self.repo}/resolve/") or body is None:
            self.reply(404, b"", {"x-error-code": "EntryNotFound"}, with_body)
            return
        trouble = self.trouble
        weights = name == WEIGHTS
        # As the hub does for large files. It stays when the content is another one.
        etag = hashlib.sha256(body).hexdigest()
        headers = {"etag": f'"{etag}"', "x-repo-commit": "../../../../evil" if trouble == "escape" else COMMIT}
        if name == "config.json" and trouble in ("config", "deep"):
            body = b"{" if trouble == "config" else b"[" * 100_000
        if weights and trouble == "garbage":
            body = bytes(len(body))
        start = self.range()
        status, part = (206, body[start:]) if start is not None else (200, body)
        if start is not None:
            headers["content-range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if weights and trouble in WRITERS:
            self.misbehave(status, part, headers, with_body)
        else:
            self.reply(status, part, headers, with_body)

    def misbehave(self, status, part, headers, with_body):
        """Announces something, and then sends something else."""
        length = {"short": len(part) + 1000, "gigantic": 1 << 63, "endless": None}.get(self.trouble, len(part))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("content-length", str(length))
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        if with_body:
            try:
                WRITERS[self.trouble](self, part)
            except OSError:
                pass

    def write(self, part):
        self.wfile.write(part)
        self.wfile.flush()

    def stall(self, part):
        if not self.headers.get("range"):
            self.write(part[: len(part) // 2])
        self.stop.wait(PATIENCE)

    def drip(self, part):
        for byte in part:
            if self.stop.wait(1):
                return
            self.write(bytes([byte]))

    def end_early(self, part):
        self.write(part[:1])

    def never_end(self, part):
        while not self.stop.is_set():
            self.write(part)

    def range(self):
        asked = self.headers.get("range", "")
        return int(asked.removeprefix("bytes=").split("-")[0]) if asked else None

    def reply(self, status, body, headers, with_body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if with_body:
            self.write(body)


PATIENCE = 600
WRITERS = {
    "stalls": Handler.stall,
    "drips": Handler.drip,
    "breaks": Handler.end_early,
    "short": Handler.write,
    "endless": Handler.never_end,
    "gigantic": Handler.write,
}
