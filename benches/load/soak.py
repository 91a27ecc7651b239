"""Hundreds of clients of every kind for an hour: those that behave, those that send broken or odd images, and those
that stall, break off or close one side of the connection. Every answer is checked as it arrives. In between, all
clients pause, so that what the server still holds can be seen."""

import asyncio
import base64
import collections
import io
import json
import random
import socket
import struct
import time
from pathlib import Path

import aiohttp
from PIL import Image
from server import TYPE

CLIENTS = 300
# The request timeout of the server. Clients and server share the machine with whatever else runs there.
TIMEOUT = 120
PARTS = 6
# Tokio ends an idle blocking thread after ten seconds.
QUIET = 15
LIMIT = 10 << 20


def odd(folder, photos):
    """Files of every supported format and colour type, and turned ones."""
    folder.mkdir(exist_ok=True)
    paths = []
    chance = random.Random(6)

    def save(name, image, **options):
        path = folder / name
        image.save(path, **options)
        paths.append(path)

    for number, photo in enumerate(chance.sample(photos, 4)):
        image = Image.open(photo).convert("RGB")
        clear = image.copy()
        clear.putalpha(Image.linear_gradient("L").resize(image.size))
        save(f"{number}.png", image)
        save(f"{number}-clear.png", clear)
        save(f"{number}-palette.png", image.quantize(64))
        save(f"{number}-grey16.png", image.convert("L").convert("I").point(lambda level: level * 257).convert("I;16"))
        save(f"{number}.webp", image, quality=80)
        save(f"{number}-clear.webp", clear, lossless=True)
        save(f"{number}.gif", image, save_all=True, append_images=[image.convert("L")] * 3)
        save(f"{number}.bmp", image)
        save(f"{number}.tif", image, compression="tiff_lzw")
        save(f"{number}-cmyk.tif", image.convert("CMYK"))
        save(f"{number}-cmyk.jpg", image.convert("CMYK"))
        save(f"{number}-progressive.jpg", image, progressive=True)
        save(f"{number}-large.jpg", image.resize((4000, 3000)), quality=90)
        for orientation in range(2, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            save(f"{number}-turned-{orientation}.jpg", image, exif=exif)
    return paths


def bomb():
    """A PNG of a few hundred KB with 400 million pixels."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "png")
    return file.getvalue()


def parsed(stream):
    """The events of a stream: name and data. Comments keep the connection alive and have none."""
    for event in stream.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in event.splitlines() if not line.startswith(":"))
        if fields:
            yield fields["event"], json.loads(fields["data"])


class Lost(Exception):
    """A request that should have been answered was not."""


class Soak:
    def __init__(self, load, server, images):
        self.load, self.server, self.images = load, server, images
        self.bomb = bomb()
        self.answers = collections.Counter()
        self.faults = collections.Counter()
        self.numbers = iter(range(10**9))
        self.kinds = {
            self.valid: 34,
            self.odd: 8,
            self.stream: 10,
            self.batch: 8,
            self.cut: 6,
            self.noise: 4,
            self.huge: 4,
            self.wrong: 4,
            self.slow_head: 2,
            self.slow_body: 3,
            self.half_closed: 4,
            self.half_sent: 3,
            self.cancelled: 8,
            self.reset: 2,
            self.watcher: 2,
        }

    async def client(self, number, end):
        chance = random.Random(f"{number} {end}")
        kinds, weights = zip(*self.kinds.items())
        while time.monotonic() < end:
            kind = chance.choices(kinds, weights)[0]
            try:
                wait = await kind(chance)
            except Exception as error:
                # Whatever it is, the client did not get what it should.
                self.fault(kind, f"{type(error).__name__}: {error}")
                wait = 0.2
            await asyncio.sleep(min(wait or 0, max(end - time.monotonic(), 0)))

    def fault(self, kind, what):
        self.faults[f"{kind.__name__}: {what}"] += 1

    def check(self, kind, status, allowed, body=None):
        """Counts an answer. A 5xx, or any other status that does not fit the request, is a fault."""
        self.answers[kind.__name__, status] += 1
        if status not in (*allowed, 429):
            self.fault(kind, f"status {status} {body or ''}")

    async def post(self, kind, chance, body, headers, allowed, route="/caption/generate", **parameters):
        """Sends a request and checks the status and the request id. Returns the answer's JSON if the status is 200, and
        the seconds to wait before the next request."""
        name = f"{kind.__name__}-{next(self.numbers)}"
        headers = {**headers, "x-request-id": name}
        url = f"{self.server.base}{route}"
        async with self.server.session.post(url, params=parameters, data=body, headers=headers) as answer:
            text = await answer.read()
        self.check(kind, answer.status, allowed, text[:200])
        if answer.headers.get("x-request-id") != name:
            self.fault(kind, "the answer has another request's id")
        if answer.status == 429:
            return None, chance.uniform(0.2, 1.0) * float(answer.headers["retry-after"])
        return json.loads(text) if answer.status == 200 else None, 0

    def belongs(self, kind, answer, which):
        photo, caption = self.images[which]
        if (answer["caption"], answer["image"]["size_bytes"]) != (caption, len(photo)):
            self.fault(kind, f"the answer of another image: {answer}")

    def choose(self, chance):
        """A photo, and whether its caption may come from the cache."""
        cache = {} if chance.random() < 0.3 else {"cache": "bypass"}
        return chance.randrange(len(self.load.photos)), {**self.load.parameters, **cache}

    async def valid(self, chance):
        which, parameters = self.choose(chance)
        photo = self.images[which][0]
        way = chance.randrange(3)
        if way == 0:
            body, headers = photo, TYPE
        elif way == 1:
            body, headers = json.dumps({"image": base64.b64encode(photo).decode()}), {"content-type": "application/json"}
        else:
            body, headers = aiohttp.FormData({"image": io.BytesIO(photo)}), {}
        answer, wait = await self.post(self.valid, chance, body, headers, [200], **parameters)
        if answer:
            self.belongs(self.valid, answer, which)
        return wait

    async def odd(self, chance):
        which = chance.randrange(len(self.load.photos), len(self.images))
        route = chance.choice(["/caption/generate", "/image/process"])
        parameters = {**self.load.parameters, "cache": "bypass"} if route == "/caption/generate" else {}
        answer, wait = await self.post(self.odd, chance, self.images[which][0], TYPE, [200], route, **parameters)
        if answer and parameters:
            self.belongs(self.odd, answer, which)
        return wait

    async def stream(self, chance):
        which, parameters = self.choose(chance)
        url = f"{self.server.base}/caption/generate"
        parameters["stream"] = "true"
        photo = self.images[which][0]
        async with self.server.session.post(url, params=parameters, data=photo, headers=TYPE) as answer:
            text = (await answer.read()).decode()
        self.check(self.stream, answer.status, [200], text[:200])
        if answer.status == 429:
            return chance.uniform(0.2, 1.0) * float(answer.headers["retry-after"])
        events = list(parsed(text))
        if not events or events[-1][0] != "done":
            raise Lost(f"the stream ends with {events[-1:]}")
        done = events[-1][1]
        self.belongs(self.stream, done, which)
        if not all(done["caption"].startswith(data["text"]) for name, data in events if name == "token"):
            self.fault(self.stream, "a token of another caption")

    async def batch(self, chance):
        count = chance.randrange(1, 7)
        chosen = [None if chance.random() < 0.15 else chance.randrange(len(self.load.photos)) for _ in range(count)]
        bodies = [b"no image" if which is None else self.images[which][0] for which in chosen]
        headers = {"accept": "application/x-ndjson"} if chance.random() < 0.5 else {}
        if chance.random() < 0.5:
            form = aiohttp.FormData()
            for number, body in enumerate(bodies):
                form.add_field("images", body, filename=f"{number}.jpg", content_type="image/jpeg")
        else:
            form = json.dumps({"images": [base64.b64encode(body).decode() for body in bodies]})
            headers["content-type"] = "application/json"
        parameters = {**self.load.parameters, "cache": "bypass"}
        url = f"{self.server.base}/caption/batch"
        async with self.server.session.post(url, params=parameters, data=form, headers=headers) as answer:
            text = await answer.read()
        self.check(self.batch, answer.status, [200], text[:200])
        if answer.status == 429:
            return chance.uniform(0.2, 1.0) * float(answer.headers["retry-after"])
        if "accept" in headers:
            results = [json.loads(line) for line in text.splitlines()]
            results = [result for result in results if "index" in result]
        else:
            results = json.loads(text)["results"]
        if sorted(result["index"] for result in results) != list(range(count)):
            raise Lost(f"{len(results)} results of {count}")
        for result in results:
            which = chosen[result["index"]]
            if result["status"] == "ok" and which is not None:
                self.belongs(self.batch, result, which)
            elif which is not None or result["error"]["code"] != "unsupported_format":
                self.fault(self.batch, f"{result}")

    async def cut(self, chance):
        photo = self.images[chance.randrange(len(self.images))][0]
        body = photo[: chance.randrange(len(photo))]
        return (await self.post(self.cut, chance, body, TYPE, [200, 415, 422], cache="bypass", max_new_tokens=4))[1]

    async def noise(self, chance):
        """A file with some bytes changed."""
        body = bytearray(self.images[chance.randrange(len(self.images))][0])
        for _ in range(chance.randrange(1, 30)):
            body[chance.randrange(min(len(body), chance.choice([64, 1024, len(body)])))] = chance.randrange(256)
        statuses = [200, 413, 415, 422]
        route = chance.choice(["/caption/generate", "/image/process"])
        parameters = {"cache": "bypass", "max_new_tokens": 4} if route == "/caption/generate" else {}
        return (await self.post(self.noise, chance, bytes(body), TYPE, statuses, route, **parameters))[1]

    async def huge(self, chance):
        async def chunks():
            for _ in range(12):
                yield self.images[0][0].ljust(1 << 20, b"\0")

        body = chance.choice([lambda: self.bomb, lambda: bytes(LIMIT + 1), chunks])()
        return (await self.post(self.huge, chance, body, TYPE, [413], cache="bypass"))[1]

    async def wrong(self, chance):
        photo = self.images[0][0]
        kinds = [
            (photo, TYPE, [422], "/caption/generate", {"num_beam": "3"}),
            (photo, TYPE, [422], "/caption/generate", {"max_new_tokens": "-1"}),
            (photo, {"content-type": "text/html"}, [415], "/caption/generate", {}),
            (b'{"image": "', {"content-type": "application/json"}, [400], "/caption/generate", {}),
            (b'{"image": "%%%"}', {"content-type": "application/json"}, [400], "/caption/generate", {}),
            (b"--x\r\n", {"content-type": "multipart/form-data; boundary=x"}, [400], "/caption/generate", {}),
            (b"", TYPE, [415], "/image/process", {}),
            (photo, TYPE, [404], "/caption/nothing", {}),
            (photo, TYPE, [405], "/health", {}),
        ]
        body, headers, statuses, route, parameters = chance.choice(kinds)
        return (await self.post(self.wrong, chance, body, headers, statuses, route, **parameters))[1]

    async def connect(self, chance, body, length=None):
        """A connection of its own, with a request whose body may be shorter than it says."""
        reader, writer = await asyncio.open_connection(*self.server.address)
        parameters = "&".join(f"{name}={value}" for name, value in self.load.parameters.items())
        length = len(body) if length is None else length
        head = f"POST /caption/generate?{parameters}&cache=bypass HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n"
        head += f"content-length: {length}\r\nconnection: close\r\n\r\n"
        return reader, writer, head.encode()

    async def slow_head(self, chance):
        """A head of one byte a second, given up after a while."""
        reader, writer, head = await self.connect(chance, b"")
        try:
            for byte in head[: chance.randrange(5, 30)]:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1)
        except ConnectionError:
            pass
        writer.close()

    async def slow_body(self, chance):
        """A body in a hundred pieces over about twenty seconds, which must still be captioned."""
        which = chance.randrange(len(self.load.photos))
        photo = self.images[which][0]
        reader, writer, head = await self.connect(chance, photo)
        try:
            writer.write(head)
            step = len(photo) // 100 + 1
            for start in range(0, len(photo), step):
                writer.write(photo[start : start + step])
                await writer.drain()
                await asyncio.sleep(0.2)
            await self.finish(self.slow_body, reader, which)
        finally:
            writer.close()

    async def half_closed(self, chance):
        """A whole request, after which the client closes its side and waits for the answer."""
        which = chance.randrange(len(self.load.photos))
        photo = self.images[which][0]
        reader, writer, head = await self.connect(chance, photo)
        try:
            writer.write(head + photo)
            await writer.drain()
            writer.write_eof()
            await self.finish(self.half_closed, reader, which, may_vanish=True)
        finally:
            writer.close()

    async def half_sent(self, chance):
        """Half of a body, after which the client closes its side."""
        photo = self.images[chance.randrange(len(self.load.photos))][0]
        reader, writer, head = await self.connect(chance, photo)
        try:
            writer.write(head + photo[: len(photo) // 2])
            await writer.drain()
            writer.write_eof()
            await self.finish(self.half_sent, reader, None, may_vanish=True)
        finally:
            writer.close()

    async def finish(self, kind, reader, which, may_vanish=False):
        """Reads an answer to its end. `which` is the image of the caption, or None for a body that is not whole."""
        async with asyncio.timeout(TIMEOUT * 2):
            text = await reader.read()
        if not text and may_vanish:
            self.answers[kind.__name__, "closed"] += 1
            return
        head, _, body = text.partition(b"\r\n\r\n")
        if not body:
            raise Lost("no answer")
        status = int(head.split()[1])
        self.check(kind, status, [400] if which is None else [200], body[:200])
        if status == 200 and which is not None:
            self.belongs(kind, json.loads(body), which)

    async def cancelled(self, chance):
        """A request whose client leaves before, during or after its answer."""
        which, parameters = self.choose(chance)
        photo = self.images[which][0]
        if chance.random() < 0.5:
            parameters["stream"] = "true"
        url = f"{self.server.base}/caption/generate"
        wait = 0
        try:
            async with asyncio.timeout(chance.expovariate(1.0)):
                async with self.server.session.post(url, params=parameters, data=photo, headers=TYPE) as answer:
                    self.check(self.cancelled, answer.status, [200])
                    if answer.status == 429:
                        wait = chance.uniform(0.2, 1.0) * float(answer.headers["retry-after"])
                    await answer.read()
        except TimeoutError:
            self.answers["cancelled", "left"] += 1
        return wait

    async def reset(self, chance):
        """A connection that the client resets in the middle of the body, or while it waits for the answer."""
        photo = self.images[chance.randrange(len(self.load.photos))][0]
        _, writer, head = await self.connect(chance, photo)
        writer.write(head + photo[: chance.randrange(len(photo) + 1)])
        await writer.drain()
        await asyncio.sleep(chance.expovariate(2.0))
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()
        self.answers["reset", "left"] += 1

    async def watcher(self, chance):
        route = chance.choice(["/health", "/health/live", "/health/ready", "/metrics", "/model/info", "/openapi.json"])
        async with self.server.session.get(f"{self.server.base}{route}") as answer:
            body = await answer.read()
        self.check(self.watcher, answer.status, [200], body[:200])
        return 0.5

    async def fill(self):
        """Captions every photo once, so that the caches do not grow any more."""
        chance = random.Random(8)
        left = iter(self.load.photos)

        async def client():
            for photo in left:
                status = 429
                while status == 429:
                    status, _, _, headers = await self.server.caption(photo, self.load.parameters)
                    if status == 429:
                        await asyncio.sleep(chance.uniform(0.2, 1.0) * float(headers["retry-after"]))

        await asyncio.gather(*(client() for _ in range(16)))


async def sample(server, rows, begin):
    """Notes what the server holds, every five seconds."""
    while True:
        rows.append((time.monotonic() - begin, server.memory(), server.descriptors(), server.threads()))
        await asyncio.sleep(5)


async def run(load):
    options = load.options
    paths = odd(load.folder / "odd", load.paths)
    captions = [*load.expected(), *load.captions(paths)]
    images = list(zip([*load.photos, *(path.read_bytes() for path in paths)], captions))
    rows, points = [], []
    async with load.server(f"--request-timeout={TIMEOUT}") as server:
        soak = Soak(load, server, images)
        await soak.fill()
        begin = time.monotonic()
        sampler = asyncio.create_task(sample(server, rows, begin))
        for part in range(PARTS):
            end = time.monotonic() + options.soak_seconds / PARTS
            await asyncio.gather(*(soak.client(number, end) for number in range(CLIENTS)))
            # Its idle connections would count as descriptors of the server.
            await server.reconnect()
            await asyncio.sleep(QUIET)
            points.append((server.memory(), server.descriptors(), server.threads()))
            memory, descriptors, threads = points[-1]
            at = (time.monotonic() - begin) / 60
            answers = soak.answers.total()
            print(
                f"  minute {at:.1f}: {memory / 2**20:.0f} MiB, {descriptors} descriptors, {threads} threads at rest; "
                f"{answers} requests, {soak.faults.total()} faults",
                flush=True,
            )
            for fault, count in soak.faults.most_common(5):
                print(f"    {count} times {fault}", flush=True)
        sampler.cancel()
        metrics = await server.metrics()
        peak = server.memory("VmHWM:")
        alive = server.process.poll() is None
    with open(load.folder / "soak.csv", "w") as file:
        file.write("seconds,resident_bytes,descriptors,threads\n")
        file.writelines(f"{seconds:.0f},{memory},{open_},{threads}\n" for seconds, memory, open_, threads in rows)
    report(load, soak, rows, points, metrics, peak, alive)


def report(load, soak, rows, points, metrics, peak, alive):
    by_kind = collections.defaultdict(dict)
    for (kind, status), count in sorted(soak.answers.items(), key=str):
        by_kind[kind][status] = count
    for kind, counts in by_kind.items():
        print(f"  {kind:<12} {counts}")
    for fault, count in soak.faults.most_common(20):
        print(f"  fault, {count} times: {fault}")
    answers, faults = soak.answers.total(), soak.faults.total()
    captions = sum(count for (_, status), count in soak.answers.items() if status == 200)
    number = f"{faults} faults in {answers} requests"
    load.say("soak", number, "0", not faults and alive and captions > 0, f"{captions} answered with 200")
    (first, *_), (last, *_) = points[0], points[-1]
    growth = last / first - 1
    number = f"{first / 2**20:.0f} to {last / 2**20:.0f} MiB at rest, {growth:+.1%}"
    load.say("soak", number, f"<= +3% from 1/{PARTS} to the end", growth <= 0.03, f"peak {peak / 2**20:.0f} MiB")
    descriptors, threads = zip(*(point[1:] for point in points))
    number = f"{descriptors[0]} to {descriptors[-1]} descriptors at rest"
    most = max(row[2] for row in rows)
    load.say("soak", number, "no more than at first", descriptors[-1] <= descriptors[0], f"most {most}")
    number = f"{threads[0]} to {threads[-1]} threads at rest"
    most = max(row[3] for row in rows)
    load.say("soak", number, "no more than at first", threads[-1] <= threads[0], f"most {most}")
    held = ["queue_depth", "queue_reserved", "images_in_flight", "inflight_bytes"]
    left = {name: metrics[f"cutline_{name}"] for name in held}
    load.say("soak", f"{sum(left.values()):.0f} held at the end", "0", not any(left.values()), left)
    panics = Path(soak.server.log.name).read_text(errors="replace").count('"message":"panic"')
    load.say("soak", f"{panics} panics in the log", "0", not panics)
