"""Hopper's convolutions (csrc/cuda/conv/conv_wgmma.cuh) on the emulator: every kernel and tile, tails, limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import emulated
import pytest
import torch
from torch import Tensor

import warpwright
from warpwright import ops
from warpwright._backend import call
from warpwright._conv import in_format
from warpwright.testing import SPECS, Make, OpSpec, Sample, compare

pytestmark = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))

KERNELS = ("fprop", "fprop_measured", "dgrad", "wgrad")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(autouse=True)
def on_emulator() -> Iterator[None]:
    emulated.activate()
    with warpwright.use_backend("emulated"):
        yield


def launches() -> dict[str, int]:
    """Of Hopper's kernels and of those that are taken where they are not."""
    names = [f"conv_{name}_{kind}" for name in KERNELS for kind in ("wgmma", "mma")]
    return {name: emulated.launches(name) for name in names}


def launched(before: dict[str, int]) -> set[str]:
    """What has run since."""
    return {name.removeprefix("conv_") for name, count in launches().items() if count > before[name]}


def last(tensor: Tensor) -> Tensor:
    """The same leaf, channels last."""
    return in_format(tensor.detach(), True).requires_grad_(tensor.requires_grad)


def with_gradients_last(spec: OpSpec) -> OpSpec:
    """Whose gradient of the output comes channels last, as from the layers of a network that is."""

    def op(*args: Any, **kwargs: Any) -> Any:
        outputs = spec.op(*args, **kwargs)
        output = outputs if isinstance(outputs, Tensor) else outputs[0]
        if output.requires_grad:
            output.register_hook(lambda grad: in_format(grad, True))
        return outputs

    return replace(spec, op=op)


def wrong(op: str, sample: Sample) -> list[str]:
    return [str(c) for c in compare(with_gradients_last(SPECS[op]), sample) if not c.ok]


#: Batch, channels, filters, size, kernel, stride, padding, dilation.
LAYERS: dict[str, tuple[Any, ...]] = {
    "whole": (2, 64, 64, (8, 8), 3, 1, 1, 1),
    "odd pixels, tiles across images": (3, 64, 72, (7, 9), 3, 1, 1, 1),
    "channels and filters past a tile": (2, 72, 136, (9, 7), 3, 1, 1, 1),
    "8 channels more, 24 filters": (1, 136, 24, (9, 5), 3, 1, 1, 1),
    "half a span of channels": (2, 32, 40, (6, 11), (3, 2), 1, 1, 1),
    "three spans of channels": (1, 184, 32, (7, 6), 2, 1, 0, 1),
    "wide": (2, 64, 264, (9, 15), 1, 1, 0, 1),
    "wide, odd filters": (1, 40, 133, (11, 13), (1, 3), 1, (0, 1), 1),
    "three filters": (1, 64, 3, (12, 11), 3, 1, 1, 1),
    "many rows": (2, 64, 40, (17, 16), 3, 1, 1, 1),
    "1x1": (3, 72, 96, (5, 9), 1, 1, 0, 1),
    "1x1, stride 2": (2, 64, 128, (9, 8), 1, 2, 0, 1),
    "1x1, padded": (1, 40, 40, (5, 6), 1, 1, (1, 2), 1),
    "stride 2": (2, 72, 64, (11, 8), 3, 2, 1, 1),
    "stride 3": (2, 40, 64, (11, 13), 4, 3, (2, 0), 1),
    "unlike strides": (2, 64, 40, (9, 10), 3, (1, 2), (1, 2), 1),
    "stride past the filter": (2, 40, 40, (13, 14), 2, 4, 1, 1),
    "dilation": (2, 40, 72, (9, 11), 3, 1, (2, 3), (2, 3)),
    "stride and dilation": (2, 40, 40, (13, 12), 3, (2, 3), (3, 2), (2, 4)),
    "filter larger than input": (2, 64, 64, (3, 2), 5, 1, 3, 1),
    "all but padding": (1, 40, 40, (2, 2), 3, 1, 5, 1),
    "one pixel": (130, 64, 32, (1, 1), 3, 1, 1, 1),
    "one row": (2, 64, 64, (1, 70), (1, 5), 1, (0, 2), 1),
    "1D": (2, 72, 40, (75,), 5, 1, 2, 1),
    "1D, stride 8": (2, 40, 40, (90,), 7, 8, 3, 1),
    "1D, far dilation": (2, 40, 32, (700,), 2, 1, 0, 600),
    "3D": (2, 40, 72, (3, 4, 5), 3, 1, 1, 1),
    "3D, unlike": (1, 64, 40, (4, 5, 6), (2, 3, 1), (1, 2, 3), (1, 2, 0), (2, 1, 1)),
    "3D, one position deep": (2, 40, 40, (1, 5, 6), (1, 3, 3), 1, (0, 1, 1), 1),
}
#: Strides of more than 4 have a gradient elsewhere.
FAR_STRIDES = {"1D, stride 8"}


def layer(
    dtype: torch.dtype,
    batch: int,
    channels: int,
    filters: int,
    size: Sequence[int],
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    **kwargs: Any,
) -> tuple[str, Sample]:
    """A convolution with everything channels last."""
    make, dims = Make(dtype), len(size)
    taps = (kernel,) * dims if isinstance(kernel, int) else kernel
    x, w = last(make.tensor(batch, channels, *size)), last(make.tensor(filters, channels, *taps))
    args = (x, w, make.tensor(filters), stride, padding, dilation)
    return f"conv{dims}d", Sample("", args, kwargs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_right_and_hoppers(name, dtype):
    """Forward, and the gradients of input, weight and bias."""
    op, sample = layer(DTYPES[dtype], *LAYERS[name], activation="relu" if dtype == "float16" else None)
    before = launches()
    assert not wrong(op, sample)
    dgrad = "dgrad_mma" if name in FAR_STRIDES else "dgrad_wgmma"
    wgrad = "wgrad_wgmma" if LAYERS[name][2] >= 32 else "wgrad_mma"
    dgrad = dgrad if LAYERS[name][2] >= 32 else "dgrad_mma"  # Which sums over the filters.
    # An odd number of them lies at no multiple of 16 bytes.
    expected = {"fprop_wgmma", dgrad, wgrad} if LAYERS[name][2] % 8 == 0 else {"fprop_wgmma", "dgrad_mma", "wgrad_mma"}
    assert launched(before) == expected


EPILOGUES: dict[str, dict[str, Any]] = {
    "silu": {"activation": "silu"},
    "residual": {"residual": True},
    "residual and relu": {"residual": True, "activation": "relu"},
    "residual and gelu, no bias": {"residual": True, "activation": "gelu", "bias": False},
    "no bias": {"bias": False},
}


def epilogue_sample(dtype: torch.dtype, name: str, epilogue: dict[str, Any]) -> tuple[str, Sample]:
    op, sample = layer(dtype, *LAYERS[name])
    shape = SPECS[op].op(*(a.to("meta") if isinstance(a, Tensor) else a for a in sample.args)).shape
    kwargs = {key: value for key, value in epilogue.items() if key == "activation"}
    if epilogue.get("residual"):
        kwargs["residual"] = last(Make(dtype).tensor(*shape))
    args = list(sample.args)
    if not epilogue.get("bias", True):
        args[2] = None
    return op, Sample("", tuple(args), kwargs)


@pytest.mark.parametrize("layer_name", ["odd pixels, tiles across images", "wide, odd filters", "3D"])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogues(epilogue, layer_name):
    op, sample = epilogue_sample(torch.bfloat16, layer_name, EPILOGUES[epilogue])
    before = launches()
    assert not wrong(op, sample)
    assert "fprop_wgmma" in launched(before)
    assert not launched(before) & {"fprop_mma"}


#: Channels of the input and of the output, size, kernel, stride, padding, output padding, dilation.
TRANSPOSED: dict[str, tuple[Any, ...]] = {
    "stride 1": (64, 40, (7, 9), 3, 1, 1, 0, 1),
    "stride 2": (72, 64, (5, 9), 4, 2, 1, 0, 1),
    "output padding": (40, 136, (5, 6), 3, 2, 1, 1, 1),
    "stride past the filter": (64, 40, (4, 7), 2, 3, 0, 2, 1),
    "dilation that meets few phases": (40, 40, (5, 7), 3, 2, 2, 1, 2),
    "dilation of 3": (40, 72, (5, 7), 2, 4, 0, 0, 3),
    "unlike": (64, 40, (5, 4), (2, 3), (1, 3), (0, 1), (0, 2), (3, 1)),
    "1D": (64, 40, (37,), 4, 2, 1, 0, 1),
    "3D": (40, 40, (2, 3, 4), 3, (1, 2, 2), 1, (0, 1, 0), 1),
}


@pytest.mark.parametrize("epilogue", ["plain", "residual and gelu"])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name, epilogue):
    """Their forward pass is a gradient of the input, and the other way round."""
    channels, filters, size, kernel, *numbers, dilation = TRANSPOSED[name]
    make, op = Make(torch.float16), f"conv_transpose{len(size)}d"
    taps = (kernel,) * len(size) if isinstance(kernel, int) else kernel
    x, w = last(make.tensor(2, channels, *size)), last(make.tensor(channels, filters, *taps))
    args = (x, w, make.tensor(filters), *numbers, 1, dilation)
    kwargs = {}
    if epilogue != "plain":
        shape = SPECS[op].op(*(a.to("meta") if isinstance(a, Tensor) else a for a in args)).shape
        kwargs = {"activation": "gelu", "residual": last(make.tensor(*shape))}
    before = launches()
    assert not wrong(op, Sample("", args, kwargs))
    assert launched(before) == {"fprop_wgmma", "dgrad_wgmma", "wgrad_wgmma"}


NORMED = ["odd pixels, tiles across images", "channels and filters past a tile", "wide, odd filters", "stride 2"]


@pytest.mark.parametrize("wide", [False, True], ids=["own dtype", "float32"])
@pytest.mark.parametrize("name", NORMED)
def test_a_folded_norm(name, wide):
    """In inference the norm is part of the convolution, with a residual and an activation behind it."""
    dtype = torch.bfloat16
    _, sample = epilogue_sample(dtype, name, {"residual": True})
    x, w, bias, *numbers = (a.detach() if isinstance(a, Tensor) else a for a in sample.args)
    make, filters = Make(dtype), w.shape[0]
    running = (make.tensor(filters, grad=False), make.tensor(filters, grad=False).abs() + 0.5)
    affine = (make.tensor(filters, grad=False), make.tensor(filters, grad=False))
    if wide:
        running, affine = (tuple(t.float() for t in pair) for pair in (running, affine))
    residual = sample.kwargs["residual"].detach()
    before = launches()
    for extra in ({}, {"residual": residual, "activation": "silu"}):
        args = (x, w, *running, *affine, bias if extra else None, *numbers)
        assert not wrong("conv2d_batch_norm", Sample("", args, extra))
    assert launched(before) == {"fprop_wgmma"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*NORMED, "wide", "many rows", "one pixel"])
def test_statistics_of_a_tile(name, dtype):
    """In training the kernel leaves mean and variance of what it stores."""
    _, sample = layer(DTYPES[dtype], *LAYERS[name])
    x, w, bias, *numbers = sample.args
    make, filters = Make(DTYPES[dtype]), w.shape[0]
    args = (x, w, None, None, make.tensor(filters), make.tensor(filters), bias.detach(), *numbers[:3], 1, True)
    before = launches()
    assert not wrong("conv2d_batch_norm", Sample("", args, {"activation": "silu"}))
    assert "fprop_measured_wgmma" in launched(before)
    assert not launched(before) & {"fprop_measured_mma", "fprop_mma", "fprop_wgmma"}


def test_statistics_keep_their_digits_beside_a_large_mean():
    """Of values near 1000 that float16 holds exactly, and that differ by 0.5 and 1."""
    x = torch.zeros(3, 64, 7, 9, dtype=torch.float16)
    x[:, :3] = torch.randint(0, 3, (3, 3, 7, 9), generator=torch.Generator().manual_seed(0)) / 2
    w = torch.eye(64, dtype=torch.float16)[:, :, None, None].contiguous(memory_format=torch.channels_last)
    bias = torch.full((64,), 1000.0, dtype=torch.float16)
    x = x.contiguous(memory_format=torch.channels_last)
    before = launches()
    found = call(
        "convolution_batch_norm", x, w, bias, None, None, None, None, None, [1, 1], [0, 0], [1, 1], 1, True, 0.1, 1e-5,
        "none", "ieee", True,
    )  # fmt: skip
    assert launched(before) == {"fprop_measured_wgmma"}
    values = (x.double() + 1000)[:, :3].transpose(0, 1).flatten(1)
    mean, rstd = found[2].flatten()[:3].double(), found[3].flatten()[:3].double()
    torch.testing.assert_close(mean, values.mean(1), rtol=1e-7, atol=0)
    torch.testing.assert_close(rstd, (values.var(1, correction=0) + 1e-5).rsqrt(), rtol=1e-5, atol=0)


def test_tensors_with_gaps_are_read_in_place():
    """Slices of channels, rows and columns of larger tensors."""
    make = Make(torch.float16)
    x = last(make.tensor(2, 80, 11, 9, grad=False))[:, 8:72, 1:10, ::2].requires_grad_()
    w = last(make.tensor(48, 72, 3, 4, grad=False))[:40, 8:, :, 1:].requires_grad_()
    args = (x, w[:, :64], make.tensor(40), 1, 1)
    before = launches()
    assert not wrong("conv2d", Sample("", args, {"activation": "silu"}))
    assert "fprop_wgmma" in launched(before)
    residual = last(make.tensor(2, 48, 9, 5, grad=False))[:, :40]
    sample = Sample("", args, {"residual": residual})
    before = launches()
    assert not wrong("conv2d", sample)
    assert "fprop_wgmma" in launched(before)


def test_many_pixels_meet_in_a_weights_gradient():
    """In several parts; in whole numbers nothing is rounded, so the sum is exact, and the same however often."""
    make = Make(torch.bfloat16)
    for filters, channels in ((40, 64), (72, 40)):
        x = last((make.tensor(2, channels, 36, 33, grad=False) * 2).round())
        w = last(make.tensor(filters, channels, 2, 2))
        cotangent = last((make.tensor(2, filters, 37, 34, grad=False)).round())
        before = launches()
        found = [torch.autograd.grad(ops.conv2d(x, w, None, 1, 1), w, cotangent)[0] for _ in range(2)]
        assert "wgrad_wgmma" in launched(before)
        exact = torch.ops.aten.convolution_backward(
            cotangent.double(), x.double(), w.detach().double(), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
            [False, True, False],
        )[1]  # fmt: skip
        assert torch.equal(found[0], exact.to(torch.bfloat16))
        assert torch.equal(*found)


def test_no_images():
    x = torch.zeros(0, 64, 5, 5, dtype=torch.float16).contiguous(memory_format=torch.channels_last).requires_grad_()
    w = last(Make(torch.float16).tensor(64, 64, 3, 3))
    output = ops.conv2d(x, w, None, 1, 1)
    assert output.shape == (0, 64, 5, 5)
    grads = torch.autograd.grad(output.sum(), (x, w))
    assert grads[0].shape == x.shape
    assert not grads[1].any()


# ---- the choice ----


def _call(change: dict[str, Any]) -> tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]:
    """A convolution that is Hopper's but for the change."""
    c = {
        "batch": 1, "channels": 64, "filters": 40, "size": (12, 20), "kernel": (3, 3), "stride": 1, "padding": 1,
        "dilation": 1, "groups": 1, "dtype": torch.float16, "transposed": False, "last": True, "offset": 0,
        "residual": None,
    } | change  # fmt: skip
    layout = last if c["last"] else lambda t: t
    shape = (c["channels"], c["filters"]) if c["transposed"] else (c["filters"], c["channels"] // c["groups"])
    x = layout(torch.ones(c["batch"], c["channels"] + c["offset"], *c["size"], dtype=c["dtype"]))[:, c["offset"] :]
    w = layout(torch.ones(*shape, *c["kernel"], dtype=c["dtype"]))
    dims, numbers = len(c["size"]), (c["stride"], c["padding"])
    if c["transposed"]:
        return getattr(ops, f"conv_transpose{dims}d"), (x, w, None, *numbers, 0, 1, c["dilation"]), {}
    args = (x, w, None, *numbers, c["dilation"], c["groups"])
    op = getattr(ops, f"conv{dims}d")
    kwargs = {}
    if c["residual"] is not None:
        residual = torch.ones(op(*args).shape, dtype=c["dtype"])
        kwargs["residual"] = last(residual) if c["residual"] == "last" else residual
    return op, args, kwargs


TAKEN: dict[str, dict[str, Any]] = {
    "as it is": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "32 channels": {"channels": 32},
    "offset by 8 channels": {"offset": 8},
    "any number of filters": {"filters": 5},
    "stride 8": {"stride": 8, "padding": 0},
    "padding up to the limit": {"size": (2, 20), "kernel": (2, 1), "padding": (128, 0), "dilation": 200},
    "dilation up to the limit": {"size": (20, 1), "kernel": (2, 1), "padding": (127, 0), "dilation": 255},
    "1D and far": {"size": (1200,), "kernel": (3,), "padding": 0, "dilation": 500},
    "3D up to the limits": {"size": (2, 4, 6), "kernel": (2, 1, 1), "padding": (16, 0, 0), "dilation": 31},
    "same": {"kernel": (3, 4), "padding": "same"},
    "residual": {"residual": "last"},
    "transposed": {"transposed": True},
    "transposed, stride 4": {"transposed": True, "stride": 4, "kernel": (5, 2)},
    "one pixel": {"size": (1, 1), "kernel": (1, 1), "padding": 0, "last": False},
}
REFUSED: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "channels first": {"last": False},
    "24 channels": {"channels": 24},
    "65 channels": {"channels": 65},
    "72 channels, 4 of them skipped": {"channels": 72, "offset": 4},
    "groups": {"groups": 2},
    "stride 9": {"stride": 9, "padding": 0},
    "padding past the limit": {"size": (2, 20), "kernel": (2, 1), "padding": (129, 0), "dilation": 200},
    "dilation past the limit": {"size": (20, 1), "kernel": (2, 1), "padding": (128, 0), "dilation": 256},
    "3D past the limits": {"size": (2, 4, 6), "kernel": (2, 1, 1), "padding": (16, 0, 0), "dilation": 32},
    "a residual that lies otherwise": {"batch": 2, "residual": "first"},
    "transposed, stride 5": {"transposed": True, "stride": 5},
    "transposed, 24 channels": {"transposed": True, "channels": 24},
}


@pytest.mark.parametrize(("taken", "name"), [(True, n) for n in TAKEN] + [(False, n) for n in REFUSED])
def test_what_is_taken_and_what_explain_says(taken, name):
    op, args, kwargs = _call((TAKEN if taken else REFUSED)[name])
    with torch.no_grad():
        text = warpwright.explain(op, *args, **kwargs).kernel
        before = launches()
        op(*args, **kwargs)
    kinds = {kernel for kernel in launched(before) if kernel.endswith("_wgmma")}
    assert bool(kinds) == taken
    assert ("Hopper's tensor cores" in text) == taken


@pytest.mark.parametrize(
    ("multiprocessors", "arch", "taken"), [("2", "90", True), ("132", "90", False), ("2", "80", False)]
)
def test_the_device_chooses_too(monkeypatch, multiprocessors, arch, taken):
    """Two tiles are too few for 132 multiprocessors."""
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_MULTIPROCESSORS", multiprocessors)
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_ARCH", arch)
    for transposed in (False, True):
        op, args, _ = _call({"transposed": transposed})
        before = launches()
        text = warpwright.explain(op, *args).kernel
        op(*args)
        kind, role = "wgmma" if taken else "mma", "dgrad" if transposed else "fprop"
        assert launched(before) == {f"{role}_{kind}"}
        assert ("Hopper's" in text) == taken


def test_explain_knows_where_a_norms_residual_goes():
    """Into the convolution where it has the norm too; else into the norm's kernel."""
    op, (x, w, *_), _ = _call({"batch": 2})
    norm = (torch.zeros(40), torch.ones(40))
    residual = torch.ones(op(x, w, None, 1, 1).shape, dtype=x.dtype)
    for weight, words in ((w, "8 channels at a time"), (w.clone().requires_grad_(), "Hopper's")):
        call_args = (x, weight, *norm, None, None, None, 1, 1)
        before = launches()
        assert words in warpwright.explain(ops.conv2d_batch_norm, *call_args, residual=residual).kernel
        ops.conv2d_batch_norm(*call_args, residual=residual)
        assert launched(before) == {"fprop_wgmma" if "Hopper's" in words else "fprop_mma"}


def run_every_kernel() -> None:
    """Every tile of every kernel, on the current backend."""
    for name in ("whole", "wide", "many rows", "channels and filters past a tile"):
        op, sample = layer(torch.float16, *LAYERS[name])
        output = SPECS[op].op(*sample.args)
        torch.autograd.grad(output, sample.args[:2], last(torch.ones_like(output)))
        if op == "conv2d":
            x, w, _, *numbers = sample.args
            ops.conv2d_batch_norm(x, w, None, None, None, None, None, *numbers, 1, True)
