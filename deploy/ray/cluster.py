"""One scenario of deploy/ray/test: cluster.py worker|node|driver FOLDER

Starts a cluster of three nodes, captions shards with caption.py, kills something after some shards, and counts.
"""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time

from ray.cluster_utils import Cluster

HERE = pathlib.Path(__file__).parent
ASSETS = sorted((HERE.parent.parent / "assets").glob("*.jpg"))
SHARDS, SAMPLES, WORKERS = 16, 30, 2
MEMORY = 160 << 20
# So that a dead node is noticed in seconds.
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 5,
}


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def make(folder):
    """Shards as img2dataset writes them. A sample in each is no photo."""
    shards = []
    for number in range(SHARDS):
        shards.append(str(folder / f"{number:05}.tar"))
        with tarfile.open(shards[-1], "w") as tar:
            for sample in range(SAMPLES):
                key = f"{number:05}{sample:04}"
                photo = ASSETS[sample % len(ASSETS)].read_bytes() if sample else b"no photo"
                # What follows the end of a JPEG makes each photo another one.
                add(tar, f"{key}.jpg", photo + key.encode())
                add(tar, f"{key}.json", json.dumps({"key": key}).encode())
    return shards


def files(output):
    return sorted(output.glob("[!.]*.jsonl"))


def partials(output):
    return sorted(output.glob(".*"))


def start(address, output, shards):
    command = [sys.executable, str(HERE / "caption.py"), str(output), *shards, f"--workers={WORKERS}",
               '--resources={"photos": 1}', '--params={"cache": "bypass"}']
    environment = {**os.environ, "RAY_ADDRESS": address}
    log = open(output.parent / "log", "ab")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def until(holds, what, seconds=120):
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not happen in {seconds} s")
        time.sleep(0.05)


def workers():
    found = subprocess.run(["pgrep", "-f", "ray::Captioner"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def main(scenario, folder):
    folder = pathlib.Path(folder)
    output = folder / "out"
    output.mkdir(parents=True)
    shards = make(folder)
    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)

    def node():
        return cluster.add_node(num_cpus=2, object_store_memory=MEMORY, resources={"photos": 1})

    nodes = [node() for _ in range(WORKERS)]
    driver = start(cluster.address, output, shards)
    # In the middle of a shard.
    until(lambda: len(files(output)) >= 3 and partials(output), "the third shard")
    killed = 1
    if scenario == "worker":
        os.kill(workers()[0], signal.SIGKILL)
    elif scenario == "node":
        cluster.remove_node(nodes[0], allow_graceful=False)
        node()
    else:
        driver.kill()
        driver.wait()
        # All of its workers end with it.
        killed = WORKERS
        until(lambda: not workers(), "the end of the workers")
        driver = start(cluster.address, output, shards)
    status = driver.wait(240)
    rows = [json.loads(line) for file in files(output) for line in file.read_text().splitlines()]
    keys = [row["key"] for row in rows]
    again = len(partials(output))
    print(
        f"{scenario}: exit {status}, {len(files(output))} files, {len(keys)} rows of {len(set(keys))} samples, "
        f"{sum('error' in row for row in rows)} without a photo, {again} shards begun twice",
        flush=True,
    )
    assert status == 0, (folder / "log").read_text()[-3000:]
    assert len(keys) == len(set(keys)) == SHARDS * SAMPLES
    assert sum("error" in row for row in rows) == SHARDS
    assert all(row.get("caption") or row["error"]["code"] == "unsupported_format" for row in rows)
    assert again <= killed
    # Once more there is nothing to do.
    before = [(file, file.stat().st_mtime_ns) for file in files(output)]
    assert start(cluster.address, output, shards).wait(120) == 0
    assert before == [(file, file.stat().st_mtime_ns) for file in files(output)]
    assert not partials(output)
    # A shard that is cut off fails alone.
    cut = folder / "cut.tar"
    cut.write_bytes(pathlib.Path(shards[0]).read_bytes()[:100_000])
    assert start(cluster.address, output, [str(cut), *shards]).wait(120) == 1
    assert f"{cut}: unexpected end of data" in (folder / "log").read_text()
    assert len(files(output)) == SHARDS
    cluster.shutdown()


main(*sys.argv[1:])
