#!/usr/bin/env python3
"""Makes the goldens for tests/it/parity.rs with Hugging Face transformers on a CPU.

    python tests/goldens/make_goldens.py            # everything
    python tests/goldens/make_goldens.py embedded   # after models/cutline-small has changed
    python tests/goldens/make_goldens.py tiny       # new random weights and their goldens
    python tests/goldens/make_goldens.py full DIR   # BLIP base and large at full size, into DIR (2.8 GB)

The full-size sets have seeded random weights and are not committed: tests/goldens/full_size.sh
makes them and compares.

Needs the packages of requirements.txt in this folder, but no network. Every set is a folder with
goldens.json (parameters and results) and goldens.safetensors (tensors); the tiny sets also contain the
checkpoint.
"""

import json
import pathlib
import sys

import numpy
import torch
from safetensors.torch import save_file
from transformers import BlipConfig, BlipForConditionalGeneration
from transformers.generation import logits_process

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CLS, SEP = 1, 2  # ids in the tiny vocabularies

TINY = {
    # name: seed, bias towards the end token, storage dtype, input sizes (height, width), BlipConfig
    "tied": dict(
        seed=1,
        end=2.5,
        dtype=torch.float32,
        sizes=[(16, 16), (24, 16), (8, 20)],
        config=dict(
            vision_config=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                               image_size=16, patch_size=4, hidden_act="gelu"),
            text_config=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                             vocab_size=80, max_position_embeddings=32),
        ),
    ),
    "untied": dict(
        seed=2,
        end=5.0,
        dtype=torch.float32,
        sizes=[(24, 24), (32, 32), (16, 40)],
        config=dict(
            tie_word_embeddings=False,
            vision_config=dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3,
                               image_size=24, patch_size=8, hidden_act="gelu_new", layer_norm_eps=1e-6),
            text_config=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
                             vocab_size=97, max_position_embeddings=40, tie_word_embeddings=False,
                             hidden_act="quick_gelu"),
        ),
    ),
    "half": dict(
        seed=3,
        end=2.0,
        dtype=torch.float16,
        sizes=[(30, 30), (30, 36), (48, 12)],
        config=dict(
            vision_config=dict(hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=3,
                               image_size=30, patch_size=6, hidden_act="relu"),
            text_config=dict(hidden_size=40, intermediate_size=72, num_hidden_layers=3, num_attention_heads=5,
                             vocab_size=64, max_position_embeddings=32, layer_norm_eps=1e-5),
        ),
    ),
}

FULL = {
    "base": dict(seed=11, end=3.0, vision_config=dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                                                      num_attention_heads=12)),
    "large": dict(seed=12, end=3.0, vision_config=dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                                                       num_attention_heads=16)),
}
# Parameters that are used with every image of every set; `prompt` is a number of tokens, or a text.
CASES = [
    dict(name="greedy"),
    dict(name="one token", max_new_tokens=1),
    dict(name="min and max", min_new_tokens=8, max_new_tokens=12),
    dict(name="penalty", repetition_penalty=1.5),
    dict(name="reward", repetition_penalty=0.8),
    dict(name="no bigram twice", no_repeat_ngram_size=2, min_new_tokens=12),
    dict(name="no token twice", no_repeat_ngram_size=1, min_new_tokens=15),
    dict(name="short prompt", prompt=1),
    dict(name="prompt", prompt=3),
    dict(name="prompt with penalty", prompt=4, repetition_penalty=1.3, no_repeat_ngram_size=3),
    dict(name="beams 3", num_beams=3),
    dict(name="beams 5", num_beams=5, num_return_sequences=5),
    dict(name="beams one token", num_beams=4, max_new_tokens=1, num_return_sequences=2),
    dict(name="beams min", num_beams=3, min_new_tokens=10, max_new_tokens=14, num_return_sequences=3),
    dict(name="beams prompt", num_beams=3, prompt=3, num_return_sequences=2),
    dict(name="beams constrained", num_beams=5, repetition_penalty=1.4, no_repeat_ngram_size=2, min_new_tokens=5),
    dict(name="beams short", num_beams=3, length_penalty=-1.0, num_return_sequences=3),
    dict(name="beams long", num_beams=3, length_penalty=2.0, num_return_sequences=3),
    dict(name="beams early", num_beams=5, early_stopping=True, num_return_sequences=3),
    dict(name="beams never", num_beams=3, early_stopping="never", length_penalty=0.5),
    dict(name="beams never short", num_beams=3, early_stopping="never", length_penalty=-0.5, prompt=1),
]

# The names that are ranked with the embedded model: of one and of several word pieces, and some that are
# the beginning of others.
NAMES = ["dog", "cat", "person", "hot", "hot dog", "dining table", "baseball bat", "baseball glove", "skateboard",
         "giraffe", "potted plant", "traffic light", "train", "train station", "cup", "wine glass"]

# A representative subset, for models that take seconds per image.
SOME_CASES = [case for case in CASES if case["name"] in (
    "greedy", "min and max", "no bigram twice", "prompt", "beams 3", "beams 5", "beams prompt", "beams constrained")]


def main(sets):
    torch.set_num_threads(1)  # makes sums reproducible, and avoids waiting for busy cores
    torch.set_grad_enabled(False)
    if not sets or "tiny" in sets:
        for name, recipe in TINY.items():
            make_tiny(name, recipe)
        make_processors()
    if not sets or "embedded" in sets:
        make_embedded()
    if "full" in sets:
        for name, recipe in FULL.items():
            make_full(pathlib.Path(sets[-1]), name, recipe)


def make_tiny(name, recipe):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    config = recipe["config"]
    config["text_config"] |= dict(bos_token_id=config["text_config"]["vocab_size"] - 2, sep_token_id=SEP,
                                  eos_token_id=SEP, pad_token_id=0)
    model = BlipForConditionalGeneration(BlipConfig(**config)).eval()
    generator = torch.Generator().manual_seed(recipe["seed"])
    randomize(model, generator, recipe["end"])
    # Saves and reloads the model, so that the goldens are computed from the weights as stored.
    model.to(recipe["dtype"]).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    images = [torch.randn((3, *size), generator=generator) for size in recipe["sizes"]]
    tensors = {f"pixels.{n}": image for n, image in enumerate(images)}
    vocabulary = config["text_config"]["vocab_size"]

    def pieces(count):
        ids = torch.randint(3, vocabulary - 2, (count,), generator=generator).tolist()
        return ids, None

    for n, image in enumerate(images):
        tensors[f"vision.{n}"] = encode(model, image)
        ids, logits = teacher_forced(model, image)
        tensors[f"ids.{n}"], tensors[f"logits.{n}"] = ids, logits
    cases = answer(model, images, CASES, pieces, lambda ids: None)
    # Generates up to the last entry of the position table.
    longest = config["text_config"]["max_position_embeddings"] - 6
    cases += answer(model, images[:1], [dict(name="table's end", prompt=5, min_new_tokens=longest,
                                             max_new_tokens=longest, num_beams=b) for b in (1, 3)],
                    pieces, lambda ids: None)
    texts = [pieces(length)[0] for length in (1, 1, 1, 2, 2, 3, 4)]
    texts += [texts[3][:1], texts[4] + texts[0], texts[0]]
    write(folder, cases, tensors, rankings=rank(model, images, pieces(2)[0], texts))


def make_full(parent, name, recipe):
    """Configuration with the shape of Salesforce/blip-image-captioning-base or -large."""
    folder = parent / name
    folder.mkdir(parents=True, exist_ok=True)
    text = dict(num_attention_heads=12, bos_token_id=30522, sep_token_id=102, eos_token_id=2, pad_token_id=0)
    config = BlipConfig(vision_config=recipe["vision_config"], text_config=text)
    model = BlipForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(recipe["seed"])
    randomize(model, generator, recipe["end"], gain=1.0, end_token=102)
    model.save_pretrained(folder)
    remember_images(model.vision_model)
    images = [synthetic(n, *size) for n, size in enumerate([(384, 384), (256, 416)])]

    def pieces(count):
        return torch.randint(1000, 30000, (count,), generator=generator).tolist(), None

    tensors = {}
    for n, image in enumerate(images):
        add_numbers(tensors, n, model, image)
    write(folder, answer(model, images, SOME_CASES, pieces, lambda ids: None), tensors,
          sizes=[list(image.shape[1:]) for image in images])


def randomize(model, generator, end, gain=2.0, end_token=SEP):
    """Random weights, large enough for uneven attention and for captions of various lengths."""
    randomize_parameters(model, generator, gain)
    head = model.text_decoder.cls.predictions
    head.decoder.bias[end_token] += end
    assert head.bias is head.decoder.bias or not model.config.tie_word_embeddings


def randomize_parameters(model, generator, gain=2.0):
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name.lower():
            parameter.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))
        elif name.endswith("bias"):
            parameter.copy_(noise * 0.2)
        elif "embedding" in name and "patch" not in name:
            parameter.copy_(noise * 0.5 * (32 / parameter.shape[-1]) ** 0.5)
        else:
            parameter.copy_(noise * gain / parameter[0].numel() ** 0.5)


def make_embedded():
    from transformers import BlipProcessor

    source = ROOT / "models" / "cutline-small"
    folder = HERE / "embedded"
    folder.mkdir(exist_ok=True)
    model = BlipForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    processor = BlipProcessor.from_pretrained(source)
    side = model.config.vision_config.image_size
    patch = model.config.vision_config.patch_size
    remember_images(model.vision_model)
    sizes = [(side, side), (side + 2 * patch, side - 4 * patch)]
    images = [synthetic(n, *size) for n, size in enumerate(sizes)]
    tensors, names = {}, [f"synthetic {n}" for n in range(len(images))]
    for photo in sorted((ROOT / "assets").glob("*.jp*g"))[:2]:
        pixels, image = photograph(processor, photo)
        tensors[f"u8.{len(images)}"] = pixels
        images.append(image)
        names.append(photo.name)
    for n, image in enumerate(images):
        add_numbers(tensors, n, model, image)

    def pieces(prompt):
        text = prompt if isinstance(prompt, str) else ["a", "a photo", "a photo of", "there is a big"][prompt - 1]
        return processor.tokenizer(text, add_special_tokens=False).input_ids, text

    def decode(ids):
        return processor.decode(ids, skip_special_tokens=True)

    cases = answer(model, images[:1], CASES, pieces, decode)
    cases += answer(model, images[1:], SOME_CASES, pieces, decode, first=1)
    cases = drop_ties(model, images, cases)
    texts = [pieces(text)[0] for text in NAMES]
    rankings = rank(model, images, pieces("a photo of a")[0], texts)
    write(folder, cases, tensors, rankings=rankings, images=names, sizes=[list(image.shape[1:]) for image in images],
          pixels="(a * x + b * y * (c + 1) + x * y // d) % 256 / 64 - 2 with a = 3 + n, b = 2 + n, d = 8 + 5 n; "
                 "photographs: u8.N is the resized image, height x width x 3")


def add_numbers(tensors, n, model, image):
    vision = encode(model, image)
    # The full output is 400 KB per image, so this keeps every 32nd row and the mean square of every row.
    tensors[f"vision_rows.{n}"] = vision[::32].contiguous()
    tensors[f"vision_power.{n}"] = vision.square().mean(-1)
    ids, logits = teacher_forced(model, image)
    tensors[f"ids.{n}"] = ids
    tensors[f"logits_columns.{n}"] = logits[:, ::16].contiguous()
    tensors[f"logits_max.{n}"] = logits.max(-1).values


def remember_images(tower):
    """Makes the vision tower encode each image once, instead of once per caption."""
    forward, seen = tower.forward, {}

    def remembering(pixel_values, **kwargs):
        key = (pixel_values.dtype, pixel_values.shape, pixel_values.double().sum().item())
        if key not in seen:
            seen[key] = forward(pixel_values, **kwargs)
        return seen[key]

    tower.forward = remembering


def synthetic(n, height, width):
    """A synthetic image that any language can compute bit for bit."""
    y, x = numpy.mgrid[:height, :width]
    planes = [((3 + n) * x + (2 + n) * y * (c + 1) + x * y // (8 + 5 * n)) % 256 for c in range(3)]
    return torch.from_numpy((numpy.stack(planes) / 64 - 2).astype(numpy.float32))


def photograph(processor, path):
    """The pixels as BlipImageProcessor resizes them, and their normalised values."""
    from PIL import Image

    with Image.open(path) as image:
        resized = processor.image_processor(image.convert("RGB"), do_rescale=False, do_normalize=False,
                                            return_tensors="pt").pixel_values[0]
        normalised = processor.image_processor(image.convert("RGB"), return_tensors="pt").pixel_values[0]
    pixels = resized.round().clamp(0, 255).to(torch.uint8)
    settings = processor.image_processor
    mean = torch.tensor(settings.image_mean).view(3, 1, 1)
    std = torch.tensor(settings.image_std).view(3, 1, 1)
    again = (pixels.float() / 255 - mean) / std
    assert (again - normalised).abs().max() < 1e-5, "the processor normalises differently"
    return pixels.permute(1, 2, 0).contiguous(), again


def encode(model, image):
    output = model.vision_model(pixel_values=image[None], interpolate_pos_encoding=True)
    return output.last_hidden_state[0].contiguous()


def teacher_forced(model, image):
    """The greedy caption and the logits at each of its positions, computed without a cache."""
    ids = generate(model, image, [], dict(max_new_tokens=10, min_new_tokens=10)).sequences
    output = model(pixel_values=image[None], input_ids=ids, interpolate_pos_encoding=True)
    return ids[0].to(torch.int64), output.logits[0].contiguous()


def generate(model, image, prompt, arguments):
    inputs = {}
    if prompt:
        inputs["input_ids"] = torch.tensor([[CLS, *prompt, SEP]])
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return model.generate(pixel_values=image[None], interpolate_pos_encoding=True, do_sample=False,
                          return_dict_in_generate=True, output_logits=True, output_scores=True,
                          **inputs, **(dict(max_new_tokens=20) | arguments))


def answer(model, images, cases, pieces, decode, first=0):
    answers = []
    for n, image in enumerate(images, first):
        for case in cases:
            arguments = {k: v for k, v in case.items() if k not in ("name", "prompt")}
            prompt, text = pieces(case["prompt"]) if case.get("prompt") else ([], None)
            output = generate(model, image, prompt, arguments)
            sequences = [sequence(model, output, row, len(prompt) + 1, decode)
                         for row in range(output.sequences.shape[0])]
            answers.append(dict(name=case["name"], image=n, prompt=prompt, prompt_text=text,
                                params=arguments, sequences=sequences))
    return answers


def rank(model, images, prompt, texts):
    """How probable each text is after the prompt. Of a text that others continue, what they take is no part."""
    texts = sorted(map(list, {tuple(text) for text in texts}))
    start = [model.config.text_config.bos_token_id, *prompt]
    rankings = []
    for n, image in enumerate(images):
        entries = []
        for text in texts:
            ids = torch.tensor([start + text])
            output = model(pixel_values=image[None], input_ids=ids, interpolate_pos_encoding=True)
            logs = output.logits[0, len(start) - 1:].log_softmax(-1)
            score = sum(logs[position, token].item() for position, token in enumerate(text))
            longer = {other[len(text)] for other in texts if len(other) > len(text) and other[: len(text)] == text}
            rest = 1 - sum(logs[len(text), token].exp().item() for token in longer)
            entries.append(dict(ids=text, score=score + numpy.log(max(rest, 1e-7)).item()))
        rankings.append(dict(image=n, prompt=prompt, texts=entries))
    return rankings


def drop_ties(model, images, cases):
    """Drops cases that depend on f32 rounding: transformers itself gives another result for them in f64."""
    model.double()
    kept = []
    for case in cases:
        output = generate(model, images[case["image"]].double(), case["prompt"], case["params"])
        again = [sequence(model, output, row, len(case["prompt"]) + 1, lambda ids: None)
                 for row in range(output.sequences.shape[0])]
        if [a["ids"] for a in again] == [c["ids"] for c in case["sequences"]]:
            kept.append(case)
        else:
            print("a tie, dropped:", case["name"], "of image", case["image"])
    model.float()
    return kept


def sequence(model, output, row, prompt_length, decode):
    sep = model.config.text_config.sep_token_id
    ids = output.sequences[row].tolist()
    # Shorter sequences are padded after [SEP].
    ends = [n for n, id in enumerate(ids) if id == sep and n >= prompt_length]
    ids = ids[: ends[0] + 1] if ends else ids
    beams = getattr(output, "beam_indices", None)
    logs = []
    for step, token in enumerate(ids[prompt_length:]):
        source = 0 if beams is None else beams[row, step].item()
        logs.append(output.logits[step][source].log_softmax(-1)[token].item())
    scores = getattr(output, "sequences_scores", None)
    return dict(
        ids=ids,
        generated=len(ids) - prompt_length,
        finish_reason="stop" if ends else "length",
        score=None if scores is None else scores[row].item(),
        confidence=numpy.exp(numpy.mean(logs)).item(),
        text=decode(ids),
    )


def make_processors():
    """Scores before and after each of transformers' logits processors; null means minus infinity."""
    generator = torch.Generator().manual_seed(7)
    scores = torch.randn((1, 24), generator=generator) * 2
    scores[0, 5] = scores[0, 9]  # a tie
    ids = [3, 7, 9, 3, 7]
    makers = {
        "temperature": [(0.5,), (1.7,)],
        "top_k": [(1,), (5,), (24,), (50,)],
        "top_p": [(0.05,), (0.5,), (0.9,), (0.99,)],
        "repetition_penalty": [(1.5,), (0.7,)],
        "no_repeat_ngram_size": [(1,), (2,), (3,), (6,)],
    }
    classes = {
        "temperature": logits_process.TemperatureLogitsWarper,
        "top_k": logits_process.TopKLogitsWarper,
        "top_p": logits_process.TopPLogitsWarper,
        "repetition_penalty": logits_process.RepetitionPenaltyLogitsProcessor,
        "no_repeat_ngram_size": logits_process.NoRepeatNGramLogitsProcessor,
    }
    cases = []
    for name, values in makers.items():
        for keep in (1, 2) if name.startswith("top") else (1,):
            for (value,) in values:
                extra = dict(min_tokens_to_keep=keep) if name.startswith("top") else {}
                out = classes[name](value, **extra)(torch.tensor([ids]), scores.clone())
                cases.append(dict(processor=name, value=value, min_tokens_to_keep=keep, expected=finite(out)))
    content = dict(ids=ids, scores=finite(scores), cases=cases)
    (HERE / "processors.json").write_text(json.dumps(content, indent=1) + "\n")


def finite(row):
    return [None if value == float("-inf") else value for value in row[0].tolist()]


def write(folder, cases, tensors, **more):
    def line(case):
        return json.dumps(case, ensure_ascii=False)

    head = "".join(f" {json.dumps(k)}: {json.dumps(v)},\n" for k, v in more.items())
    body = ",\n  ".join(line(case) for case in cases)
    (folder / "goldens.json").write_text(f'{{\n{head} "cases": [\n  {body}\n ]\n}}\n')
    save_file(tensors, folder / "goldens.safetensors")
    print(folder.name, len(cases), "cases,", sum(f.stat().st_size for f in folder.iterdir()) // 1024, "KB")


if __name__ == "__main__":
    main(sys.argv[1:])
