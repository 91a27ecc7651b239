"""Step 2: runs the vision tower's frozen layers on every photo; stores float16 in memory-mapped files.

Stores up to three views of each photo: original, mirrored, and a random crop that is mirrored half of the time.
Also stores the class token of the whole tower, to find near-duplicates. Each worker uses one thread and
small batches, so that the activations fit into the CPU cache. An interrupted run can be resumed.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing as mp
import random
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, BlipForConditionalGeneration

import common
import vision

BATCH = 4


def pixels(image: Image.Image) -> torch.Tensor:
    """Does what BlipImageProcessor does: resizes to 224 x 224 with bicubic filtering, scales, normalises."""
    resized = image.convert("RGB").resize((common.IMAGE_SIZE, common.IMAGE_SIZE), Image.Resampling.BICUBIC)
    mean, std = (torch.tensor(a).view(3, 1, 1) for a in common.CLIP)
    return (torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255 - mean) / std


def view(image: Image.Image, index: int, seed: int) -> Image.Image:
    """View 0: the photo; 1: mirrored; 2: 60 to 100 % of its area, sides within 3:4, mirrored or not."""
    if index == 0:
        return image
    rng = random.Random(seed)
    if index == 2:
        area, aspect = rng.uniform(0.6, 1.0), math.exp(rng.uniform(-0.28, 0.28))
        width = min(image.width, round(image.width * math.sqrt(area * aspect)))
        height = min(image.height, round(image.height * math.sqrt(area / aspect)))
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        image = image.crop((left, top, left + width, top + height))
        if rng.random() < 0.5:
            return image
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


class Tower:
    """The tower in the precision asked for, split before its last `trained` layers."""

    def __init__(self, start: Path, trained: int, precision: str) -> None:
        tower = BlipForConditionalGeneration.from_pretrained(start, dtype=torch.float32).vision_model.eval()
        self.run = vision.layer_forward
        if precision == "bf16":
            vision.half(tower)
        elif precision == "int8":
            vision.quantize(tower)
            self.run = torch.compile(vision.layer_forward, dynamic=False)  # fuses what is around the products
        self.tower, self.trained = tower, trained
        self.tail = vision.Tail(tower, trained)

    def trunk(self, batch: torch.Tensor) -> torch.Tensor:
        return vision.trunk(self.tower, batch, self.trained, self.run)


def check(start: Path, trained: int, precision: str, archive: Path, file: str) -> None:
    """Compares the optimised code here and in vision.py with transformers."""
    with tarfile.open(archive) as tar:
        image = Image.open(io.BytesIO(tar.extractfile(f"photos/{file}").read()))
    mine = pixels(image)[None]
    theirs = AutoImageProcessor.from_pretrained(start)(image, return_tensors="pt")["pixel_values"]
    exact, used = Tower(start, trained, "f32"), Tower(start, trained, precision)
    with torch.inference_mode():
        truth = exact.tower(theirs).last_hidden_state
        difference = (truth - exact.tail(exact.trunk(mine))).abs().max()
        used.run = vision.layer_forward
        loss = (truth - used.tail(used.trunk(mine))).abs().mean()
    print(f"pixels differ by {(mine - theirs).abs().max():.1e}, features by {difference:.1e}, "
          f"in {precision} by {loss / truth.abs().mean():.1e} of their mean size", flush=True)


def worker(index: int, count: int, start: Path, trained: int, precision: str, out: Path,
           photos: list[tuple[str, Path]]) -> None:
    torch.set_num_threads(1)
    common.seed_all()
    tower = Tower(start, trained, precision)
    views = [np.load(out / name, mmap_mode="r+") for name in sorted(p.name for p in out.glob("view*.npy"))]
    classes = np.load(out / "classes.npy", mmap_mode="r+")
    done = np.load(out / "done.npy", mmap_mode="r+")
    tars = {archive: tarfile.open(archive) for archive in {a for _, a in photos}}
    todo = [i for i in range(len(photos)) if i // BATCH % count == index and not done[i]]
    began = time.time()
    with torch.inference_mode():
        for at in range(0, len(todo), BATCH):
            rows = todo[at:at + BATCH]
            images = [Image.open(io.BytesIO(tars[photos[r][1]].extractfile(f"photos/{photos[r][0]}").read())).convert("RGB")
                      for r in rows]
            for v, table in enumerate(views):
                batch = torch.stack([pixels(view(image, v, r)) for image, r in zip(images, rows)])
                hidden = tower.trunk(batch)
                table[rows] = hidden.half().numpy()
                if v == 0:
                    classes[rows] = tower.tail(hidden)[:, 0].numpy()
            done[rows] = 1
            if at // BATCH % 250 == 0:
                rate = (at + BATCH) / (time.time() - began)
                print(f"worker {index}: {at + len(rows)}/{len(todo)}, {rate:.2f} photos per second", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--start", type=Path, required=True, help="model folder, for example of build_start.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", default=["flickr8k", "coco", "sports", "coco-hf", "cc3m", "flowers102"],
                        help="in the order in which they are processed")
    parser.add_argument("--trained", type=int, default=common.TRAINED, help="last layers of the tower to leave out; 0 for none")
    parser.add_argument("--views", type=int, default=common.VIEWS, choices=(1, 2, 3))
    parser.add_argument("--precision", choices=("f32", "bf16", "int8"), default="bf16")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    every = [p for p in common.load_photos(*args.data) if p.source in args.sources and p.captions]
    # A run that is cut short has the evaluation photos and a random part of the last source.
    every.sort(key=lambda p: (p.split != "dev_eval", args.sources.index(p.source), zlib.crc32(p.file.encode())))
    photos = [(p.file, p.archive) for p in every]
    (args.out / "shape.json").write_text(json.dumps({"trained": args.trained, "views": args.views}) + "\n")
    (args.out / "files.json").write_text(json.dumps([f for f, _ in photos]))
    if not (args.out / "done.npy").exists():
        shape = (len(photos), common.TOKENS, common.WIDTH)
        for v in range(args.views):
            np.lib.format.open_memmap(args.out / f"view{v}.npy", "w+", np.float16, shape).flush()
        np.save(args.out / "classes.npy", np.zeros((len(photos), common.WIDTH), np.float32))
        np.save(args.out / "done.npy", np.zeros(len(photos), np.uint8))
    check(args.start, args.trained, args.precision, every[0].archive, every[0].file)
    context = mp.get_context("spawn")
    workers = [context.Process(target=worker, args=(
        i, args.workers, args.start, args.trained, args.precision, args.out, photos))
               for i in range(args.workers)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    done = np.load(args.out / "done.npy")
    print(f"{int(done.sum())} of {len(photos)} photos done")


if __name__ == "__main__":
    main()
