"""OpSpecs of the quantize family. tests/test_quantize.py holds every backend to the definition, bit by bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from warpwright import ops
from warpwright.ops.quantize import FLOAT8_TYPES, GRANULARITIES, QUANTIZED_TYPES, scale_shape
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def _repeated(scale: Tensor, cols: int, block_size: int | None) -> Tensor:
    """A scale for each element."""
    return scale.repeat_interleave(max(cols, 1) if block_size is None else block_size, -1)[..., :cols]


def _torch_quantize(
    input: Tensor, block_size: int | None = None, *, dtype: torch.dtype = E4M3
) -> tuple[Tensor, Tensor]:
    """As the models write it, without their blind spots: zeros and ragged blocks."""
    cols = input.shape[-1]
    x = input if input.dtype == torch.float64 else input.float()
    pieces = (x,) if block_size is None else x.split(block_size, -1)
    amax = [p.abs().amax(-1, keepdim=True) if p.shape[-1] else x.new_zeros(*x.shape[:-1], 1) for p in pieces]
    scale = torch.cat([torch.where(a == 0, 1.0, a / torch.finfo(dtype).max) for a in amax], -1)
    if block_size is not None:
        scale = scale[..., : -(-cols // block_size)]
    return (x / _repeated(scale, cols, block_size)).to(dtype), scale


def _torch_dequantize(
    input: Tensor, scale: Tensor, block_size: int | None = None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    return (input.to(scale.dtype) * _repeated(scale, input.shape[-1], block_size)).to(dtype)


def _quantize_samples(make: Make) -> Iterator[Sample]:
    def values(*shape: int, low: float = -3.0, high: float = 3.0) -> Tensor:
        return make.tensor(*shape, low=low, high=high, grad=False)

    yield Sample("rows", (values(5, 40),))
    yield Sample("blocks", (values(3, 300), 128))
    yield Sample("e5m2", (values(2, 3, 33), None), {"dtype": E5M2})
    yield Sample("e5m2, blocks", (values(4, 72), 32), {"dtype": E5M2})
    yield Sample("block longer than the row", (values(3, 20), 128))
    yield Sample("blocks of one", (values(2, 5), 1))
    yield Sample("longer than a step", (values(2, 9000),))
    for name, dtype in (("e4m3", E4M3), ("e5m2", E5M2)):
        yield Sample(f"{name}, a warp's row", (values(2, 512),), {"dtype": dtype})
        yield Sample(f"{name}, long rows", (values(2, 1304),), {"dtype": dtype})
        yield Sample(f"{name}, odd long rows", (values(2, 1301),), {"dtype": dtype})
    yield Sample("a block of zeros", (torch.cat((values(2, 8), values(2, 8) * 0), 1), 8))
    yield Sample("one dimension", (values(17), 16))
    yield Sample("no columns", (values(3, 0),))
    yield Sample("no columns, blocks", (values(3, 0), 4))
    yield Sample("no rows", (values(0, 8), 4))


def _draw_quantize(make: Make, rng: random.Random) -> Sample:
    shape = [draw_size(rng, 6) for _ in range(rng.randint(0, 3))] + [draw_size(rng, 400)]
    block = rng.choice([None, 1, 7, 32, 128])
    kwargs = {"dtype": rng.choice(FLOAT8_TYPES)}
    return Sample(f"{shape} by {block} {kwargs}", (make.tensor(*shape, grad=False), block), kwargs)


def _quantize_bad_inputs(make: Make) -> Iterator[BadInput]:
    x = make.tensor(3, 8, grad=False)
    yield BadInput("input dtype", (x.double(),), "input must be float32, float16 or bfloat16, got torch.float64")
    yield BadInput("input rank", (x.sum(),), "input must have at least 1 dimension, got 0")
    yield BadInput("block_size", (x, 0), "block_size must be None or positive, got 0")
    yield BadInput("dtype", (x,), "dtype must be torch.float8_e4m3fn or .*got torch.float16", {"dtype": torch.float16})


def _quantize_cost(input: Tensor, block_size: int | None = None, *, dtype: torch.dtype = E4M3) -> Cost:
    groups = 1 if block_size is None else -(-input.shape[-1] // block_size)
    return Cost(2 * input.numel(), nbytes(input) + input.numel() + 4 * groups * input.shape[:-1].numel())


def any_float8(make: Make, *shape: int, dtype: torch.dtype = E4M3) -> Tensor:
    """Any finite numbers of `dtype`."""
    first_non_finite = 0x7F if dtype == E4M3 else 0x7C
    magnitude, sign = make.integers(*shape, low=0, high=first_non_finite), make.integers(*shape, low=0, high=2)
    return (magnitude + 128 * sign).to(torch.uint8).view(dtype)


def _scales(make: Make, *shape: int) -> Tensor:
    return make.tensor(*shape, low=0.001, high=2, grad=False, dtype=torch.float32)


def _dequantize_samples(make: Make) -> Iterator[Sample]:
    out = {"dtype": make.dtype}
    yield Sample("rows", (any_float8(make, 5, 40), _scales(make, 5, 1)), out)
    yield Sample("blocks", (any_float8(make, 3, 300), _scales(make, 3, 3), 128), out)
    # Small scales: the largest number of e5m2 is close to that of float16.
    yield Sample("e5m2", (any_float8(make, 2, 3, 33, dtype=E5M2), _scales(make, 2, 3, 5) * 0.5, 7), out)
    yield Sample("longer than a step", (any_float8(make, 2, 9000), _scales(make, 2, 1)), out)
    yield Sample("e5m2, long rows", (any_float8(make, 2, 1304, dtype=E5M2), _scales(make, 2, 1) * 0.5), out)
    yield Sample("one dimension", (any_float8(make, 17), _scales(make, 2), 16), out)
    yield Sample("no columns", (any_float8(make, 3, 0), _scales(make, 3, 1)), out)
    yield Sample("no rows", (any_float8(make, 0, 8), _scales(make, 0, 2), 4), out)


def _draw_dequantize(make: Make, rng: random.Random) -> Sample:
    shape = [draw_size(rng, 6) for _ in range(rng.randint(0, 3))] + [draw_size(rng, 400)]
    block = rng.choice([None, 1, 7, 32, 128])
    groups = 1 if block is None else -(-shape[-1] // block)
    args = (
        any_float8(make, *shape, dtype=rng.choice(FLOAT8_TYPES)),
        _scales(make, *shape[:-1], groups) * 0.5,
    )
    return Sample(f"{shape} by {block}", (*args, block), {"dtype": make.dtype})


def _dequantize_bad_inputs(make: Make) -> Iterator[BadInput]:
    q, scale = any_float8(make, 3, 8), _scales(make, 3, 1)
    yield BadInput("input dtype", (q.float(), scale), "input must be torch.float8_e4m3fn or .*got torch.float32")
    yield BadInput("scale dtype", (q, scale.half()), "scale must be torch.float32, got torch.float16")
    yield BadInput("scale shape", (q, scale, 4), r"scale must have shape \(3, 2\), got \(3, 1\)")
    yield BadInput("block_size", (q, scale, -1), "block_size must be None or positive, got -1")
    yield BadInput("dtype", (q, scale), "dtype must be float32, .*got torch.int32", {"dtype": torch.int32})


def _dequantize_cost(
    input: Tensor, scale: Tensor, block_size: int | None = None, *, dtype: torch.dtype = torch.float32
) -> Cost:
    return Cost(input.numel(), nbytes(input, scale) + input.numel() * dtype.itemsize)


# ---- any granularity ----


def _torch_scales(x: Tensor, granularity: str, block_size: int, largest: float) -> tuple[Tensor, Tensor]:
    """Scales, and one for each element; of a matrix without zeros in a whole block."""
    if granularity == "tensor":
        scale = x.abs().amax() / largest
        return scale, scale
    if granularity == "row":
        scale = x.abs().amax(-1, keepdim=True) / largest
        return scale, scale
    amax = torch.stack([p.abs().amax(-1) for p in x.split(block_size, -1)], -1)
    if granularity == "square":
        amax = torch.stack([p.amax(0) for p in amax.split(block_size, 0)], 0)
    scale = amax / largest
    each = scale.repeat_interleave(block_size, 0)[: x.shape[0]] if granularity == "square" else scale
    return scale, _repeated(each, x.shape[-1], block_size)


def _torch_quantize_matrix(
    input: Tensor,
    dtype: torch.dtype = E4M3,
    *,
    granularity: str = "row",
    block_size: int = 128,
    seed: int | None = None,
    transposed: bool = False,
) -> tuple[Tensor, ...]:
    if transposed:
        half = {"granularity": granularity, "block_size": block_size}
        return *_torch_quantize_matrix(input, dtype, **half), *_torch_quantize_matrix(input.t(), dtype, **half)  # type: ignore[arg-type]
    x = input if input.dtype == torch.float64 else input.float()
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    scale, each = _torch_scales(x, granularity, block_size, largest)
    quotient = x / each
    return (quotient.round() if dtype == torch.int8 else quotient).to(dtype), scale


def _torch_dequantize_matrix(
    input: Tensor,
    scale: Tensor,
    *,
    granularity: str = "row",
    block_size: int = 128,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    if granularity == "square":
        scale = scale.repeat_interleave(block_size, 0)[: input.shape[0]]
    if granularity in ("block", "square"):
        scale = _repeated(scale, input.shape[-1], block_size)
    return (input.to(scale.dtype) * scale).to(dtype)


def _matrix_samples(make: Make) -> Iterator[Sample]:
    def values(*shape: int) -> Tensor:
        return make.tensor(*shape, low=-3, high=3, grad=False)

    yield Sample("rows", (values(5, 40),))
    yield Sample("int8, tensor", (values(3, 50), torch.int8), {"granularity": "tensor"})
    yield Sample("squares", (values(40, 70),), {"granularity": "square", "block_size": 32})
    yield Sample("blocks, transposed", (values(35, 65), E5M2), {
        "granularity": "block", "block_size": 32, "transposed": True})  # fmt: skip
    yield Sample("int8 rows, transposed", (values(6, 10), torch.int8), {"transposed": True})
    yield Sample("tensor, transposed", (values(6, 10), E5M2), {"granularity": "tensor", "transposed": True})
    yield Sample("int8 squares, transposed", (values(130, 140), torch.int8), {
        "granularity": "square", "transposed": True})  # fmt: skip
    yield Sample("blocks of three dimensions", (values(2, 3, 150), torch.int8), {"granularity": "block"})
    yield Sample("whole stores", (values(16, 256),), {"granularity": "block", "transposed": True})
    yield Sample("no rows", (values(0, 8),), {"granularity": "block"})


def _draw_matrix(make: Make, rng: random.Random) -> Sample:
    granularity = rng.choice(GRANULARITIES)
    shape = (draw_size(rng, 150) + 1, draw_size(rng, 150) + 1)
    kwargs = {"granularity": granularity, "block_size": rng.choice([32, 64, 128]), "transposed": rng.random() < 0.5}
    dtype = rng.choice(QUANTIZED_TYPES)
    return Sample(f"{shape} {dtype} {kwargs}", (make.tensor(*shape, low=0.5, high=2, grad=False), dtype), kwargs)


def _matrix_bad_inputs(make: Make) -> Iterator[BadInput]:
    x = make.tensor(3, 8, grad=False)
    yield BadInput("input dtype", (x.double(),), "input must be float32, float16 or bfloat16, got torch.float64")
    yield BadInput("dtype", (x, torch.uint8), "dtype must be torch.float8_e4m3fn, .*got torch.uint8")
    yield BadInput("rank", (x.sum(),), "input must have at least 1 dimension, got 0")
    yield BadInput("granularity", (x,), "granularity must be one of tensor, row, block, square, got 'column'",
                   {"granularity": "column"})  # fmt: skip
    yield BadInput("block_size", (x,), "block_size must be 32, 64 or 128, got 16", {"block_size": 16})
    yield BadInput("square of a vector", (x[0],), "input must have 2 dimensions .* got 1", {"granularity": "square"})
    yield BadInput("transposed vector", (x[0],), "input must have 2 dimensions .* got 1", {"transposed": True})


def _matrix_cost(
    input: Tensor,
    dtype: torch.dtype = E4M3,
    *,
    granularity: str = "row",
    block_size: int = 128,
    seed: int | None = None,
    transposed: bool = False,
) -> Cost:
    copies = 1 + transposed
    shape = scale_shape(tuple(input.shape), granularity, block_size)
    scales = copies * torch.Size(shape).numel()
    return Cost(2 * copies * input.numel(), nbytes(input) + copies * input.numel() + 4 * scales)


def _codes(make: Make, *shape: int, dtype: torch.dtype) -> Tensor:
    if dtype == torch.int8:
        return make.integers(*shape, low=-127, high=128).to(torch.int8)
    return any_float8(make, *shape, dtype=dtype)


def _dequantize_matrix_samples(make: Make) -> Iterator[Sample]:
    out = {"dtype": make.dtype}
    yield Sample("rows", (_codes(make, 5, 40, dtype=E4M3), _scales(make, 5, 1)), out)
    yield Sample("int8 blocks", (_codes(make, 2, 3, 150, dtype=torch.int8), _scales(make, 2, 3, 2)), {
        **out, "granularity": "block"})  # fmt: skip
    yield Sample("squares", (_codes(make, 40, 70, dtype=E5M2), _scales(make, 2, 3) * 0.5), {
        **out, "granularity": "square", "block_size": 32})  # fmt: skip
    yield Sample("tensor", (_codes(make, 7, 9, dtype=torch.int8), _scales(make)), {**out, "granularity": "tensor"})
    yield Sample("odd rows", (_codes(make, 5, 37, dtype=E4M3), _scales(make, 5, 1)), out)
    yield Sample("int8 rows", (_codes(make, 5, 40, dtype=torch.int8), _scales(make, 5, 1)), out)
    yield Sample("blocks", (_codes(make, 3, 72, dtype=E5M2), _scales(make, 3, 3) * 0.5), {
        **out, "granularity": "block", "block_size": 32})  # fmt: skip
    yield Sample("no rows", (_codes(make, 0, 8, dtype=E4M3), _scales(make, 0, 1)), out)


def _draw_dequantize_matrix(make: Make, rng: random.Random) -> Sample:
    granularity, block_size = rng.choice(GRANULARITIES), rng.choice([32, 64, 128])
    shape = (draw_size(rng, 150), draw_size(rng, 150))
    scale = _scales(make, *scale_shape(shape, granularity, block_size)) * 0.5
    codes = _codes(make, *shape, dtype=rng.choice(QUANTIZED_TYPES))
    kwargs = {"granularity": granularity, "block_size": block_size, "dtype": make.dtype}
    return Sample(f"{shape} {codes.dtype} {kwargs}", (codes, scale), kwargs)


def _dequantize_matrix_bad_inputs(make: Make) -> Iterator[BadInput]:
    q, scale = _codes(make, 3, 8, dtype=torch.int8), _scales(make, 3, 1)
    yield BadInput("input dtype", (q.float(), scale), "input must be torch.float8_e4m3fn, .*got torch.float32")
    yield BadInput("scale dtype", (q, scale.half()), "scale must be torch.float32, got torch.float16")
    yield BadInput(
        "scale shape", (q, scale), r"scale must have shape \(1, 1\), got \(3, 1\)", {"granularity": "square"}
    )
    yield BadInput("dtype", (q, scale), "dtype must be float32, .*got torch.int32", {"dtype": torch.int32})


def _dequantize_matrix_cost(input: Tensor, scale: Tensor, *, dtype: torch.dtype = torch.float32, **_: Any) -> Cost:
    return Cost(input.numel(), nbytes(input, scale) + input.numel() * dtype.itemsize)


add(
    OpSpec(
        name="quantize_fp8",
        family="quantize",
        op=ops.quantize_fp8,
        torch_op=_torch_quantize,
        samples=_quantize_samples,
        draw=_draw_quantize,
        bad_inputs=_quantize_bad_inputs,
        cost=_quantize_cost,
        kernels=("quantize_fp8",),
        gradcheck=False,
    )
)
add(
    OpSpec(
        name="dequantize_fp8",
        family="quantize",
        op=ops.dequantize_fp8,
        torch_op=_torch_dequantize,
        samples=_dequantize_samples,
        draw=_draw_dequantize,
        bad_inputs=_dequantize_bad_inputs,
        cost=_dequantize_cost,
        kernels=("dequantize_fp8",),
        gradcheck=False,
    )
)
add(
    OpSpec(
        name="quantize",
        family="quantize",
        op=ops.quantize,
        torch_op=_torch_quantize_matrix,
        samples=_matrix_samples,
        draw=_draw_matrix,
        bad_inputs=_matrix_bad_inputs,
        cost=_matrix_cost,
        kernels=("quantize",),
        gradcheck=False,
    )
)
add(
    OpSpec(
        name="dequantize",
        family="quantize",
        op=ops.dequantize,
        torch_op=_torch_dequantize_matrix,
        samples=_dequantize_matrix_samples,
        draw=_draw_dequantize_matrix,
        bad_inputs=_dequantize_matrix_bad_inputs,
        cost=_dequantize_matrix_cost,
        kernels=("dequantize",),
        gradcheck=False,
    )
)
