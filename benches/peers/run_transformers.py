"""Times Hugging Face transformers (PyTorch)."""

import runner
import torch
import weights

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def main():
    options = runner.arguments(list(DTYPES))
    torch.set_num_threads(options.threads)
    dtype = DTYPES[options.precision]
    model = weights.load(options.folder / "model", dtype)
    length = dict(min_new_tokens=options.new_tokens, max_new_tokens=options.new_tokens)

    # Together, these two do what BlipForConditionalGeneration.generate does.
    def images(pixels):
        return model.vision_model(torch.from_numpy(pixels).to(dtype))[0]

    def captions(states):
        ids = torch.full((len(states), 1), weights.START)
        mask = torch.ones(states.shape[:-1], dtype=torch.long)
        written = model.text_decoder.generate(
            input_ids=ids, eos_token_id=weights.END, pad_token_id=0, encoder_hidden_states=states,
            encoder_attention_mask=mask, do_sample=False, num_beams=1, use_cache=True, **length)
        return written[:, 1:].numpy()

    with torch.inference_mode():
        runner.measure(options, images, captions)


if __name__ == "__main__":
    main()
