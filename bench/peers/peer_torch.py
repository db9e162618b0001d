"""PyTorch's linear layers and Transformers' Llama, on the CPU, as they come: eager, scaled-dot-product attention."""

import warnings

import torch
import transformers

from peer import Call, token_ids
from work import SHAPE, Kind, weight

# The workers run one at a time and have no user to warn; quantize_dynamic is deprecated in favour of another package.
warnings.filterwarnings("ignore")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "int8 dynamic": torch.float32}


class Peer:
    # Dynamic int8 has one scale for a whole weight and 7 bits of activation.
    linear_kinds = model_kinds = [
        Kind("f32", "32-bit", 4, 1e-4),
        Kind("bf16", "16-bit", 2, 0.01),
        Kind("int8 dynamic", "8-bit", 1, 0.05),
    ]

    def __init__(self, isa, threads):
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        if isa == "avx2" and torch.backends.cpu.get_cpu_capability() != "AVX2":
            raise RuntimeError("PyTorch does not obey ATEN_CPU_CAPABILITY=avx2")

    def versions(self):
        return {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "quantized engine": torch.backends.quantized.engine,
        }

    def linear(self, kind, w, copies):
        n, k = w.shape
        layers = []
        for _ in range(copies):
            layer = torch.nn.utils.skip_init(torch.nn.Linear, k, n, bias=False, dtype=DTYPES[kind])
            layer.weight.copy_(torch.from_numpy(w))
            layers.append(_quantized(torch.nn.Sequential(layer))[0] if kind == "int8 dynamic" else layer)

        def at_batch(x):
            x = torch.from_numpy(x).to(DTYPES[kind])
            output = []

            def run(i):
                output[:] = [layers[i % copies](x)]

            return Call(run, lambda: output[0].float().numpy())

        return at_batch

    def model(self, kind):
        return Model(kind)


def _quantized(module):
    return torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, torch.qint8, inplace=True)


class Model:
    def __init__(self, kind):
        config = transformers.LlamaConfig(
            hidden_size=SHAPE.hidden,
            num_hidden_layers=SHAPE.layers,
            num_attention_heads=SHAPE.heads,
            num_key_value_heads=SHAPE.kv_heads,
            intermediate_size=SHAPE.intermediate,
            vocab_size=SHAPE.vocab,
            rms_norm_eps=SHAPE.eps,
            rope_theta=SHAPE.theta,
            tie_word_embeddings=False,
        )
        dtype = DTYPES[kind]
        state = {name: torch.from_numpy(weight(name, shape)).to(dtype) for name, shape in SHAPE.tensors()}
        self.model = transformers.LlamaForCausalLM.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype
        ).eval()
        if kind == "int8 dynamic":
            self.model = _quantized(self.model)

    def logits(self, tokens):
        return self.model(torch.tensor([tokens])).logits[0].float().numpy()

    def prefill(self, tokens):
        self._forward(torch.tensor([token_ids(tokens)]), transformers.DynamicCache())

    def decode(self, batch, steps):
        cache = transformers.DynamicCache()
        tokens = iter(token_ids(steps))
        return lambda: self._forward(torch.full((batch, 1), next(tokens)), cache)

    def _forward(self, tokens, cache):
        return self.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
