"""Images per second of a server that keeps its captions in a library, against one that does not."""

import os
import statistics

import contracts

ROUNDS = 12
# How much slower a server with a library may be.
BOUND = 0.97


def requests(photos, parameters, number):
    """Photos that no library has seen: bytes after the end of a JPEG are part of its hash only."""
    made = (photo + number.to_bytes(4, "big") for photo in photos)
    return [contracts.native(photo, parameters) for photo in made]


def worked(server):
    """Seconds that the processors have worked for a server."""
    with open(f"/proc/{server.process.pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def run(load, parameters):
    """Compares both servers within a round, so that a machine whose speed drifts does not matter."""
    seconds = load.options.seconds / 5
    library = load.folder / "kept.db"
    for old in load.folder.glob("kept.db*"):
        old.unlink()
    ratios, rates, work = [], [], []
    async with load.server(log="plain.log") as plain, load.server(f"--library=sqlite:{library}", log="kept.log") as kept:
        for server in (plain, kept):
            await contracts.rate(server, requests(load.photos, parameters, 0), seconds)
        for number in range(1, ROUNDS + 1):
            fresh = requests(load.photos, parameters, number)
            # Each is first as often as last.
            order = (plain, kept) if number % 2 else (kept, plain)
            found, each = {}, {}
            for server in order:
                before = worked(server)
                found[server] = await contracts.rate(server, fresh, seconds)
                each[server] = (worked(server) - before) / (found[server] * seconds)
            rates.append(found[plain])
            ratios.append(found[kept] / found[plain])
            work.append(each[kept] / each[plain])
        async with kept.session.get(f"{kept.base}/library/stats") as answer:
            stats = await answer.json()
    ratio = statistics.median(ratios)
    holds = ratio >= BOUND and stats["thumbnails"] == stats["features"] == stats["assets"] > 0
    more = f"{ROUNDS} rounds from {min(ratios):.1%} to {max(ratios):.1%}, without {statistics.median(rates):.1f} images/s, "
    more += f"processor time {statistics.median(work):.1%}, {stats['assets']} photos kept"
    load.say("kept", f"{ratio:.1%} of without a library", f">= {BOUND:.0%}", holds, more)
