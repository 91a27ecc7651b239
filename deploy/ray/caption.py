"""Captions shards of photos on a Ray cluster: caption.py OUTPUT SHARD.. [options]

A shard is a tar of the webdataset kind. Its captions are one file, OUTPUT/NAME.FINGERPRINT.jsonl, with a line for each
sample that has a photo: `key`, and the fields of a caption or of an error. The fingerprint stands for the model and the
parameters. A file is written under another name and renamed when it is complete, so whatever dies, a file that is there
has every row once, and running the same command again computes the shards that are missing and no others.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import sys
import tarfile
import uuid

import ray

PHOTOS = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
# A larger member is not read. The program refuses images of more than MAX_IMAGE_SIZE anyway.
MOST_BYTES = 64 << 20


def samples(shard):
    """The first photo of each sample, with the sample's key: the path up to the first dot of the file's name."""
    before = None
    with tarfile.open(shard, "r|*") as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if not member.isreg() or f".{extension.rpartition('.')[2].lower()}" not in PHOTOS or key == before:
                continue
            before = key
            yield key, tar.extractfile(member).read() if member.size <= MOST_BYTES else b""


def target(output, shard, fingerprint):
    """Two shards of one name in different folders have different results."""
    place = hashlib.blake2b(os.fsencode(os.path.dirname(os.path.abspath(shard))), digest_size=4).hexdigest()
    return pathlib.Path(output) / f"{pathlib.Path(shard).stem}-{place}.{fingerprint}.jsonl"


@ray.remote(max_restarts=-1, max_task_retries=-1)
class Captioner:
    """Captions one shard at a time. Ray starts another one if it dies, and gives that the shard again."""

    def __init__(self, model, params):
        import cutline  # computes with the threads of num_cpus

        self.captioner, self.params = cutline.Captioner(model), params
        self.fingerprint = self.captioner.fingerprint_of(**params)

    def caption(self, output, shard):
        """The rows that were written; None if the file was there."""
        done = target(output, shard, self.fingerprint)
        if done.exists():
            return None
        partial = done.with_name(f".{done.name}.{uuid.uuid4().hex}")
        # The stream is a few photos ahead of its rows.
        keys, count = collections.deque(), 0

        def photos():
            for key, data in samples(shard):
                keys.append(key)
                yield data

        with open(partial, "x", encoding="utf-8") as file:
            for row in self.captioner.stream(photos(), **self.params):
                file.write(json.dumps({"key": keys.popleft(), **row}, ensure_ascii=False) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, done)
        return count


def sweep(output):
    """Removes what workers that died have left of shards that are complete by now."""
    for partial in output.glob(".*.jsonl.*"):
        if partial.with_name(partial.name[1:].rpartition(".")[0]).exists():
            partial.unlink(missing_ok=True)


def run(output, shards, workers, options, model, params):
    """Captions all shards. Those that failed, with the reason."""
    idle = [Captioner.options(**options).remote(model, params) for _ in range(workers)]
    waiting, running, failed = collections.deque(shards), {}, {}
    while waiting or running:
        while waiting and idle:
            worker, shard = idle.pop(), waiting.popleft()
            running[worker.caption.remote(str(output), shard)] = worker, shard
        for done in ray.wait(list(running))[0]:
            worker, shard = running.pop(done)
            idle.append(worker)
            try:
                rows = ray.get(done)
                print(f"{shard}: {'was done' if rows is None else f'{rows} rows'}", flush=True)
            except ray.exceptions.RayTaskError as error:
                failed[shard] = error.cause
                print(f"{shard}: {error.cause}", file=sys.stderr, flush=True)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path, help="folder that all machines see")
    parser.add_argument("shards", nargs="+", help="tars that all machines see")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--params", type=json.loads, default={}, help='parameters of captions: {"num_beams": 3}')
    parser.add_argument("--workers", type=int, default=1, help="captioners in the cluster")
    parser.add_argument("--cpus", type=float, default=1, help="cores of each")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each")
    parser.add_argument("--resources", type=json.loads, default=None, help="other resources of each, for tests")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    sweep(options.output)
    ray.init(address="auto")
    needs = {"num_cpus": options.cpus, "num_gpus": options.gpus, "resources": options.resources}
    failed = run(options.output, options.shards, options.workers, needs, options.model, options.params)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
