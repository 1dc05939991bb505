"""A convolution with its batch norm beyond the samples: whose statistics are taken, many tiles, gradients alone."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import emulated
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import warpwright
from warpwright import nn, ops
from warpwright._backend import call
from warpwright.testing import Make

needs_emulator = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))
FORMATS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def _operator(x: Tensor, w: Tensor, bias: Tensor | None = None, groups: int = 1) -> tuple[Tensor, ...]:
    """The operator in training, without affine, activation and running statistics; padding 1."""
    none = (None, None, None, None, None)
    return call(
        "convolution_batch_norm", x, w, bias, *none, [1, 1], [1, 1], [1, 1], groups, True, 0.1, 1e-5, "none", "ieee",
        True,
    )  # fmt: skip


# ---- whose statistics ----


#: channels, filters, groups: the middle tile, the large one, groups of few, ragged and whole ones.
TILES = {
    "one channel": (3, 1, 1),
    "a tile": (8, 64, 1),
    "two tiles of filters": (8, 136, 1),
    "groups": (16, 48, 2),
    "groups past a tile": (6, 140, 2),
    "depthwise": (5, 5, 5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", TILES)
def test_the_statistics_are_those_of_what_is_stored(matrix, name, layout, dtype):
    """Of the rounded product, over several tiles of which the last is not full; a large mean costs no digits."""
    channels, filters, groups = TILES[name]
    make = Make(dtype, matrix)
    x = make.tensor(2, channels, 13, 11, grad=False).contiguous(memory_format=FORMATS[layout])
    w = make.tensor(filters, channels // groups, 3, 3, grad=False)
    bias = make.tensor(filters, low=-100, high=100, grad=False)
    _, product, mean, rstd, _, _ = _operator(x, w, bias, groups)
    assert torch.equal(product, ops.conv2d(x, w, bias, 1, 1, 1, groups))
    exact = product.double().transpose(0, 1).flatten(1)
    # Sums of some hundred numbers near 1; one value more or less would be a thousand times this.
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=3e-7, atol=3e-6)
    torch.testing.assert_close(rstd.double(), (exact.var(1, correction=0) + 1e-5).rsqrt(), rtol=5e-6, atol=0)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_it_is_the_convolution_and_then_the_norm(matrix, activation):
    """To the bit where the norm's own kernel takes the statistics, and the definition does."""
    make = Make(torch.float32, matrix)
    x, w, residual = make.tensor(2, 5, 9, 7), make.tensor(6, 5, 3, 3), make.tensor(2, 6, 9, 7)
    affine = make.tensor(6), make.tensor(6)
    leaves = (x, w, *affine, residual)
    fused, composed = ((torch.zeros(6, device=matrix), torch.ones(6, device=matrix)) for _ in range(2))
    kwargs = {"residual": residual, "activation": activation}
    y = ops.conv2d_batch_norm(x, w, *fused, *affine, padding=1, training=True, **kwargs)
    z = ops.batch_norm(ops.conv2d(x, w, None, 1, 1), *composed, *affine, True, **kwargs)
    cotangent = make.tensor(*y.shape, grad=False)
    pairs = zip(
        (y, *fused, *torch.autograd.grad(y, leaves, cotangent)),
        (z, *composed, *torch.autograd.grad(z, leaves, cotangent)),
        strict=True,
    )
    for ours, theirs in pairs:
        if warpwright.current_backend() == "triton":
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(ours, theirs)


@needs_emulator
@pytest.mark.parametrize(
    ("dtype", "channels", "expected"),
    [
        (torch.bfloat16, 8, ["conv_fprop_measured_mma", "channel_norm_cells", "channel_norm"]),
        (torch.float32, 8, ["conv_fprop", "channel_norm_slabs", "channel_norm_cells", "channel_norm"]),
        (torch.bfloat16, 1, ["conv_fprop", "channel_norm_slabs", "channel_norm_cells", "channel_norm"]),
    ],
)
def test_the_tensor_cores_kernel_leaves_the_statistics(dtype, channels, expected):
    """Where they do, the product is not read for its statistics."""
    emulated.activate()
    make = Make(dtype)
    x, w = make.tensor(2, channels, 6, 5, grad=False), make.tensor(8, channels, 3, 3, grad=False)
    with warpwright.use_backend("emulated"):
        emulated.module().start_traffic()
        ops.conv2d_batch_norm(x, w, None, None, training=True)
        launches = [name for name, _ in emulated.module().take_traffic()]
        emulated.module().start_traffic()
        running = torch.zeros(8), torch.ones(8)
        ops.conv2d_batch_norm(x, w, *running)
        inference = [name for name, _ in emulated.module().take_traffic()]
        emulated.module().start_traffic()
        ops.conv2d_batch_norm(x, w.requires_grad_(), *running)
        differentiable = [name for name, _ in emulated.module().take_traffic()]
    assert launches == expected
    product = expected[0].replace("_measured", "")
    assert inference == [product]
    assert differentiable == [product, "channel_norm_cells", "channel_norm"]


FOLDED = {
    "affine, bias, residual": (8, 12, 1, "relu", True, True),
    "statistics alone": (8, 12, 1, "silu", False, False),
    "few channels": (2, 3, 1, None, True, True),
    "depthwise": (12, 12, 12, "relu", True, False),
    "spans of channels": (72, 136, 1, "silu", True, True),
}


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(7, 6), (19, 23)], ids=["7x6", "19x23"])
@pytest.mark.parametrize("name", FOLDED)
def test_a_folded_norm_is_no_further_off(matrix, name, size, dtype, last):
    """Inference without gradients: nothing is rounded between the convolution and the norm. On the CPU the weight of
    the larger images is so much smaller than the output that the norm is folded into it."""
    channels, filters, groups, activation, affine, added = FOLDED[name]
    make = Make(dtype, matrix)
    layout = torch.channels_last if last else torch.contiguous_format
    x = make.tensor(2, channels, *size, grad=False).contiguous(memory_format=layout)
    w = make.tensor(filters, channels // groups, 3, 3, grad=False).contiguous(memory_format=layout)
    wide = Make(torch.float32, matrix)
    mean, var = wide.tensor(filters, grad=False), wide.tensor(filters, grad=False).square() + 0.1
    scale, shift = (wide.tensor(filters, grad=False) if affine else None for _ in range(2))
    bias = make.tensor(filters, grad=False) if added else None
    residual = make.tensor(2, filters, *size, grad=False).contiguous(memory_format=layout) if added else None

    def by_torch(to):
        def cast(t):
            return None if t is None else t.to(to)

        y = F.conv2d(cast(x), cast(w), cast(bias), 1, 1, 1, groups)
        y = F.batch_norm(y, *map(cast, (mean, var, scale, shift)))
        y = y if residual is None else y + cast(residual)
        return y if activation is None else getattr(F, activation)(y)

    found = ops.conv2d_batch_norm(
        x, w, mean, var, scale, shift, bias, 1, 1, 1, groups, residual=residual, activation=activation
    )  # fmt: skip
    exact = by_torch(torch.float64)
    error, torchs = ((y.double() - exact).abs().max() for y in (found, by_torch(dtype)))
    assert error <= 2 * torchs
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=layout)


def test_a_norm_that_was_folded_is_undone_for_a_backward_pass(matrix):
    """The operator knows nothing of gradients to come; what it did not save it computes again."""
    make = Make(torch.float32, matrix)
    x, w, bias = make.tensor(2, 4, 6, 5), make.tensor(8, 4, 3, 3), make.tensor(8)
    norm = make.tensor(8, grad=False), make.tensor(8, grad=False).square() + 0.1, make.tensor(8), make.tensor(8)
    geometry = ([1, 1], [1, 1], [1, 1], 1, False, 0.1, 1e-5, "silu", "ieee")
    outputs = [call("convolution_batch_norm", x, w, bias, None, *norm, *geometry, save)[0] for save in (False, True)]
    torch.testing.assert_close(*outputs)
    cotangent = torch.rand_like(outputs[0])
    grads = [torch.autograd.grad(y, (x, w, bias, *norm[2:]), cotangent) for y in outputs]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("size", [6, 32])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_the_cpus_weight_takes_the_norm_where_it_is_much_smaller(size, last):
    """oneDNN's fused call is below the profiler, the plain one is aten's."""
    make = Make(torch.float32)
    x = make.tensor(2, 8, size, size, grad=False)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    w, running = make.tensor(8, 8, 3, 3, grad=False), (torch.zeros(8), torch.ones(8))
    with torch.profiler.profile() as profile:
        ops.conv2d_batch_norm(x, w, *running, padding=1, activation="relu")
    plain = "aten::mkldnn_convolution" in {event.key for event in profile.key_averages()}
    kernel = warpwright.explain("conv2d_batch_norm", x, w, *running, padding=1, activation="relu").kernel
    assert plain is (size == 6)
    assert ("norm in its weight" in kernel) is not plain
    with torch.profiler.profile() as profile:
        ops.conv2d_batch_norm(x.to(torch.bfloat16), w.to(torch.bfloat16), *running, padding=1, activation="relu")
    assert "aten::mkldnn_convolution" in {event.key for event in profile.key_averages()}


def test_tritons_kernel_leaves_the_statistics(monkeypatch):
    kernels = pytest.importorskip("warpwright.triton_kernels.channel_norm")
    monkeypatch.delattr(kernels, "_slab_statistics_kernel")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    make = Make(torch.float32, device)
    x, w = make.tensor(2, 3, 6, 5, grad=False), make.tensor(8, 3, 3, 3, grad=False)
    with warpwright.use_backend("triton"):
        ops.conv2d_batch_norm(x, w, None, None, training=True)
        with pytest.raises(NameError, match="_slab_statistics_kernel"):
            ops.batch_norm(x, None, None, training=True)


# ---- running statistics ----


def test_running_statistics_move_as_torchs(matrix):
    make = Make(torch.float32, matrix)
    x, w = make.tensor(2, 3, 5, 4, grad=False), make.tensor(6, 3, 3, 3, grad=False)
    for momentum in (0.1, 1.0, 0.0, -0.5):
        ours, theirs = ((torch.full((6,), 0.5, device=matrix), torch.full((6,), 2.0, device=matrix)) for _ in range(2))
        ops.conv2d_batch_norm(x, w, *ours, padding=1, training=True, momentum=momentum)
        F.batch_norm(F.conv2d(x, w, padding=1), *theirs, training=True, momentum=momentum)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_one_of_the_running_statistics_alone_moves(matrix):
    make = Make(torch.bfloat16, matrix)
    x, w = make.tensor(2, 4, 5, 4, grad=False), make.tensor(8, 4, 3, 3, grad=False)
    both, alone = ([torch.zeros(8, device=matrix), torch.ones(8, device=matrix)] for _ in range(2))
    ops.conv2d_batch_norm(x, w, *both, training=True)
    ops.conv2d_batch_norm(x, w, alone[0], None, training=True)
    ops.conv2d_batch_norm(x, w, None, alone[1], training=True)
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_batch_leaves_the_running_statistics(matrix, dtype):
    mean, var = torch.zeros(8, device=matrix), torch.ones(8, device=matrix)
    x = torch.empty(0, 3, 6, 5, device=matrix, dtype=dtype, requires_grad=True)
    w, bias = (Make(dtype, matrix).tensor(*shape) for shape in ((8, 3, 3, 3), (8,)))
    y = ops.conv2d_batch_norm(x, w, mean, var, bias=bias, training=True)
    assert y.shape == (0, 8, 4, 3)
    for leaf, grad in zip((x, w, bias), torch.autograd.grad(y.sum(), (x, w, bias)), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))
    assert torch.equal(mean, torch.zeros_like(mean))
    assert torch.equal(var, torch.ones_like(var))


# ---- gradients ----


def _call(arguments: dict[str, Any], training: bool) -> Tensor:
    a = arguments
    running = (None, None) if training else (torch.zeros_like(a["bn_bias"]), torch.ones_like(a["bn_bias"]))
    return ops.conv2d_batch_norm(
        a["input"], a["weight"], *running, a["bn_weight"], a["bn_bias"], a["bias"], 1, 1, training=training,
        residual=a["residual"], activation="silu",
    )  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
def test_each_gradient_is_the_same_alone(matrix, training):
    """And what is not asked for has none."""
    make = Make(torch.float32, matrix)
    leaves = {
        "input": make.tensor(2, 4, 5, 6),
        "weight": make.tensor(6, 4, 3, 3),
        "bn_weight": make.tensor(6),
        "bn_bias": make.tensor(6),
        "bias": make.tensor(6),
        "residual": make.tensor(2, 6, 5, 6),
    }
    cotangent = make.tensor(2, 6, 5, 6, grad=False)
    together = dict(
        zip(leaves, torch.autograd.grad(_call(leaves, training), list(leaves.values()), cotangent), strict=True)
    )
    for name, leaf in leaves.items():
        arguments = {n: t if n == name else t.detach() for n, t in leaves.items()}
        (alone,) = torch.autograd.grad(_call(arguments, training), leaf, cotangent)
        assert torch.equal(alone, together[name]), name


def test_a_bias_has_no_gradient_in_training_and_one_in_inference(matrix):
    """What it adds to all values of a channel, the mean of them takes away."""
    make = Make(torch.float32, matrix)
    x, w, bias = make.tensor(2, 4, 5, 6), make.tensor(6, 4, 3, 3), make.tensor(6)
    running = torch.zeros(6, device=matrix), torch.ones(6, device=matrix)
    y = ops.conv2d_batch_norm(x, w, None, None, None, None, bias, training=True)
    (grad,) = torch.autograd.grad(y.square().sum(), bias)
    assert torch.equal(grad, torch.zeros_like(bias))
    y = ops.conv2d_batch_norm(x, w, *running, None, None, bias)
    (grad,) = torch.autograd.grad(y.sum(), bias)
    torch.testing.assert_close(grad, torch.full_like(bias, 2 * 3 * 4 / (1 + 1e-5) ** 0.5))


@pytest.mark.parametrize("layout", FORMATS)
def test_what_is_written_lies_as_the_convolutions_output(matrix, layout):
    make = Make(torch.bfloat16, matrix)
    x = make.tensor(2, 8, 6, 5).detach().contiguous(memory_format=FORMATS[layout]).requires_grad_()
    w = make.tensor(8, 8, 3, 3).detach().contiguous(memory_format=FORMATS[layout]).requires_grad_()
    y = ops.conv2d_batch_norm(x, w, None, None, training=True, activation="relu")
    for tensor in (y, *torch.autograd.grad(y.float().square().sum(), (x, w))):
        assert tensor.is_contiguous(memory_format=FORMATS[layout])


# ---- the layer ----


def _layers(activation: str | None = None, **kwargs: Any) -> tuple[torch.nn.Sequential, nn.ConvBnAct2d]:
    """torch's layers and ours, of the same state."""
    names = ("eps", "momentum", "affine", "track_running_stats")
    norm = {name: value for name, value in kwargs.items() if name in names}
    conv = {"bias": False} | {name: value for name, value in kwargs.items() if name not in names}
    theirs = torch.nn.Sequential(OrderedDict(conv=torch.nn.Conv2d(3, 6, 3, **conv), bn=torch.nn.BatchNorm2d(6, **norm)))
    ours = nn.ConvBnAct2d(3, 6, 3, activation=activation, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"stride": 2, "padding": 1, "bias": True, "eps": 1e-3, "momentum": 0.3},
        {"padding": 1, "padding_mode": "reflect", "affine": False},
        {"momentum": None},
        {"track_running_stats": False, "groups": 3},
    ],
)
def test_the_layer_trains_and_infers_as_torchs_two(matrix, kwargs):
    """At most twice as far from float64 as torch's, and some last bits."""
    torch.manual_seed(0)
    theirs, ours = (layer.to(matrix) for layer in _layers("relu", **kwargs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for seed in range(3):
        make = Make(torch.float32, matrix, seed)
        x = make.tensor(2, 3, 7, 6)
        residual = make.tensor(*theirs(x).shape, grad=False)
        theirs, ours = (layer.train(seed < 2) for layer in (theirs, ours))
        theirs.load_state_dict(ours.state_dict())
        exact = copy.deepcopy(theirs).double()
        results = [
            _layer_results(layer, x.detach().to(to).requires_grad_(), residual.to(to))
            for layer, to in ((ours, torch.float32), (theirs, torch.float32), (exact, torch.float64))
        ]
        for found, torchs, right in zip(*results, strict=True):
            error, allowed = ((t.double() - right.double()).abs().max() for t in (found, torchs))
            # A running mean near zero is a tenth or more of one of values about 1, whose last bits it has.
            scale = right.abs().max().clamp_min(0.1)
            assert error <= 2 * allowed + 8 * torch.finfo(torch.float32).eps * scale
    assert not warpwright.fallbacks()


def _layer_results(layer: Any, x: Tensor, residual: Tensor) -> list[Tensor]:
    y = layer(x, residual) if isinstance(layer, nn.ConvBnAct2d) else torch.relu(layer(x) + residual)
    leaves = [x, *(p for name, p in layer.named_parameters() if name != "conv.bias")]
    return [y, *torch.autograd.grad(y.square().sum(), leaves), *layer.buffers()]


def test_a_norm_that_is_frozen_keeps_its_statistics():
    theirs, ours = _layers()
    for layer in (theirs, ours):
        layer.bn.eval()
    x = Make(torch.float32).tensor(2, 3, 7, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    assert torch.equal(ours.bn.running_mean, torch.zeros(6))


def test_what_the_layer_cannot_run_goes_through_torchs_layers():
    theirs, ours = _layers("silu")
    x = Make(torch.float32).tensor(2, 3, 7, 6, grad=False)
    jvp = torch.func.jvp(lambda x: ours.eval()(x), (x,), (torch.ones_like(x),))
    expected = torch.func.jvp(lambda x: F.silu(theirs.eval()(x)), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(jvp, expected)
    assert warpwright.fallbacks()


def test_the_layer_names_its_activation():
    _, ours = _layers("relu")
    assert "activation='relu'" in repr(ours)
    with pytest.raises(RuntimeError, match=r"nn\.ConvBnAct2d: activation must be one of none, relu, silu, got 'gelu'"):
        nn.ConvBnAct2d(3, 6, 3, activation="gelu")


# ---- numbers that are none, compiling, autocast ----


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinity_make_their_channels_nan(matrix, value):
    """Every output of an image's channel whose sums they reach, and no other channel."""
    make = Make(torch.bfloat16, matrix)
    x, w = make.tensor(2, 8, 6, 5, grad=False), make.tensor(8, 4, 3, 3, grad=False)
    x[1, 1, 2, 3] = value
    y = ops.conv2d_batch_norm(x, w, None, None, groups=2, training=True)
    assert y[:, :4].isnan().all()
    assert not y[:, 4:].isnan().any()


def test_a_compiled_training_step_moves_the_running_statistics():
    torch._dynamo.reset()
    make = Make(torch.float32)
    x, w = make.tensor(2, 3, 6, 5), make.tensor(4, 3, 3, 3)

    def step(x: Tensor, w: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return ops.conv2d_batch_norm(x, w, mean, var, training=True, activation="relu")

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        mean, var = torch.zeros(4), torch.ones(4)
        y = function(x, w, mean, var)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), (x, w)), mean, var])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_autocast_takes_the_product_down_and_leaves_the_norm(matrix):
    """As torch's layers under autocast: a convolution in bfloat16, a norm with parameters in float32."""
    make = Make(torch.float32, matrix)
    x, w, bias = make.tensor(2, 8, 6, 5), make.tensor(8, 8, 3, 3), make.tensor(8)
    affine = make.tensor(8), make.tensor(8)
    running = torch.zeros(8, device=matrix), torch.ones(8, device=matrix)
    with torch.autocast(matrix, torch.bfloat16):
        y = ops.conv2d_batch_norm(x, w, *running, *affine, bias, training=True, residual=make.tensor(2, 8, 4, 3))
    assert y.dtype == torch.bfloat16
    grads = torch.autograd.grad(y.float().square().sum(), (x, w, bias, *affine))
    assert {g.dtype for g in grads} == {torch.float32}
    product = F.conv2d(x.bfloat16(), w.bfloat16(), bias.bfloat16()).float()
    torch.testing.assert_close(running[0], 0.1 * product.mean((0, 2, 3)), rtol=1e-2, atol=1e-3)


def test_gradients_of_gradients_raise(matrix):
    make = Make(torch.float32, matrix)
    x, w = make.tensor(2, 3, 5, 4), make.tensor(4, 3, 3, 3)
    y = ops.conv2d_batch_norm(x, w, None, None, training=True)
    (grad,) = torch.autograd.grad(y.square().sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="gradients of gradients are not supported"):
        torch.autograd.grad(grad.sum(), x)
