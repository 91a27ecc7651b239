"""Step 2: the vision tower's output for every photo, kept as float16 in a memory-mapped file.

The tower is frozen, so it runs once. Each worker uses one thread and small batches, which keep the
activations in the cache. A run that was interrupted takes up where it stopped.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing as mp
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, BlipForConditionalGeneration

import build_start
import common

BATCH = 4


def pixels(image: Image.Image) -> torch.Tensor:
    """What BlipImageProcessor does: squash to 224 x 224 with bicubic filtering, scale, normalise."""
    resized = image.convert("RGB").resize((common.IMAGE_SIZE, common.IMAGE_SIZE), Image.Resampling.BICUBIC)
    mean, std = (torch.tensor(a).view(3, 1, 1) for a in build_start.CLIP)
    return (torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255 - mean) / std


def tower_forward(tower: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """BlipVisionModel's forward pass without its bookkeeping."""
    hidden = tower.embeddings(x)
    batch, tokens, width = hidden.shape
    for layer in tower.encoder.layers:
        attention = layer.self_attn
        qkv = attention.qkv(layer.layer_norm1(hidden)).view(batch, tokens, 3, attention.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(torch.matmul(query * attention.scale, key.transpose(-1, -2)), dim=-1)
        mixed = torch.matmul(weights, value).transpose(1, 2).reshape(batch, tokens, width)
        hidden = hidden + attention.projection(mixed)
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return tower.post_layernorm(hidden)


def check(start: Path, data: Path, file: str, source: str) -> None:
    """Both short cuts above against transformers' own code."""
    with tarfile.open(data / f"{source}.tar") as tar:
        image = Image.open(io.BytesIO(tar.extractfile(f"photos/{file}").read()))
    mine = pixels(image)[None]
    theirs = AutoImageProcessor.from_pretrained(start)(image, return_tensors="pt")["pixel_values"]
    tower = BlipForConditionalGeneration.from_pretrained(start).vision_model.eval()
    with torch.inference_mode():
        hidden = (tower(theirs).last_hidden_state - tower_forward(tower, mine)).abs().max()
    print(f"pixels differ by {(mine - theirs).abs().max():.1e}, features by {hidden:.1e}", flush=True)


def worker(index: int, count: int, start: Path, data: Path, out: Path, photos: list[tuple[str, str]]) -> None:
    torch.set_num_threads(1)
    common.seed_all()
    tower = BlipForConditionalGeneration.from_pretrained(start).vision_model.eval()
    features = np.load(out / "features.npy", mmap_mode="r+")
    done = np.load(out / "done.npy", mmap_mode="r+")
    tars = {source: tarfile.open(data / f"{source}.tar") for source in {s for _, s in photos}}
    todo = [i for i in range(len(photos)) if i // BATCH % count == index and not done[i]]
    began = time.time()
    with torch.inference_mode():
        for at in range(0, len(todo), BATCH):
            rows = todo[at:at + BATCH]
            batch = []
            for row in rows:
                file, source = photos[row]
                batch.append(pixels(Image.open(io.BytesIO(tars[source].extractfile(f"photos/{file}").read()))))
            features[rows] = tower_forward(tower, torch.stack(batch)).half().numpy()
            done[rows] = 1
            if at // BATCH % 100 == 0:
                rate = (at + BATCH) / (time.time() - began)
                print(f"worker {index}: {at + len(rows)}/{len(todo)}, {rate:.2f} photos a second", flush=True)


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
        np.lib.format.open_memmap(args.out / "features.npy", "w+", np.float16, shape).flush()
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
