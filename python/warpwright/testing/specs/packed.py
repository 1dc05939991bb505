"""OpSpecs of the packed family. tests/test_packed.py holds packing and dequantizing to the bits of their definition."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright._check import ACTIVATIONS
from warpwright.nn._activation import TORCH_ACTIVATIONS
from warpwright.ops import PackedWeight
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes


def _torch_dequantize(packed: PackedWeight) -> Tensor:
    """By the definition of the layout, bit by bit, in torch's ops."""
    k = packed.in_features
    data = packed.data.to(torch.int64)
    words = (data.unflatten(1, (-1, 4)) << (8 * torch.arange(4, device=data.device))).sum(-1)
    element = torch.arange(32 // packed.bits, device=data.device)
    shift = element * 8 if packed.bits == 8 else element // 2 * 4 + element % 2 * 16
    q = (words[..., None] >> shift & (2**packed.bits - 1)).flatten(1)[:, :k]
    size = packed.group_size or max(k, 1)
    scale = packed.scale.repeat_interleave(size, 1)[:, :k]
    zero = 2 ** (packed.bits - 1) if packed.zero is None else packed.zero.repeat_interleave(size, 1)[:, :k]
    return (q - zero).to(scale.dtype) * scale


def _torch_linear(
    input: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    product = F.linear(input, _torch_dequantize(packed), bias)
    return TORCH_ACTIVATIONS[activation](product if residual is None else product + residual)


def _weight(make: Make, bits: int, n: int, k: int, group_size: int | None = 32, symmetric: bool = True) -> PackedWeight:
    # In [-0.5, 0.5): of saturated activations 16 bits keep few digits of the gradient.
    return ops.pack_weights(make.tensor(n, k, low=-0.5, high=0.5, grad=False), bits, group_size, symmetric)


def _linear_samples(bits: int, make: Make) -> Iterator[Sample]:
    t = make.tensor
    weight = functools.partial(_weight, make, bits)
    yield Sample("one row", (t(1, 64), weight(7, 64)))
    yield Sample("zero points, bias", (t(5, 96), weight(9, 96, 32, False), t(9)), {"activation": "gelu"})
    yield Sample("one group", (t(3, 40), weight(5, 40, None, False), t(5)), {"residual": t(3, 5)})
    yield Sample("three dims", (t(2, 3, 32), weight(4, 32, 128)), {"residual": t(2, 3, 4), "activation": "silu"})
    yield Sample("one dim", (t(33), weight(4, 33), t(4)))
    small = (t(5, 12), weight(7, 12), t(7))
    for activation in ACTIVATIONS[1:]:
        yield Sample(activation, small, {"activation": activation})
    yield Sample("ragged", (t(4, 45), weight(6, 45, 32, False)), {"activation": "relu"})
    # More than the lanes of a warp take at once, and a group that ends within.
    yield Sample("a long row", (t(4, 2056), weight(3, 2056, 128, False), t(3)))
    # The tensor cores' tiles: few rows of the input and many, past one tile, and more steps than stages.
    yield Sample("decoding", (t(13, 1800), weight(70, 1800, 128)), {"activation": "tanh"})
    yield Sample("a batch", (t(70, 520), weight(132, 520, 64, False), t(132)), {"residual": t(70, 132)})
    yield Sample("many rows", (t(520, 40), weight(9, 40, None)))
    yield Sample("no rows", (t(0, 40), weight(3, 40), t(3)), {"activation": "gelu"})
    yield Sample("no columns", (t(3, 40), weight(0, 40)))
    yield Sample("no inner", (t(3, 0), weight(4, 0), t(4)), {"residual": t(3, 4)})
    yield Sample("no inner, one group", (t(3, 0), weight(4, 0, None, False), t(4)))


def _draw_linear(bits: int, make: Make, rng: random.Random) -> Sample:
    lead = [draw_size(rng, 40)] if rng.random() < 0.7 else [draw_size(rng, 5), draw_size(rng, 9)]
    n, k = draw_size(rng), draw_size(rng, 300)
    packed = _weight(make, bits, n, k, rng.choice([32, 64, 128, None]), rng.random() < 0.5)
    kwargs: dict[str, Any] = {"activation": rng.choice([None, *ACTIVATIONS])}
    if rng.random() < 0.4:
        kwargs["residual"] = make.tensor(*lead, n)
    bias = make.tensor(n) if rng.random() < 0.7 else None
    name = f"{lead} x {k} -> {n} by {packed.group_size} {kwargs['activation']}"
    return Sample(name, (make.tensor(*lead, k), packed, bias), kwargs)


def _linear_bad_inputs(bits: int, make: Make) -> Iterator[BadInput]:
    x, packed, b = make.tensor(4, 40), _weight(make, bits, 6, 40, 32, False), make.tensor(6)
    w = make.tensor(6, 40, grad=False)
    message = "packed must be a PackedWeight, got a torch.float32 tensor: call warpwright.ops.pack_weights"
    yield BadInput("a plain weight", (x, w), message)
    yield BadInput("bits", (x, _weight(make, 12 - bits, 6, 40)), f"packed must have {bits} bits, got {12 - bits}")
    yield BadInput("features", (make.tensor(4, 64), packed), "packed has 40 input features, input has 64")
    yield BadInput("scalar input", (make.tensor(), packed), "packed has 40 input features, input has 0")
    yield BadInput("input dtype", (x.detach().long(), packed), "input must be float32, .* got torch.int64")
    yield BadInput("data dtype", (x, packed._replace(data=w)), "packed must be torch.uint8, as .*got torch.float32")
    yield BadInput("data rank", (x, packed._replace(data=packed.data[0])), "packed must have 2 dimensions, got 1")
    width = packed.data.shape[1]
    message = f"packed must have {width} bytes in a row of 40 input features, got {width - 1}"
    yield BadInput("data width", (x, packed._replace(data=packed.data[:, 1:])), message)
    yield BadInput("group_size", (x, packed._replace(group_size=48)), "group_size must be None or .*got 48")
    message = r"scale must have shape \(6, 1\), got \(6, 2\)"
    yield BadInput("another group_size", (x, packed._replace(group_size=64)), message)
    yield BadInput("scale shape", (x, packed._replace(scale=packed.scale[:5])), r"scale must have shape \(6, 2\), got")
    yield BadInput("scale dtype", (x, packed.to(dtype=torch.float16)), "scale must have the dtype of input")
    yield BadInput("zero dtype", (x, packed._replace(zero=packed.scale)), "zero must be torch.uint8, got torch.float32")
    assert packed.zero is not None
    zero = packed.zero[:, :1]
    yield BadInput("zero shape", (x, packed._replace(zero=zero)), r"zero must have shape \(6, 2\), got \(6, 1\)")
    yield BadInput("bias", (x, packed, make.tensor(5)), r"bias must have shape \(6,\), got \(5,\)")
    message = r"residual must have the shape of the output \(4, 6\), got \(6,\)"
    yield BadInput("residual", (x, packed, b), message, {"residual": make.tensor(6)})
    message = "activation must be one of none, relu, .*got 'mish'"
    yield BadInput("activation", (x, packed, b), message, {"activation": "mish"})


def _linear_cost(
    input: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Cost:
    rows, (n, k) = input.shape[:-1].numel(), packed.shape
    read = nbytes(input, packed.data, packed.scale, packed.zero, bias, residual)
    return Cost(2 * rows * n * k, read + rows * n * input.element_size())


for _bits, _op in ((4, ops.linear_w4a16), (8, ops.linear_w8a16)):
    add(
        OpSpec(
            name=_op.__name__,
            family="packed",
            op=_op,
            torch_op=_torch_linear,
            samples=functools.partial(_linear_samples, _bits),
            draw=functools.partial(_draw_linear, _bits),
            bad_inputs=functools.partial(_linear_bad_inputs, _bits),
            cost=_linear_cost,
            kernels=("linear_packed", "linear_packed_backward"),
        )
    )


# ---- dequantize_packed ----


def _dequantize_samples(make: Make) -> Iterator[Sample]:
    for bits in (4, 8):
        weight = functools.partial(_weight, make, bits)
        yield Sample(f"{bits} bits", (weight(7, 64),))
        yield Sample(f"{bits} bits, zero points", (weight(5, 200, 64, False),))
        yield Sample(f"{bits} bits, ragged", (weight(3, 45, 32, False),))
        yield Sample(f"{bits} bits, one group", (weight(3, 70, None),))
    yield Sample("no rows", (_weight(make, 4, 0, 40),))
    yield Sample("no columns", (_weight(make, 8, 3, 0),))


def _draw_dequantize(make: Make, rng: random.Random) -> Sample:
    n, k = draw_size(rng, 40), draw_size(rng, 400)
    packed = _weight(make, rng.choice([4, 8]), n, k, rng.choice([32, 64, 128, None]), rng.random() < 0.5)
    return Sample(f"{n} x {k}, {packed.bits} bits by {packed.group_size}", (packed,))


def _dequantize_bad_inputs(make: Make) -> Iterator[BadInput]:
    packed = _weight(make, 4, 6, 40)
    message = "packed must be a PackedWeight, got a torch.float32 tensor: call warpwright.ops.pack_weights"
    yield BadInput("a plain weight", (make.tensor(6, 40),), message)
    yield BadInput("bits", (packed._replace(bits=3),), "bits must be 4 or 8, got 3")
    yield BadInput("in_features", (packed._replace(in_features=-1),), "in_features must not be negative, got -1")
    yield BadInput("scale", (packed._replace(scale=packed.scale.long()),), "scale must be float32, .*got torch.int64")


def _dequantize_cost(packed: PackedWeight) -> Cost:
    n, k = packed.shape
    return Cost(2 * n * k, nbytes(packed.data, packed.scale, packed.zero) + n * k * packed.scale.element_size())


add(
    OpSpec(
        name="dequantize_packed",
        family="packed",
        op=ops.dequantize_packed,
        torch_op=_torch_dequantize,
        samples=_dequantize_samples,
        draw=_draw_dequantize,
        bad_inputs=_dequantize_bad_inputs,
        cost=_dequantize_cost,
        kernels=("dequantize_packed",),
        gradcheck=False,
    )
)
