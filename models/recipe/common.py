"""Shared parts of the steps: seeds, captions, the vocabulary's special tokens, the configuration."""

from __future__ import annotations

import csv
import json
import random
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import BlipConfig

SEED = 20240611
WIDTH, TOKENS, IMAGE_SIZE = 384, 257, 224
MAX_POSITIONS = 128
TRAINED = 4  # number of last vision tower layers that are trained; the others stay frozen
VIEWS = 3  # views of each photo: original, mirrored, cropped
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])  # mean and deviation of pixels
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
DEC, ENC = "[DEC]", "[ENC]"  # the two tokens that BLIP adds after the vocabulary


def seed_all(offset: int = 0) -> None:
    random.seed(SEED + offset)
    np.random.seed(SEED + offset)
    torch.manual_seed(SEED + offset)
    torch.set_flush_denormal(True)


@dataclass
class Photo:
    """One photo with its references: `raw` as published (for scoring), `captions` cleaned (for training)."""

    archive: Path  # the tar file that holds it as `photos/<file>`
    file: str
    source: str
    split: str
    raw: list[str]
    captions: list[str]


_TEE = re.compile(r"\b(?:t|tee)(?: ?- ?| )shirt")
_DROP = re.compile(r"[^a-z0-9&%$/+ ]")
_SPACE = re.compile(r"\s+")


def clean(caption: str) -> str:
    """Lower case without punctuation: a hyphen becomes a space, "t-shirt" (which WordPiece would
    print as "t - shirt") becomes "shirt", and a possessive suffix is removed with its apostrophe."""
    text = caption.lower().replace("’", "'").replace("`", "'")
    text = _TEE.sub("shirt", text)
    text = re.sub(r"'s\b", "", text).replace("n't", " not")
    text = _DROP.sub(" ", text)
    return _SPACE.sub(" ", text).strip()


_FRAME = re.compile(r"^(?:an?|the) (?:\w+ )?(?:close up|closeup|picture|photo|photograph|image|view|shot)(?: \w+)? (?:of|showing|shows) ")


def is_framed(caption: str) -> bool:
    """Whether it begins by saying only that this is a picture: "a close up of", "a black photo of"."""
    return bool(_FRAME.match(caption))


def without_frame(caption: str) -> str:
    """Drops such a beginning, unless little would be left."""
    plain = _FRAME.sub("", caption)
    return plain if len(plain.split()) >= 3 else caption


def _usable(captions: list[str]) -> list[str]:
    """Drops captions with an apostrophe, which read badly after cleaning, unless none would be left."""
    plain = [c for c in captions if "'" not in c and "’" not in c]
    cleaned = [clean(c) for c in (plain or captions)]
    return [c for c in cleaned if 3 <= len(c.split()) <= 30]


def load_photos(*folders: Path) -> list[Photo]:
    photos = []
    for data in folders:
        for line in (data / "captions.jsonl").open(encoding="utf-8"):
            row = json.loads(line)
            raw, source = row["captions"], row["source"]
            photos.append(Photo(data / f"{source}.tar", row["file"], source, row["split"], raw, _usable(raw)))
    return photos


def load_text(data: Path) -> list[str]:
    """The text-only COCO captions; some lines are CSV cells with doubled quotes."""
    lines = (data / "coco_captions.txt").read_text(encoding="utf-8").splitlines()
    cells = (next(csv.reader([line]), [""]) if line.startswith('"') else [line] for line in lines)
    return [text for cell in cells for text in _usable([",".join(cell)])]


def is_holdout(photo: Photo) -> bool:
    """Holds out one training photo in 40, to choose checkpoints without using dev_eval.

    Of the few COCO photos with several references, one in ten.
    """
    every = 10 if photo.source == "coco" and len(photo.raw) > 1 else 40
    return zlib.crc32(photo.file.encode()) % every == 7


def blip_config(vocabulary: list[str], layers: int = 4) -> BlipConfig:
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    special = dict(bos_token_id=ids[DEC], eos_token_id=ids["[SEP]"], sep_token_id=ids["[SEP]"], pad_token_id=ids["[PAD]"])
    text = dict(
        vocab_size=len(vocabulary), hidden_size=WIDTH, encoder_hidden_size=WIDTH, intermediate_size=4 * WIDTH,
        projection_dim=256, num_hidden_layers=layers, num_attention_heads=6, max_position_embeddings=MAX_POSITIONS,
        hidden_act="gelu", layer_norm_eps=1e-12, is_decoder=True, **special,
    )
    vision = dict(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=256, num_hidden_layers=12,
        num_attention_heads=6, image_size=IMAGE_SIZE, patch_size=14, hidden_act="gelu", layer_norm_eps=1e-6,
    )
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=256)
    config.architectures = ["BlipForConditionalGeneration"]
    return config
