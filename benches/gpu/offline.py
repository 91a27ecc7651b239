"""Throughput without a server: cutline and transformers on the same weights, batch by batch."""

import json
import statistics
import sys

import common

# How transformers runs: eagerly, or with torch.compile.
PEERS = {"transformers": "eager", "torch.compile": "compile"}


def run(options, results):
    measure(options, results, options.batches[:1])


def run_others(options, results):
    measure(options, results, options.batches[1:])


def measure(options, results, batches):
    folder = common.model(options)
    for batch in batches:
        for precision in options.precisions:
            results.once(f"cutline {precision} {batch}", lambda: rounds(options, lambda: own(options, precision, batch, folder)))
        for peer, how in PEERS.items():
            results.once(f"{peer} {batch}", lambda: rounds(options, lambda: other(options, how, batch, folder)))


def rounds(options, measure):
    """Medians over the rounds, with one process per round: milliseconds per image, by stage."""
    lines = [measure() for _ in range(options.rounds)]
    times = {key: statistics.median(line[key] for line in lines) for key in ("vision_ms", "decode_ms", "end_to_end_ms")}
    return times | ({"tower_only": True} if any("tower_only" in line for line in lines) else {})


def own(options, precision, batch, folder):
    line = common.bench(options, options.device, precision, batch, folder)
    if line["device"] != options.device:
        raise common.Failure(f"cutline ran on {line['device']}")
    # Counts the cross-attention keys and values as decoding, because transformers computes them there.
    return {"vision_ms": line["vision_ms"], "decode_ms": line["cross_kv_ms"] + line["decode_ms"],
            "end_to_end_ms": line["end_to_end_ms"]}


def other(options, how, batch, folder):
    command = [sys.executable, common.HERE / "run_torch.py", folder, "--how", how, "--device", options.device,
               "--batch", batch, "--new-tokens", options.new_tokens, "--iterations", options.iterations]
    if how != "compile":
        return json.loads(common.output(command, options.timeout).splitlines()[-1])
    try:
        return json.loads(common.output(command, options.compile_timeout).splitlines()[-1])
    except common.Late:
        # The decoder takes longest, because its cache changes its shape.
        command[command.index("compile")] = "compile-tower"
        line = json.loads(common.output(command, options.compile_timeout).splitlines()[-1])
        return line | {"tower_only": True}
