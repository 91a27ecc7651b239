"""Shared parts of the runners: arguments, timing, and the line that they print."""

import argparse
import json
import pathlib
import statistics
import time

import numpy
import weights


def arguments(precisions):
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path, help="folder written by prepare.py")
    parser.add_argument("--precision", choices=precisions, default=precisions[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def measure(options, images, captions):
    """Times passes of `captions(images(pixels))` and prints medians, in milliseconds per image.

    `images` does the work that is needed once per image; `captions` returns the ids, `new_tokens` per row.
    """
    pixels = weights.images(options.batch)
    ids = captions(images(pixels))
    if ids.shape != (options.batch, options.new_tokens):
        raise SystemExit(f"the ids have an unexpected shape: {ids.shape}")
    times = []
    for _ in range(options.iterations):
        begin = time.perf_counter()
        encoded = images(pixels)
        between = time.perf_counter()
        captions(encoded)
        end = time.perf_counter()
        times.append((between - begin, end - between, end - begin))
    image, decode, whole = (1e3 * statistics.median(part) / options.batch for part in zip(*times))
    print(json.dumps({"image_ms": image, "decode_ms": decode, "end_to_end_ms": whole,
                      "same_tokens": agreement(options, ids)}))


def agreement(options, ids):
    """The share of tokens that match transformers in f32, if its tokens were stored."""
    kept = options.folder / "reference.npy"
    if not kept.exists():
        return None
    reference = numpy.load(kept)[: len(ids), : ids.shape[1]]
    return float((ids[: len(reference), : reference.shape[1]] == reference).mean())


def greedy(options, step):
    """Decodes greedily with `step(ids, position)`, and never picks the end token."""
    ids, written = numpy.full((options.batch, 1), weights.START), []
    for position in range(options.new_tokens):
        logits = step(ids, numpy.array([[position]]))
        # Takes the best logits before and after the end token, which avoids a copy.
        before, behind = logits[:, : weights.END], logits[:, weights.END + 1 :]
        first, second = before.argmax(-1), behind.argmax(-1)
        rows = numpy.arange(len(logits))
        best = numpy.where(before[rows, first] >= behind[rows, second], first, second + weights.END + 1)
        ids = best[:, None]
        written.append(ids)
    return numpy.concatenate(written, 1)
