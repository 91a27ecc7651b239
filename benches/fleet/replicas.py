"""Real servers behind HAProxy, as deploy/proxy/haproxy.cfg has them, with other ports."""

import http.client, os, pathlib, random, re, signal, subprocess, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PHOTOS = [path.read_bytes() for path in sorted(ROOT.glob("assets/*.jpg"))]
BYPASS = "/caption/generate?cache=bypass"


def post(port, photo, path=BYPASS, timeout=120):
    """Status and body; a broken connection is the status 0."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST", path, photo, {"content-type": "image/jpeg"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError as error:
        return 0, repr(error).encode()
    except http.client.HTTPException as error:
        return 0, repr(error).encode()
    finally:
        connection.close()


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


class Fleet:
    """Servers by name. `cores` gives each of them one core."""

    def __init__(self, binary, names, cores=None, environment=None, launcher=()):
        self.binary, self.names, self.cores = binary, names, cores
        self.environment, self.launcher = environment or {}, list(launcher)
        base = random.randrange(20000, 32000)
        self.port = base
        self.ports = {name: base + 1 + number for number, name in enumerate(names)}
        self.servers, self.proxy = {}, None

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        text = (ROOT / "deploy/proxy/haproxy.cfg").read_text()
        text = text.replace("127.0.0.1:8080", f"127.0.0.1:{self.port}")
        text = re.sub(r"\n    server .*", "", text)
        text += "".join(f"    server {name} 127.0.0.1:{port}\n" for name, port in self.ports.items())
        config = pathlib.Path(self.folder.name) / "haproxy.cfg"
        config.write_text(text)
        for name in self.names:
            self.start(name)
        for name in self.names:
            self.wait(name)
        self.proxy = subprocess.Popen(
            [ROOT / ".ci/tool", "haproxy", "-f", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.until(lambda: get(self.port, "/health/ready") == 200, "HAProxy has no server")
        return self

    def __exit__(self, *_):
        for process in [*self.servers.values(), self.proxy]:
            if process and process.poll() is None:
                # A stopped one as well.
                process.kill()
            if process:
                process.wait()
        self.folder.cleanup()

    def start(self, name):
        command = [*self.launcher, self.binary, "serve", "--port", str(self.ports[name])]
        if self.cores:
            command = ["taskset", "-c", str(self.cores[self.names.index(name)]), *command]
        log = open(pathlib.Path(self.folder.name) / f"{name}.log", "ab")
        self.servers[name] = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=self.folder.name, env={**os.environ, **self.environment}
        )

    def log(self, name):
        return (pathlib.Path(self.folder.name) / f"{name}.log").read_text()

    def signal(self, name, number):
        self.servers[name].send_signal(number)

    def stop(self, name):
        """SIGTERM; returns the exit status."""
        self.signal(name, signal.SIGTERM)
        return self.servers[name].wait(60)

    def kill(self, name):
        self.signal(name, signal.SIGKILL)
        self.servers[name].wait()

    def wait(self, name):
        def ready():
            assert self.servers[name].poll() is None, self.log(name)[-2000:]
            return get(self.ports[name], "/health/ready") == 200

        self.until(ready, f"{name} is not ready")

    @staticmethod
    def until(holds, what, seconds=90):
        begin = time.monotonic()
        while not holds():
            assert time.monotonic() - begin < seconds, what
            time.sleep(0.05)
