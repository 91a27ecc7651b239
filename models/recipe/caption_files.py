"""Captions image files with transformers only."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

from evaluate import caption, decoding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("images", type=Path, nargs="+")
    args = parser.parse_args()
    processor = BlipProcessor.from_pretrained(args.model)
    model = BlipForConditionalGeneration.from_pretrained(args.model, dtype=torch.float16).float().eval()
    for path in args.images:
        print(f"{path.name}: {caption(model, processor, [Image.open(path).convert('RGB')], decoding(args.model))[0]}")


if __name__ == "__main__":
    main()
