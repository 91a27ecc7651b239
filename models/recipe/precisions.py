"""Captions the `dev_eval` photos with cutline in several precisions; compares CIDEr-D and the captions.

Prints a Markdown table. Uses only photos with five references, as evaluate.py does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import common
from evaluate import decoding, score


def extract(photos: list[common.Photo], folder: Path) -> dict[str, Path]:
    """Extracts the photos as files."""
    places = {}
    for archive in {p.archive for p in photos}:
        with tarfile.open(archive) as tar:
            for photo in (p for p in photos if p.archive == archive):
                places[photo.file] = folder / photo.file
                places[photo.file].parent.mkdir(parents=True, exist_ok=True)
                places[photo.file].write_bytes(tar.extractfile(f"photos/{photo.file}").read())
    return places


def captions(program: Path, options: list[str], places: dict[str, Path]) -> dict[str, str]:
    command = [program, "caption", "--format", "jsonl", *options, *places.values()]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    texts = {row["path"]: row["caption"] for row in map(json.loads, lines)}
    return {file: texts[str(place)] for file, place in places.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cutline", type=Path, required=True, help="the program")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--folder", type=Path, default=Path("../cutline-small"), help="the model's folder, for its defaults of decoding")
    parser.add_argument("--precisions", nargs="+", default=["f32", "bf16", "int8"], help="the others are compared with the first one")
    parser.add_argument("--sources", nargs="+", default=["flickr8k", "coco"])
    args = parser.parse_args()
    photos = [p for p in common.load_photos(args.data)
              if p.source in args.sources and p.split == "dev_eval" and len(p.raw) == 5]
    print(f"| decoding | precision | CIDEr-D, {len(photos)} photos | relative | captions word for word as in {args.precisions[0]} |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        places = extract(photos, Path(folder))
        own = [o for k, v in decoding(args.folder).items() for o in ("--" + k.replace("_", "-"), str(v))]
        for name, options in (("default", own), ("3 beams, 5 to 20 tokens", ["--num-beams", "3", "--min-new-tokens", "5"])):
            first = None
            for precision in args.precisions:
                texts = captions(args.cutline, ["--model", args.model, "--precision", precision, *options], places)
                cider = score({p.file: p.raw for p in photos}, texts)["CIDEr-D"]
                first = first or (texts, cider)
                same = sum(texts[f] == first[0][f] for f in texts) / len(texts)
                print(f"| {name} | {precision} | {cider:.4f} | {cider / first[1] - 1:+.1%} | {same:.1%} |", flush=True)


if __name__ == "__main__":
    main()
