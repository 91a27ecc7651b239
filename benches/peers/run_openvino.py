"""Times OpenVINO on the CPU."""

import openvino
import runner
from openvino._offline_transformations import apply_make_stateful_transformation

# The files, and the precision of unquantised operations. The best one for int8 depends on the CPU.
FORMS = {"f32": ("", "f32"), "bf16": ("", "bf16"), "int8": ("_int8", "f32"), "int8-bf16": ("_int8", "bf16")}


def main():
    options = runner.arguments(list(FORMS))
    core = openvino.Core()
    suffix, hint = FORMS[options.precision]
    settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": options.threads,
                "INFERENCE_PRECISION_HINT": hint}
    image = core.read_model(options.folder / f"image{suffix}.xml")
    token = core.read_model(options.folder / f"token{suffix}.xml")
    for model in (image, token):
        model.reshape({port.get_any_name(): fixed(port, options.batch) for port in model.inputs})
    crosses = [port.get_any_name() for port in image.outputs]
    keep_caches(token)
    image, token = (core.compile_model(model, "CPU", settings).create_infer_request() for model in (image, token))

    def images(pixels):
        image.infer({"pixels": pixels}, share_inputs=True)
        return [image.get_tensor(name) for name in crosses]

    def captions(cross):
        token.reset_state()
        for name, tensor in zip(crosses, cross):
            token.set_tensor(name, tensor)

        def step(ids, position):
            token.infer({"token": ids, "position": position}, share_inputs=True)
            return token.get_tensor("logits").data

        return runner.greedy(options, step)

    runner.measure(options, images, captions)


def fixed(port, batch):
    """The shape with a fixed batch; only the length of the KV caches stays dynamic."""
    shape = port.partial_shape
    if port.get_any_name() != "position":
        shape[0] = batch
    return shape


def keep_caches(model):
    """Makes the KV caches internal state of the model instead of inputs and outputs, which avoids copies."""
    pasts = [port.get_any_name() for port in model.inputs if port.get_any_name().startswith("past_")]
    apply_make_stateful_transformation(model, {name: f"new_{name}" for name in pasts})


if __name__ == "__main__":
    main()
