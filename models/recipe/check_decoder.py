"""Compares the fast decoder with transformers: logits of packed and cached decoding, and beam search."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import BlipForConditionalGeneration

import common
from decoder import Cache, Decoder, beam_search, pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=Path, required=True, help="any model folder")
    args = parser.parse_args()
    common.seed_all()
    model = BlipForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32).eval()
    decoder = Decoder(model.config)
    decoder.model.load_state_dict(model.text_decoder.state_dict())
    vision = torch.randn(2, 257, common.WIDTH)
    groups = [[[10, 20, 30], [40, 50, 60, 70, 80]], [[15, 25]]]
    batch = pack(groups, decoder.dec, decoder.sep)
    with torch.no_grad():
        mine = decoder(batch, decoder.look(vision))
        cache = Cache(decoder, decoder.look(vision[:1]), 1)
        for row, (photo, ids) in enumerate([(0, groups[0][0]), (0, groups[0][1]), (1, groups[1][0])]):
            theirs = model.text_decoder(input_ids=torch.tensor([[decoder.dec, *ids]]),
                                        encoder_hidden_states=vision[photo:photo + 1]).logits[0]
            print(f"caption {row}: packed differs by {(mine[batch.owner == row] - theirs).abs().max():.1e}")
            if row == 0:
                steps = torch.stack([cache.step(torch.tensor([t]))[0] for t in [decoder.dec, *ids]])
                print(f"caption {row}: cached differs by {(steps - theirs).abs().max():.1e}")
        found = beam_search(decoder, vision)
        for photo, ids in enumerate(found):
            out = model.text_decoder.generate(
                input_ids=torch.tensor([[decoder.dec]]), encoder_hidden_states=vision[photo:photo + 1],
                eos_token_id=decoder.sep, pad_token_id=0, num_beams=3, max_new_tokens=20, min_new_tokens=5)
            theirs = [t for t in out[0].tolist()[1:] if t not in (decoder.sep, 0)]
            print(f"photo {photo}: {'same beam' if theirs == ids else f'{ids} but transformers {theirs}'}")


if __name__ == "__main__":
    main()
