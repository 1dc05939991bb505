"""Quantized norms are what quantize_fp8 makes of an unrounded norm, on every backend."""

from __future__ import annotations

import pytest
import torch

from warpwright import ops
from warpwright.testing import Make


@pytest.mark.parametrize("block_size", [None, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("cols", [256, 259])
def test_it_is_the_norm_and_quantize_fp8(matrix, block_size, dtype, cols):
    make = Make(torch.float32, matrix)
    x, w = make.tensor(5, cols, grad=False), make.tensor(cols, grad=False)
    quantized, scale = ops.rms_norm_quantize(x, (cols,), w, 1e-6, block_size=block_size, dtype=dtype)
    expected, expected_scale = ops.quantize_fp8(ops.rms_norm(x, (cols,), w, 1e-6), block_size, dtype=dtype)
    assert torch.allclose(scale, expected_scale, rtol=1e-6)
    same = quantized.view(torch.uint8) == expected.view(torch.uint8)
    assert same.float().mean() > 0.99  # A number at the edge between two codes may become either.


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=["e4m3", "int8"])
def test_a_nan_spoils_its_block_or_row(matrix, dtype):
    x = torch.randn(2, 64, device=matrix)
    x[1, 40] = float("nan")
    quantized, scale = ops.layer_norm_quantize(x, (64,), block_size=32, dtype=dtype)
    assert scale[0].isfinite().all()
    assert scale[1].isnan().all()
    values = quantized[1].float()
    assert values.isnan().all() if dtype != torch.int8 else (values == 0).all()


def test_zeros_have_the_scale_one(matrix):
    quantized, scale = ops.rms_norm_quantize(torch.zeros(2, 40, device=matrix), (40,), dtype=torch.int8)
    assert torch.equal(scale, torch.ones_like(scale))
    assert not quantized.any()


def test_it_has_no_gradient(matrix):
    x = torch.randn(2, 32, device=matrix, requires_grad=True)
    _, scale = ops.rms_norm_quantize(x, (32,))
    with pytest.raises(RuntimeError, match="not differentiable"):
        scale.sum().backward()
