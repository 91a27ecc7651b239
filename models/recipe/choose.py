"""Scores averages of two sets of weights on the held-out training photos, and ways to decode them.

Release the share of the second set, and the way to decode, that score best there for their time;
`dev_eval` is not used.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from transformers import BlipConfig

import common
import data
from data import Features
from decoder import Decoder, beam_search
from train_xe import beam_scores
from training import load_parts
from vision import Tail


def search(text: str) -> partial:
    """`beams:shortest:penalty`, such as 3:5:1."""
    beams, shortest, penalty = text.split(":")
    return partial(beam_search, beams=int(beams), shortest=int(shortest), penalty=float(penalty))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, nargs=2, required=True, help="checkpoints of training steps, or model folders")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--searches", nargs="+", default=["3:5:1"], help="beams:shortest:length penalty")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    common.seed_all()
    torch.set_num_threads(args.threads)
    features = Features(args.features)
    holdout = data.load(args.data, args.start, features)["holdout"]
    tokenizer = data.tokenizer_of(args.start)
    decoder = Decoder(BlipConfig.from_pretrained(args.start))
    tail = Tail.of(args.start, features.trained)
    first, second = (load_parts(c, features.trained) for c in args.checkpoints)

    def mixed(part: str, share: float) -> dict[str, torch.Tensor]:
        both = ((k, v, second[part][k]) for k, v in first[part].items())
        return {k: torch.lerp(v.double(), w.double(), share).half().float() if v.is_floating_point() else v for k, v, w in both}

    for share in args.shares:
        decoder.model.load_state_dict(mixed("decoder", share))
        tail.load_state_dict(mixed("tail", share))
        for way in args.searches:
            began = time.process_time()
            scores = beam_scores(decoder, tail, features, holdout, tokenizer, search(way))
            text = " ".join(f"{k} {v:.4f}" for k, v in scores.items())
            print(f"share {share} search {way}: {text} [{time.process_time() - began:.0f} CPU s]", flush=True)


if __name__ == "__main__":
    main()
