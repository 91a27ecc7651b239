#!/usr/bin/env python3
"""Makes tags/goldens.json for tests/it/tags.rs: how probable the embedded model finds each tag of a vocabulary.

    python tests/goldens/make_tags.py        # after models/cutline-small has changed

It uses Hugging Face transformers alone, in f32 on a CPU, and reads one name at a time without a cache. What it
computes is said in docs/tags.md: log P(tag | image) after the words of the template; the same for images
without content; and the first less half of the second, compared with the best of the words that say nothing
in particular. Needs the packages of requirements.txt in this folder, but no network.
"""

import json
import math
import pathlib

import numpy
import torch
from blake3 import blake3
from PIL import Image
from safetensors.numpy import load_file
from transformers import BlipForConditionalGeneration, BlipProcessor

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODEL = ROOT / "models" / "cutline-small"

# Names of one and of two word pieces, some of which begin others, with synonyms and articles; two templates.
VOCABULARY = {"categories": [
    {"name": "animals", "k": 50, "tags": [
        {"name": "cat", "synonyms": ["kitten"]}, "dog", "horse", "the bird"]},
    {"name": "things", "k": 50, "tags": [
        "hot", "hot dog", "train", "train station", "traffic light",
        {"name": "table", "synonyms": ["a desk"]}]},
    {"name": "places", "k": 50, "template": "a photo taken at the {tag}", "tags": ["beach", "kitchen", "street"]},
]}
TEMPLATE = "a photo of a {tag}"
NOTHING = ["thing", "something", "picture", "close"]
PRIOR_WEIGHT = 0.5
BLANK_IMAGES = 4


def main():
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model = BlipForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()
    processor = BlipProcessor.from_pretrained(MODEL)
    side = model.config.vision_config.image_size
    blank = [prepared(processor, noise(n, side)) for n in range(BLANK_IMAGES)]
    images = {"synthetic": synthetic(side)}
    # Photographs as make_goldens.py resized them, so that decoders and resampling play no part.
    photos = load_file(HERE / "embedded" / "goldens.safetensors")
    for name in ["u8.2", "u8.3"]:
        images[name] = Image.fromarray(photos[name])
    pieces = lambda text: processor.tokenizer(text, add_special_tokens=False).input_ids
    answers = [dict(image=name, tags=tags(model, prepared(processor, image), blank, pieces))
               for name, image in images.items()]
    folder = HERE / "tags"
    folder.mkdir(exist_ok=True)
    with open(folder / "goldens.json", "w") as file:
        json.dump(dict(vocabulary=VOCABULARY, answers=answers), file, indent=1)
        file.write("\n")


def prepared(processor, image):
    return processor.image_processor(image, return_tensors="pt").pixel_values[0]


def synthetic(side):
    """An image that any language can compute."""
    y, x = numpy.mgrid[:side, :side]
    planes = [(3 * x + 2 * y * (c + 1) + x * y // 8) % 256 for c in range(3)]
    return Image.fromarray(numpy.stack(planes, -1).astype(numpy.uint8))


def noise(n, side):
    hasher = blake3(bytes([n]), derive_key_context="cutline 2026-11 blank image")
    levels = numpy.frombuffer(hasher.digest(length=3 * side * side), numpy.uint8)
    return Image.fromarray(levels.reshape(side, side, 3))


def tags(model, image, blank, pieces):
    """All that is known of each tag."""
    found = []
    for template in dict.fromkeys(category.get("template", TEMPLATE) for category in VOCABULARY["categories"]):
        prompt = template.split("{tag}")[0].strip()
        names = []
        for category in VOCABULARY["categories"]:
            if category.get("template", TEMPLATE) != template:
                continue
            for tag in category["tags"]:
                tag = tag if isinstance(tag, dict) else {"name": tag}
                names += [(tag["name"], word) for word in [tag["name"], *tag.get("synonyms", [])]]
        names = [(tag, pieces(without_article(prompt, word))) for tag, word in names]
        names += [(None, pieces(word)) for word in NOTHING]
        texts = [ids for _, ids in names]
        said = log_probabilities(model, image, pieces(prompt), texts)
        without = [log_probabilities(model, one, pieces(prompt), texts) for one in blank]
        prior = [math.log(sum(math.exp(one[n]) for one in without) / len(blank)) for n in range(len(texts))]
        excess = [one - PRIOR_WEIGHT * other for one, other in zip(said, prior)]
        nothing = max(value for value, (tag, _) in zip(excess, names) if tag is None)
        for tag in dict.fromkeys(tag for tag, _ in names if tag is not None):
            best = max((n for n, (other, _) in enumerate(names) if other == tag), key=lambda n: excess[n])
            found.append(dict(tag=tag, log_probability=said[best], log_prior=prior[best],
                              pmi=excess[best] - nothing))
    return found


def without_article(prompt, word):
    """After "a photo of a", a name has no article of its own."""
    for article in ("a ", "an ", "the "):
        if prompt.endswith(" a") and word.startswith(article):
            return word.removeprefix(article)
    return word


def log_probabilities(model, image, prompt, texts):
    """How probable each text is after the prompt. Of a text that others continue, what they take is no part."""
    start = [model.config.text_config.bos_token_id, *prompt]
    scores = []
    for text in texts:
        output = model(pixel_values=image[None], input_ids=torch.tensor([start + text]))
        logs = output.logits[0, len(start) - 1:].double().log_softmax(-1)
        score = sum(logs[position, token].item() for position, token in enumerate(text))
        longer = {other[len(text)] for other in texts if len(other) > len(text) and other[:len(text)] == text}
        rest = 1 - sum(logs[len(text), token].exp().item() for token in longer)
        scores.append(score + math.log(max(rest, 1e-7)))
    return scores


if __name__ == "__main__":
    main()
