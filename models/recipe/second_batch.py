"""Lays out the second batch of photos as the first one is: `OUT/captions.jsonl` and `OUT/coco-5329.tar`.

Reads the list of photos and the archive of the public repository that holds them (its photos are
`data/data/<id>.jpg`). Only photos with a caption that a person wrote are taken: a caption made from a label
teaches the model its template.
"""

from __future__ import annotations

import argparse
import json
import lzma
import tarfile
from pathlib import Path

SOURCE = "coco-5329"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", type=Path, required=True, help="captions.jsonl.xz of the second batch")
    parser.add_argument("--archive", type=Path, required=True, help="tar file with data/data/<id>.jpg")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with lzma.open(args.list, "rt", encoding="utf-8") as lines:
        rows = {row["id"]: row for row in map(json.loads, lines) if row["source"] == SOURCE and row["captions"]}
    args.out.mkdir(parents=True, exist_ok=True)
    found = []
    with tarfile.open(args.archive) as archive, tarfile.open(args.out / f"{SOURCE}.tar", "w") as out:
        for member in archive:
            row = rows.get(Path(member.name).stem)
            if row and member.isfile() and member.name.endswith(".jpg"):
                content = archive.extractfile(member)
                member.name = f"photos/{row['file']}"
                out.addfile(member, content)
                found.append({**row, "split": "train"})
    (args.out / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    print(f"{len(found)} of {len(rows)} photos found")


if __name__ == "__main__":
    main()
