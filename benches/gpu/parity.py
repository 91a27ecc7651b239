"""Checks that the GPU produces the same captions as the CPU in f32."""

import json

import common

# What the project promises: limits for the vision tower's output, equal captions and CIDEr-D.
MOST_DIFFERENCE, LEAST_EQUAL, MOST_CIDER = 0.02, 0.97, 0.01


def run(options, results):
    paths = common.photos(options)
    photos = {"count": len(paths), "where": str(options.photos or "made of the photos in assets")}
    results.put("parity photos", photos)
    kept = options.folder / "captions"
    kept.mkdir(exist_ok=True)
    reference = kept / "reference.jsonl"
    truth = results.once("parity reference", lambda: captions(options, "cpu", "f32", paths, reference))
    if "failed" in truth:
        raise common.Failure(f"the CPU's captions: {truth['failed']}")
    expected = read(reference)
    for precision in candidates(options):
        results.once(f"parity {precision}", lambda: compare(options, precision, paths, kept, expected, truth))
        results.once(f"vision {precision}", lambda: vision(options, precision))


def candidates(options):
    """The precisions to compare; never f32, because that is the reference."""
    return [precision for precision in options.precisions if precision != "f32"] or ["bf16"]


def captions(options, device, precision, paths, to):
    to.unlink(missing_ok=True)
    command = [options.cutline, "caption", "--device", device, "--precision", precision, "--output", to, "-q", "-"]
    common.output(command, options.timeout, input="".join(f"{path}\n" for path in paths))
    score = {}
    if options.references:
        command = [options.cutline, "eval", to, "--references", options.references, "--json"]
        score = {"scores": json.loads(common.output(command, options.timeout))}
    return {"captions": len(read(to)), **score}


def read(path):
    rows = map(json.loads, path.read_text().splitlines())
    return {row["path"]: row["caption"] for row in rows}


def compare(options, precision, paths, kept, expected, truth):
    own = kept / f"{precision}.jsonl"
    result = captions(options, options.device, precision, paths, own)
    written = read(own)
    if set(written) != set(expected):
        raise common.Failure(f"{len(written)} photos have captions, but {len(expected)} on the CPU")
    result["equal"] = sum(written[path] == text for path, text in expected.items()) / len(expected)
    if "scores" in result:
        result["cider"] = cider(result["scores"])
        result["cider_change"] = result["cider"] / cider(truth["scores"]) - 1
    return result


def cider(scores):
    return next(value for name, value in scores.items() if "cider" in name.lower())


def vision(options, precision):
    """The largest difference in the vision tower's output for one image, relative to the output's range."""
    import numpy

    model = common.model(options)
    states = {}
    for name, device, numbers in (("reference", "cpu", "f32"), ("own", options.device, precision)):
        path = options.folder / f"states-{name}.f32"
        common.bench(options, device, numbers, 1, model, iterations=1, states=path)
        states[name] = numpy.fromfile(path, dtype="<f4")
    reference, own = states["reference"], states["own"]
    if reference.shape != own.shape:
        raise common.Failure(f"the output has {own.size} numbers, but {reference.size} on the CPU")
    spread = float(reference.max() - reference.min())
    difference = numpy.abs(own - reference)
    return {"largest": float(difference.max()) / spread, "mean": float(difference.mean()) / spread}


def judge(results, precision):
    """The promises that do not hold."""
    broken = []
    captions, tower = results.get(f"parity {precision}", {}), results.get(f"vision {precision}", {})
    if "equal" in captions and captions["equal"] < LEAST_EQUAL:
        broken.append(f"{precision}: {captions['equal']:.1%} of the captions are equal, less than {LEAST_EQUAL:.0%}")
    if abs(captions.get("cider_change", 0)) > MOST_CIDER:
        broken.append(f"{precision}: CIDEr-D changes by {captions['cider_change']:+.1%}, more than {MOST_CIDER:.0%}")
    if tower.get("largest", 0) > MOST_DIFFERENCE:
        broken.append(f"{precision}: the tower's output differs by {tower['largest']:.1e} of its range, more than {MOST_DIFFERENCE:.0%}")
    return broken
