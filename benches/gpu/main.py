"""Parity and speed of cutline on a GPU, next to transformers; see README.md."""

import argparse
import pathlib
import time

import common
import kernels
import offline
import parity
import serving
import table

# In the order of their value, for runs that end early: batch 64 decides what is worth measuring further.
STEPS = {"parity": parity.run, "offline": offline.run, "server": serving.run, "profile": kernels.run,
         "batches": offline.run_others}


def main():
    options = arguments()
    if options.minutes:
        common.deadline = time.monotonic() + 60 * options.minutes
    results = common.Results(options.folder / "results.json", common.identity(options), options.again)
    results.put("machine", common.machine(options))
    for name in options.steps:
        results.all.pop(f"step {name}", None)
        try:
            STEPS[name](options, results)
        except common.Skipped as reason:
            common.say(f"{name}: skipped: {reason}")
        except common.Failure as failure:
            results.put(f"step {name}", {"failed": str(failure)})
            common.say(f"{name}: failed: {failure}")
    text = table.markdown(results.all, options)
    (options.folder / "table.md").write_text(text)
    print(text, flush=True)
    raise SystemExit(1 if table.failures(results.all, options) else 0)


def arguments():
    numbers = lambda text: [int(number) for number in text.split(",")]
    words = lambda text: text.split(",")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, help="folder for weights, photos and results")
    parser.add_argument("--cutline", required=True, help="the program, built with --features cuda")
    parser.add_argument("--device", default="cuda:0", help="cuda:0, cuda:1, …; cpu only tests this script")
    parser.add_argument("--steps", type=words, default=list(STEPS), help="some of " + ",".join(STEPS))
    parser.add_argument("--precisions", type=words, help="precisions of cutline; default f16,bf16 on a GPU, f32 on a CPU")
    parser.add_argument("--batches", type=numbers, default=[64, 1, 16, 128, 256, 32, 8, 4, 2], help="in this order; the first is measured before the server")
    parser.add_argument("--minutes", type=float, help="start nothing, and stop everything, when this time is over")
    parser.add_argument("--new-tokens", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=10, help="measured passes for each batch")
    parser.add_argument("--rounds", type=int, default=1, help="processes for each batch, in turn; the medians are reported")
    parser.add_argument("--layers", type=int, default=12, help="layers of vision tower and decoder; BLIP base has 12")
    parser.add_argument("--photos", type=pathlib.Path, help="folder of JPEGs")
    parser.add_argument("--photo-count", type=int, default=400, help="number of photos to make if --photos is not given")
    parser.add_argument("--references", type=pathlib.Path, help="reference captions of the photos, for cutline eval")
    parser.add_argument("--clients", type=int, default=0, help="clients of the server; 0 means four times the batch size")
    parser.add_argument("--seconds", type=float, default=20, help="seconds for which the server is measured")
    parser.add_argument("--load-client", type=pathlib.Path, help="the program load-client, instead of clients in Python")
    parser.add_argument("--compile-timeout", type=float, default=300, help="seconds for torch.compile, before only the tower is compiled")
    parser.add_argument("--timeout", type=float, default=540, help="time limit of one process, in seconds")
    parser.add_argument("--quick", action="store_true", help="use few passes, photos and seconds, to test the script")
    parser.add_argument("--again", action="store_true", help="discard earlier results")
    options = parser.parse_args()
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"there is no step {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    options.on_cpu = options.device == "cpu"
    options.precisions = options.precisions or (["f32"] if options.on_cpu else ["f16", "bf16"])
    if options.quick:
        options.iterations, options.seconds = 1, 3
        options.photo_count = min(options.photo_count, 8)
    return options


if __name__ == "__main__":
    main()
