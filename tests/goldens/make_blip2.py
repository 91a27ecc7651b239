#!/usr/bin/env python3
"""Makes the goldens of BLIP-2 with OPT for tests/it/parity/blip2.rs.

    python tests/goldens/make_blip2.py

Every set is a folder as make_goldens.py makes it, with a small byte-level tokenizer besides. Needs the same
packages, and no network.
"""

import json

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Blip2Config, Blip2ForConditionalGeneration, PreTrainedTokenizerFast

from make_goldens import CASES, HERE, randomize_parameters, sequence, write

TEXT = """a photo of a dog and a cat on the beach. a woman sitting on a red chair. two men playing with a big ball.
Question: how many dogs are there? Answer: two. what color is the hat? blue, green, or white."""
PROMPTS = ["a photo of", "Question: how many dogs are there? Answer:", "two\nmen", "naïve café 猫 🐈", " </s> <image> the"]
QUERIES = 4

SETS = {
    # A head of the vision tower has 22 numbers, and a Q-Former of three layers sees the image twice.
    "blip2-opt": dict(
        seed=31, end=1.9, sizes=[(28, 28), (42, 28)],
        vision=dict(hidden_size=44, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28,
                    patch_size=14),
        queries=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, vocab_size=8),
        text=dict(hidden_size=48, ffn_dim=64, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=64),
    ),
    # One head of 88 as in the real model, a head of its own, biases as LAVIS spells them, and two files.
    "blip2-opt-wide": dict(
        seed=32, end=1.6, sizes=[(24, 24)], own_head=True, shards=True,
        vision=dict(hidden_size=88, intermediate_size=56, num_hidden_layers=1, num_attention_heads=1, image_size=24,
                    patch_size=8, hidden_act="gelu_new", layer_norm_eps=1e-5),
        queries=dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, vocab_size=8,
                     cross_attention_frequency=1, hidden_act="relu", layer_norm_eps=1e-6),
        text=dict(hidden_size=40, ffn_dim=72, num_hidden_layers=3, num_attention_heads=1, max_position_embeddings=90,
                  activation_function="gelu"),
    ),
}


def main():
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for name, recipe in SETS.items():
        make(name, recipe)


def make_tokenizer(folder):
    """As OPT's: </s> before a text, and the token of images behind all others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>")


def make(name, recipe):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    tokenizer = make_tokenizer(folder)
    end, image_token = tokenizer.convert_tokens_to_ids(["Ċ", "<image>"])
    text = recipe["text"]
    text |= dict(model_type="opt", vocab_size=len(tokenizer) + 7, word_embed_proj_dim=text["hidden_size"],
                 eos_token_id=end, bos_token_id=2, pad_token_id=1)
    config = Blip2Config(vision_config=recipe["vision"], qformer_config=recipe["queries"], text_config=text,
                         num_query_tokens=QUERIES, image_token_index=image_token)
    model = Blip2ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(recipe["seed"])
    randomize_parameters(model, generator)
    language = model.language_model
    own_head = recipe.get("own_head", False)
    if own_head:
        language.lm_head.weight = torch.nn.Parameter(torch.randn(language.lm_head.weight.shape, generator=generator) * 0.3)
    for layer in model.vision_model.encoder.layers:
        if layer.self_attn.qkv.bias is not None:
            layer.self_attn.qkv.bias.view(3, -1)[1] = 0
    # Longer or shorter captions: the norm before the head leans towards the end.
    head = language.lm_head.weight[end]
    language.model.decoder.final_layer_norm.bias.add_(recipe["end"] * head / head.norm())
    save(model, folder, recipe)
    config = json.loads((folder / "config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(
        image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711],
        resample=3)) + "\n")
    model.float().eval()
    # Where sequence() looks for it.
    model.config.text_config.sep_token_id = end
    images = [torch.randn((3, *size), generator=generator) for size in recipe["sizes"]]
    tensors = {f"pixels.{n}": image for n, image in enumerate(images)}
    for n, image in enumerate(images):
        tensors[f"vision.{n}"] = rows(model, image)
        ids = generate(model, image, [], dict(max_new_tokens=10, min_new_tokens=10, suppress_tokens=[image_token])).sequences[:, QUERIES:]
        tensors[f"ids.{n}"] = ids[0].to(torch.int64)
        inputs = torch.cat([torch.full((1, QUERIES), image_token), ids], 1)
        output = model(pixel_values=image[None], input_ids=inputs, interpolate_pos_encoding=True)
        tensors[f"logits.{n}"] = output.logits[0, QUERIES:].contiguous()
    prompts = [dict(text=prompt, ids=tokenizer(prompt, add_special_tokens=False).input_ids) for prompt in PROMPTS[:-1]]
    cases = caption(model, images, tokenizer, generator, image_token)
    write(folder, cases, tensors, prompts=prompts, hostile=PROMPTS[-1])


def save(model, folder, recipe):
    """Saves the model in f16 and keeps the rounded weights in it."""
    model.half().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if recipe.get("own_head"):
        tensors["language_model.lm_head.weight"] = model.language_model.lm_head.weight.contiguous()
    save_file(tensors, path, metadata=dict(format="pt"))
    # transformers reads a head of its own, although the configuration says that it has none.
    again = Blip2ForConditionalGeneration.from_pretrained(folder)
    assert torch.equal(again.language_model.lm_head.weight, model.language_model.lm_head.weight)
    if not recipe.get("shards"):
        return
    for name in [name for name in tensors if name.endswith("qkv.bias")]:
        q, k, v = tensors.pop(name).chunk(3)
        assert not k.any()
        prefix = name.removesuffix("qkv.bias")
        tensors |= {prefix + "q_bias": q.contiguous(), prefix + "v_bias": v.contiguous()}
    path.unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file,
                  metadata=dict(format="pt"))
    index = dict(metadata=dict(total_size=sum(t.numel() * t.element_size() for t in tensors.values())), weight_map=files)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def rows(model, image):
    """What the language model reads for an image."""
    states = model.vision_model(pixel_values=image[None], interpolate_pos_encoding=True).last_hidden_state
    queries = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=states).last_hidden_state
    return model.language_projection(queries)[0].contiguous()


def generate(model, image, prompt, arguments):
    ids = torch.tensor([[model.config.image_token_index] * QUERIES + [2] + prompt])
    return model.generate(pixel_values=image[None], input_ids=ids, attention_mask=torch.ones_like(ids),
                          interpolate_pos_encoding=True, do_sample=False, return_dict_in_generate=True,
                          output_logits=True, output_scores=True, **(dict(max_new_tokens=20) | arguments))


def caption(model, images, tokenizer, generator, vocabulary):
    cases = []
    for n, image in enumerate(images):
        for case in CASES:
            arguments = {k: v for k, v in case.items() if k not in ("name", "prompt")}
            prompt = torch.randint(3, vocabulary, (case.get("prompt", 0),), generator=generator).tolist()
            cases.append(dict(name=case["name"], image=n, prompt=prompt, params=arguments,
                              sequences=one(model, image, prompt, arguments, tokenizer)))
    model.double()
    kept = []
    for case in cases:
        again = one(model, images[case["image"]].double(), case["prompt"], case["params"], tokenizer)
        if [a["ids"] for a in again] == [c["ids"] for c in case["sequences"]]:
            kept.append(case)
        else:
            print("a tie, dropped:", case["name"], "of image", case["image"])
    model.float()
    return kept


def one(model, image, prompt, arguments, tokenizer):
    output = generate(model, image, prompt, arguments)

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=True).strip()

    found = [sequence(model, output, row, QUERIES + 1 + len(prompt), decode) for row in range(output.sequences.shape[0])]
    for one in found:
        one["ids"] = one["ids"][QUERIES:]
    return found


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
