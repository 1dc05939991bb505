"""OpSpecs of the norm_quantize family."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes

E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8


def _torch_quantize(y: Tensor, block_size: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As the models write it, without their blind spots: zeros and ragged blocks."""
    y = y if y.dtype == torch.float64 else y.float()
    cols, largest = y.shape[-1], 127.0 if dtype == INT8 else torch.finfo(dtype).max
    pieces = (y,) if block_size is None else y.split(block_size, -1)
    amax = [p.abs().amax(-1, keepdim=True) if p.shape[-1] else y.new_zeros(*y.shape[:-1], 1) for p in pieces]
    scale = torch.cat([torch.where(a == 0, 1.0, a / largest) for a in amax], -1)
    if block_size is not None:
        scale = scale[..., : -(-cols // block_size)]
    quotient = y / scale.repeat_interleave(max(cols, 1) if block_size is None else block_size, -1)[..., :cols]
    return (quotient.round() if dtype == INT8 else quotient).to(dtype), scale


def _torch_rms_norm_quantize(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
    block_size: int | None = None,
    dtype: torch.dtype = E4M3,
) -> tuple[Tensor, ...]:
    total = input if residual is None else input + residual
    weight = weight if weight is None or weight_offset == 0 else weight + weight_offset
    quantized = _torch_quantize(F.rms_norm(total, list(normalized_shape), weight, eps), block_size, dtype)
    return quantized if residual is None else (*quantized, total)


def _torch_layer_norm_quantize(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
    block_size: int | None = None,
    dtype: torch.dtype = E4M3,
) -> tuple[Tensor, ...]:
    total = input if residual is None else input + residual
    weight = weight if weight is None or weight_offset == 0 else weight + weight_offset
    quantized = _torch_quantize(F.layer_norm(total, list(normalized_shape), weight, bias, eps), block_size, dtype)
    return quantized if residual is None else (*quantized, total)


def _samples_of(affine: int, eps: float) -> Callable[[Make], Iterator[Sample]]:
    """Calls with `affine` tensors of weights."""

    def samples(make: Make) -> Iterator[Sample]:
        def args(*shape: int, weights: bool = True) -> tuple[Any, ...]:
            affines = (make.tensor(shape[-1], grad=False) if weights else None for _ in range(affine))
            return make.tensor(*shape, grad=False), shape[-1:], *affines, eps

        def residual(*shape: int) -> dict[str, Any]:
            return {"residual": make.tensor(*shape, grad=False)}

        yield Sample("rows", args(5, 40))
        yield Sample("blocks", args(3, 304), {"block_size": 128})
        yield Sample("e5m2, residual", args(2, 3, 33), {"dtype": E5M2, **residual(2, 3, 33)})
        yield Sample("int8", args(4, 72), {"dtype": INT8, "weight_offset": 1.0})
        yield Sample("int8, blocks, residual", args(4, 96), {"dtype": INT8, "block_size": 32, **residual(4, 96)})
        yield Sample("odd width, blocks of 64", args(3, 391), {"block_size": 64})
        yield Sample("odd width, blocks of 128", args(2, 613), {"block_size": 128})
        yield Sample("no weights", args(3, 130, weights=False), {"block_size": 32})
        yield Sample("wide", args(2, 5008), {"block_size": 32})
        yield Sample("one dimension", args(17))
        yield Sample("no rows", args(0, 8), {"block_size": 32})

    return samples


def _draw_of(affine: int, eps: float) -> Callable[[Make, random.Random], Sample]:
    def draw(make: Make, rng: random.Random) -> Sample:
        shape = [draw_size(rng, 6) for _ in range(rng.randint(0, 2))] + [5 + draw_size(rng, 400)]
        kwargs: dict[str, Any] = {"block_size": rng.choice([None, 32, 64, 128])}
        # A number at the edge between two codes is either: a step of a float is within its unit, one of int8 is not.
        kwargs["dtype"] = rng.choice([E4M3, E5M2])
        if rng.random() < 0.5:
            kwargs["residual"] = make.tensor(*shape, grad=False)
        weights = (make.tensor(shape[-1], grad=False) if rng.random() < 0.7 else None for _ in range(affine))
        args = (make.tensor(*shape, grad=False), tuple(shape[-1:]), *weights, eps)
        return Sample(f"{shape} {kwargs['block_size']} {kwargs['dtype']}", args, kwargs)

    return draw


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    x = make.tensor(3, 64, grad=False)
    yield BadInput("input dtype", (x.double(), (64,)), "input must be float32, float16 or bfloat16, got torch.float64")
    yield BadInput("two dimensions", (x, (3, 64)), r"normalized_shape \(3, 64\) must be the last dimension of input")
    yield BadInput("weight shape", (x, (64,), x), r"weight must have shape \(64,\), got \(3, 64\)")
    yield BadInput("residual", (x, (64,)), "residual must have the shape of input", {"residual": x[:2]})
    yield BadInput("block_size", (x, (64,)), "block_size must be None, 32, 64 or 128, got 16", {"block_size": 16})
    yield BadInput(
        "dtype", (x, (64,)), "dtype must be torch.float8_e4m3fn, .*got torch.float16", {"dtype": torch.float16}
    )
    yield BadInput("offset", (x, (64,)), "weight must be given with weight_offset", {"weight_offset": 1.0})


def _cost(
    input: Tensor,
    normalized_shape: Sequence[int],
    *affine: Any,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
    block_size: int | None = None,
    dtype: torch.dtype = E4M3,
) -> Cost:
    groups = 1 if block_size is None else -(-input.shape[-1] // block_size)
    weights = [t for t in affine if isinstance(t, Tensor)]
    moved = nbytes(input, *weights) + 2 * nbytes(residual) + input.numel() + 4 * groups * input.shape[:-1].numel()
    return Cost(8 * input.numel(), moved)


for _name, _op, _torch_op, _affine, _eps in (
    ("rms_norm_quantize", ops.rms_norm_quantize, _torch_rms_norm_quantize, 1, 1e-6),
    ("layer_norm_quantize", ops.layer_norm_quantize, _torch_layer_norm_quantize, 2, 1e-5),
):
    add(
        OpSpec(
            name=_name,
            family="norm_quantize",
            op=_op,
            torch_op=_torch_op,
            samples=_samples_of(_affine, _eps),
            draw=_draw_of(_affine, _eps),
            bad_inputs=_bad_inputs,
            cost=_cost,
            kernels=("norm_quantize",),
            gradcheck=False,
        )
    )
