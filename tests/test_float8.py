"""warpwright.nn.Float8Linear: training in 8-bit floats."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import warpwright
from warpwright import ops
from warpwright.nn import Float8Linear, convert_to_float8_training
from warpwright.testing import Expected, Sample, evaluate

GRANULARITIES = ("row", "tensor")
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


class Own(nn.Linear):
    pass


def floats(*shape, seed=0, dtype=torch.float32):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1).to(dtype)


def layer(granularity="row", dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    return Float8Linear(70, 33, bias, granularity=granularity).to(dtype)


def rounded(tensor, dtype, granularity, along):
    """The numbers that an operand has in a product that sums over dimension `along`, in float64."""
    turned = tensor.detach() if along == 1 else tensor.detach().t()
    codes, scale = ops.quantize(turned.float(), dtype, granularity=granularity)
    values = codes.double() * scale.double()
    return values if along == 1 else values.t()


class Composition(torch.autograd.Function):
    """What a Float8Linear computes, out of PyTorch's products of the dequantized operands."""

    @staticmethod
    def forward(ctx, x, w, b, granularity, exact):
        ctx.save_for_backward(x, w)
        ctx.granularity, ctx.exact = granularity, exact
        ctx.bias = b is not None

        def operand(t, dtype, along):
            return rounded(t, dtype, granularity, along).to(exact)

        y = operand(x, E4M3, 1) @ operand(w, E4M3, 1).t()
        return (y if b is None else y + b.to(exact)).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors

        def operand(t, dtype, along):
            return rounded(t, dtype, ctx.granularity, along).to(ctx.exact)

        dx = operand(dy, E5M2, 1) @ operand(w, E4M3, 0)
        dw = operand(dy, E5M2, 0).t() @ operand(x, E4M3, 0)
        db = dy.to(ctx.exact).sum(0).to(w.dtype) if ctx.bias else None
        return dx.to(x.dtype), dw.to(w.dtype), db, None, None


def composition(granularity, exact):
    return lambda x, w, b=None: Composition.apply(x, w, b, granularity, exact)


def call_of(granularity):
    def call(x, w, b=None):
        module = Float8Linear(w.shape[1], w.shape[0], b is not None, device="meta", granularity=granularity)
        named = {"weight": w} if b is None else {"weight": w, "bias": b}
        return torch.func.functional_call(module, named, (x,))

    return call


@pytest.mark.parametrize(
    ("granularity", "bias", "dtype"),
    [
        ("row", True, torch.float32),
        ("row", False, torch.bfloat16),
        ("tensor", True, torch.bfloat16),
        ("tensor", False, torch.float16),
    ],
)
def test_outputs_and_gradients_are_those_of_the_rounded_operands(matrix, granularity, bias, dtype):
    """By the error rule. The operands are the same bits on every backend, so that products of dequantized ones are the
    truth in float64, and PyTorch's in `dtype` what our error is measured by."""
    shapes = ((5, 37), (11, 37), *([(11,)] if bias else []))
    tensors = [floats(*s, seed=i, dtype=dtype).to(matrix).requires_grad_() for i, s in enumerate(shapes)]
    sample = Sample("float8", tuple(tensors))
    truth = evaluate(composition(granularity, torch.float64), sample)
    theirs = evaluate(composition(granularity, torch.float32 if dtype == torch.float32 else dtype), sample)
    expected = Expected(truth, truth, theirs)
    for found in expected.compare(evaluate(call_of(granularity), sample)):
        assert found.ok, found
    assert not warpwright.fallbacks()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_distance_from_a_linear_layer_is_what_the_formats_allow(granularity):
    """e4m3 keeps 3 bits behind the point and e5m2 2, so that an operand is off by at most 2^-4 or 2^-3 of itself, and a
    product by the sum of both and a little, times the product of the magnitudes. Below 2^-6 or 2^-14 of the format
    numbers are equally spaced: an operand is then off by 2^-10 or 2^-17 of the scale, at most 2^-18 of the largest."""
    ours = layer(granularity)
    x = floats(17, 70).requires_grad_()
    y = ours(x)
    dy = floats(17, 33, seed=5)
    dx, dw, _ = torch.autograd.grad(y, [x, ours.weight, ours.bias], dy)
    w = ours.weight.detach()
    tiny = 1e-3  # 70 operands of at most 1, each off by 2^-18 where the other is at most 1.
    for found, a, b, share in (
        (y.detach() - ours.bias.detach(), x.detach(), w.t(), 2**-4 + 2**-4 + 2**-8),
        (dx, dy, w, 2**-3 + 2**-4 + 2**-7),
        (dw, dy.t(), x.detach(), 2**-3 + 2**-4 + 2**-7),
    ):
        gap = (found - a @ b).abs()
        assert (gap <= share * (a.abs() @ b.abs()) + tiny).all()
        assert gap.max() > 2**-9 * (a.abs() @ b.abs()).max()  # It is an 8-bit product.


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_compile_gives_the_same_bits_without_a_graph_break(granularity):
    ours = layer(granularity)
    x = floats(3, 5, 70).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        torch.autograd.grad(ours(x).sum(), [x, *ours.parameters()]),
        torch.autograd.grad(compiled(x).sum(), [x, *ours.parameters()]),
        strict=True,
    ):
        assert torch.equal(one, other)
    exported = torch.export.export(ours, (x.detach(),)).module()
    assert torch.equal(exported(x.detach()), ours(x))


def test_autocast_decides_the_result_and_the_parameters_keep_their_dtype():
    ours = layer()
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(floats(4, 70))
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert {p.grad.dtype for p in ours.parameters()} == {torch.float32}
    wide = ours(floats(4, 70))  # The same 8-bit operands; there the bias and the result were rounded, too.
    assert ((y.float() - wide).abs() <= 2**-8 * wide.abs() + 2**-8 * ours.bias.abs()).all()


@pytest.mark.parametrize("rows", [(0,), (2, 0), ()])
def test_any_number_of_rows(rows):
    ours = layer()
    x = floats(*rows, 70).requires_grad_()
    y = ours(x)
    assert y.shape == (*rows, 33)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert ours.weight.grad.isfinite().all()


def test_only_the_gradients_that_are_asked_for():
    ours = layer()
    ours.weight.requires_grad_(False)
    x = floats(4, 70).requires_grad_()
    ours(x).sum().backward()
    assert ours.weight.grad is None
    assert x.grad is not None
    (grad,) = torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_an_activation_is_applied():
    torch.manual_seed(0)
    ours = Float8Linear(70, 33, activation="relu")
    x = floats(4, 70)
    assert torch.equal(ours(x), layer()(x).relu())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: (layer().double(), floats(3, 70).double()), "float64 has no 8-bit product"),
        (lambda: (layer(bias=False), floats(3, 70).to_sparse()), "torch.sparse_coo tensor"),
    ],
)
def test_what_cannot_be_quantized_falls_back(make, reason):
    ours, x = make()
    torch.testing.assert_close(ours(x), nn.functional.linear(x, ours.weight, ours.bias))
    assert warpwright.fallbacks()["Float8Linear", reason] == 1


def test_wrong_shapes_and_granularities_are_named():
    with pytest.raises(RuntimeError, match=r"Float8Linear: input must be \(..., 70\), got \(3, 71\)"):
        layer()(floats(3, 71))
    for call in (
        lambda: Float8Linear(4, 4, granularity="block"),
        lambda: convert_to_float8_training(nn.Linear(4, 4), granularity="block"),
    ):
        with pytest.raises(RuntimeError, match="granularity must be one of row, tensor, got 'block'"):
            call()


def test_convert_switches_linear_layers_and_keeps_everything_else():
    model = nn.Sequential(nn.Linear(70, 16), nn.GELU(), warpwright.nn.Linear(16, 16), Own(16, 16), nn.Linear(16, 4))
    before = {name: id(p) for name, p in model.named_parameters()}
    found = convert_to_float8_training(model, granularity="tensor", filter=lambda name, _: name != "4")
    assert found == ["0", "2"]
    assert type(model[0]) is type(model[2]) is Float8Linear
    assert model[0].granularity == "tensor"
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert convert_to_float8_training(model, filter=lambda name, _: name != "4") == []
    report = warpwright.nn.replace_modules(model)
    assert set(report.replaced) == {"1", "3", "4"}
    assert not report.skipped
    assert type(model[0]) is type(model[2]) is Float8Linear
    nn.Sequential(nn.Linear(70, 16), nn.GELU(), *(nn.Linear(16, n) for n in (16, 16, 4))).load_state_dict(
        model.state_dict(), strict=True
    )
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin[0]) is Float8Linear
        assert torch.equal(twin(floats(3, 70)), model(floats(3, 70)))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_network_learns_as_with_torchs_layers(granularity):
    """The digits, 150 steps: the loss is within a tenth of a nat of that in float32, which starts at 2.3."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits are scikit-learn's")
    digits = datasets.load_digits()
    x, y = torch.from_numpy(digits.data).float() / 8 - 1, torch.from_numpy(digits.target)

    def train(convert):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        if convert:
            assert len(convert_to_float8_training(model, granularity=granularity)) == 3
        optimizer = warpwright.optim.AdamW(model.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(1)
        for _ in range(150):
            rows = torch.randint(len(x), (128,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            return nn.functional.cross_entropy(model(x), y).item()

    plain, ours = train(False), train(True)
    assert plain < 0.2
    assert abs(ours - plain) < 0.1
