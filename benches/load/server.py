"""A server under load, in its own process, and its clients."""

import asyncio
import json
import socket
import subprocess
import time

import aiohttp

TYPE = {"content-type": "image/jpeg"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running server, stopped when the context exits."""

    def __init__(self, cutline, options, log):
        self.base = f"http://127.0.0.1:{free_port()}"
        port = self.base.rsplit(":", 1)[1]
        command = [cutline, "serve", "--host", "127.0.0.1", "--port", port, "--log-level", "error"]
        self.log = open(log, "w")
        self.process = subprocess.Popen([*command, *options], stdout=self.log, stderr=self.log)
        self.session = None

    async def __aenter__(self):
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=120)
        self.session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                async with self.session.get(f"{self.base}/health/ready") as answer:
                    if answer.status == 200:
                        return self
            except aiohttp.ClientConnectionError:
                pass
            if self.process.poll() is not None:
                break
            await asyncio.sleep(0.05)
        raise SystemExit(f"the server did not start; see {self.log.name}")

    async def __aexit__(self, *_):
        await self.session.close()
        self.process.terminate()
        self.process.wait(60)
        self.log.close()

    async def caption(self, photo, parameters):
        """Status, JSON, seconds."""
        begin = time.perf_counter()
        url = f"{self.base}/caption/generate"
        async with self.session.post(url, params=parameters, data=photo, headers=TYPE) as answer:
            body = await answer.read()
        return answer.status, json.loads(body), time.perf_counter() - begin, answer.headers

    async def health(self):
        async with self.session.get(f"{self.base}/health") as answer:
            return await answer.json()

    def memory(self):
        """Resident memory of the server, in bytes."""
        with open(f"/proc/{self.process.pid}/status") as status:
            line = next(line for line in status if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024
