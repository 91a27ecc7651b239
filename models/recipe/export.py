"""Step 6: writes the released folder: vision tower and trained decoder in float16, and the tokenizer.

Averages the checkpoints if several are given. Writes to a temporary folder and then renames it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import BlipForConditionalGeneration, BlipProcessor

import common
from training import load_parts
from vision import Tail

FILES = ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "preprocessor_config.json", "generation_config.json"]


def average(args: argparse.Namespace, part: str) -> dict[str, torch.Tensor]:
    """A part of the model, averaged over the checkpoints."""
    weights = args.weights or [1 / len(args.checkpoints)] * len(args.checkpoints)
    states = [load_parts(c, args.trained)[part] for c in args.checkpoints]
    return {k: sum(w * s[k].double() for w, s in zip(weights, states, strict=True)).float() for k in states[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=Path, required=True, help="folder written by build_start.py")
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[], help="of training steps, or model folders; without any, exports the start")
    parser.add_argument("--trained", type=int, default=common.TRAINED, help="as in extract_features.py")
    parser.add_argument("--weights", type=float, nargs="*", help="weights of the average; equal by default")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    model = BlipForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32).eval()
    if args.checkpoints:
        missing, unexpected = model.text_decoder.load_state_dict(average(args, "decoder"), strict=False)
        tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
        assert not unexpected and set(missing) <= tied, (missing, unexpected)
        tail = Tail(model.vision_model, args.trained)
        tail.load_state_dict(average(args, "tail"))
        tail.install(model.vision_model)
    new = args.out.with_name(args.out.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    model.half().save_pretrained(new)
    config = json.loads((new / "config.json").read_text())
    config["text_config"]["layer_norm_eps"] = model.config.text_config.layer_norm_eps  # programs differ in the default
    (new / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in FILES:
        shutil.copyfile(args.start / name, new / name)
    if (args.out / "README.md").exists():
        shutil.copyfile(args.out / "README.md", new / "README.md")

    loaded, report = BlipForConditionalGeneration.from_pretrained(new, output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    BlipProcessor.from_pretrained(new)
    for file in new.iterdir():
        file.chmod(0o644)
    shutil.rmtree(args.out, ignore_errors=True)
    new.rename(args.out)
    size = sum(f.stat().st_size for f in args.out.iterdir()) / 1e6
    print(json.dumps({"folder": args.out.name, "megabytes": round(size, 1),
                      "parameters": sum(p.numel() for p in loaded.parameters())}))


if __name__ == "__main__":
    main()
