"""Times ONNX Runtime on the CPU."""

import numpy
import onnx
import onnxruntime
import runner
import weights

SUFFIX = {"f32": "", "int8": "_int8"}


def main():
    options = runner.arguments(list(SUFFIX))
    image, token = (session(options, name) for name in ("image", "token"))
    pasts = [port.name for port in token.get_inputs() if port.name.startswith("past_")]
    crosses = [port.name for port in image.get_outputs()]
    text = weights.config().text_config
    shape = (options.batch, text.num_attention_heads, 0, text.hidden_size // text.num_attention_heads)
    empty = onnxruntime.OrtValue.ortvalue_from_numpy(numpy.zeros(shape, numpy.float32))
    value = onnxruntime.OrtValue.ortvalue_from_numpy

    def images(pixels):
        return dict(zip(crosses, image.run_with_ort_values(crosses, {"pixels": value(pixels)})))

    def captions(cross):
        past = dict.fromkeys(pasts, empty)

        def step(ids, position):
            inputs = {"token": value(ids), "position": value(position), **past, **cross}
            logits, *grown = token.run_with_ort_values(None, inputs)
            past.update(zip(pasts, grown))
            return logits.numpy()

        return runner.greedy(options, step)

    runner.measure(options, images, captions)


def session(options, name):
    """A session with all optimisations and a fixed batch, so that the memory planner knows most sizes."""
    path = options.folder / f"{name}{SUFFIX[options.precision]}.onnx"
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Two sessions alternate, so the threads of the idle one must not spin on the cores of the other.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    batch = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim[0].dim_param
    settings.add_free_dimension_override_by_name(batch, options.batch)
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
