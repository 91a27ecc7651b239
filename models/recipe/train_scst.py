"""Step 5: self-critical training (REINFORCE on CIDEr-D), with cross-entropy kept in the loss.

Samples five captions per photo. The loss uses the same temperature as the sampling, because label
smoothing leaves a long tail that would hide the rewards. The baseline of each sample is the mean reward of
the other four. The end of a caption counts as a word; otherwise captions learn to stop anywhere. The
samples and references of a photo go through the decoder together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import BlipConfig

import common
import data
from cider import CiderD
from data import Features
from decoder import Decoder, pack, sample
from train_xe import Sampler, beam_scores, encode, thin, validation_loss
from training import Loop, half_products, label_smoothed
from vision import Tail


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="checkpoint of train_xe.py")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint file")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--photos", type=int, default=24)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--patches", type=int, default=128, help="patch tokens sampled per photo, as in step 4")
    parser.add_argument("--references", type=int, default=2, help="captions per photo for the cross-entropy")
    parser.add_argument("--cross-entropy", type=float, default=0.3)
    parser.add_argument("--rate", type=float, default=8e-5)
    parser.add_argument("--every", type=int, default=80, help="steps between evaluations")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    common.seed_all(5)
    torch.set_num_threads(args.threads)

    features = Features(args.features)
    examples = data.load(args.data, args.start, features)
    train = [e for e in examples["train"] if e.photo.source not in ("cc3m", "flowers102")]
    tokenizer = data.tokenizer_of(args.start)
    decoder = Decoder(BlipConfig.from_pretrained(args.start))
    tail = Tail.of(args.start)
    tail.load_state_dict(decoder.load(args.source)["tail"])
    loop = Loop({"decoder": (decoder.model, 1.0), "tail": (tail, 0.0)}, args.out, args.steps, args.rate, warmup=10, decay=0.0, average=0.98)
    # Decodes the tokenized references, so that a sample can match them exactly.
    rewards = CiderD({e.row: tokenizer.decode_batch(e.ids) for e in train}, end=True)
    sampler = Sampler(train, {"coco": 2, "coco-hf": 2}, common.SEED + 1000 + loop.step)
    mean = 0.0
    while loop.step < args.steps:
        part = sampler.draw(args.photos)
        vision = thin(encode(tail, features, part, augment=True), args.patches)
        with half_products():
            drawn = sample(decoder, vision, args.samples, args.temperature)
        texts = tokenizer.decode_batch(drawn)
        reward = torch.tensor([rewards.score(part[i // args.samples].row, t) for i, t in enumerate(texts)])
        reward = reward.view(args.photos, args.samples)
        baseline = (reward.sum(1, keepdim=True) - reward) / (args.samples - 1)
        mean += float(reward.mean()) / 10

        references = sampler.captions(part, args.references)
        groups = [drawn[i * args.samples:(i + 1) * args.samples] + refs for i, refs in enumerate(references)]
        advantage = [a for row, refs in zip((reward - baseline).tolist(), references) for a in row + [0.0] * len(refs)]
        is_reference = [r for refs in references for r in [False] * args.samples + [True] * len(refs)]
        batch = pack(groups, decoder.dec, decoder.sep)
        with half_products():
            logits = decoder(batch, vision).float()
        real = torch.tensor(is_reference)[batch.owner]
        weight = torch.tensor(advantage)[batch.owner][~real]
        log_loss = label_smoothed(logits[~real] / args.temperature, batch.targets[~real], 0.0)
        critical = (weight * log_loss).mean()
        truth = label_smoothed(logits[real], batch.targets[real], 0.1).mean()
        loop.update(critical + args.cross_entropy * truth)
        if loop.step % 10 == 0:
            loop.report(reward=mean, cross_entropy=float(truth.detach()))
            mean = 0.0
            loop.save()
        if loop.step % args.every == 0 or loop.step == args.steps:
            loop.save()
            loop.swap()
            loop.report(validation=validation_loss(decoder, tail, features, examples["holdout"]))
            loop.report(**beam_scores(decoder, tail, features, examples["holdout"], tokenizer))
            loop.swap()


if __name__ == "__main__":
    main()
