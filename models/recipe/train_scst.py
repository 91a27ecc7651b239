"""Self-critical training of the decoder (REINFORCE on CIDEr-D), with cross-entropy kept in the loss.

Samples several captions per photo. The loss uses the same temperature as the sampling, because label
smoothing leaves a long tail that would hide the rewards. The baseline of each sample is the mean reward of
the others; only the best and the worst are learned from. The end of a caption counts as a word; otherwise captions learn to stop anywhere. The
samples and references of a photo go through the decoder together, with the keys and values of the vision
tokens that the sampling used. Beginnings like "a close up of" are cut off the references.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import BlipConfig

import common
import data
from cider import CiderD
from data import Example, Features
from decoder import Decoder, pack, sample
from train_xe import Sampler, beam_scores, encode, thin, validation_loss
from training import Loop, half_products, label_smoothed, load_parts
from vision import Tail

# How many times a photo of each source is in a pass; sources that are not here are left out.
OFTEN = {"flickr8k": 2, "sports": 2, "coco": 3, "coco-hf": 2, "coco-5329": 1}
MORE = 8  # the same for COCO photos with several references, of which there are few


def pool(examples: list[Example]) -> list[Example]:
    times = (MORE if e.photo.source == "coco" and len(e.ids) > 1 else OFTEN.get(e.photo.source, 0) for e in examples)
    return [e for e, n in zip(examples, times) for _ in range(n)]


class Critic:
    """The loss of one batch: sampled captions against their rewards, and references against cross-entropy."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, train: list[Example], args: argparse.Namespace) -> None:
        self.decoder, self.tokenizer, self.args = decoder, tokenizer, args
        # Decodes the tokenized references, so that a sample can match them exactly.
        self.rewards = CiderD({e.row: tokenizer.decode_batch(e.ids) for e in train}, end=True)

    def reward(self, photos: list[Example], drawn: list[list[int]]) -> torch.Tensor:
        each = self.args.samples
        texts = self.tokenizer.decode_batch(drawn)
        return torch.tensor([self.rewards.score(photos[i // each].row, t) for i, t in enumerate(texts)]).view(-1, each)

    def loss(self, photos: list[Example], references: list[list[list[int]]], vision: torch.Tensor) -> tuple[torch.Tensor, dict]:
        each, half = self.args.samples, self.args.bf16
        with half_products(half):
            cross = self.decoder.look(vision)
            drawn = sample(self.decoder, [(k.detach(), v.detach()) for k, v in cross], each, self.args.temperature, self.args.longest)
        reward = self.reward(photos, drawn)
        gain = reward - (reward.sum(1, keepdim=True) - reward) / (each - 1)
        # Those in the middle say little, and cost as much as the others.
        order = gain.argsort(1)
        kept = torch.cat([order[:, :self.args.kept // 2], order[:, -(self.args.kept - self.args.kept // 2):]], 1).tolist()
        groups = [[drawn[i * each + j] for j in chosen] + refs for i, (chosen, refs) in enumerate(zip(kept, references))]
        advantage = [a for row, chosen, refs in zip(gain.tolist(), kept, references)
                     for a in [row[j] for j in chosen] + [0.0] * len(refs)]
        is_reference = [r for chosen, refs in zip(kept, references) for r in [False] * len(chosen) + [True] * len(refs)]
        batch = pack(groups, self.decoder.dec, self.decoder.sep)
        with half_products(half):
            logits = self.decoder(batch, cross).float()
        real = torch.tensor(is_reference)[batch.owner]
        weight = torch.tensor(advantage)[batch.owner][~real]
        log_loss = label_smoothed(logits[~real] / self.args.temperature, batch.targets[~real], 0.0)
        truth = label_smoothed(logits[real], batch.targets[real], 0.1).mean()
        total = (weight * log_loss).mean() + self.args.cross_entropy * truth
        return total, {"reward": float(reward.mean()), "cross_entropy": float(truth.detach())}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--start", type=Path, required=True, help="model folder that the features come from")
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="checkpoint of train_xe.py, or a model folder")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint file")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--minutes", type=float, help="ends the run after a time instead")
    parser.add_argument("--photos", type=int, default=24)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--kept", type=int, default=2, help="samples per photo in the loss: the best and the worst")
    parser.add_argument("--longest", type=int, default=16, help="tokens of a sample; few captions have more")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--patches", type=int, default=0, help="patch tokens sampled per photo; 0 for all")
    parser.add_argument("--references", type=int, default=1, help="captions per photo for the cross-entropy")
    parser.add_argument("--cross-entropy", type=float, default=0.3)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--average", type=float, default=0.98)
    parser.add_argument("--every", type=float, default=10, help="minutes between evaluations")
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16, which pays where the processor has AMX")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    common.seed_all(args.seed)
    torch.set_num_threads(args.threads)
    features = Features(args.features)
    tokenizer = data.tokenizer_of(args.start)
    decoder, tail = Decoder(BlipConfig.from_pretrained(args.start)), Tail.of(args.start, features.trained)
    parts = load_parts(args.source, features.trained)
    decoder.model.load_state_dict(parts["decoder"])
    tail.load_state_dict(parts["tail"])
    loop = Loop({"decoder": (decoder.model, 1.0), "tail": (tail, 0.0)}, args.out, args.steps, args.rate, warmup=10,
                decay=0.0, average=args.average, minutes=args.minutes)

    def evaluate(holdout: list[Example]) -> None:
        loop.save()
        loop.swap()
        loop.report(validation=validation_loss(decoder, tail, features, holdout),
                    **beam_scores(decoder, tail, features, holdout, tokenizer))
        loop.swap()

    sums: dict[str, float] = {}
    due = loop.spent()
    while loop.progress() < 1:
        if loop.spent() >= due:
            # The features may still be growing: takes what has been added.
            features = Features(args.features)
            examples = data.load(args.data, args.start, features)
            for example in examples["train"]:
                example.ids = data.encode(tokenizer, [common.without_frame(c) for c in example.photo.captions])
            critic = Critic(decoder, tokenizer, examples["train"], args)
            sampler = Sampler(pool(examples["train"]), {}, common.SEED + 1000 * args.seed + loop.step)
            if loop.step:
                evaluate(examples["holdout"])
            due += args.every
        photos = sampler.draw(args.photos)
        vision = encode(tail, features, photos, augment=True)
        if args.patches:
            vision = thin(vision, args.patches)
        loss, values = critic.loss(photos, sampler.captions(photos, args.references), vision)
        loop.update(loss)
        sums = {k: sums.get(k, 0.0) + v / 10 for k, v in values.items()}
        if loop.step % 10 == 0:
            loop.report(**sums)
            sums = {}
        if loop.step % 40 == 0:
            loop.save()
    evaluate(examples["holdout"])


if __name__ == "__main__":
    main()
