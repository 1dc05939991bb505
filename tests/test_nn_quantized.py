"""The quantised linear layers: what they compute, keep, load, refuse, and leave to PyTorch."""

from __future__ import annotations

import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import warpwright
from warpwright.nn import LinearFP8, LinearInt8, LinearW4A16, LinearW8A16
from warpwright.nn._activation import apply_activation

FORMS = {
    "fp8": (LinearFP8, {}),
    "fp8 blocks": (LinearFP8, {"granularity": "block"}),
    "int8": (LinearInt8, {}),
    "w4a16": (LinearW4A16, {"group_size": 32}),
    "w4a16 zeros": (LinearW4A16, {"group_size": None, "symmetric": False}),
    "w8a16": (LinearW8A16, {}),
}
# PyTorch's own remark about its forward-mode derivatives.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
forms = pytest.mark.parametrize("form", FORMS)
SCALED = (LinearFP8, LinearInt8)


def floats(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pair(form, features=(48, 20), bias=True, activation=None, dtype=torch.float32, device="cpu"):
    """A float layer and the quantised one of it, in eval mode."""
    torch.manual_seed(0)
    linear = warpwright.nn.Linear(*features, bias, activation=activation).to(device, dtype)
    kind, settings = FORMS[form]
    return linear, kind.from_float(linear, **settings).eval()


def rounded_input(layer, x):
    """The input as the layer multiplies it, in float64."""
    if not isinstance(layer, SCALED):
        return x.double()
    granularity = getattr(layer, "granularity", "row")
    dtype = torch.int8 if isinstance(layer, LinearInt8) else torch.float8_e4m3fn
    quantized, scale = warpwright.ops.quantize(x, dtype, granularity=granularity)
    return warpwright.ops.dequantize(quantized, scale, granularity=granularity).double()


# ---- what is computed ----


@forms
@pytest.mark.parametrize(("dtype", "bias", "activation"), [(torch.float32, True, "gelu"), (torch.float16, False, None)])
def test_the_output_is_that_of_the_dequantised_weight(matrix, form, dtype, bias, activation):
    _, layer = pair(form, bias=bias, activation=activation, dtype=dtype, device=matrix)
    x = floats(2, 5, 48).to(matrix, dtype)
    exact = F.linear(
        rounded_input(layer, x), layer.weight.double(), None if layer.bias is None else layer.bias.double()
    )
    output = layer(x)
    assert output.dtype == dtype
    # The terms of a sum are below 1: its rounding is that of a number of that size.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), apply_activation(exact, activation), rtol=2 * eps, atol=4 * eps)
    assert not warpwright.fallbacks()


@forms
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_gradients_are_those_of_the_dequantised_weight(matrix, form, activation):
    _, layer = pair(form, activation=activation, device=matrix)
    x = floats(2, 5, 48).to(matrix).requires_grad_()
    grad = floats(2, 5, 20, seed=1).to(matrix)
    found = torch.autograd.grad(layer(x), (x, layer.bias), grad)

    # Of the rounded input, as if the rounding had been the identity.
    rounded = rounded_input(layer, x.detach()).requires_grad_()
    bias = layer.bias.detach().double().requires_grad_()
    exact = apply_activation(F.linear(rounded, layer.weight.double(), bias), activation)
    expected = torch.autograd.grad(exact, (rounded, bias), grad.double())
    torch.testing.assert_close([g.double() for g in found], list(expected), rtol=1e-5, atol=1e-5)


@forms
def test_the_weight_is_as_near_as_its_format_allows(form):
    linear, layer = pair(form, features=(200, 70))
    weight, rounded = linear.weight.detach(), layer.weight
    kind, settings = FORMS[form]
    apart = (weight - rounded).abs()
    if kind is LinearFP8:
        # Three bits of mantissa; below 2^-6 times the scale steps of 2^-9 times it, and the scale is at most 1 / 448.
        assert (apart <= (weight.abs() * 2**-4).clamp(min=weight.abs().max() / 448 * 2**-10) * 1.001).all()
    else:
        # Half of a step.
        steps = 127 if kind is not LinearW4A16 else 7.5 if "symmetric" in settings else 7
        assert apart.max() <= weight.abs().max() / steps / 2 * 1.001
    assert apart.max() > 0


@forms
def test_half_types_quantise_in_their_own_dtype(form):
    linear, layer = pair(form, dtype=torch.bfloat16)
    x = floats(5, 48).bfloat16()
    output, exact = layer(x), linear(x).detach()
    assert output.dtype == layer.dtype == layer.weight.dtype == torch.bfloat16
    assert (output - exact).norm() < 0.15 * exact.norm()


@forms
def test_shapes_of_inputs(form):
    _, layer = pair(form)
    for shape in [(48,), (0, 48), (2, 0, 48), (3, 1, 48)]:
        x = floats(*shape)
        output = layer(x)
        assert output.shape == (*shape[:-1], 20)
        torch.testing.assert_close(output, layer(x.reshape(-1, 48)).view_as(output))
    strided = floats(48, 5).t()
    torch.testing.assert_close(layer(strided), layer(strided.contiguous()))
    for shape in [(4, 47), (4, 24), ()]:  # (4, 24) has as many elements as two rows.
        with pytest.raises(RuntimeError, match="warpwright: "):
            layer(floats(*shape))


# ---- attributes, copies, devices, dtypes ----


@forms
def test_a_layer_looks_like_a_linear_layer(form):
    linear, layer = pair(form, activation="gelu")
    assert (layer.in_features, layer.out_features, layer.activation) == (48, 20, "gelu")
    assert layer.bias is linear.bias
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert layer.weight.shape == linear.weight.shape
    assert not layer.weight.requires_grad
    start = f"{type(layer).__name__}(in_features=48, out_features=20, bias=True, activation='gelu'"
    assert repr(layer).startswith(start)
    assert all(f"{name}={value!r}" in repr(layer) for name, value in FORMS[form][1].items())
    assert layer.stored() < linear.weight.nbytes
    back = layer.to_float()
    assert isinstance(back, warpwright.nn.Linear)
    assert torch.equal(back.weight, layer.weight)
    assert back.bias is layer.bias
    assert back.activation == "gelu"


@forms
def test_the_weight_cannot_be_set(form):
    _, layer = pair(form)
    with pytest.raises((AttributeError, KeyError), match="weight"):
        layer.weight = floats(20, 48)
    with pytest.raises((AttributeError, KeyError), match="weight"):
        layer.weight = nn.Parameter(floats(20, 48))


@forms
def test_copies_and_pickles_are_the_layer(form):
    _, layer = pair(form, activation="silu")
    x = floats(5, 48)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
        assert torch.equal(twin(x), layer(x))


@forms
def test_casting_keeps_the_integers(form):
    _, layer = pair(form)
    name, before = layer.data_name, layer.weight.clone()
    data = getattr(layer, name).clone()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        layer.to(dtype)
        assert layer.dtype == layer.bias.dtype == layer.weight.dtype == dtype
        assert torch.equal(getattr(layer, name), data)
        assert layer.weight_scale.dtype == (torch.float32 if isinstance(layer, SCALED) else dtype)
        assert layer(floats(5, 48).to(dtype)).dtype == dtype
    # The scales of packed weights have the dtype of the inputs, so some of their digits are gone.
    torch.testing.assert_close(layer.weight, before, rtol=0 if isinstance(layer, SCALED) else 1e-2, atol=0)
    assert not warpwright.fallbacks()


@forms
def test_the_meta_device(form):
    linear, layer = pair(form)
    kind, settings = FORMS[form]
    x = floats(5, 48)
    empty = kind(48, 20, device="meta", **settings)
    assert {name: t.shape for name, t in empty.state_dict().items()} == {
        name: t.shape for name, t in layer.state_dict().items()
    }
    assert empty(x.to("meta")).shape == (5, 20)
    assert kind.from_float(linear.to("meta"), **settings)(x.to("meta")).shape == (5, 20)
    empty.load_state_dict(layer.state_dict(), strict=True, assign=True)
    assert torch.equal(empty(x), layer(x))
    filled = kind(48, 20, device="meta", **settings).to_empty(device="cpu")
    filled.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(filled(x), layer(x))
    assert copy.deepcopy(layer).to("meta")(x.to("meta")).shape == (5, 20)


# ---- states ----


@forms
def test_a_quantised_state_goes_through_a_file(form):
    _, layer = pair(form)
    kind, settings = FORMS[form]
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = kind(48, 20, **settings)
    assert not other(floats(5, 48)).any()  # Zero until a state is loaded.
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(other(floats(5, 48)), layer(floats(5, 48)))


@forms
@pytest.mark.parametrize("assign", [False, True])
def test_a_float_state_is_quantised_on_its_way_in(form, assign):
    linear, layer = pair(form)
    kind, settings = FORMS[form]
    other = kind(48, 20, **settings)
    state = linear.state_dict()
    assert not any(other.load_state_dict(state, strict=True, assign=assign))
    assert torch.equal(other(floats(5, 48)), layer(floats(5, 48)))
    assert list(state) == ["weight", "bias"]


@forms
def test_a_state_of_another_format_is_refused(form):
    _, layer = pair(form)
    for kind, settings in FORMS.values():
        if kind is type(layer):
            continue
        with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: .*weight_"):
            kind(48, 20, **settings).load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "weight"'):
        nn.Linear(48, 20).load_state_dict(layer.state_dict())


def test_a_state_in_other_groups_is_refused():
    _, layer = pair("w4a16")
    with pytest.raises(RuntimeError, match="size mismatch for weight_scale"):
        LinearW4A16(48, 20, group_size=None).load_state_dict(layer.state_dict())


@forms
def test_a_float_state_of_another_size_is_refused(form):
    _, layer = pair(form)
    before = layer(floats(5, 48))
    with pytest.raises(RuntimeError, match=r"size mismatch for weight: \(20, 40\) in the checkpoint, \(20, 48\)"):
        layer.load_state_dict(nn.Linear(40, 20).state_dict())
    assert torch.equal(layer.weight, pair(form)[1].weight)
    assert before.shape == (5, 20)


# ---- compile, export, autocast, torch.func ----


@forms
def test_compile_and_export_give_the_same(form):
    _, layer = pair(form, activation="gelu")
    x = floats(5, 48).requires_grad_()
    expected = layer(x)
    expected_grad = torch.autograd.grad(expected.sum(), x)[0]
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    output = compiled(x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), x)[0], expected_grad)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
    assert not warpwright.fallbacks()


@forms
@pytest.mark.parametrize("grad", [True, False])
def test_autocast_is_followed(form, grad):
    _, layer = pair(form)
    x = floats(5, 48).requires_grad_(grad)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), layer(x), rtol=3e-2, atol=3e-2)
    if grad:
        found, bias = torch.autograd.grad(output.float().sum(), (x, layer.bias))
        assert found.dtype == bias.dtype == torch.float32
        torch.testing.assert_close(found, torch.autograd.grad(layer(x).sum(), x)[0], rtol=3e-2, atol=3e-2)
    assert not warpwright.fallbacks()


@forms
def test_torch_func_falls_back(form):
    _, layer = pair(form, activation="gelu")
    x = floats(5, 48)
    exact = apply_activation(F.linear(x, layer.weight, layer.bias), "gelu")
    torch.testing.assert_close(torch.func.vmap(layer)(x), exact)
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (x,))[0], exact)
    assert torch.func.grad(lambda x: layer(x).sum())(x).shape == x.shape
    reason = "forward-mode AD or a torch.func transform"
    assert dict(warpwright.fallbacks()) == {(type(layer).__name__, reason): 3}


@pytest.mark.parametrize("form", ["fp8", "int8"])
def test_float64_inputs_fall_back(form):
    _, layer = pair(form)
    layer.double()
    output = layer(floats(5, 48).double())
    torch.testing.assert_close(output, F.linear(floats(5, 48).double(), layer.weight, layer.bias))
    assert dict(warpwright.fallbacks()) == {(type(layer).__name__, "torch.float64 input"): 1}


def test_packed_layers_want_inputs_of_their_dtype():
    _, layer = pair("w4a16")
    with pytest.raises(RuntimeError, match="dtype"):  # torch's own error, as torch.nn.Linear would give.
        layer(floats(5, 48).bfloat16())
    reason = "torch.bfloat16 input, torch.float32 parameter"
    assert dict(warpwright.fallbacks()) == {("LinearW4A16", reason): 1}


# ---- training ----


@forms
def test_training_a_quantised_layer_is_refused(form):
    _, layer = pair(form)
    layer.train()
    x = floats(5, 48)
    output = layer(x)  # Inference in training mode is no one's mistake.
    message = f"warpwright: nn.{type(layer).__name__}: layer is quantised and in training mode, but its weight has no"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        output.sum().backward()
    with torch.no_grad():
        assert torch.equal(layer(x), output)
    assert torch.equal(layer.eval()(x), output)
    layer(x).sum().backward()
    assert layer.bias.grad is not None


def test_torch_func_in_training_mode():
    _, layer = pair("int8")
    layer.train()
    x = floats(5, 48)
    exact = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(torch.func.vmap(layer)(x), exact)
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (x,))[1], F.linear(x, layer.weight))
    with pytest.raises(RuntimeError, match=r"warpwright: nn\.LinearInt8: layer is quantised and in training mode"):
        torch.func.grad(lambda x: layer(x).sum())(x)


def test_compiled_code_warns_of_training():
    _, layer = pair("int8")
    layer.train()
    torch._dynamo.reset()
    with pytest.warns(UserWarning, match=r"warpwright: nn\.LinearInt8: layer is quantised and in training mode"):
        torch.compile(layer, fullgraph=True, backend="aot_eager")(floats(5, 48)).sum().backward()


class LoRA(nn.Module):
    def __init__(self, base, rank):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@forms
def test_adapters_train_beside_frozen_layers(form):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 40))
    report = warpwright.quantize(net, form.split()[0], frozen=True, **FORMS[form][1])
    assert len(report.replaced) == 2
    net.requires_grad_(False)
    for i in (0, 2):
        net[i] = LoRA(net[i], 4)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (net.train()(floats(64, 48)) - 0.5).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


# ---- making them ----


def test_conv1d_of_transformers_is_taken_transposed():
    utils = pytest.importorskip("transformers.pytorch_utils", reason="Conv1D is transformers'")
    conv = utils.Conv1D(20, 48)  # 48 to 20.
    x = floats(5, 48)
    for kind, settings in FORMS.values():
        layer = kind.from_float(conv, **settings).eval()
        assert layer.weight.shape == (48, 20)
        assert torch.equal(layer.weight.t(), layer.float_weight())
        assert (layer(x) - conv(x)).norm() < 0.2 * conv(x).norm()
        other = copy.deepcopy(layer)
        other.load_state_dict(conv.state_dict(), strict=True)
        assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearInt8.from_float(nn.Tanh()), r"nn\.LinearInt8\.from_float: linear must be a torch\.nn\.Linear"),
        (lambda: LinearInt8.from_float(nn.LazyLinear(3)), r"from_float: linear must be a torch\.nn\.Linear"),
        (lambda: LinearFP8.from_float(nn.Linear(8, 8).double()), "linear cannot be quantised: a weight in float64"),
        (
            lambda: LinearInt8.from_float(nn.Linear(1 << 17, 1, device="meta")),
            "linear cannot be quantised: 131072 input features, whose sum int32 may not hold",
        ),
        (lambda: LinearFP8(8, 8, granularity="tensor"), r"nn\.LinearFP8: granularity must be row or block"),
        (lambda: LinearW4A16(8, 8, group_size=48), r"nn\.LinearW4A16: group_size must be None or a power of two"),
        (lambda: LinearW8A16(8, 8, activation="mish"), r"nn\.LinearW8A16: activation must be one of"),
    ],
)
def test_misuse_is_answered(make, message):
    with pytest.raises(RuntimeError, match="warpwright: .*" + message):
        make()
