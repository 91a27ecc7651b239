"""Step 4: trains with cross-entropy on the captioned photos, first with a frozen tower, then with its last layers.

Each step uses random views of the photos, the class token and a random half of the patch tokens, and up
to three captions per photo. COCO photos occur twice as often as the others. The last part of training
uses all tokens.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import BlipConfig

import common
import data
from cider import CiderD
from data import Example, Features
from decoder import Decoder, beam_search, pack
from training import Loop, half_products, label_smoothed
from vision import Tail


class Sampler:
    """Endless shuffled passes over the training photos; `often` says how many times each source is in a pass."""

    def __init__(self, examples: list[Example], often: dict[str, int], seed: int) -> None:
        self.pool = [e for e in examples for _ in range(often.get(e.photo.source, 1))]
        self.rng = random.Random(seed)
        self.order: list[Example] = []

    def draw(self, photos: int) -> list[Example]:
        while len(self.order) < photos:
            fresh = list(self.pool)
            self.rng.shuffle(fresh)
            self.order = fresh + self.order
        return [self.order.pop() for _ in range(photos)]

    def captions(self, examples: list[Example], most: int) -> list[list[list[int]]]:
        return [self.rng.sample(e.ids, min(most, len(e.ids))) for e in examples]


def thin(vision: torch.Tensor, patches: int) -> torch.Tensor:
    """The class token and `patches` random patch tokens per photo."""
    photos, tokens, width = vision.shape
    drawn = 1 + torch.rand(photos, tokens - 1).argsort(1)[:, :patches]
    kept = torch.cat([torch.zeros(photos, 1, dtype=torch.long), drawn], 1)
    return vision.gather(1, kept[:, :, None].expand(-1, -1, width))


@torch.no_grad()
def encode(tail: Tail, features: Features, examples: list[Example], augment: bool = False) -> torch.Tensor:
    """[photos, tokens, width]: the tower's output, without gradients."""
    with half_products(bool(len(tail.layers))):
        return tail(features.take([e.row for e in examples], augment)).float()


@torch.no_grad()
def validation_loss(decoder: Decoder, tail: Tail, features: Features, examples: list[Example]) -> float:
    losses = []
    for i in range(0, len(examples), 32):
        part = examples[i:i + 32]
        batch = pack([e.ids for e in part], decoder.dec, decoder.sep)
        losses.append(label_smoothed(decoder(batch, decoder.look(encode(tail, features, part))), batch.targets, 0.0))
    return float(torch.cat(losses).mean())


def scored(examples: list[Example], single: int = 200) -> dict[str, list[Example]]:
    """The photos to score, by name: by source those with five references, and `single` COCO photos with one."""
    named: dict[str, list[Example]] = {}
    for e in examples:
        if len(e.photo.raw) == 5 and len(e.photo.captions) >= 3:
            named.setdefault(e.photo.source, []).append(e)
        elif len(e.photo.raw) == 1 and e.photo.source.startswith("coco"):
            named.setdefault("single", []).append(e)
    named["single"] = named.get("single", [])[-single:]
    return {name: part for name, part in named.items() if len(part) > 10}


def beam_scores(decoder: Decoder, tail: Tail, features: Features, examples: list[Example], tokenizer: Tokenizer,
                search: Callable[[Decoder, torch.Tensor], list[list[int]]] = beam_search) -> dict[str, float]:
    """CIDEr-D (own implementation, cleaned references); shares of captions with a frame, and of distinct ones."""
    named = scored(examples)
    every = [e for part in named.values() for e in part]
    texts = {}
    for i in range(0, len(every), 32):
        part = every[i:i + 32]
        ids = search(decoder, encode(tail, features, part))
        texts |= {e.photo.file: t for e, t in zip(part, tokenizer.decode_batch(ids))}
    scores = {}
    for name, part in named.items():
        scorer = CiderD({e.photo.file: e.photo.captions for e in part})
        scores[f"{name}({len(part)})"] = sum(scorer.score(e.photo.file, texts[e.photo.file]) for e in part) / len(part)
    scores["framed"] = sum(common.is_framed(t) for t in texts.values()) / len(texts)
    scores["distinct"] = len(set(texts.values())) / len(texts)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="checkpoint of pretrain_text.py or of this step")
    parser.add_argument("--tail", type=float, default=0.0, help="learning rate of the tower's last layers, as a share of --rate")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint file")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--photos", type=int, default=32)
    parser.add_argument("--captions", type=int, default=3)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--dropout", type=float, default=0.15)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--patches", type=int, default=128)
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    common.seed_all(4)
    torch.set_num_threads(args.threads)

    features = Features(args.features)
    examples = data.load([args.data], args.start, features)
    tokenizer = data.tokenizer_of(args.start)
    decoder = Decoder(BlipConfig.from_pretrained(args.start))
    tail = Tail.of(args.start, features.trained)
    state = decoder.load(args.text)
    if "tail" in state:
        tail.load_state_dict(state["tail"])
    parts = {"decoder": (decoder.model, 1.0), "tail": (tail, args.tail)}
    loop = Loop(parts, args.out, args.steps, args.rate, warmup=80, decay=args.decay, average=0.998)
    sampler = Sampler(examples["train"], {"coco": 2, "coco-hf": 2}, common.SEED + loop.step)
    total = 0.0
    while loop.step < args.steps:
        part = sampler.draw(args.photos)
        batch = pack(sampler.captions(part, args.captions), decoder.dec, decoder.sep)
        patches = args.patches if loop.step < 0.85 * args.steps else None
        if args.tail:
            with half_products():
                vision = tail(features.take([e.row for e in part], augment=True))
        else:
            vision = encode(tail, features, part, augment=True)
        with half_products():
            logits = decoder(batch, decoder.look(thin(vision, patches) if patches else vision), args.dropout)
        loss = label_smoothed(logits.float(), batch.targets, args.smoothing).mean()
        loop.update(loss)
        total += float(loss.detach())
        if loop.step % 20 == 0:
            loop.report(loss=total / 20)
            total = 0.0
        if loop.step % args.every == 0 or loop.step == args.steps:
            loop.save()
            loop.swap()
            loop.report(validation=validation_loss(decoder, tail, features, examples["holdout"]))
            if loop.step % (2 * args.every) == 0 or loop.step == args.steps:
                loop.report(**beam_scores(decoder, tail, features, examples["holdout"], tokenizer))
            loop.swap()


if __name__ == "__main__":
    main()
