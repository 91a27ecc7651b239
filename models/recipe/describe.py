"""Writes `cutline.json` into the released folder: what cutline reads and transformers does not.

- `generation`: the defaults of decoding that were chosen on the held-out photos.
- `confidence`: points of a rising line from a caption's confidence (the geometric mean of its tokens'
  probabilities) to the share of captions that name a subject of their photo, measured with cutline itself.
  `subjects.py` decides what is a subject. The held-out photos would flatter the model, because an earlier
  part of the training has seen them. So the line comes from one half of the `dev_eval` photos; the other
  half is printed beside it, as a check. Nothing else is taken from them.
- `support`: how often a word was in the captions of the training photos.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import common
from precisions import extract
from subjects import GROUPS, groups_in

Judged = list[tuple[float, bool]]  # confidence, and whether a subject was right


def judge(program: Path, model: Path, options: list[str], photos: list[common.Photo]) -> Judged:
    words = [g.split() for g in GROUPS.strip().replace("\n", "|").split("|")]
    group_of = {w: i for i, group in enumerate(words) for w in group}
    with tempfile.TemporaryDirectory() as folder:
        files = extract(photos, Path(folder))
        places = {str(files[photo.file]): photo for photo in photos}
        command = [program, "caption", "--model", model, "--format", "jsonl", *options, *places]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    judged = []
    for row in map(json.loads, lines):
        named = Counter(g for r in places[row["path"]].raw for g in groups_in(r, group_of))
        subjects = {g for g, n in named.items() if n >= 3}
        if subjects:
            judged.append((row["captions"][0]["confidence"], bool(subjects & groups_in(row["caption"], group_of))))
    return sorted(judged)


def bins(judged: Judged, count: int) -> list[tuple[float, float, int]]:
    """Mean confidence, share of right captions and size of equal parts; falling shares are merged."""
    size = len(judged) / count
    found: list[tuple[float, float, int]] = []
    for part in (judged[round(i * size):round((i + 1) * size)] for i in range(count)):
        mean, share, n = sum(c for c, _ in part) / len(part), sum(r for _, r in part) / len(part), len(part)
        while found and found[-1][1] >= share:
            before = found.pop()
            mean, share = ((a * n + b * before[2]) / (n + before[2]) for a, b in ((mean, before[0]), (share, before[1])))
            n += before[2]
        found.append((mean, share, n))
    return found


def support(photos: list[common.Photo], least: int) -> dict[str, int]:
    counts = Counter(w for p in photos if p.split == "train" for c in p.captions for w in re.findall(r"[a-z0-9]+", c))
    return {word: n for word, n in sorted(counts.items()) if n >= least}


def half(photo: common.Photo) -> bool:
    return zlib.crc32(photo.file.encode()) % 2 == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cutline", type=Path, required=True, help="the program")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--model", type=Path, required=True, help="the released folder")
    parser.add_argument("--generation", default="{}", help="the defaults of decoding, as JSON")
    parser.add_argument("--bins", type=int, default=5)
    parser.add_argument("--least", type=int, default=2, help="words that occurred less often are left out")
    args = parser.parse_args()
    photos = common.load_photos(*args.data)
    content = {"generation": json.loads(args.generation), "support": support(photos, args.least)}
    # Without a line of its own, so that the program reports the confidence as it is.
    (args.model / "cutline.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
    options = [o for name, value in content["generation"].items() for o in ("--" + name.replace("_", "-"), str(value))]
    several = [p for p in photos if p.source in ("flickr8k", "coco") and len(p.raw) >= 4 and p.captions]
    unseen = [p for p in several if p.split == "dev_eval"]
    parts = {"line": [p for p in unseen if half(p)], "check": [p for p in unseen if not half(p)],
             "held-out": [p for p in several if p.split == "train" and common.is_holdout(p)]}
    lines = {}
    for name, part in parts.items():
        judged = judge(args.cutline, args.model, options, part)
        lines[name] = bins(judged, args.bins)
        print(f"\n{name}: {len(judged)} photos\n\n| mean confidence | captions | name a subject |\n| --- | --- | --- |")
        for mean, share, n in lines[name]:
            print(f"| {mean:.2f} | {n} | {share:.0%} |")
    content["confidence"] = [[round(mean, 3), round(share, 3)] for mean, share, _ in lines["line"]]
    (args.model / "cutline.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
    print(f"\n{len(content['support'])} words")


if __name__ == "__main__":
    main()
