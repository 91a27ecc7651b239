"""Times transformers for one batch, eager or compiled. Prints a line of JSON, in milliseconds per image."""

import argparse
import json
import pathlib
import statistics
import time

import common  # noqa: F401, adds the modules of the peers to the path
import torch
import weights


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--how", choices=["eager", "compile", "compile-tower"], required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--iterations", type=int, required=True)
    options = parser.parse_args()
    device = torch.device(options.device)
    # A CPU would emulate f16, so it uses f32; a run there only tests this script.
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    with torch.inference_mode():
        print(json.dumps(measure(options, device, dtype)))


def measure(options, device, dtype):
    model = weights.load(options.folder, dtype).to(device)
    # Every program copies its images from pageable memory, where a decoder would put them.
    pixels = torch.from_numpy(weights.images(options.batch))
    tower, decoder = model.vision_model, model.text_decoder
    if options.how != "eager":
        tower = torch.compile(tower, dynamic=False)
    if options.how == "compile":
        # Only the KV cache changes its shape; it is compiled once for all lengths.
        decoder.forward = torch.compile(decoder.forward, dynamic=True)
    length = dict(min_new_tokens=options.new_tokens, max_new_tokens=options.new_tokens)

    def finish():
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    # Together, these two do what BlipForConditionalGeneration.generate does.
    def encode():
        states = tower(pixels.to(device, dtype))[0]
        finish()
        return states

    def write(states):
        ids = torch.full((len(states), 1), weights.START, device=device)
        mask = torch.ones(states.shape[:-1], dtype=torch.long, device=device)
        written = decoder.generate(
            input_ids=ids, eos_token_id=weights.END, pad_token_id=0, encoder_hidden_states=states,
            encoder_attention_mask=mask, do_sample=False, num_beams=1, use_cache=True, **length)
        return written[:, 1:].cpu()

    times = []
    # The first two passes compile and initialise lazily, so they are not measured.
    for number in range(-2, options.iterations):
        begin = time.perf_counter()
        states = encode()
        between = time.perf_counter()
        ids = write(states)
        end = time.perf_counter()
        if ids.shape != (options.batch, options.new_tokens):
            raise SystemExit(f"error: the ids have an unexpected shape: {tuple(ids.shape)}")
        if number >= 0:
            times.append((between - begin, end - between, end - begin))
    vision, decode, whole = (1e3 * statistics.median(part) / options.batch for part in zip(*times))
    return {"vision_ms": vision, "decode_ms": decode, "end_to_end_ms": whole}


if __name__ == "__main__":
    main()
