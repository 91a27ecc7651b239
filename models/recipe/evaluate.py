"""Computes CIDEr-D and BLEU-4 of the released folder with transformers and pycocoevalcap only.

Decodes with the model's own defaults, which are in its `cutline.json`. Also prints the share of distinct
captions, and of those that begin like "a picture of".

Uses only photos with five references; document frequencies come from these references. Reads the weights
as released (float16) and computes in float32. The PTB tokenizer needs Java.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path

import torch
from PIL import Image
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from transformers import BlipForConditionalGeneration, BlipProcessor

import common


def decoding(model: Path) -> dict[str, float]:
    """The parameters of `generate` that are the model's defaults in cutline."""
    own = model / "cutline.json"
    return {"max_new_tokens": 20} | (json.loads(own.read_text()).get("generation", {}) if own.exists() else {})


def caption(model, processor, images: list[Image.Image], parameters: dict[str, float]) -> list[str]:
    inputs = processor(images=images, return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(**inputs, **parameters)
    return [processor.decode(row, skip_special_tokens=True) for row in out]


def score(references: dict[str, list[str]], captions: dict[str, str]) -> dict[str, float]:
    tokenizer = PTBTokenizer()
    refs = tokenizer.tokenize({k: [{"caption": c} for c in v] for k, v in references.items()})
    hyps = tokenizer.tokenize({k: [{"caption": v}] for k, v in captions.items()})
    cider, _ = Cider().compute_score(refs, hyps)
    bleu, _ = Bleu(4).compute_score(refs, hyps, verbose=0)
    return {"photos": len(refs), "CIDEr-D": round(float(cider), 4), "BLEU-4": round(float(bleu[3]), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the released folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", default=["flickr8k", "coco"])
    parser.add_argument("--split", default="dev_eval")
    parser.add_argument("--decoding", default="{}", help="other parameters of `generate`, as JSON")
    parser.add_argument("--captions", type=Path, help="file for the captions, as JSON")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    common.seed_all()
    torch.set_num_threads(args.threads)

    processor = BlipProcessor.from_pretrained(args.model)
    model = BlipForConditionalGeneration.from_pretrained(args.model, dtype=torch.float16).float().eval()
    parameters = decoding(args.model) | json.loads(args.decoding)
    kept = {}
    for source in args.sources:
        photos = [p for p in common.load_photos(args.data)
                  if p.source == source and p.split == args.split and len(p.raw) == 5]
        texts = {}
        with tarfile.open(args.data / f"{source}.tar") as tar:
            for i in range(0, len(photos), args.batch):
                part = photos[i:i + args.batch]
                images = [Image.open(io.BytesIO(tar.extractfile(f"photos/{p.file}").read())).convert("RGB") for p in part]
                texts |= {p.file: t for p, t in zip(part, caption(model, processor, images, parameters))}
        framed = sum(common.is_framed(t) for t in texts.values())
        shares = {"distinct": round(len(set(texts.values())) / len(texts), 3), "framed": round(framed / len(texts), 3)}
        print(source, json.dumps(score({p.file: p.raw for p in photos}, texts) | shares), flush=True)
        kept |= {p.file: {"caption": texts[p.file], "references": p.raw} for p in photos}
    if args.captions:
        args.captions.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
