"""Checks a server under load; see run.sh. Each check prints a line with its result and its bound."""

import argparse
import asyncio
import collections
import json
import random
import statistics
import subprocess
import time
from pathlib import Path

import aiohttp
import chaos
import contracts
import kept
import photos
import pillow_images
import soak
from server import TYPE, Server

# Every caption has exactly this many tokens, as in `cutline bench`.
TOKENS = 10
PARAMETERS = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
BYPASS = {**PARAMETERS, "cache": "bypass"}


class Load:
    def __init__(self, options):
        self.options = options
        self.folder = Path(options.folder)
        self.model = [f"--precision={options.precision}", f"--max-batch-size={options.batch}"]
        self.paths = photos.make(self.folder / "photos", options.photos)
        self.photos = [path.read_bytes() for path in self.paths]
        self.chance = random.Random(5)
        self.failed = False
        self.parameters = PARAMETERS
        self._expected = None

    def say(self, check, number, bound, holds, more=""):
        self.failed |= not holds
        print(f"{check:<11} {number:<34} {bound:<34} {'PASS' if holds else 'FAIL'} {more}", flush=True)

    def server(self, *more, log="server.log", **process):
        return Server(self.options.cutline, [*self.model, *more], self.folder / log, **process)

    def expected(self):
        if self._expected is None:
            self._expected = self.captions(self.paths)
        return self._expected

    def captions(self, paths):
        return photos.captions(self.options.cutline, paths, self.model[:1], PARAMETERS)

    def bench(self):
        """Images per second of `cutline bench` at the same batch size and precision."""
        command = [self.options.cutline, "bench", self.model[0], f"--batch={self.options.batch}"]
        command += [f"--new-tokens={TOKENS}", "--iterations=15"]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return json.loads(line)["images_per_second"]

    async def single(self, server):
        """Median seconds of a request to an idle server."""
        photos = self.chance.sample(self.photos, 25)
        times = [(await server.caption(photo, BYPASS))[2] for photo in photos]
        return statistics.median(times[5:])

    async def rate(self, server):
        """Responses per second with 64 clients."""
        statuses, _, took = await self.closed_loop(server, 64, self.options.seconds / 6)
        return statuses[200] / took

    async def closed_loop(self, server, clients, seconds, count=None):
        """Runs clients that each send the next photo after the response to the last one. Returns
        counts by status, wrong captions, and the seconds taken."""
        expected = self.expected()
        statuses, wrong = collections.Counter(), []
        numbers = iter(range(count)) if count else iter(int, 1)
        end = time.monotonic() + seconds

        async def client(number):
            chance = random.Random(number)
            for _ in numbers:
                if time.monotonic() > end:
                    return
                which = chance.randrange(len(self.photos))
                try:
                    status, body, _, headers = await server.caption(self.photos[which], BYPASS)
                except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                    statuses[f"lost: {type(error).__name__}"] += 1
                    continue
                statuses[status] += 1
                if status == 200 and body["caption"] != expected[which]:
                    wrong.append((which, body["caption"]))
                if status == 429:
                    await asyncio.sleep(chance.uniform(0.2, 1.0) * float(headers["retry-after"]))

        begin = time.monotonic()
        await asyncio.gather(*map(client, range(clients)))
        return statuses, wrong, time.monotonic() - begin

    async def throughput(self):
        """Uses the first round whose bench results before and after differ by at most 10 %."""
        for rounds in range(1, 9):
            before = self.bench()
            async with self.server() as server:
                await self.closed_loop(server, 64, 3)
                statuses, wrong, took = await self.closed_loop(server, 64, self.options.seconds)
            after = self.bench()
            if abs(after / before - 1) <= 0.1:
                break
        bench = (before + after) / 2
        rate = statuses[200] / took
        clean = not wrong and not set(statuses) - {200, 429}
        holds = rate >= 0.9 * bench and clean
        number = f"{rate:.1f} images/s, {rate / bench:.0%} of bench"
        more = f"round {rounds}, {dict(statuses)}"
        self.say("throughput", number, f">= 90% of {bench:.1f} images/s", holds, more)

    async def arrivals(self, server, rate):
        """Sends requests at random times, on average `rate` per second. Returns the seconds of
        each and the number of refused ones."""
        times, refused = [], 0

        async def arrive():
            nonlocal refused
            status, _, seconds, _ = await server.caption(self.chance.choice(self.photos), BYPASS)
            times.append(seconds)
            refused += status != 200

        arrivals = []
        end = time.monotonic() + self.options.seconds / 2
        while time.monotonic() < end:
            arrivals.append(asyncio.create_task(arrive()))
            await asyncio.sleep(self.chance.expovariate(rate))
        await asyncio.gather(*arrivals)
        return times, refused

    async def poisson(self):
        """Skips rounds in which the machine's speed changed by more than 10 %, because the load is
        set to 70 % of the rate before the round."""
        ratios, shares, refused, rounds = [], [], 0, 0
        async with self.server() as server:
            await self.rate(server)
            while len(shares) < 4 and rounds < 16:
                rounds += 1
                single, rate = await self.single(server), await self.rate(server)
                times, more = await self.arrivals(server, 0.7 * rate)
                after = await self.rate(server)
                if abs(after / rate - 1) > 0.1:
                    continue
                shares.append(single * (rate + after) / 2)
                ratios += [seconds / single for seconds in times]
                refused += more
        if not ratios:
            self.say("poisson", f"{rounds} unsteady rounds", "one steady round", False)
            return
        p95 = statistics.quantiles(ratios, n=20)[-1]
        number = f"p95 {p95:.2f}, median {statistics.median(ratios):.2f} x single"
        # The result of an ideal server that serves one request at a time, in a fixed time.
        ideal = 1 + 4.1 / statistics.mean(shares)
        more = f"{len(shares)} of {rounds} rounds, {len(ratios)} answers, {refused} refused"
        more += f"; M/D/1 with the same rate: {ideal:.1f}"
        self.say("poisson", number, "p95 <= 3 x single", p95 <= 3 and not refused, more)

    async def crowd(self):
        async with self.server() as server:
            statuses, wrong, _ = await self.closed_loop(server, 300, self.options.crowd_seconds)
        bad = sum(count for status, count in statuses.items() if status not in (200, 429))
        number = f"{bad} lost, {len(wrong)} wrong captions"
        self.say("crowd", number, "0 lost, 0 wrong", not bad and not wrong, dict(statuses))

    async def same(self):
        async with self.server() as server:
            before = (await server.health())["batch"]
            ask = [server.caption(self.photos[0], PARAMETERS) for _ in range(1000)]
            answers = await asyncio.gather(*ask)
            after = (await server.health())["batch"]
        forwards = [after[what] - before[what] for what in ("encoded", "finished")]
        states = collections.Counter(body.get("cache", status) for status, body, _, _ in answers)
        others = 1000 - states["coalesced"] - states["hit"]
        holds = others == states["miss"] == 1 and forwards == [1, 1]
        number = f"{forwards[0]} encoded, {forwards[1]} captioned"
        self.say("same", number, "1 and 1 of 1000 requests", holds, dict(states))

    async def cached(self):
        photo = photos.large(self.folder, 200_000).read_bytes()
        async with self.server() as server:
            answers = [await server.caption(photo, PARAMETERS) for _ in range(1000)]
        times = [seconds for _, body, seconds, _ in answers if body["cache"] == "hit"]
        inside = [body["timings"]["total_ms"] for _, body, _, _ in answers if body["cache"] == "hit"]
        median = statistics.median(times) * 1e3
        more = f"{len(times)} hits, {len(photo)} bytes, {statistics.median(inside):.3f} ms in the server"
        self.say("cached", f"median {median:.2f} ms", "< 2 ms", median < 2 and len(times) == 999, more)

    async def kill(self):
        parameters = {**BYPASS, "stream": "true"}

        async def victim(server, end):
            killed = 0
            while time.monotonic() < end:
                photo = self.chance.choice(self.photos)
                url = f"{server.base}/caption/generate"
                try:
                    async with server.session.post(
                        url, params=parameters, data=photo, headers=TYPE
                    ) as answer:
                        # Cancels before the first word, in the middle, or near the end.
                        async with asyncio.timeout(self.chance.expovariate(1 / 0.3)):
                            async for _ in answer.content.iter_any():
                                pass
                except TimeoutError:
                    killed += 1
                if answer.status == 429:
                    await asyncio.sleep(0.2)
            return killed

        async with self.server() as server:
            await asyncio.gather(*(victim(server, time.monotonic() + 5) for _ in range(32)))
            before = server.memory()
            end = time.monotonic() + self.options.seconds
            killed = sum(await asyncio.gather(*(victim(server, end) for _ in range(32))))
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                health = await server.health()
                queue = health["queue"]
                left = health["in_flight"] + queue["depth"] + queue["reserved"]
                if left == 0:
                    break
                await asyncio.sleep(0.05)
            growth = server.memory() / before - 1
        number = f"{left} in flight, memory {growth:+.1%}"
        more = f"{killed} killed, {before / 2**20:.0f} MiB before"
        self.say("kill", number, "0 in flight, <= +10%", left == 0 and growth <= 0.1, more)

    async def memory(self):
        few, many = 1000, self.options.memory_requests
        async with self.server() as server:
            first, _, _ = await self.closed_loop(server, 64, 1800, few)
            before = server.memory()
            second, wrong, _ = await self.closed_loop(server, 64, 1800, many - few)
            after = server.memory()
        growth = after / before - 1
        clean = not wrong and not set(first + second) - {200, 429}
        number = f"{before / 2**20:.0f} to {after / 2**20:.0f} MiB, {growth:+.1%}"
        bound = f"<= +10% from {few} to {many} requests"
        self.say("memory", number, bound, growth <= 0.1 and clean, dict(first + second))


    async def chaos(self):
        await chaos.run(self, chaos.PARTS)

    async def soak(self):
        await soak.run(self)

    async def pillow(self):
        await pillow_images.run(self)

    async def contracts(self):
        await contracts.run(self, BYPASS)

    async def kept(self):
        await kept.run(self, BYPASS)


CHECKS = ["throughput", "poisson", "crowd", "same", "cached", "kill", "memory"]
# Run only if they are named.
CHAOS = [f"chaos-{part}" for part in chaos.PARTS]
LONG = ["chaos", *CHAOS, "soak", "pillow", "contracts", "kept"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("checks", nargs="*", help=f"some of {', '.join(CHECKS + LONG)}; the first {len(CHECKS)} by default")
    parser.add_argument("--cutline", required=True)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch", type=int, default=16, help="MAX_BATCH_SIZE, and the batch size of `cutline bench`")
    parser.add_argument("--photos", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--crowd-seconds", type=float, default=60)
    parser.add_argument("--memory-requests", type=int, default=10_000)
    parser.add_argument("--soak-seconds", type=float, default=3600)
    options = parser.parse_intermixed_args()
    for check in options.checks:
        if check not in CHECKS + LONG:
            parser.error(f"there is no check {check}")
    load = Load(options)
    for check in options.checks or CHECKS:
        if check in CHAOS:
            asyncio.run(chaos.run(load, [check.removeprefix("chaos-")]))
        else:
            asyncio.run(getattr(load, check)())
    raise SystemExit(load.failed)


if __name__ == "__main__":
    main()
