"""Step 2: runs the vision tower's frozen layers on every photo; stores float16 in memory-mapped files.

Stores three views of each photo: original, mirrored, and a random crop that is mirrored half of the time.
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
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, BlipForConditionalGeneration

import build_start
import common
import vision

BATCH = 8


def pixels(image: Image.Image) -> torch.Tensor:
    """Does what BlipImageProcessor does: resizes to 224 x 224 with bicubic filtering, scales, normalises."""
    resized = image.convert("RGB").resize((common.IMAGE_SIZE, common.IMAGE_SIZE), Image.Resampling.BICUBIC)
    mean, std = (torch.tensor(a).view(3, 1, 1) for a in build_start.CLIP)
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


def check(start: Path, data: Path, file: str, source: str) -> None:
    """Compares the optimised code here and in vision.py with transformers."""
    with tarfile.open(data / f"{source}.tar") as tar:
        image = Image.open(io.BytesIO(tar.extractfile(f"photos/{file}").read()))
    mine = pixels(image)[None]
    theirs = AutoImageProcessor.from_pretrained(start)(image, return_tensors="pt")["pixel_values"]
    tower = BlipForConditionalGeneration.from_pretrained(start).vision_model.eval()
    with torch.inference_mode():
        truth = tower(theirs).last_hidden_state
        exact = (truth - vision.Tail(tower, common.TRAINED)(vision.trunk(tower, mine))).abs().max()
        vision.half(tower)
        half = (truth - vision.Tail(tower, common.TRAINED)(vision.trunk(tower, mine))).abs().mean()
    print(f"pixels differ by {(mine - theirs).abs().max():.1e}, features by {exact:.1e}, "
          f"in bfloat16 by {half / truth.abs().mean():.1e} of their mean size", flush=True)


def worker(index: int, count: int, start: Path, data: Path, out: Path, photos: list[tuple[str, str]]) -> None:
    torch.set_num_threads(1)
    common.seed_all()
    tower = vision.half(BlipForConditionalGeneration.from_pretrained(start).vision_model.eval())
    tail = vision.Tail(tower, common.TRAINED)
    views = [np.load(out / f"view{v}.npy", mmap_mode="r+") for v in range(common.VIEWS)]
    classes = np.load(out / "classes.npy", mmap_mode="r+")
    done = np.load(out / "done.npy", mmap_mode="r+")
    tars = {source: tarfile.open(data / f"{source}.tar") for source in {s for _, s in photos}}
    todo = [i for i in range(len(photos)) if i // BATCH % count == index and not done[i]]
    began = time.time()
    with torch.inference_mode():
        for at in range(0, len(todo), BATCH):
            rows = todo[at:at + BATCH]
            images = [Image.open(io.BytesIO(tars[photos[r][1]].extractfile(f"photos/{photos[r][0]}").read())).convert("RGB")
                      for r in rows]
            for v, table in enumerate(views):
                batch = torch.stack([pixels(view(image, v, r)) for image, r in zip(images, rows)])
                hidden = vision.trunk(tower, batch)
                table[rows] = hidden.half().numpy()
                if v == 0:
                    classes[rows] = tail(hidden)[:, 0].numpy()
            done[rows] = 1
            if at // BATCH % 100 == 0:
                rate = (at + BATCH) / (time.time() - began)
                print(f"worker {index}: {at + len(rows)}/{len(todo)}, {rate:.2f} photos per second", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True, help="folder written by build_start.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", default=["flickr8k", "coco", "sports", "coco-hf", "cc3m", "flowers102"],
                        help="in the order in which they are processed")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    every = [p for p in common.load_photos(args.data) if p.source in args.sources and p.captions]
    every.sort(key=lambda p: (args.sources.index(p.source), p.split, p.file))
    photos = [(p.file, p.source) for p in every]
    (args.out / "files.json").write_text(json.dumps([f for f, _ in photos]))
    if not (args.out / "done.npy").exists():
        shape = (len(photos), common.TOKENS, common.WIDTH)
        for v in range(common.VIEWS):
            np.lib.format.open_memmap(args.out / f"view{v}.npy", "w+", np.float16, shape).flush()
        np.save(args.out / "classes.npy", np.zeros((len(photos), common.WIDTH), np.float32))
        np.save(args.out / "done.npy", np.zeros(len(photos), np.uint8))
    check(args.start, args.data, *photos[0])
    context = mp.get_context("spawn")
    workers = [context.Process(target=worker, args=(i, args.workers, args.start, args.data, args.out, photos))
               for i in range(args.workers)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    done = np.load(args.out / "done.npy")
    print(f"{int(done.sum())} of {len(photos)} photos done")


if __name__ == "__main__":
    main()
