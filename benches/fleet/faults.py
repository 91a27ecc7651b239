"""Faults of a fleet: faults.py BINARY [SCENARIO..]

Three servers behind HAProxy get photos from six clients while one of them is killed, stopped, slowed down,
or restarted, or its clock jumps. No request may be lost but those that were in a server that was killed.
With a binary that has the feature redis, and redis-server, the servers also share captions, and Redis is
killed and stopped.
"""

import collections, contextlib, json, pathlib, random, shutil, signal, subprocess, sys, tempfile, threading, time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from replicas import BYPASS, PHOTOS, ROOT, Fleet, get, post

NAMES = ["one", "two", "three"]
CLIENTS = 6


class Clients:
    """Send photos until they are told to stop; remember what went wrong and when."""

    def __init__(self, port, path, captions):
        self.port, self.path, self.captions = port, path, captions
        self.stopped = threading.Event()
        self.outcomes, self.bad, self.slowest = collections.Counter(), [], 0.0
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def run(self, number):
        while not self.stopped.is_set():
            number += 1
            photo = number % len(PHOTOS)
            begin = time.monotonic()
            status, body = post(self.port, PHOTOS[photo], self.path)
            took = time.monotonic() - begin
            if status == 200:
                caption = json.loads(body)["caption"]
                if self.captions.setdefault(photo, caption) != caption:
                    status = "another caption"
            with self.lock:
                self.outcomes[status] += 1
                self.slowest = max(self.slowest, took)
                if status not in (200, 429):
                    self.bad.append((time.strftime("%X"), status, body[:200]))
            if status == 429:
                time.sleep(1)


def restart(fleet):
    for name in NAMES:
        status = fleet.stop(name)
        assert status == 0, f"{name} ended with {status}"
        fleet.start(name)
        fleet.wait(name)
        time.sleep(2)
    return 0


def kill(fleet):
    """A server that is killed loses what it had: no more than all clients had under way."""
    for name in NAMES[:2]:
        time.sleep(2)
        fleet.kill(name)
        time.sleep(3)
        fleet.start(name)
        fleet.wait(name)
        time.sleep(2)
    return 2 * CLIENTS


def stop(fleet):
    """A server that hangs for a while: its requests wait, others go elsewhere."""
    fleet.signal("one", signal.SIGSTOP)
    time.sleep(8)
    fleet.signal("one", signal.SIGCONT)
    time.sleep(3)
    return 0


def slow(fleet):
    """One server gets a tenth of the time: stopped for 180 ms of every 200."""
    end = time.monotonic() + 12
    while time.monotonic() < end:
        fleet.signal("one", signal.SIGSTOP)
        time.sleep(0.18)
        fleet.signal("one", signal.SIGCONT)
        time.sleep(0.02)
    return 0


def scenario(binary, name, act, environment=None, path=BYPASS, launcher=()):
    captions = {}
    with Fleet(binary, NAMES, environment=environment, launcher=launcher) as fleet:
        begin = time.monotonic()
        with Clients(fleet.port, path, captions) as clients:
            time.sleep(2)
            allowed = act(fleet)
        took = time.monotonic() - begin
        Fleet.until(lambda: all(get(port, "/health/ready") == 200 for port in fleet.ports.values()), "one is not ready")
    answered, lost = clients.outcomes[200], len(clients.bad)
    ok = lost <= allowed and answered >= 10
    print(f"{'PASS' if ok else 'FAIL'} {name}: {took:.0f} s, {answered} captions, {clients.outcomes[429]} × 429, "
          f"{lost} lost (at most {allowed}), slowest {clients.slowest:.1f} s", flush=True)
    for one in clients.bad[: 5 if not ok else 0]:
        print("    ", *one)
    return ok


def jump(fleet):
    """The clocks of the servers jump by a day and back, by a file that libfaketime reads."""
    for offset in ["+1d", "-1d", "+0"]:
        (pathlib.Path(fleet.environment["FAKETIME_TIMESTAMP_FILE"])).write_text(offset)
        time.sleep(3)
    tomorrow = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86400))
    assert tomorrow in fleet.log("one"), "the clock did not jump"
    return 0


@contextlib.contextmanager
def redis(folder):
    port = random.randrange(20000, 32000)
    command = ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", folder]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield port, process
    finally:
        process.kill()
        process.wait()


def shared(binary, folder):
    with redis(folder) as (port, process):
        def act(_):
            time.sleep(3)
            process.send_signal(signal.SIGSTOP)
            time.sleep(4)
            process.send_signal(signal.SIGCONT)
            time.sleep(3)
            process.kill()
            time.sleep(3)
            return 0

        environment = {"CACHE_URL": f"redis://127.0.0.1:{port}", "CACHE_SECRET": "a secret of the bench", "CACHE_MAX_BYTES": "0"}
        return scenario(binary, "redis stopped, then killed", act, environment, path="/caption/generate")


def main(binary, *wanted):
    binary = str(pathlib.Path(binary).resolve())
    if subprocess.run([ROOT / ".ci/tool", "haproxy", "-v"], stdout=subprocess.DEVNULL).returncode:
        sys.exit(77)
    results = []
    scenarios = {"restart": restart, "kill": kill, "stop": stop, "slow": slow}
    for name, act in scenarios.items():
        if not wanted or name in wanted:
            results.append(scenario(binary, name, act))
    with tempfile.TemporaryDirectory() as folder:
        if not wanted or "clock" in wanted:
            library = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
            if library:
                file = pathlib.Path(folder) / "time"
                file.write_text("+0")
                environment = {
                    "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1",
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                }
                results.append(scenario(binary, "clock", jump, environment))
            else:
                print("skipped clock: libfaketime is not installed (Debian's package libfaketime)")
        if not wanted or "redis" in wanted:
            help_text = subprocess.run([binary, "serve"], env={"CACHE_URL": "redis://x", "PORT": "0"}, capture_output=True, text=True, timeout=20)
            if "without the feature redis" in help_text.stderr + help_text.stdout:
                print("skipped redis: the binary has no feature redis")
            elif not shutil.which("redis-server"):
                print("skipped redis: redis-server is not installed")
            else:
                results.append(shared(binary, folder))
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
