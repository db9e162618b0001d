"""What code does with the linear layers of its models, and still can once they are sparse."""

import copy
import functools
import gc
import io
import pickle
import warnings
import weakref

import numpy
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.utils import prune

import sparamx.torch
from sparamx.torch import SparseLinear, sparsify

WARNING = "dense copy"


def linear(n=48, k=64, bias=True):
    layer = nn.Linear(k, n, bias=bias)
    layer.weight.data = layer.weight.data.bfloat16().float()
    return layer


@pytest.fixture
def layer():
    return SparseLinear.from_linear(linear())


@pytest.fixture
def dense(layer):
    return layer.to_dense()


def quietly(model, **options):
    """Sparsifies without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return sparsify(model, progress=False, **options)


# A layer becomes sparse itself


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = linear()
        self.rest = nn.Sequential(nn.ReLU(), linear(32, 48))

    def forward(self, x):
        return self.rest(self.fc(x))


def test_the_input_has_its_name(layer, dense):
    x = torch.randn(3, 64)
    torch.testing.assert_close(layer(input=x), dense(x), atol=2e-2, rtol=2e-2)

    class ByName(Model):
        def forward(self, x):
            return self.fc(input=x)

    report = quietly(ByName(), method="wanda", calibration=[torch.randn(20, 64)], include=("fc",))
    assert [layer.name for layer in report.packed] == ["fc"]


def test_hooks_attributes_and_modes_stay():
    model, seen = Model(), []
    fc = model.fc
    fc.register_forward_pre_hook(lambda module, args: seen.append("pre"))
    removed = fc.register_forward_hook(lambda module, args, output: seen.append("gone"))
    fc.register_forward_hook(lambda module, args, kwargs, output: output * 2, with_kwargs=True)
    fc.register_full_backward_pre_hook(lambda module, grad: seen.append("before"))
    fc.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append("backward"))
    fc.register_buffer("calls", torch.zeros(()))
    fc.name, fc.is_special, bias = "the first", True, fc.bias
    fc.eval()
    held, weight = [model.fc], weakref.ref(fc.weight)
    quietly(model)
    removed.remove()
    assert isinstance(model.fc, SparseLinear) and held[0] is model.fc
    assert model.fc.bias is bias and not model.fc.training and model.rest[1].training and model.training
    assert (model.fc.name, model.fc.is_special, model.fc.calls.item()) == ("the first", True, 0)
    x = torch.randn(2, 64, requires_grad=True)
    y = held[0](x)
    torch.testing.assert_close(y, 2 * model.fc.to_dense()(x), atol=4e-2, rtol=2e-2)
    y.sum().backward()
    assert seen == ["pre", "before", "backward"]
    gc.collect()
    assert weight() is None


def test_a_layer_in_two_places_stays_one():
    model = Model()
    model.again = model.fc
    quietly(model)
    assert model.again is model.fc and isinstance(model.fc, SparseLinear)


def test_calibration_changes_no_mode():
    model = Model()
    model.rest.eval()
    quietly(model, method="wanda", calibration=[torch.randn(9, 64)])
    assert [m.training for m in (model, model.fc, model.rest, model.rest[1])] == [True, True, False, False]


class Named(nn.Linear):
    """Begins in a way of its own, which is over when it is packed."""

    def reset_parameters(self):
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)


class Scaled(nn.Linear):
    def scaled(self, factor):
        return self.weight * factor


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_layers_with_something_of_their_own_are_left_with_the_reason():
    model = nn.ModuleDict(
        {"named": Named(64, 48), "scaled": Scaled(64, 48), "own": Own(64, 48), "replaced": linear(), "hook": linear()}
    )
    replaced = model["replaced"]
    replaced.forward = functools.partial(nn.Linear.forward, replaced)
    model["hook"].register_state_dict_post_hook(lambda *args: None)
    report = quietly(model)
    assert [layer.name for layer in report.packed] == ["named"]
    why = {layer.name: layer.note for layer in report.left}
    assert why["scaled"] == "Scaled adds scaled to torch.nn.Linear"
    assert "forward of its own" in why["own"] and "replaced" in why["replaced"] and "state dict" in why["hook"]


def test_computed_weights_are_refused_before_anything_is_packed():
    made = (
        nn.utils.parametrizations.orthogonal,
        nn.utils.parametrizations.weight_norm,
        nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", amount=0.6),
    )
    for make in made:
        model = Model()
        with torch.no_grad():
            make(model.rest[1])
        with pytest.raises(ValueError, match=r"rest\.1 is computed.*remove"):
            quietly(model)
        assert isinstance(model.fc, nn.Linear)
    prune.remove(model.rest[1], "weight")
    quietly(model, sparsity=None, include=("rest.1",))
    assert model.rest[1].weight.sparsity == pytest.approx(0.6, abs=0.01)


# Its weight in the place of a tensor


def test_what_is_known_of_the_weight_is_said_without_a_copy(layer, dense):
    got, want = layer.weight, dense.weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in (
            "dim",
            "size",
            "numel",
            "nelement",
            "element_size",
            "stride",
            "is_contiguous",
            "is_floating_point",
            "ndimension",
        ):
            assert getattr(got, method)() == getattr(want, method)(), method
        for attribute in ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_meta", "is_leaf", "grad", "itemsize"):
            assert getattr(got, attribute) == getattr(want, attribute), attribute
        assert got.size(0) == 48 and len(got) == 48 and not got.requires_grad and got.type() == want.type()
        # The weight itself, as far as nothing changes.
        assert got.data is got.detach() is got.to("cpu") is got.to(torch.float32) is got.float() is got.contiguous()
        assert got in [dense, got] and got != dense and {got: 1}[got] == 1


def test_the_weight_has_the_type_of_the_model():
    layer = SparseLinear.from_linear(linear().bfloat16())
    assert layer.weight.dtype == torch.bfloat16
    assert layer.half().weight.dtype == layer.bias.dtype == torch.float16
    assert copy.deepcopy(layer).weight.dtype == pickle.loads(pickle.dumps(layer)).weight.dtype == torch.float16
    # Wherever new tensors are made.
    with torch.device("meta"):
        assert layer.float().weight.dtype == torch.float32


@pytest.mark.parametrize("autocast", [False, True])
def test_functional_linear_multiplies_with_the_packed_weight(layer, autocast):
    x = torch.randn(2, 3, 64, requires_grad=True)
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        warnings.simplefilter("error")
        want = layer(x)
        assert torch.equal(functional.linear(x, layer.weight, layer.bias), want)
        assert torch.equal(functional.linear(input=x, weight=layer.weight), layer.weight.linear(x))
    assert want.dtype == (torch.bfloat16 if autocast else torch.float32)


def test_what_needs_the_numbers_gets_a_copy_with_a_warning(layer, dense):
    w, d, x = layer.weight, dense.weight.detach(), torch.randn(5, 64)
    for use in (
        lambda w: x @ w.T,
        lambda w: x @ w.t(),
        lambda w: torch.matmul(x, w.mT),
        lambda w: x.matmul(w.transpose(0, 1)),
        lambda w: functional.linear(x[:, 8:24], w[:, 8:24]),
        lambda w: torch.cat([w, w]),
        lambda w: torch.stack(list(w)),
        lambda w: (w == 0).float().mean(),
        lambda w: (w != 0).sum(),
        lambda w: (w > 0.01) & (w.abs() >= 0.02),
        lambda w: 2 * w + w / 2 - 1,
        lambda w: w @ x.T,
        lambda w: -w,
        lambda w: w.norm(dim=0),
        lambda w: torch.linalg.vector_norm(w, dim=1),
        lambda w: w.float().double(),
        lambda w: w.data.clone(),
        lambda w: w.view(-1),
        lambda w: w.to(torch.bfloat16),
        lambda w: torch.from_numpy(numpy.asarray(w)),
        lambda w: torch.tensor(w.tolist()),
        lambda w: torch.einsum("bk,nk->bn", x, w),
        lambda w: torch.tensor(torch.count_nonzero(w).item()),
    ):
        with pytest.warns(UserWarning, match=WARNING) as said:
            got = use(w)
        assert said[0].filename == __file__
        want = use(d)
        assert got.dtype == want.dtype and torch.equal(got, want)


def test_changes_of_the_weight_are_refused(layer):
    w, before = layer.weight, layer.to_dense().weight

    def assign(name, value):
        setattr(w, name, value)

    for change in (
        lambda: w.__setitem__(0, 1.0),
        lambda: w.__iadd__(1),
        lambda: w.data.__imul__(2),
        lambda: w.data.copy_(torch.ones(48, 64)),
        lambda: w.fill_(0),
        lambda: nn.init.zeros_(w),
        lambda: torch.add(before, before, out=w),
        lambda: assign("data", before.detach()),
        lambda: assign("requires_grad", True),
    ):
        with pytest.raises(TypeError, match="read-only"):
            change()
    assert torch.equal(layer.to_dense().weight, before)
    with pytest.raises(AttributeError):
        _ = w.quant_state


# Copies


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_layers_and_weights_are_pickled(weights):
    layer = SparseLinear.from_linear(linear(), weights=weights)
    x = torch.randn(3, 64)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(layer, protocol))
        assert torch.equal(again(x), layer(x))
        assert torch.equal(pickle.loads(pickle.dumps(layer.weight, protocol)).to_dense(), layer.weight.to_dense())
    file = io.BytesIO()
    torch.save(layer, file)
    assert file.tell() < 2 * layer.weight.nbytes + 10_000
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), layer(x))


def answer(layer, x, queue):
    queue.put(layer(x).detach().numpy())


def test_other_processes_get_layers(layer):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    x = torch.randn(3, 64)
    process = context.Process(target=answer, args=(layer, x, queue))
    process.start()
    got = queue.get()
    process.join(60)
    assert process.exitcode == 0
    assert torch.equal(torch.from_numpy(got), layer(x).detach())


# Derivatives


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_derivatives_of_both_modes(weights):
    # Few bits, so that no kernel rounds: int8 rows are at most 127 times a power of two.
    layer = SparseLinear.from_linear(linear(), weights=weights)
    w, b = layer.weight.to_dense(), layer.bias.detach()
    x, t = torch.randint(-3, 4, (2, 3, 64)).float()
    x[:, 0] = t[:, 0] = 127 if weights == "int8" else 1
    close = functools.partial(torch.testing.assert_close, atol=1e-3, rtol=1e-3)
    y, tangent = torch.func.jvp(layer, (x,), (t,))
    close(y, x @ w.T + b)
    close(tangent, t @ w.T)
    with forward_ad.dual_level():
        close(forward_ad.unpack_dual(layer(forward_ad.make_dual(x, t))).tangent, t @ w.T)
        # What has no tangent is as ever.
        close(layer(x), x @ w.T + b)
    parameters = {"bias": b}
    _, tangent = torch.func.jvp(lambda p: torch.func.functional_call(layer, p, (x,)), (parameters,), ({"bias": 2 * b},))
    close(tangent, (2 * b).expand(3, 48))
    close(torch.func.jacfwd(layer)(x[0]), w)
    close(torch.func.jacrev(layer)(t[0] * 0 + 127 * (torch.arange(64) == 0)), w)


def test_second_derivatives(layer):
    w, b = layer.weight.to_dense(), layer.bias.detach()
    x = torch.ones(64)

    def energy(x, layer):
        return layer(x).pow(2).sum()

    def loss(layer):
        y = x.clone().requires_grad_()
        grad = torch.autograd.grad(energy(y, layer), y, create_graph=True)[0]
        return torch.autograd.grad(grad.pow(2).sum(), y)[0]

    want = 2 * w.T @ w
    close = functools.partial(torch.testing.assert_close, atol=0.05, rtol=0.05)
    close(loss(layer), loss(lambda x: x @ w.T + b))
    close(torch.func.hessian(energy)(x, layer), want)
    close(torch.func.jacfwd(torch.func.grad(energy))(x, layer), want)


def test_vmap(layer):
    x = torch.randn(5, 3, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for in_dim in (0, 1):
            assert torch.equal(torch.vmap(layer, in_dims=in_dim)(x), layer(x.movedim(in_dim, 0)))
        biases = torch.randn(4, 48)
        got = torch.vmap(lambda b: torch.func.functional_call(layer, {"bias": b}, (x[0],)))(biases)
        torch.testing.assert_close(got, layer.weight.linear(x[0]) + biases[:, None])
        per_sample = torch.vmap(torch.func.grad(lambda x: layer(x).sum()))(x[:, 0])
        torch.testing.assert_close(per_sample, layer.weight.to_dense().sum(0).expand(5, 64), atol=1e-4, rtol=1e-4)


# Options that change nothing


def test_options_that_are_not_used_are_warned_about():
    data = [torch.randn(4, 64)]
    for options, message in (
        ({"calibration": data}, "calibration= is not used: method='magnitude'"),
        ({"method": "wanda", "calibration": data, "sparsity": None}, "calibration= is not used: method='wanda'"),
        ({"include": ("fc", "mlp.*")}, r"include: no linear layer is called 'mlp\.\*'"),
        ({"exclude": "down_proj"}, "exclude: no linear layer is called 'down_proj'"),
    ):
        with pytest.warns(UserWarning, match=message) as said:
            sparsify(Model(), progress=False, **options)
        assert len(said) == 1 and said[0].filename == __file__
    # GPTQ rounds by what it sees.
    report = quietly(Model(), method="sparsegpt", calibration=data, sparsity=None, weights="int8")
    assert len(report.packed) == 2


def test_hooks_stay_when_a_file_is_loaded(tmp_path):
    model, seen = Model(), []
    sparsify(model, progress=False)
    sparamx.torch.save(model, tmp_path / "model.safetensors")
    other = Model()
    other.fc.register_forward_hook(lambda *args: seen.append(1))
    sparamx.torch.load(other, tmp_path / "model.safetensors")
    x = torch.randn(2, 64)
    assert torch.equal(other(x), model(x)) and seen == [1]
