"""Throughput and latency over HTTP, from JPEG bytes. Uses only the standard library."""

import collections
import http.client
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import threading
import time

import common

ALONE = 40  # requests of a single client


def run(options, results):
    precision = options.precisions[0]
    results.once("server", lambda: measure(options, precision))


def measure(options, precision):
    if common.left() < options.seconds + 40:
        raise common.Skipped("too little time was left")
    folder = common.model(options)
    bodies = [path.read_bytes() for path in common.photos(options)]
    alone = min(ALONE, 4) if options.quick else ALONE
    with Server(options, precision, folder) as server:
        batch = server.get("/health")["batch"]["max_size"]
        info = server.get("/model/info")
        path = f"/caption/generate?cache=bypass&min_new_tokens={options.new_tokens}&max_new_tokens={options.new_tokens}"
        latencies = [ask(server, path, bodies[n % len(bodies)]) for n in range(alone + 2)][2:]
        clients = options.clients or 4 * batch
        if options.load_client:
            statuses = compiled_crowd(options, server, path, clients)
        else:
            statuses, _ = crowd(server, path, bodies, clients, options.seconds)
        seconds = options.seconds
    line = common.bench(options, options.device, precision, batch, folder)
    per_second = statuses[200] / seconds
    return {
        "client": "Rust" if options.load_client else "Python", "precision": precision, "device": info["device"], "kernels": info["kernels"], "batch": batch, "clients": clients,
        "images_per_second": per_second, "bench_images_per_second": line["images_per_second"],
        "share": per_second / line["images_per_second"], "statuses": {str(key): n for key, n in statuses.items()},
        "mean_kilobytes": statistics.mean(map(len, bodies)) / 1e3,
        "latency_ms": 1e3 * statistics.median(latencies), "latency_most_ms": 1e3 * max(latencies),
    }


class Server:
    """A running server, stopped when the context exits."""

    def __init__(self, options, precision, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [options.cutline, "serve", "--host", "127.0.0.1", "--port", self.port, "--model", folder,
                   "--device", options.device, "--precision", precision, "--queue-capacity", 4096,
                   "--max-connections", 8192, "--max-inflight-bytes", 4 << 30]
        self.log = open(options.folder / "server.log", "w")
        self.process = subprocess.Popen([str(part) for part in command], stdout=self.log, stderr=self.log)

    def __enter__(self):
        end = time.monotonic() + min(300, common.left())
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.get("/health/ready", whatever=True) == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.1)
        self.__exit__()
        raise common.Failure(common.complaint(open(self.log.name).read(), "of a server that does not start"))

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()

    def get(self, path, whatever=False):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status if whatever else json.loads(body)


def ask(server, path, body):
    """Seconds for one request on a new connection, including the time to connect."""
    begin = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("POST", path, body, {"content-type": "image/jpeg"})
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    if answer.status != 200:
        raise common.Failure(f"the server responded with {answer.status}: {said[:200]!r}")
    return time.perf_counter() - begin


def compiled_crowd(options, server, path, clients):
    """The same from the program load-client, which is faster than any server."""
    command = [options.load_client, f"127.0.0.1:{server.port}", path, clients, options.seconds, *common.photos(options)]
    line = json.loads(common.output(command, options.seconds + 180))
    return collections.Counter({int(key) if key.isdigit() else key: n for key, n in line["statuses"].items()})


def crowd(server, path, bodies, clients, seconds):
    """Counts responses by status for `seconds`, after a warm-up, from clients that send without pauses."""
    # Uses several processes, because one cannot send as fast as a GPU captions.
    count = max(1, min(clients, 4, (os.cpu_count() or 1) // 2))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    begin = time.time() + min(3.0, seconds / 2) + 1
    shares = [clients // count + (number < clients % count) for number in range(count)]
    processes = [context.Process(target=worker, args=(queue, server.port, path, bodies, share, begin, begin + seconds))
                 for share in shares]
    for process in processes:
        process.start()
    statuses = collections.Counter()
    for _ in processes:
        statuses.update(queue.get(timeout=seconds + 180))
    for process in processes:
        process.join(60)
    return statuses, seconds


def worker(queue, port, path, bodies, clients, begin, end):
    statuses, lock = collections.Counter(), threading.Lock()

    def client(number):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        turn = number
        while time.time() < end:
            turn += 1
            try:
                connection.request("POST", path, bodies[turn % len(bodies)], {"content-type": "image/jpeg"})
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                status = type(error).__name__
            if begin <= time.time() < end:
                with lock:
                    statuses[status] += 1
        connection.close()

    threads = [threading.Thread(target=client, args=(97 * number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.put(statuses)
