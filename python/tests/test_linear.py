"""The layer: its numbers, its bad inputs, and what PyTorch asks of an operator."""

import copy
import gc
import io
import threading

import pytest
import torch
from torch import nn

import sparamx.torch
from sparamx.torch import SparseLinear

FORMATS = ("bf16", "int8", "int4")


def linear(n, k, bias=True):
    layer = nn.Linear(k, n, bias=bias)
    # What bf16 holds exactly, so that packing as bf16 rounds nothing.
    layer.weight.data = layer.weight.data.bfloat16().float()
    return layer


def sparse(layer, sparsity=0.5, weights="bf16"):
    return SparseLinear.from_linear(layer, sparsity, weights=weights)


def bound(layer, x, activations):
    """By how much an output can be off: each product by the rounding of its activation, and half an ulp a sum."""
    k = layer.in_features
    products = x.abs().double() @ layer.weight.to_dense().abs().double().T
    row = x.abs().amax(-1, keepdim=True).double()
    weights = layer.weight.to_dense().abs().double().sum(1)
    rounding = {"f32": products * 0, "bf16": products * 2.0**-8, "int8": row / 127 * weights}[activations]
    return rounding + products * k * 2.0**-24 + 1e-6


def activations(weights):
    isa = sparamx.isa()
    return "int8" if weights != "bf16" else ("bf16" if isa in ("avx512", "amx") else "f32")


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("n,k", [(1, 1), (16, 32), (17, 33), (64, 48), (100, 300), (5, 513)])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_are_those_of_the_dense_layer_with_zeros(n, k, bias, weights):
    layer = linear(n, k, bias)
    if weights == "bf16" and n * k < 1000:
        # Small weights are mostly padding when packed.
        with pytest.raises(ValueError, match="too few zeros"):
            sparse(linear(1, 1))
        return
    made = sparse(layer, weights=weights)
    for shape in [(k,), (1, k), (3, k), (2, 5, k), (2, 1, 9, k), (0, k)]:
        x = torch.randn(shape)
        got = made(x)
        assert got.shape == (*shape[:-1], n) and got.dtype == x.dtype
        want = made.to_dense()(x)
        off = (got - want).abs()
        assert (off <= bound(made, x, activations(weights))).all(), off.max()


def test_bf16_weights_keep_what_is_not_pruned():
    layer = linear(64, 128)
    made = sparse(layer)
    dense = made.weight.to_dense()
    kept = dense != 0
    assert torch.equal(dense[kept], layer.weight[kept])
    assert layer.weight[~kept].abs().max() <= dense[kept].abs().min()
    assert made.weight.sparsity == pytest.approx(0.5, abs=1e-3)
    assert made.weight.nbytes < 0.65 * 2 * 64 * 128


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_strides(dtype):
    made = sparse(linear(64, 128))
    x = torch.randn(6, 4, 128).to(dtype)
    want = made(x.float()).to(dtype)
    assert torch.equal(made(x), want)
    assert torch.equal(made(x.transpose(0, 1)), want.transpose(0, 1))
    wide = torch.zeros(6, 4, 200, dtype=dtype)
    wide[..., :128] = x
    assert torch.equal(made(wide[..., :128]), want)
    assert torch.equal(made(x[:, :1].expand(6, 3, 128)), want[:, :1].expand(6, 3, 64))
    assert made.bfloat16()(x).dtype == dtype


def test_sparsity_none_keeps_the_zeros_that_are_there():
    layer = linear(64, 128)
    layer.weight.data *= torch.rand(64, 128) > 0.7
    made = sparse(layer, None)
    assert torch.equal(made.weight.to_dense(), layer.weight)


def test_bad_layers_are_refused_by_name():
    layer = linear(64, 128)
    with pytest.raises(TypeError, match="Conv2d"):
        sparse(nn.Conv2d(3, 3, 3))
    with pytest.raises(ValueError, match="device meta"):
        sparse(nn.Linear(4, 4, device="meta"))
    with pytest.raises(TypeError, match="float64"):
        sparse(linear(64, 128).double())
    for bad in (float("nan"), float("inf")):
        layer.weight.data[3, 5] = bad
        with pytest.raises(ValueError, match="not finite"):
            sparse(layer)
    computed = nn.utils.parametrizations.orthogonal(nn.Linear(64, 64))
    with pytest.raises(ValueError, match="parametrization"):
        sparse(computed)
    quantized = linear(64, 128)

    class Quantized(torch.Tensor):
        pass

    quantized.weight = nn.Parameter(quantized.weight.data.as_subclass(Quantized))
    with pytest.raises(TypeError, match="another library"):
        sparse(quantized)
    for options, name in [
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"sparsity": float("nan")}, "sparsity"),
        ({"weights": "fp8"}, "weights"),
        ({"method": "magic"}, "method"),
        ({"weights": "int4", "group_size": 48}, "group_size"),
        ({"method": "wanda"}, "calibration"),
    ]:
        with pytest.raises(ValueError, match=name):
            SparseLinear.from_linear(linear(64, 128), **options)


def test_bad_inputs_are_refused():
    made = sparse(linear(64, 128))
    with pytest.raises(ValueError, match="127"):
        made(torch.randn(2, 127))
    with pytest.raises(ValueError, match="shape"):
        made(torch.tensor(1.0))
    for dtype in (torch.float64, torch.int64, torch.complex64):
        with pytest.raises(TypeError, match="float32"):
            made(torch.zeros(2, 128, dtype=dtype))
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
        torch.ops.sparamx.linear(torch.zeros(2, 128, device="meta"), None, torch.zeros(3), None, None, None, 4, 128)[0].item()
    with pytest.raises(ValueError, match="cannot move"):
        made.to("meta")


def test_hostile_tensors_are_refused():
    made = sparse(linear(64, 128))
    mask, values, offsets, _ = (t if t is None else t.clone() for t in made.weight.tensors())
    call = torch.ops.sparamx.linear
    x = torch.randn(2, 128)
    assert torch.equal(call(x, mask, values, offsets, None, None, 64, 128), call(x, *made.weight.tensors(), None, 64, 128))
    ones = torch.full_like(mask.view(torch.int32), -1).view(torch.uint32)
    for bad in [
        (ones, values.clone(), offsets),
        (mask, values[: len(values) // 2].clone(), offsets),
        (mask, values.clone(), offsets.view(torch.int64).flip(0).view(torch.uint64)),
        (mask, values.float(), offsets),
        (None, values.clone(), offsets),
        (mask[:1], values.clone(), offsets),
    ]:
        with pytest.raises((ValueError, TypeError)):
            call(x, *bad, None, None, 64, 128)
    with pytest.raises(ValueError):
        call(x, mask, values.clone(), offsets, None, None, 1 << 40, 128)
    # Known values beside other tensors, and a shape that is another's.
    with pytest.raises(ValueError):
        call(x, ones, *made.weight.tensors()[1:], None, 64, 128)
    for n, k in [(16, 128), (128, 128), (64, 96)]:
        with pytest.raises(ValueError, match=f"64 x 128, not {n} x {k}"):
            call(torch.randn(2, k), *made.weight.tensors(), None, n, k)
    with pytest.raises(ValueError, match="the bias has shape"):
        call(x, *made.weight.tensors(), torch.zeros(7), 64, 128)
    assert torch.equal(made(x), made(x.clone()))
    made.weight.mask.view(torch.int32).fill_(-1)
    with pytest.raises(ValueError, match="changed in place"):
        made(x)
    made = sparse(linear(64, 128))
    made.weight.values.requires_grad_()
    with pytest.raises(ValueError, match="require grad"):
        made(x)


def test_gradients_flow_to_input_and_bias():
    made = sparse(linear(64, 128))
    dense = made.to_dense()
    x = torch.randn(3, 5, 128, requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    grad = torch.randn(3, 5, 64)
    made(x).backward(grad)
    dense(x2).backward(grad)
    torch.testing.assert_close(x.grad, x2.grad)
    torch.testing.assert_close(made.bias.grad, dense.bias.grad)


@pytest.mark.parametrize("weights", FORMATS)
def test_operator_checks(weights):
    made = sparse(linear(64, 128), weights=weights)
    for x in (torch.randn(2, 128), torch.randn(2, 3, 128, requires_grad=True), torch.randn(4, 128).bfloat16()):
        bias = made.bias.detach().to(x.dtype)
        torch.library.opcheck(
            torch.ops.sparamx.linear.default,
            (x, *made.weight.tensors(), bias, 64, 128),
            atol=2e-2,
            rtol=2e-2,
        )


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = linear(256, 128), linear(128, 256)

    def forward(self, x):
        return x + self.down(torch.nn.functional.silu(self.up(x)))


@pytest.fixture
def mlp():
    model = Mlp()
    sparamx.torch.sparsify(model, progress=False)
    return model


def test_compile(mlp):
    x = torch.randn(2, 128)
    with torch.no_grad():
        want = mlp(x)
        compiled = torch.compile(mlp, fullgraph=True)
        torch.testing.assert_close(compiled(x), want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(compiled(torch.cat([x, x, x])), torch.cat([want] * 3), atol=1e-5, rtol=1e-5)
    y = torch.compile(mlp, fullgraph=True)(x.requires_grad_())
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_export_carries_the_weights(mlp, tmp_path):
    x = torch.randn(2, 128)
    program = torch.export.export(mlp.eval(), (x,))
    want = mlp(x)
    assert torch.equal(program.module()(x), want)
    torch.export.save(program, tmp_path / "mlp.pt2")
    again = torch.export.load(tmp_path / "mlp.pt2")
    assert torch.equal(again.module()(x), want)


def test_inference_mode_and_autocast(mlp):
    x = torch.randn(2, 128)
    want = mlp(x)
    with torch.inference_mode():
        assert torch.equal(mlp(x), want)
        inside = Mlp()
        sparamx.torch.sparsify(inside, progress=False)
        assert inside(x).shape == x.shape
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mlp.up(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, mlp.up(x.bfloat16()))


def test_several_threads_at_once(mlp):
    x = torch.randn(3, 128)
    want = mlp(x)
    wrong = []

    def work():
        for _ in range(50):
            if not torch.equal(mlp(x), want):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    [w.start() for w in workers]
    [w.join() for w in workers]
    assert not wrong


def test_number_of_threads_changes_nothing(mlp):
    x, before = torch.randn(3, 128), torch.get_num_threads()
    want = mlp(x)
    try:
        for threads in (1, 3, 2):
            torch.set_num_threads(threads)
            assert torch.equal(mlp(x), want)
    finally:
        torch.set_num_threads(before)


FORK = """
import os, sys, torch
import sparamx.torch
from sparamx.torch import SparseLinear
torch.manual_seed(0)
layer = SparseLinear.from_linear(torch.nn.Linear(128, 256))
x = torch.randn(2, 128)
want = layer(x)
child = os.fork()
if child == 0:
    same = torch.equal(layer(x), want)
    again = SparseLinear.from_linear(torch.nn.Linear(128, 256))(x)
    os._exit(0 if same and again.shape == (2, 256) else 1)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_after_a_fork(tmp_path):
    import subprocess
    import sys

    script = tmp_path / "fork.py"
    script.write_text(FORK)
    assert subprocess.run([sys.executable, str(script)], check=False, timeout=120).returncode == 0


def test_state_dict_copies_and_pickles(mlp):
    x = torch.randn(2, 128)
    want = mlp(x)
    names = set(mlp.state_dict())
    assert {"up.weight.mask", "up.weight.values", "up.weight.offsets", "up.bias"} <= names
    other = Mlp()
    sparamx.torch.sparsify(other, 0.3, progress=False)
    assert not torch.equal(other(x), want)
    other.load_state_dict(mlp.state_dict())
    assert torch.equal(other(x), want)
    assert torch.equal(copy.deepcopy(mlp)(x), want)
    file = io.BytesIO()
    torch.save(mlp, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), want)
    broken = {k: v.clone() for k, v in mlp.state_dict().items()}
    broken["up.weight.values"] = broken["up.weight.values"][:7].clone()
    with pytest.raises(RuntimeError, match="up.weight"):
        other.load_state_dict(broken)
    del broken["up.weight.values"]
    with pytest.raises(RuntimeError, match="up.weight.values"):
        other.load_state_dict(broken)


def test_tensors_outlive_their_layer():
    made = sparse(linear(64, 128))
    x = torch.randn(2, 128)
    tensors, want = made.weight.tensors(), made(x) - made.bias
    copies = [t if t is None else t.clone() for t in tensors]
    del made
    gc.collect()
    for tensor, clone in zip(tensors, copies, strict=True):
        assert tensor is None or torch.equal(tensor.view(torch.uint8), clone.view(torch.uint8))
    torch.testing.assert_close(torch.ops.sparamx.linear(x, *tensors, None, 64, 128), want)


def test_repr_says_what_a_layer_is():
    text = repr(sparse(linear(64, 128)))
    assert "in_features=128, out_features=64" in text
    assert "sparse bf16" in text and "sparsity=0.500" in text and "bytes" in text
