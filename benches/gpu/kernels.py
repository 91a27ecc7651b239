"""Where the GPU's time goes, kernel by kernel, as NVIDIA's profiler counts it."""

import collections
import csv
import shutil

import common

BATCH, NEW_TOKENS = 64, 3


def run(options, results):
    results.once("profile", lambda: measure(options))


def measure(options):
    if options.on_cpu:
        raise common.Skipped("there is no profile of a CPU")
    profiler = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    if not profiler:
        raise common.Skipped("ncu is not installed")
    batch = min(BATCH, max(options.batches))
    command = [profiler, "--csv", "--metrics", "gpu__time_duration.sum", options.cutline, "bench",
               "--device", options.device, "--precision", options.precisions[0], "--batch", batch,
               "--new-tokens", min(NEW_TOKENS, options.new_tokens), "--iterations", 1, "--model", common.model(options)]
    kernels = count(common.output(command, options.timeout).splitlines())
    return {"batch": batch, "new_tokens": min(NEW_TOKENS, options.new_tokens), "kernels": kernels}


def count(lines):
    """Milliseconds and launches by kernel, the slowest first."""
    start = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise common.Failure("the profiler has printed no table; it may not be allowed to count")
    milliseconds, launches = collections.Counter(), collections.Counter()
    factor = {"nsecond": 1e-6, "ns": 1e-6, "usecond": 1e-3, "us": 1e-3, "msecond": 1.0, "ms": 1.0, "second": 1e3, "s": 1e3}
    for row in csv.DictReader(lines[start:]):
        if row.get("Metric Name") == "gpu__time_duration.sum":
            name = row["Kernel Name"].split("(")[0]
            milliseconds[name] += float(row["Metric Value"].replace(",", "")) * factor[row["Metric Unit"]]
            launches[name] += 1
    return [{"name": name, "ms": ms, "launches": launches[name]} for name, ms in milliseconds.most_common(15)]
