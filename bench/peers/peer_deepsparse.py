"""DeepSparse: a graph with one matrix multiplication after another, compiled for each batch.

Side by side, multiplications of one input are slower than in a chain, and if their weights are equal the engine keeps one
of them, which then stays in the cache. The output of a layer is the input of the next, so every other copy is transposed:
the time is the mean of the layers K -> N and N -> K.
"""

import pathlib
import tempfile

import deepsparse
import numpy as np
import onnx
from deepsparse.version import version
from onnx import TensorProto, helper, numpy_helper

from peer import Call
from work import Kind, distinct

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
        n, k = w.shape
        copies += copies > 1 and copies % 2  # as many of K -> N as of N -> K
        size = w.size * copies * (4 if kind.startswith("f32") else 1)
        if size > MAX_BYTES:
            raise MemoryError(f"left out: {size >> 20} MiB of weights are too many to compile")
        nodes, constants = _chain(kind, w, copies)
        widths = {0: n, copies - 1: n if copies % 2 else k}

        def at_batch(x):
            m = len(x)
            # The first is checked, and nothing can be left out on the way to the last.
            outputs = [
                helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [m, width]) for i, width in widths.items()
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


def _chain(kind, w, copies):
    """Nodes and constants: y_i = y_(i-1) w_i^T from y_(-1) = x on, in f32 or by integers with one scale."""
    constants, nodes = [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(value, name))
        return name

    def node(operator, inputs, output, **attributes):
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))

    scale = np.abs(w).max() / 127
    scale_x = constant("scale_x", np.array(ACTIVATION_SCALE, np.float32))
    scale_y = constant("scale_y", np.array(scale * ACTIVATION_SCALE, np.float32))
    zero_x = constant("zero_x", np.array(128, np.uint8))
    zero_w = constant("zero_w", np.array(0, np.int8))
    x = "x"
    for i in range(copies):
        w_i = distinct(w, i)
        w_t = np.ascontiguousarray(w_i if i % 2 else w_i.T)
        if kind.startswith("f32"):
            node("MatMul", [x, constant(f"w{i}", w_t)], f"y{i}")
        else:
            # From the second layer on activations can exceed 4: they saturate, which takes no longer.
            q_t = np.rint(w_t / scale).astype(np.int8)
            node("QuantizeLinear", [x, scale_x, zero_x], f"q{i}")
            node("MatMulInteger", [f"q{i}", constant(f"w{i}", q_t), zero_x, zero_w], f"i{i}")
            node("Cast", [f"i{i}"], f"f{i}", to=TensorProto.FLOAT)
            node("Mul", [f"f{i}", scale_y], f"y{i}")
        x = f"y{i}"
    return nodes, constants
