"""Ends and starves programs that write to a library, and checks that it loses nothing."""

import asyncio
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import aiohttp

KILLS = 6
# Rows of an import, which takes seconds.
ROWS = 20_000
PHOTOS = 120
WRITERS = 4


class Library:
    """A library of a check, and the command line."""

    def __init__(self, chaos, name):
        self.chaos = chaos
        self.cutline = chaos.load.options.cutline
        self.folder = chaos.folder / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.file = self.folder / "photos.db"

    def run(self, *words):
        """`cutline library`: its status, lines and errors."""
        first, *rest = map(str, words)
        command = [self.cutline, "library", first, f"--library=sqlite:{self.file}", *rest]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        return done.returncode, done.stdout.splitlines(), done.stderr

    def count(self):
        """Photos in the library, as far as it can be read now."""
        try:
            with sqlite3.connect(f"file:{self.file}?mode=ro", uri=True) as database:
                return database.execute("SELECT count(*) FROM assets").fetchone()[0]
        except sqlite3.Error:
            return 0

    def damage(self):
        """What `cutline library check` and SQLite itself find."""
        code, _, errors = self.run("check")
        faults = [f"check: exit {code}, {errors.strip()[-200:]}"] if code else []
        with sqlite3.connect(f"file:{self.file}?mode=ro", uri=True) as database:
            halves = database.execute(
                "SELECT count(*) FROM current c LEFT JOIN revisions r ON r.id = c.revision_id "
                "WHERE c.revision_id IS NOT NULL AND r.id IS NULL"
            ).fetchone()[0]
        return faults + ([f"{halves} half revisions"] if halves else [])

    def assets(self):
        """Every photo, by its name, or by its hash if it has none."""
        code, lines, errors = self.run("export")
        if code:
            raise SystemExit(f"the library cannot be exported: {errors}")
        assets = [json.loads(line) for line in lines]
        return {Path(asset["names"][0]["name"]).name if asset["names"] else asset["hash"]: asset for asset in assets}


def caption(asset):
    return next((text for text in asset["texts"] if text["field"] == "caption"), None)


class Killer:
    """Ends processes at random moments, within a time that gets shorter if they end before."""

    def __init__(self, chance, longest):
        self.chance, self.longest, self.kills = chance, longest, 0

    def end(self, process):
        time.sleep(self.chance.uniform(0, self.longest))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            self.kills += 1
        else:
            self.longest /= 2


def kill(chaos):
    """Ends `cutline caption --library` and `cutline library import` at random moments, again and again."""
    library, chance, faults = Library(chaos, "library-kill"), random.Random(11), []
    killer = Killer(chance, 0.5)
    album = library.folder / "photos"
    album.mkdir()
    for path in chaos.load.paths[:PHOTOS]:
        shutil.copy(path, album)
    words = chaos.command(album, f"--library=sqlite:{library.file}", "--output", library.folder / "out.jsonl")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    own = {}
    before = {}
    for round in range(KILLS):
        process = subprocess.Popen(words, **quiet)
        # Until it has stored some, so that kills hit the writing; in the first round, the making of the file.
        end = time.monotonic() + chaos.patience
        while round > 0 and process.poll() is None and time.monotonic() < end and library.count() <= len(before):
            time.sleep(0.01)
        killer.end(process)
        if not library.count():
            continue
        faults += library.damage()
        after = library.assets()
        faults += [f"{name} is lost" for name in before if name not in after]
        faults += [
            f"{name}: {caption(after[name])} instead of the text of a person"
            for name, text in own.items()
            if name not in after or (caption(after[name]) or {}).get("text") != text
        ]
        # What a person has written between two runs: acknowledged by the exit status.
        edits = {name: f"edit {round} of {name}" for name in sorted(after)[:3]}
        if edits:
            table = library.folder / "edits.csv"
            rows = [f"{after[name]['hash']},{text}" for name, text in edits.items()]
            table.write_text("hash,caption\n" + "\n".join(rows) + "\n")
            code, _, errors = library.run("import", table)
            faults += [f"import: exit {code}, {errors}"] if code else []
            # Imports replace texts of models; a second import is only a suggestion.
            own |= {name: text for name, text in edits.items() if name not in own}
        before = library.assets()
    done = subprocess.run(words, capture_output=True, text=True)
    faults += [f"the last run: exit {done.returncode}, {done.stderr[-200:]}"] if done.returncode else []
    after = library.assets()
    faults += [f"{len(after)} photos instead of {PHOTOS}"] if len(after) != PHOTOS else []
    faults += [f"{name} has no caption" for name, asset in after.items() if not (caption(asset) or {}).get("text")]
    faults += [f"{name} lost the text of a person" for name, text in own.items() if caption(after[name])["text"] != text]
    faults += library.damage()

    more = Library(chaos, "library-import")
    table = more.folder / "rows.jsonl"
    row = '{{"path": "{0}.jpg", "hash": "{0:064x}", "caption": "a dog number{0} on a beach", "tags": ["dog"]}}\n'
    table.write_text("".join(row.format(number) for number in range(ROWS)))
    killer.longest = 1
    for _ in range(KILLS):
        command = [more.cutline, "library", "import", table, f"--library=sqlite:{more.file}"]
        process = subprocess.Popen(list(map(str, command)), **quiet)
        killer.end(process)
        faults += more.damage() if more.file.exists() else []
    code, _, errors = more.run("import", table)
    faults += [f"the last import: exit {code}, {errors[-200:]}"] if code else []
    code, lines, _ = more.run("stats", "--json")
    stats = json.loads(lines[0])
    faults += [f"{stats} after {ROWS} rows"] if stats["assets"] != ROWS or stats["without_caption"] else []
    faults += more.damage()
    faults += [f"only {killer.kills} of {2 * KILLS} runs were killed"] if killer.kills < KILLS else []
    faults += ["nothing was edited"] if not own else []
    chaos.say("chaos-library-kill", faults, f"{killer.kills} kills, {PHOTOS} photos, {ROWS} rows, {len(own)} edits")


async def edits(server, hashes, said, stop, chance, writer):
    """Edits photos until the server is gone. `said`: what it acknowledged, and what it may have done."""
    while not stop.is_set():
        name = chance.choice(hashes)
        try:
            async with server.session.get(f"{server.base}/library/assets/{name}") as answer:
                if answer.status != 200:
                    continue
                tag = answer.headers["etag"]
            text = f"edit {len(said)} of {writer}"
            entry = [name, text, "tried"]
            said.append(entry)
            async with server.session.patch(
                f"{server.base}/library/assets/{name}/texts/caption",
                json={"action": "write", "text": text},
                headers={"if-match": tag},
            ) as answer:
                entry[2] = answer.status
        except (aiohttp.ClientError, OSError):
            return


async def describe(server, chaos, round, captioned):
    """Captions photos, and waits until each is kept: that is shortly after the answer."""
    for photo in chaos.load.photos[60 + 20 * round : 80 + 20 * round]:
        try:
            status, body, *_ = await server.caption(photo, chaos.load.parameters)
            name = body["image"]["hash"].removeprefix("blake3:")
            while status == 200:
                async with server.session.get(f"{server.base}/library/assets/{name}") as answer:
                    if answer.status == 200:
                        captioned.add(name)
                        break
                await asyncio.sleep(0.02)
        except (aiohttp.ClientError, OSError):
            return


def compare(assets, said):
    """Whether each photo has the last text that was acknowledged, or one that was tried after it."""
    faults = []
    by_hash = {asset["hash"]: caption(asset) for asset in assets.values()}
    last = {}
    for name, text, status in said:
        if status == 200:
            last[name] = [text]
        elif status == "tried":
            last.setdefault(name, []).append(text)
    for name, allowed in last.items():
        shown = (by_hash.get(name) or {}).get("text")
        # Nothing was acknowledged: any text may be there.
        certain = any(entry[0] == name and entry[2] == 200 for entry in said)
        if certain and shown not in allowed:
            faults.append(f"{name[:8]} has {shown!r} and not {allowed}")
    return faults


async def server(chaos):
    """Ends a server that keeps captions and is edited, and compares what it acknowledged."""
    library, chance, faults = Library(chaos, "library-server"), random.Random(12), []
    said, captioned, kills = [], set(), 0
    fill(library, chaos.load.paths[:60], chaos)
    hashes = [asset["hash"] for asset in library.assets().values()]
    for round in range(KILLS):
        async with chaos.load.server(f"--library=sqlite:{library.file}") as running:
            stop = asyncio.Event()
            work = [
                asyncio.create_task(edits(running, hashes, said, stop, chance, f"writer {round} {number}"))
                for number in range(WRITERS)
            ]

            work.append(asyncio.create_task(describe(running, chaos, round, captioned)))
            await asyncio.sleep(chance.uniform(1, 4))
            running.process.kill()
            kills += 1
            stop.set()
            await asyncio.gather(*work, return_exceptions=True)
        faults += library.damage()
        assets = library.assets()
        faults += compare(assets, said)
        kept = {asset["hash"] for asset in assets.values()}
        faults += [f"the caption of {name[:8]} is lost" for name in captioned if name not in kept]
    acknowledged = sum(entry[2] == 200 for entry in said)
    faults += ["no edit was acknowledged"] if acknowledged == 0 else []
    odd = {entry[2] for entry in said} - {200, 412, "tried"}
    faults += [f"edits were answered with {odd}"] if odd else []
    chaos.say("chaos-library-server", faults, f"{kills} kills, {acknowledged} edits, {len(captioned)} captions")


def fill(library, paths, chaos):
    """Captions photos into a library."""
    done = chaos.caption(*paths, f"--library=sqlite:{library.file}", "--output", library.folder / "filled.jsonl")
    if done.code:
        raise SystemExit(f"the library cannot be filled: {done}")


async def disk(chaos):
    """A full and a read-only disk, for the command line and for a server."""
    faults, said = [], []
    photos = chaos.load.paths[:PHOTOS]
    with chaos.disk("600k") as (folder, remount):
        library = Library(chaos, "library-disk")
        library.file = folder / "photos.db"
        words = [*photos, f"--library=sqlite:{library.file}", "--output", library.folder / "out.jsonl"]
        done = chaos.caption(*words)
        faults += [] if done.explains("space") else [f"a full disk: {done}"]
        remount("size=20m")
        faults += library.damage()
        done = chaos.caption(*words)
        faults += [f"after space was freed: {done}"] if done.code else []
        faults += [f"{len(library.assets())} photos"] if len(library.assets()) != len(photos) else []
        faults += library.damage()

        # A server, whose disk fills up while it is edited.
        hashes = [asset["hash"] for asset in library.assets().values()]
        async with chaos.load.server(f"--library=sqlite:{library.file}") as running:
            stop, chance = asyncio.Event(), random.Random(13)
            work = [asyncio.create_task(edits(running, hashes, said, stop, chance, f"writer {n}")) for n in range(WRITERS)]
            await asyncio.sleep(2)
            chaos.fill(folder)
            await asyncio.sleep(4)
            refused = {entry[2] for entry in said} - {200, 412, "tried"}
            faults += [] if refused and refused <= {507} else [f"a full disk is answered with {refused}"]
            (folder / "x.filler").unlink()
            before = sum(entry[2] == 200 for entry in said)
            await asyncio.sleep(2)
            stop.set()
            await asyncio.gather(*work)
            after = sum(entry[2] == 200 for entry in said)
            faults += ["edits do not go on after space was freed"] if after == before else []
        faults += library.damage() + compare(library.assets(), said)

        remount("ro")
        done = chaos.caption(*words, "--overwrite")
        faults += [] if done.explains("photos.db", "permissions") else [f"a read-only disk: {done}"]
        code, _, errors = library.run("search", "edit")
        faults += [] if code == 0 or "photos.db" in errors else [f"searching a read-only disk: exit {code}, {errors}"]
    chaos.say("chaos-library-disk", faults, f"{len(photos)} photos, {sum(entry[2] == 200 for entry in said)} edits")
