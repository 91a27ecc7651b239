"""Between steps 5 and 6: scores averages of two checkpoints on the held-out training photos.

Export with the share of the second checkpoint that scores best there; `dev_eval` is not used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import BlipConfig

import common
import data
from data import Features
from decoder import Decoder
from train_xe import beam_scores, validation_loss
from vision import Tail


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, nargs=2, required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    common.seed_all()
    torch.set_num_threads(args.threads)
    features = Features(args.features)
    holdout = data.load(args.data, args.start, features)["holdout"]
    tokenizer = data.tokenizer_of(args.start)
    decoder = Decoder(BlipConfig.from_pretrained(args.start))
    tail = Tail.of(args.start)
    first, second = (torch.load(c, map_location="cpu", weights_only=False) for c in args.checkpoints)

    def mixed(part: str, share: float) -> dict[str, torch.Tensor]:
        both = ((k, v, second[part][k]) for k, v in first[part].items())
        return {k: torch.lerp(v.double(), w.double(), share).half().float() if v.is_floating_point() else v for k, v, w in both}

    for share in args.shares:
        decoder.model.load_state_dict(mixed("decoder", share))
        tail.load_state_dict(mixed("tail", share))
        scores = beam_scores(decoder, tail, features, holdout, tokenizer)
        text = " ".join(f"{k} {v:.4f}" for k, v in scores.items())
        print(f"share {share}: validation {validation_loss(decoder, tail, features, holdout):.4f} {text}", flush=True)


if __name__ == "__main__":
    main()
