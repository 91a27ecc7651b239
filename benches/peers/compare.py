"""Runs the programs in turn and prints one markdown table.

Every round runs every program once, each in its own process, so that a slowdown of the machine affects
all of them. The ratios compare medians over the rounds.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
PROGRAMS = [
    "transformers-f32", "transformers-bf16", "onnxruntime-f32", "onnxruntime-int8", "openvino-f32", "openvino-bf16",
    "openvino-int8", "openvino-int8-bf16", "candle-f32", "cutline-f32", "cutline-bf16", "cutline-int8",
]
# The programs that each precision of cutline is compared with; an entry with several stands for the fastest.
RIVALS = {
    "cutline-f32": [("openvino-f32", "onnxruntime-f32"), ("candle-f32",)],
    "cutline-bf16": [("openvino-bf16",), ("candle-f32",)],
    "cutline-int8": [("openvino-int8", "openvino-int8-bf16"), ("candle-f32",)],
}


def main():
    options = arguments()
    for batch in options.batches:
        results = {program: [] for program in options.programs if batch == 1 or not program.startswith("candle")}
        failures = {}
        for number in range(options.rounds):
            for program, lines in results.items():
                if program in failures:
                    continue
                try:
                    lines.append(run(program, batch, options))
                except Failure as failure:
                    failures[program] = str(failure)
                print(f"batch {batch}, round {number + 1}: {program}: "
                      f"{failures.get(program) or json.dumps(lines[-1])}", file=sys.stderr, flush=True)
        print(table(batch, results, failures, options), flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="folder written by prepare.py")
    parser.add_argument("--programs", type=lambda text: text.split(","), default=PROGRAMS,
                        help="some of " + ",".join(PROGRAMS))
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=5, help="measured passes per round")
    parser.add_argument("--new-tokens", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-amx", action="store_true",
                        help="disable AMX in oneDNN (PyTorch and OpenVINO), because few processors have it")
    parser.add_argument("--timeout", type=float, default=900, help="time limit of one run, in seconds")
    parser.add_argument("--cutline", default="cutline", help="the program")
    parser.add_argument("--candle", default="cutline-peer-candle", help="the binary of benches/peers/candle")
    options = parser.parse_args()
    if unknown := set(options.programs) - set(PROGRAMS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(PROGRAMS)}")
    return options


class Failure(Exception):
    """The reason why a program has no times."""


def run(program, batch, options):
    """Runs one process and returns its times: image_ms, decode_ms, end_to_end_ms."""
    command = command_of(program, batch, options)
    variables = {name: str(options.threads) for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")}
    if options.no_amx:
        variables["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_BF16"
    try:
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True,
                              timeout=options.timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(str(error)) from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        telling = [line for line in said if "error" in line.lower()]
        raise Failure((telling or said)[-1])
    times = json.loads(done.stdout.splitlines()[-1])
    if "vision_ms" in times:
        if times["threads"] != options.threads:
            raise Failure(f"the program ran on {times['threads']} threads")
        times["image_ms"] = times["vision_ms"] + times["cross_kv_ms"]
    return times


def command_of(program, batch, options):
    name, precision = program.split("-", 1)
    work = ["--batch", batch, "--new-tokens", options.new_tokens, "--iterations", options.iterations]
    if name == "cutline":
        command = [options.cutline, "bench", "--model", options.folder / "model", "--precision", precision, *work]
    elif name == "candle":
        command = [options.candle, options.folder / "model", options.new_tokens, options.iterations]
    else:
        script = HERE / f"run_{name}.py"
        command = [sys.executable, script, options.folder, "--precision", precision, "--threads", options.threads, *work]
    return [str(part) for part in command]


def table(batch, results, failures, options):
    medians = {program: {key: statistics.median(line[key] for line in lines)
                         for key in ("image_ms", "decode_ms", "end_to_end_ms")}
               for program, lines in results.items() if lines and program not in failures}
    rows = [
        f"Batch {batch}, {options.new_tokens} tokens, {options.threads} threads, {options.rounds} rounds of "
        f"{options.iterations}{', no AMX in PyTorch and OpenVINO' if options.no_amx else ''}; "
        "median milliseconds per image:\n",
        "| program | image | tokens | end to end | lowest–highest | images/s | faster than |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for program, lines in results.items():
        if program in failures:
            rows.append(f"| {program} | failed: {failures[program][:120].replace('|', '/')} | | | | | |")
            continue
        times, whole = medians[program], [line["end_to_end_ms"] for line in lines]
        rows.append(
            f"| {program} | {times['image_ms']:.1f} | {times['decode_ms']:.1f} | **{times['end_to_end_ms']:.1f}** "
            f"| {min(whole):.0f}–{max(whole):.0f} | {1e3 / times['end_to_end_ms']:.2f} | {ratios(program, medians)} |")
    return "\n".join(rows) + "\n"


def ratios(program, medians):
    """How many times faster cutline is than its rivals."""
    if program not in RIVALS:
        return ""
    own, said = medians[program]["end_to_end_ms"], []
    for group in RIVALS[program]:
        if there := [rival for rival in group if rival in medians]:
            fastest = min(there, key=lambda rival: medians[rival]["end_to_end_ms"])
            said.append(f"{fastest} {medians[fastest]['end_to_end_ms'] / own:.2f}×")
    return ", ".join(said)


if __name__ == "__main__":
    main()
