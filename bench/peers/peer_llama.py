"""llama.cpp: ggml's matrix multiplication, and a Llama read from a GGUF file of random weights; through the C functions."""

import ctypes
import os
import sys
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p

import gguf
import numpy as np

from peer import Call, token_ids
from work import BUILD, POOL_LEN, SHAPE, STD, Kind, weight

LLAMA = BUILD / "llama-native" / "bin"
MODELS = BUILD / "models"
TYPES = {
    "bf16": gguf.GGMLQuantizationType.BF16,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
CPU_DEVICE = 0
# Tokens are written in at most so many at a time, as llama.cpp's own programs do.
UBATCH = 512
LOG = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
_QUIET = LOG(lambda level, text, data: None)


class Peer:
    linear_kinds = model_kinds = [
        Kind("bf16", "16-bit", 2, 0.01),
        Kind("f16", "16-bit", 2, 0.01),
        Kind("q8_0", "8-bit", 1.0625, 0.03),
        Kind("q4_0", "4-bit", 0.5625, 0.15),
    ]

    def __init__(self, isa, threads):
        self.isa, self.threads = isa, threads
        self.ggml = Ggml(isa, threads)

    def versions(self):
        readme = (BUILD / "llama-src" / "PKG-INFO").read_text()
        package = next(line.split()[1] for line in readme.splitlines() if line.startswith("Version:"))
        return {
            "llama-cpp-python": package,
            "ggml": self.ggml.base.ggml_version().decode(),
            "build": "GGML_NATIVE" if self.isa == "native" else "AVX2, FMA, F16C, BMI2",
            "features": self.ggml.features(),
            "layouts": " ".join(f"{kind}:{self.ggml.layout(type_)}" for kind, type_ in TYPES.items()),
        }

    def linear(self, kind, w, copies):
        return Linear(self.ggml, TYPES[kind], w, copies).at_batch

    def model(self, kind):
        return Model(self.ggml, gguf_file(self.ggml, kind), self.threads)


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


class Feature(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("value", c_char_p)]


class Ggml:
    """ggml's libraries for an instruction set, and the backend of the CPU."""

    def __init__(self, isa, threads):
        self.isa = isa
        folder = BUILD / f"llama-{isa}" / "bin"
        # Loaded first and for all: libllama takes these and not those that it was built with.
        self.base, self.cpu, self.top = (
            ctypes.CDLL(str(folder / f"lib{name}.so"), ctypes.RTLD_GLOBAL)
            for name in ("ggml-base", "ggml-cpu", "ggml")
        )
        self._declare()
        self.base.ggml_log_set(_QUIET, None)
        self.device = self.top.ggml_backend_dev_by_type(CPU_DEVICE)
        self.backend = self.base.ggml_backend_dev_init(self.device, None)
        self.cpu.ggml_backend_cpu_set_n_threads(self.backend, threads)
        self.host_buffers = self.base.ggml_backend_dev_buffer_type(self.device)

    def _declare(self):
        def declare(library, result, name, *arguments):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments

        p = c_void_p
        declare(self.top, p, "ggml_backend_dev_by_type", c_int)
        declare(self.cpu, None, "ggml_backend_cpu_set_n_threads", p, c_int)
        declare(self.base, None, "ggml_log_set", LOG, p)
        declare(self.base, c_char_p, "ggml_version")
        declare(self.base, p, "ggml_backend_dev_init", p, c_char_p)
        declare(self.base, p, "ggml_backend_dev_buffer_type", p)
        declare(self.base, p, "ggml_backend_dev_backend_reg", p)
        declare(self.base, p, "ggml_backend_reg_get_proc_address", p, c_char_p)
        declare(self.base, c_bool, "ggml_backend_dev_supports_op", p, p)
        declare(self.base, c_char_p, "ggml_backend_buft_name", p)
        declare(self.base, p, "ggml_backend_alloc_ctx_tensors_from_buft", p, p)
        declare(self.base, None, "ggml_backend_buffer_set_usage", p, c_int)
        declare(self.base, None, "ggml_backend_buffer_free", p)
        declare(self.base, None, "ggml_backend_tensor_set", p, p, c_size_t, c_size_t)
        declare(self.base, None, "ggml_backend_tensor_get", p, p, c_size_t, c_size_t)
        declare(self.base, c_int, "ggml_backend_graph_compute", p, p)
        declare(self.base, p, "ggml_init", InitParams)
        declare(self.base, None, "ggml_free", p)
        declare(self.base, c_size_t, "ggml_tensor_overhead")
        declare(self.base, c_size_t, "ggml_graph_overhead")
        declare(self.base, p, "ggml_new_tensor_2d", p, c_int, c_int64, c_int64)
        declare(self.base, p, "ggml_mul_mat", p, p, p)
        declare(self.base, p, "ggml_new_graph", p)
        declare(self.base, None, "ggml_build_forward_expand", p, p)
        declare(self.base, c_size_t, "ggml_row_size", c_int, c_int64)
        quantize = (c_int, p, p, c_int64, c_int64, c_int64, p)
        declare(self.base, c_size_t, "ggml_quantize_chunk", *quantize)

    def extra_buffers(self):
        """Buffer types with layouts of their own (repacked, AMX), the preferred first."""
        get = self._registered("ggml_backend_dev_get_extra_bufts", POINTER(c_void_p), c_void_p)
        found = get(self.device)
        at = 0
        while found and found[at]:
            yield found[at]
            at += 1

    def features(self):
        found = self._registered("ggml_backend_get_features", POINTER(Feature), c_void_p)(self._registry())
        names, at = [], 0
        while found[at].name:
            names.append(found[at].name.decode())
            at += 1
        return " ".join(names)

    def _registry(self):
        return self.base.ggml_backend_dev_backend_reg(self.device)

    def _registered(self, name, result, *arguments):
        address = self.base.ggml_backend_reg_get_proc_address(self._registry(), name.encode())
        return ctypes.CFUNCTYPE(result, *arguments)(address)

    def layout(self, type_):
        """Name of the layout that weights of a type get."""
        return Linear(self, type_, np.zeros((64, 512), np.float32), 1).buffer_name

    def context(self, tensors, graphs=0):
        size = tensors * self.base.ggml_tensor_overhead() + graphs * self.base.ggml_graph_overhead()
        return self.base.ggml_init(InitParams(size, None, True))

    def quantize(self, type_, w):
        """Rows of `w` as bytes of a type."""
        rows, k = w.shape
        out = np.empty((rows, self.base.ggml_row_size(type_, k)), np.uint8)
        self.base.ggml_quantize_chunk(type_, w.ctypes.data, out.ctypes.data, 0, rows, k, None)
        return out


class Linear:
    """Copies of a weight where llama.cpp would put them: in the first layout of its own that takes the type."""

    def __init__(self, ggml, type_, w, copies):
        self.ggml, self.owned = ggml, []
        self.n, self.k = w.shape
        for buffers in [*ggml.extra_buffers(), ggml.host_buffers]:
            if self._place(buffers, type_, w.shape, copies):
                break
        self.buffer_name = ggml.base.ggml_backend_buft_name(buffers).decode()
        stored = ggml.quantize(type_, w)
        for tensor in self.weights:
            ggml.base.ggml_backend_tensor_set(tensor, stored.ctypes.data, 0, stored.nbytes)

    def _place(self, buffers, type_, shape, copies):
        base = self.ggml.base
        context = self.ggml.context(copies)
        weights = [base.ggml_new_tensor_2d(context, type_, shape[1], shape[0]) for _ in range(copies)]
        buffer = base.ggml_backend_alloc_ctx_tensors_from_buft(context, buffers)
        if not buffer:
            base.ggml_free(context)
            return False
        base.ggml_backend_buffer_set_usage(buffer, 1)
        trial = self.ggml.context(2)
        x = base.ggml_new_tensor_2d(trial, gguf.GGMLQuantizationType.F32, shape[1], 1)
        supported = base.ggml_backend_dev_supports_op(self.ggml.device, base.ggml_mul_mat(trial, weights[0], x))
        base.ggml_free(trial)
        if not supported:
            base.ggml_backend_buffer_free(buffer)
            base.ggml_free(context)
            return False
        self.weights = weights
        self.owned.append((context, buffer))
        return True

    def at_batch(self, x):
        base = self.ggml.base
        copies = len(self.weights)
        context = self.ggml.context(1 + copies, copies)
        tensor = base.ggml_new_tensor_2d(context, gguf.GGMLQuantizationType.F32, self.k, len(x))
        products = [base.ggml_mul_mat(context, w, tensor) for w in self.weights]
        graphs = [base.ggml_new_graph(context) for _ in products]
        for graph, product in zip(graphs, products):
            base.ggml_build_forward_expand(graph, product)
        buffer = base.ggml_backend_alloc_ctx_tensors_from_buft(context, self.ggml.host_buffers)
        self.owned.append((context, buffer))
        x = np.ascontiguousarray(x)
        base.ggml_backend_tensor_set(tensor, x.ctypes.data, 0, x.nbytes)

        def run(i):
            if base.ggml_backend_graph_compute(self.ggml.backend, graphs[i % copies]) != 0:
                raise RuntimeError("ggml could not compute the graph")

        def result():
            y = np.empty((len(x), self.n), np.float32)
            base.ggml_backend_tensor_get(products[0], y.ctypes.data, 0, y.nbytes)
            return y

        return Call(run, result)

    def __del__(self):
        for context, buffer in self.owned:
            self.ggml.base.ggml_backend_buffer_free(buffer)
            self.ggml.base.ggml_free(context)


def gguf_file(ggml, kind):
    """The model in a type, all of its matrices alike; written once."""
    path = MODELS / f"{SHAPE.layers}x{SHAPE.hidden}-{POOL_LEN}-{STD}-{kind}.gguf"
    if path.exists():
        return path
    MODELS.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(SHAPE.hidden)
    writer.add_block_count(SHAPE.layers)
    writer.add_feed_forward_length(SHAPE.intermediate)
    writer.add_head_count(SHAPE.heads)
    writer.add_head_count_kv(SHAPE.kv_heads)
    writer.add_layer_norm_rms_eps(SHAPE.eps)
    writer.add_rope_freq_base(SHAPE.theta)
    writer.add_rope_dimension_count(SHAPE.head_dim)
    writer.add_vocab_size(SHAPE.vocab)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, SHAPE.layers)
    for name, shape in SHAPE.tensors():
        w = weight(name, shape)
        target = names.get_name(name, try_suffixes=(".weight",))
        if len(shape) == 1:
            writer.add_tensor(target, w)
        else:
            writer.add_tensor(target, ggml.quantize(TYPES[kind], _rotated(name, w)), raw_dtype=TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)
    return path


def _rotated(name, w):
    """llama.cpp rotates neighbouring elements of a head and Hugging Face halves of it: the rows of q and k are moved."""
    heads = {"q_proj": SHAPE.heads, "k_proj": SHAPE.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return w
    halves = w.reshape(heads, 2, SHAPE.head_dim // 2, w.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(w.shape)


class Model:
    """A model as llama.cpp's own programs load it: mapped, with its repacked layouts."""

    def __init__(self, ggml, path, threads):
        self.api = _bindings()
        self.threads = threads
        parameters = self.api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = self.api.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path.name}")
        if str(BUILD / f"llama-{ggml.isa}") not in _loaded("libggml-cpu"):
            raise RuntimeError("llama.cpp has loaded the ggml of another build")

    def _context(self, sequences, tokens):
        parameters = self.api.llama_context_default_params()
        # Sequences share the context evenly; its parts are multiples of 256 tokens.
        parameters.n_ctx = sequences * -(-tokens // 256) * 256
        parameters.n_seq_max = sequences
        parameters.n_batch = parameters.n_ubatch = UBATCH
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.no_perf = True
        return Context(self.api, self.api.llama_init_from_model(self.model, parameters))

    def logits(self, tokens):
        context = self._context(1, len(tokens))
        context.decode([(token, at, 0, True) for at, token in enumerate(tokens)])
        return np.stack([context.logits(at) for at in range(len(tokens))])

    def prefill(self, tokens):
        ids = token_ids(tokens)
        self._context(1, tokens).decode([(token, at, 0, at + 1 == tokens) for at, token in enumerate(ids)])

    def decode(self, batch, steps):
        context = self._context(batch, steps)
        tokens = iter(enumerate(token_ids(steps)))

        def step():
            at, token = next(tokens)
            context.decode([(token, at, sequence, True) for sequence in range(batch)])

        return step

    def __del__(self):
        if getattr(self, "model", None):
            self.api.llama_model_free(self.model)


class Context:
    """Sequences in progress."""

    def __init__(self, api, context):
        if not context:
            raise MemoryError("llama.cpp cannot make a context")
        self.api, self.context = api, context
        self.batch = api.llama_batch_init(UBATCH, 0, 1)

    def decode(self, entries):
        """Entries are (token, position, sequence, whether its logits are wanted)."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        status = self.api.llama_decode(self.context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returns {status}")
        self.api.llama_synchronize(self.context)

    def logits(self, at):
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, at), (SHAPE.vocab,)).copy()

    def __del__(self):
        if self.context:
            self.api.llama_batch_free(self.batch)
            self.api.llama_free(self.context)


def _bindings():
    """The declarations of llama.h in the source package; the package itself wants more than them."""
    if "llama_cpp" not in sys.modules:
        os.environ["LLAMA_CPP_LIB_PATH"] = str(LLAMA)
        package = type(sys)("llama_cpp")
        package.__path__ = [str(BUILD / "llama-src" / "llama_cpp")]
        sys.modules["llama_cpp"] = package
    import llama_cpp.llama_cpp as api

    api.llama_log_set(_QUIET, None)
    return api


def _loaded(library):
    with open("/proc/self/maps") as maps:
        return " ".join({line.split()[-1] for line in maps if library in line})
