"""8-bit quantization is exact: every backend gives the bits of the definition."""

from __future__ import annotations

import pytest
import torch

import warpwright
from warpwright.ops.quantize import FLOAT8_TYPES, GRANULARITIES, QUANTIZED_TYPES
from warpwright.testing import Make

FORMATS = pytest.mark.parametrize("float8", FLOAT8_TYPES, ids=lambda d: str(d).removeprefix("torch.float8_"))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bit patterns, with one for every NaN."""
    same = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return torch.where(tensor.isnan(), -1, tensor.contiguous().view(same).to(torch.int64))


def by_reference(op: str, *args, **kwargs):
    with warpwright.use_backend("reference"):
        return getattr(warpwright.ops, op)(*args, **kwargs)


@FORMATS
@pytest.mark.parametrize("block_size", [None, 128, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bits_are_those_of_the_definition(matrix, dtype, float8, block_size):
    make = Make(dtype, matrix)
    # Magnitudes from subnormal to huge within one row, so that codes of every exponent occur.
    spread = make.tensor(6, 700, low=-14, high=14, grad=False, dtype=torch.float32).exp2()
    x = (make.tensor(6, 700, grad=False, dtype=torch.float32) * spread).to(dtype)
    x[0, :3] = torch.tensor([0.0, -0.0, torch.finfo(dtype).max], device=matrix)
    # Triton's interpreter takes bfloat16 subnormals for zeros, and cuts where it should round to bfloat16.
    inexact = dtype == torch.bfloat16 and warpwright.current_backend() == "triton" and matrix == "cpu"
    # Subnormals, whose scale would be too small.
    x[1] = torch.finfo(dtype).tiny * (1 if inexact else 2.0**-6) * torch.sign(x[1])
    x[2, 7], x[3, 600], x[4, 9] = torch.nan, torch.inf, -torch.inf
    ours = warpwright.ops.quantize_fp8(x, block_size, dtype=float8)
    expected = by_reference("quantize_fp8", x, block_size, dtype=float8)
    for got, wanted in zip(ours, expected, strict=True):
        assert torch.equal(bits(got), bits(wanted))
    out = torch.float32 if inexact else dtype
    back = warpwright.ops.dequantize_fp8(*ours, block_size, dtype=out)
    assert torch.equal(bits(back), bits(by_reference("dequantize_fp8", *expected, block_size, dtype=out)))


@FORMATS
def test_every_number_survives_a_round_trip(matrix, float8):
    """All 256 bit patterns: decoded as torch decodes them, and encoded to themselves."""
    codes = torch.arange(256, dtype=torch.uint8).view(float8)[None].to(matrix)
    one = torch.ones(1, 1, device=matrix)
    values = warpwright.ops.dequantize_fp8(codes, one)
    assert torch.equal(bits(values), bits(codes.float()))
    finite = values[values.isfinite()][None]  # The largest one is there, so the scale is 1.
    quantized, scale = warpwright.ops.quantize_fp8(finite, dtype=float8)
    assert scale.item() == 1.0
    assert torch.equal(bits(quantized), bits(codes[values.isfinite()][None]))


@FORMATS
def test_halfway_cases_go_to_the_even_neighbour(matrix, float8):
    finite = torch.arange(256, dtype=torch.uint8).view(float8).float()
    finite = finite[finite.isfinite()].sort().values.unique()
    halfway = (finite[1:] + finite[:-1]) / 2
    around = torch.stack((halfway, halfway.nextafter(finite[1:]), halfway.nextafter(finite[:-1])))
    row = torch.cat((around.flatten(), finite[-1:]))[None].to(matrix)
    quantized, scale = warpwright.ops.quantize_fp8(row, dtype=float8)
    assert scale.item() == 1.0
    assert torch.equal(bits(quantized), bits(row.to(float8)))


def test_the_reference_rounds_as_torch_does():
    """The definition itself, on values inside the range, is torch's own conversion."""
    x = torch.linspace(-448, 448, 10_001)[None]
    with warpwright.use_backend("reference"):
        quantized, scale = warpwright.ops.quantize_fp8(x)
    assert scale.item() == 1.0
    assert torch.equal(quantized.float(), x.to(torch.float8_e4m3fn).float())


@FORMATS
def test_a_scale_is_never_subnormal(matrix, float8):
    tiny = torch.finfo(torch.float32).tiny
    x = torch.tensor([[tiny / 64, -tiny / 128, 0.0]], device=matrix)
    quantized, scale = warpwright.ops.quantize_fp8(x, dtype=float8)
    assert scale.item() == tiny
    assert quantized.float().tolist() == [[2.0**-6, -(2.0**-7), 0.0]]


def test_a_gradient_is_refused_in_words():
    x = torch.randn(2, 8, requires_grad=True)
    _, scale = warpwright.ops.quantize_fp8(x)
    with pytest.raises(RuntimeError, match="warpwright: quantize_fp8: not differentiable"):
        scale.sum().backward()


# ---- any granularity ----

ALL_TYPES = pytest.mark.parametrize("dtype", QUANTIZED_TYPES, ids=lambda d: str(d).removeprefix("torch."))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype == torch.int8:
        return torch.equal(a, b)
    return torch.equal(bits(a), bits(b))


@ALL_TYPES
@pytest.mark.parametrize("seed", [None, 2**40 + 5])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_matrices_and_their_transposes_have_the_bits_of_the_definition(matrix, dtype, granularity, seed):
    make = Make(torch.float32, matrix)
    spread = make.tensor(70, 140, low=-12, high=12, grad=False).exp2()
    x = make.tensor(70, 140, grad=False) * spread
    x[0, :2] = torch.tensor([0.0, -0.0], device=matrix)
    x[33], x[:, 130] = 0, 0
    if granularity != "tensor":
        x[5, 7], x[66, 139], x[40, 3] = torch.nan, torch.inf, -torch.inf
    kwargs = {"granularity": granularity, "block_size": 32, "seed": seed, "transposed": True}
    ours = warpwright.ops.quantize(x, dtype, **kwargs)
    for got, wanted in zip(ours, by_reference("quantize", x, dtype, **kwargs), strict=True):
        assert same(got, wanted)
    alone = warpwright.ops.quantize(x, dtype, **{**kwargs, "transposed": False})
    assert same(alone[0], ours[0])
    assert same(alone[1], ours[1])
    if seed is None:
        turned = warpwright.ops.quantize(x.t(), dtype, **{**kwargs, "transposed": False})
        assert same(turned[0], ours[2])
        assert same(turned[1], ours[3])


@ALL_TYPES
def test_rounding_at_random_is_right_on_average(dtype):
    """The mean of many roundings is the number, within six standard deviations; rounding to the nearest is not."""
    x = torch.full((4096, 32), 0.3) * torch.tensor([1.0, -1.0]).repeat(16)
    x[:, 0] = 1.0
    quantized, scale = warpwright.ops.quantize(x, dtype, granularity="tensor", seed=3)
    found = (quantized.float() * scale)[:, 2:4]
    step = (found[:, 0].max() - found[:, 0].min()).item()
    assert step > 0
    assert ((found.mean(0) - x[0, 2:4]).abs() < 6 * 0.5 * step / 64).all()
    again = warpwright.ops.quantize(x, dtype, granularity="tensor", seed=4)[0]
    assert not same(again, quantized)
    assert same(warpwright.ops.quantize(x, dtype, granularity="tensor", seed=3)[0], quantized)


def test_squares_of_the_transpose_are_the_transposed_squares(matrix):
    x = Make(torch.bfloat16, matrix).tensor(150, 200, grad=False)
    quantized, scale, turned, turned_scale = warpwright.ops.quantize(x, granularity="square", transposed=True)
    assert same(turned, quantized.t())
    assert same(turned_scale, scale.t())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_scales_of_nothing_are_those_of_zeros(matrix, shape, granularity):
    """Also where the transpose has rows and the input none: nothing is left as it was found in memory."""
    freed = [torch.full((count,), 7.0, device=matrix) for count in (1, 4, 8, 16) for _ in range(8)]
    del freed
    _, scale, _, turned = warpwright.ops.quantize(
        torch.empty(shape, device=matrix), granularity=granularity, transposed=True
    )
    assert (scale == 1).all()
    assert (turned == 1).all()
