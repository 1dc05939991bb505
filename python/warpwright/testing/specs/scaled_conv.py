"""OpSpecs of the scaled_conv family. Integer sums are exact: tests/test_scaled_conv.py."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright._check import ACTIVATIONS
from warpwright._conv import in_format
from warpwright.nn._activation import TORCH_ACTIVATIONS
from warpwright.ops.conv import Numbers
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, nbytes
from warpwright.testing.specs.quantize import E4M3, E5M2, any_float8

INT8 = torch.int8
_EIGHT_BITS = (E4M3, E5M2, INT8)
_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _quantized(value: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    largest = 127.0 if dtype == INT8 else torch.finfo(dtype).max
    quotient = (value / scale).clamp(-largest, largest)
    return (quotient.round() if dtype == INT8 else quotient).to(dtype)


def _composed(dims: int) -> Callable[..., Tensor]:
    """PyTorch's convolution of dequantised tensors, in the dtype of their scales."""

    def call(
        input: Tensor,
        weight: Tensor,
        input_scale: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        stride: Numbers = 1,
        padding: Numbers | str = 0,
        dilation: Numbers = 1,
        groups: int = 1,
        *,
        residual: Tensor | None = None,
        residual_scale: Tensor | None = None,
        activation: str | None = None,
        out_dtype: torch.dtype = torch.bfloat16,
        output_scale: Tensor | None = None,
    ) -> Tensor:
        by_filter = (-1, *[1] * dims)
        wide = input_scale.dtype
        x = input.to(wide) * input_scale.reshape(())
        w = weight.to(wide) * weight_scale.reshape(-1, *[1] * (dims + 1))
        value = _CONVOLUTIONS[dims](x, w, None, stride, padding, dilation, groups)
        if bias is not None:
            value = value + bias.to(wide).view(by_filter)
        if residual is not None:
            addend = residual.to(wide)
            value = value + (addend if residual_scale is None else addend * residual_scale.reshape(()))
        value = TORCH_ACTIVATIONS[activation](value)
        if output_scale is not None:
            return _quantized(value, output_scale.reshape(()), out_dtype)
        return value if wide == torch.float64 else value.to(out_dtype)

    return call


# ---- samples ----


def _tensor(make: Make, shape: Sequence[int], dtype: torch.dtype, last: bool = False) -> Tensor:
    if dtype == INT8:
        drawn = make.integers(*shape, low=-128, high=128).to(INT8)
    else:
        drawn = make.tensor(*shape, low=-4, high=4, grad=False, dtype=dtype)
    return in_format(drawn, True) if last else drawn


def _scale(make: Make, *shape: int, dtype: torch.dtype = E4M3) -> Tensor:
    """Such that products are near 1."""
    unit = 1 / 64 if dtype == INT8 else 0.5
    return make.tensor(*shape, low=0.2 * unit, high=unit, grad=False, dtype=torch.float32)


def _call(
    make: Make,
    name: str,
    x: Sequence[int],
    w: Sequence[int],
    *geometry: Any,
    dtypes: tuple[torch.dtype, torch.dtype] = (E4M3, E4M3),
    scales: tuple[int, ...] = (),
    bias: bool | torch.dtype = False,
    residual: torch.dtype | None = None,
    activation: str | None = None,
    out: torch.dtype | None = None,
    last: tuple[bool, bool] = (False, False),
) -> Sample:
    """`geometry` is stride, padding, dilation, groups; `out` the output's dtype, the sample's if None; `last` says
    whether input and weight lie channels last, and the residual lies as the input does."""
    dims = len(w) - 2
    function: Callable[..., Tensor] = _CONVOLUTIONS[dims]
    args: list[Any] = [_tensor(make, x, dtypes[0], last[0]), _tensor(make, w, dtypes[1], last[1])]
    args += [_scale(make, dtype=dtypes[0]), _scale(make, *scales, dtype=dtypes[1])]
    biased = make.dtype if bias is True else bias
    args += [make.tensor(w[0], grad=False, dtype=biased) if biased else None, *geometry]
    kwargs: dict[str, Any] = {"activation": activation, "out_dtype": out or make.dtype}
    if residual is not None:
        meta = (torch.empty(shape, device="meta") for shape in (x, w))
        shape = function(*meta, None, *geometry).shape
        wide = residual not in _EIGHT_BITS
        like = make.tensor(*shape, grad=False, dtype=residual) if wide else _tensor(make, shape, residual)
        kwargs["residual"] = in_format(like, True) if last[0] else like
        if not wide:
            kwargs["residual_scale"] = _scale(make, dtype=residual)
    if out in _EIGHT_BITS:
        kwargs["output_scale"] = make.tensor(low=0.04, high=0.05, grad=False, dtype=torch.float32)
    return Sample(name, tuple(args), kwargs)


_I8 = (INT8, INT8)
_LAST = (True, True)
HALF, BF16, SINGLE = torch.float16, torch.bfloat16, torch.float32


def _samples_2d(make: Make) -> Iterator[Sample]:
    def call(name: str, x: Sequence[int], w: Sequence[int], *geometry: Any, **more: Any) -> Sample:
        return _call(make, name, x, w, *geometry, **more)

    yield call("3x3", (2, 3, 6, 5), (4, 3, 3, 3), bias=True)
    yield call("int8", (2, 5, 6, 5), (7, 5, 3, 3), 1, 1, dtypes=_I8, scales=(7,), bias=SINGLE, activation="relu")
    yield call("sixteens", (2, 16, 6, 5), (8, 16, 3, 3), 2, 1, last=_LAST, dtypes=(E5M2, E4M3), scales=(8, 1))
    yield call(
        "int8 to int8", (1, 16, 7, 6), (20, 16, 3, 3), 1, 1, last=_LAST, dtypes=_I8, scales=(20,), bias=True,
        residual=INT8, activation="relu", out=INT8,
    )  # fmt: skip
    yield call("unlike sides", (1, 17, 6, 7), (5, 17, 2, 3), (2, 1), (0, 2), (1, 2), dtypes=(E4M3, E5M2), residual=BF16)
    yield call("to e4m3", (1, 8, 6, 5), (6, 8, 3, 3), 1, 1, out=E4M3, bias=True, residual=E5M2, activation="silu")
    yield call("to e5m2", (1, 3, 6, 5), (6, 3, 3, 3), dtypes=_I8, out=E5M2, bias=HALF, residual=SINGLE)
    yield call("e5m2, grouped", (1, 10, 5, 5), (6, 5, 3, 3), 1, 1, 1, 2, dtypes=(E5M2, E5M2), residual=HALF)
    yield call("int8, grouped sixteens", (1, 32, 5, 4), (24, 16, 3, 3), 1, 1, 1, 2, last=_LAST, dtypes=_I8, bias=True)
    yield call("depthwise", (2, 19, 6, 6), (19, 1, 3, 3), 2, 1, 1, 19, bias=True, activation="hardswish")
    yield call(
        "int8, depthwise", (1, 130, 5, 4), (130, 1, 3, 3), 1, 1, 1, 130, last=(True, False), dtypes=_I8,
        scales=(130,), residual=INT8,
    )  # fmt: skip
    yield call("depthwise, one channel", (2, 1, 4, 19), (1, 1, 12, 12), 1, 6, dtypes=(E5M2, E4M3))
    yield call("two filters a channel", (1, 3, 5, 5), (6, 1, 3, 3), 1, 1, 1, 3, dtypes=_I8, activation="gelu")
    # More filters than a small tile has, and more terms than a block of scales.
    yield call("large tiles", (1, 21, 4, 3), (66, 21, 3, 3), 1, 1, bias=True, activation="gelu_tanh")
    yield call("large tiles, sixteens", (1, 64, 4, 3), (72, 64, 1, 2), last=_LAST, residual=E4M3, scales=(72,))
    yield call("int8, large tiles", (1, 21, 4, 3), (66, 21, 3, 3), dtypes=_I8, activation="leaky_relu")
    yield call("int8, large tiles, sixteens", (1, 48, 4, 3), (80, 48, 3, 3), 1, 1, last=_LAST, dtypes=_I8, out=E4M3)
    yield call("past two tiles", (3, 16, 9, 9), (5, 16, 1, 1), last=_LAST, dtypes=_I8, bias=True, activation="tanh")
    yield call("input channels last", (1, 6, 5, 4), (5, 6, 3, 3), 1, "same", last=(True, False), activation="sigmoid")
    yield call("weight channels last", (1, 16, 5, 4), (5, 16, 2, 4), 1, "same", last=(False, True), dtypes=_I8)
    yield call("same, even kernel", (1, 16, 5, 4), (6, 16, 2, 4), 1, "same", last=_LAST)
    # Subnormals and the largest numbers.
    every = any_float8(make, 1, 16, 5, 4), any_float8(make, 6, 16, 3, 3, dtype=E5M2)
    scales = _scale(make) * 1e-3, _scale(make, 6) * 1e-3
    yield Sample("any number", (*every, *scales), {"out_dtype": make.dtype})
    yield call("unbatched", (3, 5, 5), (4, 3, 3, 3), residual=BF16)
    yield call("no images", (0, 3, 5, 5), (4, 3, 3, 3), bias=True)


def _samples_1d(make: Make) -> Iterator[Sample]:
    yield _call(make, "k3", (2, 3, 11), (4, 3, 3), bias=True)
    yield _call(make, "int8, stride 2", (2, 5, 11), (4, 5, 3), 2, 1, dtypes=_I8, activation="silu")
    yield _call(make, "same, even kernel", (1, 17, 9), (4, 17, 4), 1, "same", 2, dtypes=(E5M2, E5M2), scales=(4,))
    yield _call(make, "sixteens", (1, 32, 9), (8, 32, 3), 1, 1, last=_LAST, residual=E4M3, out=E4M3)
    yield _call(make, "depthwise", (2, 6, 11), (6, 1, 5), 1, 2, 1, 6, dtypes=_I8, bias=SINGLE)
    yield _call(make, "depthwise, long filter", (1, 2, 150), (2, 1, 140), 1, 5, 1, 2)
    yield _call(make, "unbatched", (3, 5), (4, 3, 3))
    yield _call(make, "no images", (0, 3, 5), (4, 3, 3))


def _samples_3d(make: Make) -> Iterator[Sample]:
    yield _call(make, "2x3x3", (1, 3, 4, 5, 6), (4, 3, 2, 3, 3), bias=True)
    yield _call(make, "int8, strides", (1, 5, 4, 5, 6), (6, 5, 2, 3, 3), (1, 2, 3), 1, dtypes=_I8, scales=(6,))
    yield _call(make, "dilation", (1, 3, 4, 5, 6), (4, 3, 2, 3, 3), 1, (1, 2, 0), (2, 2, 1), residual=HALF)
    yield _call(make, "sixteens", (1, 16, 3, 4, 5), (6, 16, 2, 3, 3), 1, 1, last=_LAST, dtypes=_I8, activation="relu")
    yield _call(make, "depthwise", (1, 4, 4, 5, 6), (4, 1, 3, 1, 2), 1, (1, 0, 0), 1, 4)
    yield _call(make, "unbatched", (3, 3, 4, 5), (4, 3, 2, 3, 3))


def _numbers(rng: random.Random, dims: int, least: int, most: int) -> list[int]:
    return [rng.randint(least, most) for _ in range(dims)]


def _draw(dims: int) -> Callable[[Make, random.Random], Sample]:
    def draw(make: Make, rng: random.Random) -> Sample:
        groups = rng.choice([1, 1, 1, 2, 3])
        channels, filters = groups * rng.choice([1, 3, 5, 16, 17]), groups * rng.randint(1, 20)
        if rng.random() < 0.2:
            groups = filters = channels
        kernel, stride = _numbers(rng, dims, 1, 4), _numbers(rng, dims, 1, 3)
        padding, dilation = _numbers(rng, dims, 0, 2), _numbers(rng, dims, 1, 2)
        sizes = [d * (k - 1) + 1 + rng.randint(0, 9 if dims < 3 else 3) for d, k in zip(dilation, kernel, strict=True)]
        x, w = (rng.choice([0, 1, 1, 2, 3]), channels, *sizes), (filters, channels // groups, *kernel)
        dtypes = rng.choice([_I8, *((a, b) for a in (E4M3, E5M2) for b in (E4M3, E5M2))])
        name = f"{x} * {w} s{stride} p{padding} d{dilation} g{groups} {dtypes}"
        biases: list[bool | torch.dtype] = [False, True, SINGLE]
        # A number at the edge between two codes is either: a step of a float is within its unit, one of int8 is not.
        return _call(
            make, name, x, w, stride, padding, dilation, groups, dtypes=dtypes, scales=rng.choice([(), (filters,)]),
            bias=rng.choice(biases), residual=rng.choice([None, None, BF16, SINGLE, *_EIGHT_BITS]),
            activation=rng.choice([None, *ACTIVATIONS]), out=rng.choice([None, None, E4M3, E5M2]),
            last=rng.choice([_LAST, (False, False), (True, False), (False, True)]),
        )  # fmt: skip

    return draw


def _bad_inputs_2d(make: Make) -> Iterator[BadInput]:
    x, w = _tensor(make, (2, 4, 6, 5), E4M3), _tensor(make, (6, 4, 3, 3), E5M2)
    i, j = _tensor(make, (2, 4, 6, 5), INT8), _tensor(make, (6, 4, 3, 3), INT8)
    one = _scale(make)
    scales = one, one
    message = "input must be torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8, got torch.float16"
    yield BadInput("input dtype", (x.half(), w, *scales), message)
    message = "weight must be torch.float8_e4m3fn or torch.float8_e5m2, as input is torch.float8_e4m3fn, got torch.int8"
    yield BadInput("weight dtype", (x, j, *scales), message)
    message = "weight must be torch.int8, as input is torch.int8, got torch.float8_e5m2"
    yield BadInput("weight dtype, int8", (i, w, *scales), message)
    yield BadInput("groups", (x, w, *scales, None, 1, 0, 1, 3), "groups must divide 4 input channels and 6 filters")
    yield BadInput("padding name", (x, w, *scales, None, 1, "full"), "padding must be numbers, 'same' or 'valid'")
    many = torch.empty(1, 1 << 15, 2, 2, dtype=INT8, device=x.device)
    message = "int8 filters must have fewer than 131072 elements, whose sum int32 holds, got 131072"
    yield BadInput("too many int8", (many, many, *scales), message)
    yield BadInput("input_scale dtype", (x, w, one.double(), one), "input_scale must be torch.float32, got torch.fl")
    yield BadInput("input_scale", (x, w, _scale(make, 4), one), r"input_scale must have one element, got \(4,\)")
    message = r"weight_scale must have one element or shape \(6,\) or \(6, 1\), got \(4,\)"
    yield BadInput("weight_scale", (x, w, one, _scale(make, 4)), message)
    message = "out_dtype must be float32, float16, bfloat16, torch.float8_e4m3fn, .*, got torch.float64"
    yield BadInput("out_dtype", (x, w, *scales), message, {"out_dtype": torch.float64})
    message = "output_scale must be given where out_dtype has 8 bits and only then, out_dtype is torch.int8"
    yield BadInput("no output_scale", (x, w, *scales), message, {"out_dtype": INT8})
    message = "output_scale must be given where out_dtype has 8 bits and only then, out_dtype is torch.bfloat16"
    yield BadInput("output_scale", (x, w, *scales), message, {"output_scale": one})
    message = r"output_scale must have one element, got \(6,\)"
    yield BadInput("output_scales", (x, w, *scales), message, {"out_dtype": E4M3, "output_scale": _scale(make, 6)})
    bias = torch.zeros(6, dtype=torch.float64, device=x.device)
    message = "bias must be float32, float16 or bfloat16, got torch.float64"
    yield BadInput("bias dtype", (x, w, *scales, bias), message)
    yield BadInput("bias shape", (x, w, *scales, bias[:4].float()), r"bias must have shape \(6,\), got \(4,\)")
    residual = make.tensor(2, 6, 4, 3, grad=False, dtype=SINGLE)
    message = "residual must be float32, float16, bfloat16, .* or torch.int8, got torch.float64"
    yield BadInput("residual dtype", (x, w, *scales), message, {"residual": residual.double()})
    message = r"residual must have the shape of the output \(2, 6, 4, 3\), got \(2, 6, 4, 2\)"
    yield BadInput("residual shape", (x, w, *scales), message, {"residual": residual[..., :2]})
    message = "residual_scale must be given where residual has 8 bits and only then, residual is torch.int8"
    yield BadInput("no residual_scale", (x, w, *scales), message, {"residual": residual.to(INT8)})
    message = "residual_scale must be given where residual has 8 bits and only then, residual is torch.float32"
    yield BadInput("residual_scale", (x, w, *scales), message, {"residual": residual, "residual_scale": one})
    message = "residual_scale must come with a residual"
    yield BadInput("residual_scale alone", (x, w, *scales), message, {"residual_scale": one})
    message = "activation must be one of none, relu, .*got 'mish'"
    yield BadInput("activation", (x, w, *scales), message, {"activation": "mish"})


def _few_bad_inputs(dims: int) -> Callable[[Make], Iterator[BadInput]]:
    """What a convolution of other dimensions than two says in its own words."""
    op = f"scaled_conv{dims}d"

    def bad_inputs(make: Make) -> Iterator[BadInput]:
        x, w = _tensor(make, (2, 4, *[6] * dims), E4M3), _tensor(make, (6, 4, *[3] * dims), E4M3)
        scales = _scale(make), _scale(make)
        yield BadInput("input rank", (x.flatten(), w, *scales), f"{op}: input must have {dims + 2} dimensions, got 1")
        yield BadInput("weight rank", (x, w.flatten(), *scales), f"{op}: weight must have {dims + 2} dimensions, got 1")
        few = _tensor(make, (6, 3, *[3] * dims), E4M3)
        yield BadInput("channels", (x, few, *scales), f"{op}: weight has 3 channels a group, input has 4")
        small = _tensor(make, (2, 4, *[2] * dims), E4M3)
        yield BadInput("small input", (small, w, *scales), f"{op}: weight reaches over 3 input elements, .* has 2")

    return bad_inputs


def _cost(dims: int) -> Callable[..., Cost]:
    def cost(
        input: Tensor,
        weight: Tensor,
        input_scale: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        stride: Numbers = 1,
        padding: Numbers | str = 0,
        dilation: Numbers = 1,
        groups: int = 1,
        *,
        residual: Tensor | None = None,
        residual_scale: Tensor | None = None,
        activation: str | None = None,
        out_dtype: torch.dtype = torch.bfloat16,
        output_scale: Tensor | None = None,
    ) -> Cost:
        meta = (torch.empty(t.shape, device="meta") for t in (input, weight))
        shape = _CONVOLUTIONS[dims](*meta, None, stride, padding, dilation, groups).shape
        read = nbytes(input, weight, input_scale, weight_scale, bias, residual, residual_scale, output_scale)
        return Cost(2 * shape.numel() * weight.shape[1:].numel(), read + shape.numel() * out_dtype.itemsize)

    return cost


def _add(
    dims: int,
    op: Callable[..., Tensor],
    samples: Callable[[Make], Iterator[Sample]],
    bad_inputs: Callable[[Make], Iterator[BadInput]],
) -> None:
    add(
        OpSpec(
            name=op.__name__,
            family="scaled_conv",
            op=op,
            torch_op=_composed(dims),
            samples=samples,
            draw=_draw(dims),
            bad_inputs=bad_inputs,
            cost=_cost(dims),
            kernels=("scaled_convolution",),
            gradcheck=False,
        )
    )


_add(1, ops.scaled_conv1d, _samples_1d, _few_bad_inputs(1))
_add(2, ops.scaled_conv2d, _samples_2d, _bad_inputs_2d)
_add(3, ops.scaled_conv3d, _samples_3d, _few_bad_inputs(3))
