"""Step 3: trains the decoder as a language model of captions, without cross-attention."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from transformers import BlipConfig, BlipForConditionalGeneration

import common
import data
from decoder import Decoder, pack
from training import Loop, half_products, label_smoothed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint file")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    common.seed_all(3)
    torch.set_num_threads(args.threads)

    # The split of photos into train and holdout needs the features. This step therefore validates on
    # one in 40 of the text-only captions.
    tokenizer = data.tokenizer_of(args.start)
    text = common.load_text(args.data)
    photos = [c for p in common.load_photos(args.data) if p.split == "train" for c in p.captions]
    held = data.encode(tokenizer, text[::40])[:1024]
    train = data.encode(tokenizer, [t for i, t in enumerate(text) if i % 40] + photos)
    print(f"{len(train)} captions", flush=True)

    config = BlipConfig.from_pretrained(args.start)
    decoder = Decoder(config)
    decoder.model.load_state_dict(BlipForConditionalGeneration.from_pretrained(args.start).text_decoder.state_dict())
    loop = Loop({"decoder": (decoder.model, 1.0)}, args.out, args.steps, args.rate, warmup=60, average=0.98)
    rng = random.Random(common.SEED + loop.step)
    order: list[list[int]] = []
    while loop.step < args.steps:
        if len(order) < args.batch:
            order = rng.sample(train, len(train))
        groups = [[order.pop()] for _ in range(args.batch)]
        batch = pack(groups, decoder.dec, decoder.sep)
        with half_products():
            logits = decoder(batch, None, dropout=args.dropout)
        loss = label_smoothed(logits.float(), batch.targets, 0.0).mean()
        loop.update(loss)
        if loop.step % 20 == 0:
            loop.report(loss=float(loss.detach()))
        if loop.step % 200 == 0 or loop.step == args.steps:
            loop.swap()
            with torch.no_grad():
                parts = [pack([[ids] for ids in held[i:i + 128]], decoder.dec, decoder.sep) for i in range(0, len(held), 128)]
                losses = torch.cat([label_smoothed(decoder(p, None), p.targets, 0.0) for p in parts])
            loop.swap()
            loop.report(validation=float(losses.mean()))
            loop.save()


if __name__ == "__main__":
    main()
