"""DeepSparse: a graph of one matrix multiplication for each copy of the weight, compiled for each batch."""

import pathlib
import tempfile

import deepsparse
import numpy as np
import onnx
from deepsparse.version import version
from onnx import TensorProto, helper, numpy_helper

from peer import Call
from work import Kind

# Activations are within 4, see work.activations.
ACTIVATION_SCALE = 4 / 127
# Larger graphs take minutes and several times their size to compile, and an ONNX file cannot exceed 2 GiB.
MAX_BYTES = 1 << 30


class Peer:
    linear_kinds = [
        Kind("f32", "32-bit", 4, 1e-4),
        Kind("f32 50 %", "32-bit", 4, 1e-4, 0.5),
        Kind("int8", "8-bit", 1, 0.03),
        Kind("int8 50 %", "8-bit", 1, 0.03, 0.5),
    ]
    model_kinds = []
    # Each batch is a compilation of up to a minute and weights of its own.
    linear_batches = [1, 16]

    def __init__(self, isa, threads):
        self.threads = threads
        architecture = deepsparse.cpu.cpu_architecture()
        self.isa = architecture.isa
        if isa == "avx2" and self.isa != "avx2":
            raise RuntimeError("DeepSparse does not obey NM_ARCH=avx2")
        self.vnni = architecture.vnni

    def versions(self):
        return {"deepsparse": version, "onnx": onnx.__version__, "binary": self.isa, "vnni": self.vnni}

    def linear(self, kind, w, copies):
        size = w.size * copies * (4 if kind.startswith("f32") else 1)
        if size > MAX_BYTES:
            raise MemoryError(f"left out: {size >> 20} MiB of weights are too many to compile")
        nodes, constants = _graph(kind, w, copies)
        n, k = w.shape

        def at_batch(x):
            m = len(x)
            outputs = [
                helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [m, n]) for i in range(copies)
            ]
            inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [m, k])]
            graph = helper.make_graph(nodes, "linear", inputs, outputs, constants)
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "linear.onnx"
                onnx.save(model, str(path))
                engine = deepsparse.Engine(str(path), batch_size=m, num_cores=self.threads)
            results = []

            def run(_):
                results[:] = engine.run([x])

            return Call(run, lambda: results[0], copies)

        return at_batch


def _graph(kind, w, copies):
    """Nodes and constants: y_i = x w^T for every copy i, in f32 or by integers with one scale."""
    constants, nodes = [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(value, name))
        return name

    def node(operator, inputs, output, **attributes):
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))

    if kind.startswith("f32"):
        w_t = np.ascontiguousarray(w.T)
        for i in range(copies):
            node("MatMul", ["x", constant(f"w{i}", w_t)], f"y{i}")
        return nodes, constants
    scale = np.abs(w).max() / 127
    q_t = np.ascontiguousarray(np.rint(w / scale).astype(np.int8).T)
    scale_x = constant("scale_x", np.array(ACTIVATION_SCALE, np.float32))
    zero_x = constant("zero_x", np.array(128, np.uint8))
    zero_w = constant("zero_w", np.array(0, np.int8))
    scale_y = constant("scale_y", np.array(scale * ACTIVATION_SCALE, np.float32))
    node("QuantizeLinear", ["x", scale_x, zero_x], "xq")
    for i in range(copies):
        node("MatMulInteger", ["xq", constant(f"w{i}", q_t), zero_x, zero_w], f"i{i}")
        node("Cast", [f"i{i}"], f"f{i}", to=TensorProto.FLOAT)
        node("Mul", [f"f{i}", scale_y], f"y{i}")
    return nodes, constants
