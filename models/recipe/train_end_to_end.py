"""Trains the whole model, tower and decoder, with cross-entropy on one GPU within a given time.

Keeps all photos in the device's memory as 224 x 224 pixels (150 kB each) and changes them there: crops,
mirror images, contrast and brightness. The tower's first layers stay frozen; the others have lower learning
rates the nearer they are to the pixels, and are skipped at random. The clock drives the learning rate, so
that a run of any length ends with small steps. With `--device cpu` it runs for a test, but slowly: use the
cached features of the other steps there.
"""

from __future__ import annotations

import argparse
import io
import math
import multiprocessing as mp
import random
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import BlipForConditionalGeneration

import common
import data
from training import label_smoothed

WEIGHT = {"coco": 1.5, "coco-hf": 1.5, "flickr8k": 0.9, "cc3m": 0.5, "flowers102": 0.5}  # others: 1


def read(job: tuple[Path, list[str]]) -> np.ndarray:
    """The pixels of some photos of one tar file, [photos, 224, 224, 3]."""
    archive, files = job
    size = (common.IMAGE_SIZE, common.IMAGE_SIZE)
    with tarfile.open(archive) as tar:
        images = (Image.open(io.BytesIO(tar.extractfile(f"photos/{f}").read())).convert("RGB") for f in files)
        return np.stack([np.asarray(image.resize(size, Image.Resampling.BICUBIC)) for image in images])


class Photos:
    """Training photos on the device, with the tokens of their captions."""

    def __init__(self, folders: list[Path], start: Path, device: torch.device, most: int | None, workers: int) -> None:
        tokenizer = data.tokenizer_of(start)
        photos = [p for p in common.load_photos(*folders) if p.split == "train" and p.captions and not common.is_holdout(p)]
        photos = random.Random(common.SEED).sample(photos, len(photos))[:most]
        photos.sort(key=lambda p: p.archive)
        jobs = []
        for archive in sorted({p.archive for p in photos}):
            files = [p.file for p in photos if p.archive == archive]
            jobs += [(archive, files[i:i + 256]) for i in range(0, len(files), 256)]
        with mp.get_context("spawn").Pool(workers) as pool:
            self.pixels = torch.cat([torch.from_numpy(part) for part in pool.imap(read, jobs)]).to(device)
        self.ids = [data.encode(tokenizer, [common.without_frame(c) for c in p.captions], 22) for p in photos]
        self.weights = torch.tensor([WEIGHT.get(p.source, 1.0) for p in photos], dtype=torch.double)
        self.mean, self.deviation = (torch.tensor(a, device=device).view(1, 3, 1, 1) for a in common.CLIP)

    def draw(self, count: int) -> tuple[Tensor, list[list[int]]]:
        """Changed photos and one caption of each."""
        rows = torch.multinomial(self.weights, count, replacement=True)
        pixels = self.pixels[rows.to(self.pixels.device)].permute(0, 3, 1, 2).float() / 255
        return (self.change(pixels) - self.mean) / self.deviation, [random.choice(self.ids[r]) for r in rows.tolist()]

    @staticmethod
    def change(pixels: Tensor) -> Tensor:
        count = len(pixels)

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(count, device=pixels.device).uniform_(low, high)

        area, aspect = uniform(0.55, 1.0), torch.exp(uniform(-0.18, 0.18))
        width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        where = torch.zeros(count, 2, 3, device=pixels.device)
        where[:, 0, 0] = width * torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
        where[:, 0, 2] = uniform(-1, 1) * (1 - width)
        where[:, 1, 1], where[:, 1, 2] = height, uniform(-1, 1) * (1 - height)
        grid = F.affine_grid(where, list(pixels.shape), align_corners=False)
        pixels = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
        contrast, brightness = uniform(0.8, 1.2).view(-1, 1, 1, 1), uniform(-0.12, 0.12).view(-1, 1, 1, 1)
        return ((pixels - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)


@dataclass
class Tower:
    """The vision tower with frozen first layers and, in training, layers that are skipped at random."""

    model: nn.Module
    frozen: int
    skipped: float = 0.1

    def __call__(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.model.embeddings(pixels)
            for layer in self.model.encoder.layers[:self.frozen]:
                hidden = hidden + self.attention(layer, hidden)
                hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        for layer in self.model.encoder.layers[self.frozen:]:
            hidden = hidden + self.attention(layer, hidden) * self.keep(hidden)
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden)) * self.keep(hidden)
        return self.model.post_layernorm(hidden)

    def keep(self, hidden: Tensor) -> Tensor:
        drawn = torch.rand(len(hidden), 1, 1, device=hidden.device) >= self.skipped
        return drawn.to(hidden.dtype) / (1 - self.skipped)

    @staticmethod
    def attention(layer: nn.Module, hidden: Tensor) -> Tensor:
        photos, tokens, width = hidden.shape
        qkv = layer.self_attn.qkv(layer.layer_norm1(hidden)).view(photos, tokens, 3, layer.self_attn.num_heads, -1)
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return layer.self_attn.projection(mixed.transpose(1, 2).reshape(photos, tokens, width))


def groups(model: BlipForConditionalGeneration, frozen: int, rate: float, tower_rate: float) -> list[dict]:
    """Parameters with their learning rates: each layer of the tower 15 % less than the one after it."""
    layers = list(model.vision_model.encoder.layers)
    parts = [(layer, tower_rate * 0.85 ** (len(layers) - 1 - i)) for i, layer in enumerate(layers) if i >= frozen]
    parts += [(model.vision_model.post_layernorm, tower_rate), (model.text_decoder, rate)]
    model.requires_grad_(False)
    found = []
    for module, peak in parts:
        for matrix in (True, False):
            own = [p.requires_grad_(True) for p in module.parameters() if (p.ndim > 1) == matrix]
            found.append(dict(params=own, lr=peak, peak=peak, weight_decay=0.05 if matrix else 0.0))
    return found


def caption_loss(model: BlipForConditionalGeneration, vision: Tensor, captions: list[list[int]]) -> Tensor:
    config = model.config.text_config
    rows = [[config.bos_token_id, *ids, config.sep_token_id] for ids in captions]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [config.pad_token_id] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    ids, mask = ids.to(vision.device), mask.to(vision.device)
    logits = model.text_decoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=vision, return_dict=True,
                                encoder_attention_mask=torch.ones(vision.shape[:2], device=vision.device)).logits
    real = mask[:, 1:].bool()
    return label_smoothed(logits[:, :-1][real].float(), ids[:, 1:][real], 0.1).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--start", type=Path, required=True, help="model folder to start from")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--photos", type=int, default=512, help="photos a step")
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--tower-rate", type=float, default=8e-5)
    parser.add_argument("--frozen", type=int, default=4, help="first layers of the tower that stay as they are")
    parser.add_argument("--most", type=int, help="take only so many photos, for a test")
    parser.add_argument("--workers", type=int, default=8)
    args = parser.parse_args()
    common.seed_all(7)
    device = torch.device(args.device)
    photos = Photos(args.data, args.start, device, args.most, args.workers)
    model = BlipForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32).to(device)
    model.config.text_config.hidden_dropout_prob = model.config.text_config.attention_probs_dropout_prob = 0.1
    for module in model.text_decoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    model.train()
    tower = Tower(model.vision_model, args.frozen)
    optimizer = torch.optim.AdamW(groups(model, args.frozen, args.rate, args.tower_rate), betas=(0.9, 0.98))
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    average = [p.detach().clone() for p in trained]
    print(f"{len(photos.ids)} photos, {sum(p.numel() for p in trained)} trained parameters", flush=True)

    began, step = time.time(), 0
    while (done := (time.time() - began) / (60 * args.minutes)) < 1:
        factor = min(1.0, (step + 1) / 60) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        pixels, captions = photos.draw(args.photos)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = caption_loss(model, tower(pixels), captions)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        torch._foreach_lerp_(average, [p.detach() for p in trained], 1 - min(0.997, step / (step + 10)))
        if step % 50 == 0 or device.type == "cpu":
            print(f"step {step} ({done:.0%}) loss {float(loss):.4f}", flush=True)
    for parameter, mean in zip(trained, average):
        parameter.data = mean
    model.half().save_pretrained(args.out)
    print(f"{step} steps; export.py --start {args.out} writes the folder to release", flush=True)


if __name__ == "__main__":
    main()
