"""The captioned photos with their cached features, for the training steps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

import common


@dataclass
class Example:
    row: int  # row in the feature file
    photo: common.Photo
    ids: list[list[int]]


def tokenizer_of(start: Path) -> Tokenizer:
    return Tokenizer.from_file(str(start / "tokenizer.json"))


def encode(tokenizer: Tokenizer, captions: list[str], longest: int = 24) -> list[list[int]]:
    return [e.ids[:longest] for e in tokenizer.encode_batch(captions, add_special_tokens=False)]


class Features:
    """The output of the tower's frozen layers for one or several views of each photo."""

    def __init__(self, folder: Path) -> None:
        self.shape = json.loads((folder / "shape.json").read_text())
        self.trained = self.shape["trained"]  # the layers of the tower that are not in the features
        self.views = [np.load(folder / f"view{v}.npy", mmap_mode="r") for v in range(self.shape["views"])]
        self.classes = np.load(folder / "classes.npy")
        self.done = np.load(folder / "done.npy").astype(bool)
        self.row_of = {file: row for row, file in enumerate(json.loads((folder / "files.json").read_text()))}

    def take(self, rows: list[int], augment: bool = False) -> Tensor:
        """[photos, tokens, width], of each photo's original view or, with `augment`, of a random view."""
        drawn = np.random.randint(len(self.views), size=len(rows)) if augment else np.zeros(len(rows), int)
        return torch.from_numpy(np.stack([self.views[v][row] for v, row in zip(drawn, rows)])).float()

    def class_tokens(self, rows: list[int]) -> np.ndarray:
        tokens = self.classes[rows]
        return tokens / np.linalg.norm(tokens, axis=1, keepdims=True).clip(1e-6)


def load(folders: list[Path], start: Path, features: Features, near: float = 0.97) -> dict[str, list[Example]]:
    """train, holdout (a part of train, for choosing checkpoints) and dev_eval, without near-duplicates of dev_eval."""
    tokenizer = tokenizer_of(start)
    photos = sorted(common.load_photos(*folders), key=lambda p: (p.source, p.file))
    split: dict[str, list[Example]] = {"train": [], "dev_eval": [], "holdout": []}
    for photo in photos:
        row = features.row_of.get(photo.file)
        if row is not None and features.done[row]:
            split[photo.split].append(Example(row, photo, encode(tokenizer, photo.captions)))
    kept = split["train"]
    if split["dev_eval"] and kept:
        mine = features.class_tokens([e.row for e in kept])
        theirs = features.class_tokens([e.row for e in split["dev_eval"]])
        close = (mine @ theirs.T).max(1) >= near
        print(f"{int(close.sum())} training photos dropped as near-duplicates of evaluation photos", flush=True)
        kept = [e for e, c in zip(kept, close) if not c]
    split["train"] = [e for e in kept if not common.is_holdout(e.photo)]
    split["holdout"] = [e for e in kept if common.is_holdout(e.photo)]
    print({name: len(part) for name, part in split.items()}, flush=True)
    return split
