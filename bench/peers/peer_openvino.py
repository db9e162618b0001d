"""OpenVINO's CPU plugin: a graph of one matrix multiplication for each copy of the weight, no two of them equal."""

import numpy as np
import openvino
from openvino import opset13 as op

from peer import Call
from work import Kind, distinct

# The plugin calls MLAS for f32, which obeys no limit of the instruction set; what oneDNN does obeys ONEDNN_MAX_CPU_ISA.
F32 = Kind("f32", "32-bit", 4, 1e-4)
BF16 = Kind("bf16", "16-bit", 2, 0.01)
INT8 = Kind("int8 weights", "8-bit", 1, 0.03)


class Peer:
    model_kinds = []

    def __init__(self, isa, threads):
        self.core = openvino.Core()
        self.capabilities = self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        bf16 = isa == "native" and "BF16" in self.capabilities
        self.linear_kinds = [INT8] if isa == "avx2" else [F32, *[BF16] * bf16, INT8]
        self.properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        self.dynamic = {} if isa == "native" else {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}

    def versions(self):
        return {"openvino": openvino.__version__, "capabilities": " ".join(self.capabilities)}

    def linear(self, kind, w, copies):
        properties = {**self.properties, "INFERENCE_PRECISION_HINT": "bf16" if kind == "bf16" else "f32"}
        if kind == INT8.name:
            properties |= self.dynamic
        # A model whose batch is not fixed serves all of them, and stores its weights once.
        x = op.parameter([-1, w.shape[1]], np.float32)
        products = [op.matmul(x, _constant(kind, distinct(w, i)), False, True) for i in range(copies)]
        compiled = self.core.compile_model(openvino.Model(products, [x], "linear"), "CPU", properties)
        request = compiled.create_infer_request()

        def at_batch(x):
            outputs = []

            def run(_):
                outputs[:] = [request.infer({0: x}, share_inputs=True, share_outputs=True)]

            return Call(run, lambda: np.array(outputs[0][0]), copies)

        return at_batch


def _constant(kind, w):
    if kind != INT8.name:
        return op.constant(w)
    scale = np.abs(w).max(1, keepdims=True) / np.float32(127)
    return op.multiply(op.convert(op.constant(np.rint(w / scale).astype(np.int8)), "f32"), op.constant(scale))
