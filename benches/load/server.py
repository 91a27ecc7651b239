"""A server under load, in its own process, and its clients."""

import asyncio
import json
import os
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

    def __init__(self, cutline, options, log, before=(), env=None):
        """`before` is a command that runs the server's."""
        self.address = ("127.0.0.1", free_port())
        host, port = self.address
        self.base = f"http://{host}:{port}"
        command = [*before, cutline, "serve", "--host", host, "--port", str(port), "--log-level", "error"]
        self.log = open(log, "w")
        self.process = subprocess.Popen([*command, *options], stdout=self.log, stderr=self.log, env=env)
        self.session = None

    async def reconnect(self):
        """Closes the idle connections of the clients."""
        if self.session:
            await self.session.close()
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=300)
        self.session = aiohttp.ClientSession(connector=connector, timeout=timeout)

    async def __aenter__(self):
        await self.reconnect()
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

    async def metrics(self):
        """Every series that has no labels, by name."""
        async with self.session.get(f"{self.base}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        series = (line.rsplit(" ", 1) for line in lines if not line.startswith("#") and "{" not in line)
        return {name: float(value) for name, value in series}

    async def is_ready(self):
        async with self.session.get(f"{self.base}/health/ready") as answer:
            return answer.status == 200

    def memory(self, what="VmRSS:"):
        """Resident memory of the server in bytes, or with VmHWM: the most that it has been."""
        with open(f"/proc/{self.process.pid}/status") as status:
            line = next(line for line in status if line.startswith(what))
        return int(line.split()[1]) * 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def threads(self):
        return len(os.listdir(f"/proc/{self.process.pid}/task"))
