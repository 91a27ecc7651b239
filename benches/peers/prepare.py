"""Makes the files that the peers read, once: weights, ONNX graphs, OpenVINO graphs, both in int8.

    python prepare.py FOLDER [onnxruntime] [openvino]

FOLDER/model is the checkpoint that transformers and cutline read.
"""

import pathlib
import sys
import traceback

import graphs
import numpy
import torch
import weights

REFERENCES, REFERENCE_TOKENS = 4, 10
BATCH = 2  # batch of the traced examples; the exporter would treat a size of one as a constant
REFERENCES, REFERENCE_TOKENS = 4, 10
POSITIONS = 577  # vision tokens per image: a class token and 24 × 24 patches
ANY = torch.export.Dim.DYNAMIC
CALIBRATION_IMAGES, CALIBRATION_TOKENS = 4, 4


def main(folder, peers):
    folder.mkdir(parents=True, exist_ok=True)
    once(folder / "model/model.safetensors", lambda: weights.make(folder / "model"))
    once(folder / "reference.npy", lambda: remember_captions(folder))
    if "onnxruntime" in peers:
        once(folder / "token.onnx", lambda: export_onnx(folder))
        once(folder / "token_int8.onnx", lambda: quantize_onnx(folder))
    if "openvino" in peers:
        once(folder / "token.xml", lambda: export_openvino(folder))
        once(folder / "token_int8.xml", lambda: quantize_openvino(folder))


def once(path, make):
    """Makes a file if it does not exist. On failure only the peer that needs it fails, later."""
    if path.exists():
        return
    print(f"making {path}", file=sys.stderr)
    try:
        make()
    except Exception:
        traceback.print_exc()


def remember_captions(folder):
    """The ids that transformers generates in f32, to detect errors of the peers."""
    ids = weights.load(folder / "model").generate(
        torch.from_numpy(weights.images(REFERENCES)), min_new_tokens=REFERENCE_TOKENS,
        max_new_tokens=REFERENCE_TOKENS, num_beams=1, do_sample=False)
    numpy.save(folder / "reference.npy", ids[:, 1:].numpy())


def traced(folder):
    """Both graphs as exported programs, with the names of their inputs and outputs."""
    model = weights.load(folder / "model")
    print(f"logits differ from transformers' by {difference(model):.1e}", file=sys.stderr)
    pixels = torch.from_numpy(weights.images(BATCH))
    image = graphs.ImageGraph(model)
    with torch.no_grad():
        cross = image(pixels)
    past = tuple(torch.cat([empty, empty.new_zeros(BATCH, empty.shape[1], 3, empty.shape[3])], 2)
                 for empty in graphs.no_past(model, BATCH))
    token = (torch.zeros((BATCH, 1), dtype=torch.long), torch.zeros((1, 1), dtype=torch.long), past, cross)
    batch, grows = {0: ANY}, {0: ANY, 2: ANY}
    token_sizes = (batch, None, tuple(grows for _ in past), tuple(batch for _ in cross))
    image = torch.export.export(image, (pixels,), dynamic_shapes=(batch,))
    token = torch.export.export(graphs.TokenGraph(model), token, dynamic_shapes=token_sizes)
    pasts, crosses = graphs.names(model)
    inputs, outputs = ["token", "position", *pasts, *crosses], ["logits", *(f"new_{name}" for name in pasts)]
    return [("image", image, ["pixels"], crosses), ("token", token, inputs, outputs)]


def difference(model):
    return graphs.check(model, torch.from_numpy(weights.images(1)), torch.tensor([[weights.START, 2000, 3000]]))


def export_onnx(folder):
    for name, program, inputs, outputs in traced(folder):
        torch.onnx.export(program, (), folder / f"{name}.onnx", input_names=inputs, output_names=outputs,
                          opset_version=18, dynamo=True, external_data=True)


def quantize_onnx(folder):
    """ONNX Runtime's recipe for transformers on a CPU: dynamic quantisation, per-channel weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for name in ("image", "token"):
        quantize_dynamic(folder / f"{name}.onnx", folder / f"{name}_int8.onnx", weight_type=QuantType.QInt8,
                         per_channel=True, op_types_to_quantize=["MatMul", "Gemm"],
                         extra_options={"MatMulConstBOnly": True})


def export_openvino(folder):
    import openvino

    for name, program, inputs, outputs in traced(folder):
        model = openvino.convert_model(program)
        for port, called in zip([*model.inputs, *model.outputs], [*inputs, *outputs], strict=True):
            port.get_tensor().set_names({called})
        # The converter loses the static dimensions.
        model.reshape({port: sizes(port.get_any_name()) for port in model.inputs})
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)


def sizes(name):
    """The shape of an input, with -1 for batch and past."""
    text = weights.config().text_config
    heads, width = text.num_attention_heads, text.hidden_size // text.num_attention_heads
    if name.startswith(("past_", "cross_")):
        return [-1, heads, -1 if name.startswith("past_") else POSITIONS, width]
    return {"pixels": [-1, 3, weights.SIDE, weights.SIDE], "token": [-1, 1], "position": [1, 1]}[name]


def quantize_openvino(folder):
    """NNCF's static quantisation for transformers, calibrated on separate images and captions."""
    import nncf
    import openvino

    core = openvino.Core()
    image, token = (core.read_model(folder / f"{name}.xml") for name in ("image", "token"))
    pixels = weights.images(CALIBRATION_IMAGES, seed=1)
    samples = {"image": [{"pixels": one[None]} for one in pixels],
               "token": token_samples(core.compile_model(image, "CPU"), core.compile_model(token, "CPU"), pixels)}
    for name, model in (("image", image), ("token", token)):
        quantized = nncf.quantize(model, nncf.Dataset(samples[name]), subset_size=len(samples[name]),
                                  model_type=nncf.ModelType.TRANSFORMER, preset=nncf.QuantizationPreset.MIXED)
        openvino.save_model(quantized, folder / f"{name}_int8.xml", compress_to_fp16=False)


def token_samples(image, token, pixels):
    """The decoder's inputs while it captions, for calibration."""
    samples = []
    for one in pixels:
        cross = {port.get_any_name(): value for port, value in image({"pixels": one[None]}).items()}
        past = {port.get_any_name(): numpy.zeros((1, port.partial_shape[1].get_length(), 0, 64), numpy.float32)
                for port in token.inputs if port.get_any_name().startswith("past_")}
        ids = numpy.array([[weights.START]])
        for position in range(CALIBRATION_TOKENS):
            sample = {"token": ids, "position": numpy.array([[position]]), **past, **cross}
            samples.append(sample)
            result = {port.get_any_name(): value for port, value in token(sample).items()}
            ids = result["logits"].argmax(-1)[:, None]
            past = {name: result[f"new_{name}"] for name in past}
    return samples


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:] or ["onnxruntime", "openvino"])
