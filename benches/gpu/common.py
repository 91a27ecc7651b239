"""Shared parts of the steps: running programs, storing results, photos, the model."""

import datetime
import hashlib
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
PHOTOS = HERE.parent.parent / "assets"
sys.path += [str(HERE.parent / "peers"), str(HERE.parent / "load")]


# When the run has to end, by the monotonic clock.
deadline = None


class Failure(Exception):
    """The reason why a step or a row has no numbers."""


class Skipped(Exception):
    """The reason why a step or a row was left out, which is no failure."""


class Late(Failure):
    """A program took too long."""


def left():
    """Seconds until the run has to end."""
    return float("inf") if deadline is None else deadline - time.monotonic()


def say(text):
    print(text, file=sys.stderr, flush=True)


class Results:
    """Results by name, saved to a file after each measurement."""

    def __init__(self, path, identity, again):
        self.path = path
        self.all = {}
        if path.exists() and not again:
            self.all = json.loads(path.read_text())
        if self.all.get("identity") != identity:
            if self.all:
                say(f"{path} belongs to another program, device or model: starting over")
            self.all = {"identity": identity}

    def put(self, name, value):
        self.all[name] = value
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.all, indent=1))
        new.replace(self.path)

    def once(self, name, measure):
        """Returns the stored result, or measures it. Stores failures, and retries them in the next run."""
        known = self.all.get(name)
        if known is None or "failed" in known or "skipped" in known:
            try:
                if left() < 5:
                    raise Skipped("no time was left")
                self.put(name, measure())
            except Skipped as reason:
                self.put(name, {"skipped": str(reason)})
            except Failure as failure:
                self.put(name, {"failed": str(failure)})
            say(f"{name}: {json.dumps(self.all[name])}")
        return self.all[name]


def identity(options):
    """The properties that results must share to be comparable."""
    with open(options.cutline, "rb") as program:
        digest = hashlib.file_digest(program, "sha256").hexdigest()
    return {"program": digest, "device": options.device, "layers": options.layers,
            "new_tokens": options.new_tokens, "quick": options.quick}


def output(command, timeout, **more):
    """The standard output of a program. Raises Failure with its error message if it fails."""
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1, min(timeout, left())), **more)
    except subprocess.TimeoutExpired as error:
        if left() <= 0:
            raise Skipped("no time was left") from error
        raise Late(str(error)[:300]) from error
    except OSError as error:
        raise Failure(str(error)[:300]) from error
    if done.returncode != 0:
        raise Failure(complaint(done.stderr, done.returncode))
    return done.stdout


def complaint(stderr, status):
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "memory" in line.lower()]
    return ((telling or lines or [f"exit status {status}"])[-1])[:300]


def bench(options, device, precision, batch, model=None, iterations=None, states=None):
    """The JSON line that `cutline bench` prints."""
    command = [options.cutline, "bench", "--device", device, "--precision", precision, "--batch", batch,
               "--new-tokens", options.new_tokens, "--iterations", iterations or options.iterations]
    command += ["--model", model] if model else []
    command += ["--states", states] if states else []
    return json.loads(output(command, options.timeout).splitlines()[-1])


def model(options):
    """The folder of BLIP base with seeded random weights, and a vocabulary that names its tokens."""
    folder = options.folder / f"model-{options.layers}"
    if not (folder / "model.safetensors").exists():
        say(f"making {folder}")
        import weights

        weights.make(folder, layers=options.layers)
    words = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 30522: "[DEC]", 30523: "[ENC]"}
    text = "".join(f"{words.get(number, f'word{number}')}\n" for number in range(30524))
    (folder / "vocab.txt").write_text(text)
    return folder


def photos(options):
    """Paths of JPEGs: the given ones, or half-megapixel ones made from the photos in assets."""
    if options.photos:
        found = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        if not found:
            raise Failure(f"there are no JPEGs in {options.photos}")
        return found[: options.photo_count] if options.quick else found
    try:
        import photos as made

        return made.make(options.folder / "photos", options.photo_count, size=(816, 612))
    except ImportError:
        say("Pillow is not installed: using the photos in assets")
        return sorted(PHOTOS.glob("*.jpg"))


def machine(options):
    """The hardware and software of the measurement."""
    import torch
    import transformers

    if options.on_cpu:
        device = {"name": f"cpu ({processor()})"}
    else:
        if not torch.cuda.is_available():
            raise SystemExit("torch finds no GPU; give --device cpu to try the script without one")
        found = torch.cuda.get_device_properties(torch.device(options.device))
        device = {"name": found.name, "memory_gib": round(found.total_memory / 2**30, 1),
                  "compute_capability": f"{found.major}.{found.minor}", "driver": driver()}
    return {"device": device, "cpu": processor(), "cores": len(os.sched_getaffinity(0)),
            "cutline": output([options.cutline, "--version"], 60).strip(),
            "torch": torch.__version__, "transformers": transformers.__version__,
            "date": datetime.date.today().isoformat()}


def processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def driver():
    if not shutil.which("nvidia-smi"):
        return None
    return output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], 60).splitlines()[0].strip()
