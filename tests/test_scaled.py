"""scaled_matmul beyond its samples: exact integers, numbers that are none, scales as quantize_fp8 makes them."""

from __future__ import annotations

import math

import pytest
import torch

import warpwright
from warpwright.ops import quantize_fp8, scaled_matmul

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
ONE = torch.ones(())


def integers(rows: int, cols: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, (rows, cols), generator=generator).to(torch.int8)


def floats(rows: int, cols: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("m", "n", "k"), [(3, 5, 1), (5, 7, 129), (33, 18, 250), (20, 40, 512)])
def test_sums_of_integers_are_exact(matrix, m, n, k, out_dtype):
    a, b = integers(m, k, 0).to(matrix), integers(n, k, 1).to(matrix)
    one = ONE.to(matrix)
    exact = (a.double() @ b.double().t() / 256).to(out_dtype)
    assert torch.equal(scaled_matmul(a, b, one, one / 256, out_dtype=out_dtype), exact)


def test_the_largest_sum_of_integers_fits(matrix):
    k = 2**17 - 1
    a, one = torch.full((1, k), -128, dtype=torch.int8, device=matrix), ONE.to(matrix)
    assert scaled_matmul(a, a, one, one, out_dtype=torch.float32).item() == torch.tensor(k * 2.0**14).item()


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("aligned", [True, False])
def test_nan_and_infinity_reach_what_they_are_summed_into(matrix, aligned, out_dtype):
    k = 32 if aligned else 31
    a, b = torch.ones(4, k, device=matrix), torch.ones(5, k, device=matrix)
    a[1, 3], b[2, 30] = math.nan, -math.nan
    x, w = a.to(E4M3), b.to(E4M3)
    one = ONE.to(matrix)
    expected = torch.full((4, 5), float(k), device=matrix)
    expected[1], expected[:, 2] = math.nan, math.nan
    ours = scaled_matmul(x, w, one, one, out_dtype=out_dtype)
    assert torch.equal(ours.isnan(), expected.isnan())
    assert torch.equal(ours.nan_to_num(), expected.nan_to_num().to(out_dtype))
    a[1, 3] = math.inf
    ours = scaled_matmul(a.to(E5M2), x[2:3], one, one, out_dtype=out_dtype)
    assert ours.flatten().tolist() == [k, math.inf, k, k]


@pytest.mark.parametrize("blocks", [(None, None), (128, None), (None, 128), (128, 128)])
def test_what_quantize_fp8_returns_is_taken_as_it_is(matrix, blocks):
    x, w = floats(6, 272, 0).to(matrix), floats(10, 272, 1).to(matrix)
    (a, a_scale), (b, b_scale) = quantize_fp8(x, blocks[0]), quantize_fp8(w, blocks[1])
    ours = scaled_matmul(a, b, a_scale, b_scale, out_dtype=torch.float32)
    dequantized = [warpwright.ops.dequantize_fp8(*t) for t in ((a, a_scale, blocks[0]), (b, b_scale, blocks[1]))]
    exact = dequantized[0].double() @ dequantized[1].double().t()
    assert (ours - exact).abs().max() < 1e-4
    # 3 bits of mantissa: each operand is off by 2^-4 of itself at most.
    assert ((ours - x @ w.t()).abs() <= (1.0625**2 - 1) * (x.abs() @ w.abs().t())).all()


def test_a_weight_that_lies_the_other_way_is_read_where_it_lies(matrix):
    w = floats(40, 24, 0, E4M3).to(matrix)  # (k, n)
    x, one = floats(8, 40, 1, E4M3).to(matrix), ONE.to(matrix)
    ours = scaled_matmul(x, w.t(), one, one, out_dtype=torch.float32)
    assert torch.equal(ours, scaled_matmul(x, w.t().contiguous(), one, one, out_dtype=torch.float32))


@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_scales_meet_the_sum_one_after_the_other(matrix, shape):
    """Their product alone is too small for a float32."""
    x = torch.full((2, 256), 448.0, device=matrix).to(E4M3)
    tiny = torch.full(shape, 2.0**-75, device=matrix)
    sums = scaled_matmul(x, x, tiny, tiny, out_dtype=torch.float32)
    assert sums.double().div(448.0**2 * 256 * 2.0**-150).sub(1).abs().max() < 1e-6


def test_there_is_no_gradient():
    x = floats(3, 8, 0, E4M3)
    bias = torch.zeros(3, requires_grad=True)
    y = scaled_matmul(x, x, ONE, ONE, bias=bias, out_dtype=torch.float32)
    with pytest.raises(RuntimeError, match="warpwright: scaled_matmul: not differentiable"):
        y.sum().backward()
