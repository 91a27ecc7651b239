"""Ends, stops and starves the program, and checks that it loses nothing and says what is wrong."""

import asyncio
import collections
import contextlib
import csv
import glob
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import hub
import library

PHOTOS = 40
KILLS = 5
# A command that takes longer than this hangs. A hub is given up after several attempts.
PATIENCE = 600
REPO = "org/small"
MODEL = Path(__file__).parent.parent.parent / "models" / "cutline-small"


class Run:
    """A finished `cutline caption`."""

    def __init__(self, code, errors, seconds):
        self.code, self.errors, self.seconds = code, errors, seconds

    def explains(self, *words):
        """Whether it failed with a sentence that has these words, and without a panic."""
        return self.code in (1, 2) and "panicked" not in self.errors and all(word in self.errors for word in words)

    def __str__(self):
        return f"exit {self.code} after {self.seconds:.0f} s: {self.errors.strip()[-300:]}"


class Chaos:
    def __init__(self, load):
        self.load = load
        self.folder = load.folder / "chaos"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def album(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in self.load.paths[:PHOTOS]:
            shutil.copy(path, folder)
        return sorted(folder.glob("*.jpg"))

    def command(self, *words):
        first = [self.load.options.cutline, "caption", self.load.model[0], "--max-new-tokens=10"]
        return [str(word) for word in (*first, *words)]

    def caption(self, *words, before=(), **options):
        begin = time.monotonic()
        command = [*before, *self.command(*words)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, **options)
            code, errors = done.returncode, done.stderr
        except subprocess.TimeoutExpired:
            code, errors = "none", "it hangs"
        return Run(code, errors, time.monotonic() - begin)

    @property
    def patience(self):
        return PATIENCE

    def fill(self, disk):
        """Fills a disk that somebody writes to."""
        with contextlib.suppress(OSError), open(disk / "x.filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def say(self, what, faults, done):
        for fault in faults:
            print(f"  {what}: {fault}", flush=True)
        self.load.say(what, f"{len(faults)} faults", "0", not faults, done)

    @contextlib.contextmanager
    def disk(self, size):
        """A small disk of its own. Yields its folder and a function that changes its options."""
        folder = self.folder / "disk"
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
        try:
            yield folder, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
        finally:
            subprocess.run(["umount", folder], check=True)

    # SIGKILL

    def kill(self):
        """Ends the command again and again, each time a little later, and continues until all is done."""
        faults, kills = [], 0
        chance = random.Random(7)
        for name, sidecar in (("out.jsonl", "json"), ("out.csv", "txt"), ("out.json", "xmp")):
            folder = self.folder / f"kill-{sidecar}"
            photos = self.album(folder)
            out = folder / name
            words = [folder, "--output", out, "--sidecar", sidecar]
            before = []
            for _ in range(KILLS):
                process = subprocess.Popen(self.command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                more = chance.randrange(1, 8)
                end = time.monotonic() + PATIENCE
                while process.poll() is None and time.monotonic() < end:
                    if out.exists() and out.read_bytes().count(b"\n") > len(before) + more:
                        break
                    time.sleep(0.002)
                time.sleep(chance.uniform(0, 0.05))
                process.kill()
                kills += process.wait() == -signal.SIGKILL
                try:
                    after = rows(out)
                    faults += [f"{out.name} lost rows"] if after[: len(before)] != before else []
                    before = after
                except ValueError as error:
                    faults.append(f"{out.name} is half written: {error}")
                faults += [f"{path.name} is half written" for path in folder.glob(f"*.{sidecar}") if path != out and broken(path)]
            done = self.caption(*words)
            faults += [f"{name}: {done}"] if done.code else []
            expected = [str(path) for path in photos]
            found = [row["path"] for row in rows(out)]
            faults += [f"{name} has {len(found)} rows"] if found != expected else []
            names = {path.name for path in folder.iterdir()}
            whole = {out.name} | {path.name for path in photos} | {f"{path.name}.{sidecar}" for path in photos}
            faults += [f"unexpected or missing: {sorted(names ^ whole)}"] if names != whole else []
        if kills < KILLS:
            faults.append(f"only {kills} runs were killed")
        self.say("chaos-kill", faults, f"{kills} kills, 3 formats with 3 kinds of sidecars, each finished by the next run")

    # SIGSTOP

    async def stop(self):
        """Stops a server under load for less and for more than its request timeout."""
        faults, statuses = [], collections.Counter()
        async with self.load.server("--request-timeout=20") as server:
            for seconds, allowed in ((5, {200, 429}), (25, {200, 408, 429, 504})):
                loop = asyncio.create_task(self.load.closed_loop(server, 32, seconds + 5))
                await asyncio.sleep(2)
                server.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(seconds)
                server.process.send_signal(signal.SIGCONT)
                found, wrong, _ = await loop
                statuses += found
                faults += [f"stopped for {seconds} s: {status}" for status in set(found) - allowed]
                faults += [f"another photo's caption: {caption}" for caption in wrong]
                status, *_ = await server.caption(self.load.photos[0], self.load.parameters)
                faults += [] if status == 200 and await server.is_ready() else [f"afterwards {status}"]
        self.say("chaos-stop", faults, f"stopped for 5 and 25 s: {dict(statuses)}")

    # A full disk

    def full(self):
        """Rows, sidecars and a model that do not fit; then the disk gets larger and the same command finishes."""
        faults = []
        photos = self.album(self.folder / "full")
        for name in ("out.jsonl", "out.csv", "out.json", "out.txt"):
            with self.disk("4k" if name in ("out.csv", "out.txt") else "32k") as (disk, remount):
                out = disk / name
                words = [*photos, "--output", out]
                if name == "out.txt":
                    # All its rows would fit into one page.
                    filler(disk)
                done = self.caption(*words)
                faults += [] if done.explains(str(out), "free some space") else [f"{name}: {done}"]
                try:
                    rows(out)
                except ValueError as error:
                    faults.append(f"{name} is half written: {error}")
                remount("size=4m")
                done = self.caption(*words)
                faults += [f"{name} after space was freed: {done}"] if done.code else []
                faults += [f"{name} has {len(rows(out))} rows"] if len(rows(out)) != len(photos) else []
        for sidecar in ("json", "txt", "xmp"):
            with self.disk("2m") as (disk, remount):
                beside = self.album(disk)
                filler(disk, spare=16 << 10)
                words = [*beside, "--sidecar", sidecar]
                done = self.caption(*words)
                faults += [] if done.explains("cannot be written", "free space") else [f"sidecars {sidecar}: {done}"]
                faults += [f"{path.name} is half written" for path in disk.glob(f"*.{sidecar}") if broken(path)]
                remount("size=8m")
                done = self.caption(*words)
                faults += [f"sidecars {sidecar} after space was freed: {done}"] if done.code else []
                left = {path.suffix for path in disk.iterdir()} - {".jpg", f".{sidecar}", ".filler"}
                faults += [f"{left} remain beside the sidecars"] if left else []
                faults += [f"{sidecar} missing"] if len(list(disk.glob(f"*.{sidecar}"))) != len(beside) else []
        with self.disk("30m") as (disk, remount), hub.Hub(MODEL, REPO) as honest:
            words = [photos[0], "--model", REPO, "--hf-endpoint", honest.address, "--model-cache-dir", disk / "hub"]
            done = self.caption(*words)
            faults += [] if done.explains("cannot be written") else [f"model: {done}"]
            remount("size=200m")
            done = self.caption(*words)
            faults += [f"model after space was freed: {done}"] if done.code else []
        self.say("chaos-full", faults, "4 result files, 3 kinds of sidecars, a model's cache")

    # A read-only disk

    def ro(self):
        """Rows, sidecars and models on a disk that can only be read."""
        faults = []
        photos = self.album(self.folder / "readonly")
        with self.disk("200m") as (disk, remount), hub.Hub(MODEL, REPO) as honest:
            model = ["--model", REPO, "--hf-endpoint", honest.address, "--model-cache-dir"]
            beside = self.album(disk / "photos")
            done = self.caption(photos[0], *model, disk / "whole")
            faults += [f"fetching a model: {done}"] if done.code else []
            remount("ro")
            done = self.caption(photos[0], *model, disk / "whole")
            faults += [f"a whole model: {done}"] if done.code else []
            done = self.caption(photos[0], *model, disk / "empty")
            faults += [] if done.explains("cannot be written") else [f"an empty cache: {done}"]
            done = self.caption(*photos, "--output", disk / "out.jsonl")
            faults += [] if done.explains("out.jsonl", "cannot be written") else [f"output: {done}"]
            for sidecar in ("json", "txt", "xmp"):
                done = self.caption(*beside, "--sidecar", sidecar)
                faults += [] if done.explains("cannot be written") else [f"sidecars {sidecar}: {done}"]
        self.say("chaos-ro", faults, "a result file, 3 kinds of sidecars, a whole and an empty model's cache")

    # File descriptors

    async def fds(self):
        """A server with 64 descriptors and 200 silent connections, and a folder with 32 descriptors."""
        faults = []
        async with self.load.server("--request-timeout=120", before=["prlimit", "--nofile=64:64"]) as server:
            rested = server.descriptors()
            silent = [asyncio.open_connection(*server.address) for _ in range(200)]
            silent = [writer for _, writer in await asyncio.gather(*silent)]
            begin = time.monotonic()
            ask = [server.caption(photo, self.load.parameters) for photo in self.load.photos[:10]]
            answers = await asyncio.gather(*ask, return_exceptions=True)
            took = time.monotonic() - begin
            statuses = [answer if isinstance(answer, Exception) else answer[0] for answer in answers]
            faults += [f"{set(map(str, statuses))} while descriptors are exhausted"] if set(statuses) - {200, 429} else []
            # Silent connections are closed after a minute. Others must not wait for that.
            faults += [f"10 photos took {took:.0f} s"] if took > 50 else []
            for writer in silent:
                writer.close()
            await server.reconnect()
            status, *_ = await server.caption(self.load.photos[0], self.load.parameters)
            faults += [f"afterwards {status}"] if status != 200 else []
            await server.reconnect()
            await asyncio.sleep(1)
            faults += [f"{server.descriptors()} descriptors, before {rested}"] if server.descriptors() > rested else []
        photos = self.album(self.folder / "descriptors")
        done = self.caption(*photos, "--output", self.folder / "descriptors.jsonl", before=["prlimit", "--nofile=32:32"])
        faults += [f"folder: {done}"] if done.code else []
        self.say("chaos-fds", faults, f"200 silent connections with 64 descriptors: 10 photos took {took:.0f} s")

    # Clock jumps

    async def clock(self):
        """Sets the clock a day back and ten years ahead, under a server and between two runs over a folder."""
        library = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
        if not library:
            self.load.say("chaos-clock", "libfaketime is missing", "apt-get install faketime", False)
            return
        file = self.folder / "clock"
        jumps = ["+0", "-1d", "+3650d", "-3650d", "+0"]
        fake = {
            "LD_PRELOAD": library[0],
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        file.write_text("+0")
        faults, statuses = [], collections.Counter()
        async with self.load.server(env={**os.environ, **fake}) as server:
            photo = self.load.photos[0]
            await server.caption(photo, self.load.parameters)
            begin = time.monotonic()
            for jump in jumps:
                file.write_text(jump)
                found, wrong, _ = await self.load.closed_loop(server, 16, 3)
                statuses += found
                faults += [f"{jump}: {status}" for status in set(found) - {200, 429}]
                faults += [f"{jump}: another photo's caption: {caption}" for caption in wrong]
                status, body, *_ = await server.caption(photo, self.load.parameters)
                faults += [f"{jump}: {status}, {body.get('cache')}"] if body.get("cache") != "hit" else []
                uptime = (await server.health())["uptime_ms"] / 1e3
                bound = time.monotonic() - begin + 60
                faults += [f"{jump}: up for {uptime} s"] if not 0 <= uptime <= bound else []
        photos = self.album(self.folder / "clock-folder")
        os.utime(photos[0], (2**32, 2**32))
        os.utime(photos[1], (-1, -1))
        words = [*photos, "--output", self.folder / "clock.jsonl", "--sidecar", "json"]
        for jump in jumps:
            file.write_text(jump)
            done = self.caption(*words, env={**os.environ, **fake})
            known = f"{len(photos)} there already"
            faults += [f"folder, {jump}: {done}"] if done.code or (jump != jumps[0] and known not in done.errors) else []
            jumps[0] = None
        self.say("chaos-clock", faults, f"-1 day, +10 years, -10 years: {dict(statuses)}")

    # The hub

    def hub(self):
        """A hub that hangs or lies. Each time the command must end and say so; with an honest hub, the same cache
        must then work."""
        faults, slowest = [], 0
        photo = self.load.paths[0]
        for trouble in hub.TROUBLES:
            cache = self.folder / f"hub-{trouble}"
            words = [photo, "--model", REPO, "--model-cache-dir", cache, "--hf-endpoint"]
            with self.disk("300m") as (disk, _):
                words[4] = disk
                with hub.Hub(MODEL, REPO, trouble) as liar:
                    done = self.caption(*words, liar.address)
                slowest = max(slowest, done.seconds)
                print(f"  hub, {trouble}: {done}", flush=True)
                faults += [] if done.explains() and done.errors.count("\n") <= 2 else [f"{trouble}: {done}"]
                outside = [path for path in disk.iterdir() if not path.name.startswith(("models--", ".locks"))]
                faults += [f"{trouble}: wrote {outside}"] if outside else []
                with hub.Hub(MODEL, REPO) as honest:
                    done = self.caption(*words, honest.address)
                faults += [f"{trouble}, then an honest hub: {done}"] if done.code else []
        self.say("chaos-hub", faults, f"{len(hub.TROUBLES)} troubles, the slowest took {slowest:.0f} s")


def filler(disk, spare=0):
    """Fills a disk but for `spare` bytes."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "x.filler").write_bytes(bytes(max(free - spare, 0)))


def rows(path):
    """The rows of a result file. Raises ValueError if it is not whole."""
    if not path.exists():
        return []
    text = path.read_text()
    if path.suffix == ".json":
        return json.loads(text) if text else []
    if text and not text.endswith("\n"):
        raise ValueError("the last line has no end")
    if path.suffix == ".csv":
        found = list(csv.DictReader(text.splitlines(), strict=True))
        if any(None in row or None in row.values() for row in found):
            raise ValueError("a row has too few or too many fields")
        return found
    lines = text.splitlines()
    return [line.split("\t") for line in lines] if path.suffix == ".txt" else [json.loads(line) for line in lines]


def broken(sidecar):
    """Whether a sidecar is not whole."""
    text = sidecar.read_text()
    if sidecar.suffix == ".json":
        try:
            return not json.loads(text)["caption"]
        except ValueError:
            return True
    return not text.endswith("\n") if sidecar.suffix == ".txt" else "</x:xmpmeta>" not in text


# Of libraries.
LIBRARY = {"library-kill": library.kill, "library-server": library.server, "library-disk": library.disk}
PARTS = ["kill", "stop", "full", "ro", "hub", "fds", "clock", *LIBRARY]
# They mount a small disk.
ROOT = {"full", "ro", "hub", "library-disk"}


async def run(load, parts):
    chaos = Chaos(load)
    for part in parts:
        if part in ROOT and os.geteuid() != 0:
            load.say(f"chaos-{part}", "mounts a small disk", "run as root", False)
            continue
        done = LIBRARY[part](chaos) if part in LIBRARY else getattr(chaos, part)()
        if asyncio.iscoroutine(done):
            await done
