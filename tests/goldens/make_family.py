#!/usr/bin/env python3
"""Makes the goldens of the other models of the BLIP family for tests/it/parity/family.rs.

    python tests/goldens/make_family.py

Every set is a folder as make_goldens.py makes it, with a vocabulary of whole words besides, so that texts
can be compared as well. Needs the same packages, and no network.
"""

import json

import torch
import transformers
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipForQuestionAnswering

from make_goldens import CASES, HERE, SEP, encode, randomize, randomize_parameters, sequence, write

WORDS = """a the an on in of is are it this that and cat dog bird red blue green big small table chair beach woman man
child ball tree two three many how what where who color there sitting standing holding playing with no yes ##s ##ing
##y photo picture sky grass water snow car road train bus plate food cup hat shirt . ? , !""".split()
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
TEXTS = ["a", "two cats", "a dog on the beach", "a woman sitting on a chair with a cat, a big ball and two small birds.",
         "A RED hat?", "zebra"]
QUESTIONS = ["how many dogs are there?", "what", "where is the big red ball, on the table or in the car? what color is it?"]

SETS = {
    "itm": dict(
        seed=21, dtype=torch.float32, sizes=[(16, 16), (24, 16)],
        config=dict(
            image_text_hidden_size=16,
            vision_config=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                               image_size=16, patch_size=4, hidden_act="gelu"),
            text_config=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2),
        ),
    ),
    "itm-wide": dict(
        seed=22, dtype=torch.float16, sizes=[(24, 24), (16, 40)],
        config=dict(
            image_text_hidden_size=24,
            vision_config=dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3,
                               image_size=24, patch_size=8, hidden_act="gelu_new", layer_norm_eps=1e-6),
            text_config=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
                             hidden_act="quick_gelu", layer_norm_eps=1e-5),
        ),
    ),
    "vqa": dict(
        seed=23, dtype=torch.float32, end=1.2, sizes=[(16, 16), (24, 16)],
        config=dict(
            vision_config=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                               image_size=16, patch_size=4, hidden_act="gelu"),
            text_config=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2),
        ),
    ),
    "vqa-untied": dict(
        seed=24, dtype=torch.float16, end=-1.5, sizes=[(30, 30), (30, 36)],
        config=dict(
            tie_word_embeddings=False,
            vision_config=dict(hidden_size=40, intermediate_size=72, num_hidden_layers=1, num_attention_heads=5,
                               image_size=30, patch_size=6, hidden_act="relu"),
            text_config=dict(hidden_size=40, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                             tie_word_embeddings=False, layer_norm_eps=1e-5),
        ),
    ),
}


def main():
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for name, recipe in SETS.items():
        make(name, recipe)


def make(name, recipe):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    answers = "end" in recipe
    # As on the hub, the tokenizer lacks the first token of the decoder.
    vocabulary = SPECIAL + WORDS
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(do_lower_case=True, tokenizer_class="BertTokenizer")) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(
        image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711],
        resample=3)) + "\n")
    config = recipe["config"]
    config["text_config"] |= dict(vocab_size=len(vocabulary) + 2, max_position_embeddings=40, pad_token_id=0,
                                  bos_token_id=len(vocabulary), sep_token_id=SEP, eos_token_id=SEP)
    kind = BlipForQuestionAnswering if answers else BlipForImageTextRetrieval
    model = kind(BlipConfig(**config)).eval()
    generator = torch.Generator().manual_seed(recipe["seed"])
    if answers:
        randomize(model, generator, recipe["end"])
    else:
        randomize_parameters(model, generator)
    model.to(recipe["dtype"]).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = BertTokenizer.from_pretrained(folder)
    images = [torch.randn((3, *size), generator=generator) for size in recipe["sizes"]]
    tensors = {f"pixels.{n}": image for n, image in enumerate(images)}
    for n, image in enumerate(images):
        tensors[f"vision.{n}"] = encode(model, image)
    if answers:
        write(folder, ask(model, tokenizer, images), tensors)
    else:
        write(folder, [], tensors, **compare(model, tokenizer, images))


def compare(model, tokenizer, images):
    texts = [dict(text=text, ids=tokenizer(text).input_ids) for text in TEXTS]
    # The longest that the position table allows.
    texts.append(dict(text="cat " * 38, ids=tokenizer("cat " * 38).input_ids))
    assert len(texts[-1]["ids"]) == model.config.text_config.max_position_embeddings
    for text in texts:
        states = model.text_encoder(input_ids=torch.tensor([text["ids"]])).last_hidden_state
        text["embedding"] = torch.nn.functional.normalize(model.text_proj(states[:, 0]), dim=-1)[0].tolist()
    scores = []
    for n, image in enumerate(images):
        states = encode(model, image)
        embedding = torch.nn.functional.normalize(model.vision_proj(states[:1]), dim=-1)[0].tolist()
        pairs = []
        for text in texts:
            inputs = dict(input_ids=torch.tensor([text["ids"]]), pixel_values=image[None], interpolate_pos_encoding=True)
            logits = model(**inputs).itm_score[0]
            cosine = model(**inputs, use_itm_head=False).itm_score.item()
            pairs.append(dict(logits=logits.tolist(), match=logits.softmax(-1)[1].item(), similarity=cosine))
        scores.append(dict(image=n, embedding=embedding, pairs=pairs))
    return dict(texts=texts, scores=scores)


def ask(model, tokenizer, images):
    cases = []
    for n, image in enumerate(images):
        for q, text in enumerate(QUESTIONS):
            question = tokenizer(text).input_ids
            for case in CASES:
                # Answers have no prompt, so these would repeat others. All cases for the first question.
                if "prompt" in case["name"] or case.get("prompt") or (q and case["name"] not in SOME):
                    continue
                arguments = {k: v for k, v in case.items() if k != "name"}
                cases.append(one(model, tokenizer, n, image, text, question, case["name"], arguments))
    # Up to the last entry of the position table.
    longest = model.config.text_config.max_position_embeddings - 1
    question = tokenizer("cat " * 38).input_ids
    for beams in (1, 3):
        arguments = dict(min_new_tokens=longest, max_new_tokens=longest, num_beams=beams)
        cases.append(one(model, tokenizer, 0, images[0], "cat " * 38, question, "table's end", arguments))
    return cases


SOME = ("greedy", "beams 3", "beams constrained")


def one(model, tokenizer, n, image, text, question, name, arguments):
    output = model.generate(pixel_values=image[None], input_ids=torch.tensor([question]), interpolate_pos_encoding=True,
                            do_sample=False, return_dict_in_generate=True, output_logits=True, output_scores=True,
                            **(dict(max_new_tokens=20) | arguments))

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=True)

    sequences = [sequence(model, output, row, 1, decode) for row in range(output.sequences.shape[0])]
    return dict(name=name, image=n, question=question, question_text=text, prompt=[], params=arguments,
                sequences=sequences)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
