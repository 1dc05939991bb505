"""Products on the CPU in sizes that the samples of every backend have no time for."""

from __future__ import annotations

import pytest
import torch

import warpwright
from warpwright import ops
from warpwright.testing import SPECS, Make, Sample, compare


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("inner", [768, 1536, 2048])
def test_long_sums_are_within_twice_torchs_error(dtype, inner):
    """oneDNN adds up float32 in one chain, whose error is two to four times aten's where the chain is long."""
    make = Make(dtype)
    sample = Sample("long", (make.tensor(256, inner), make.tensor(256, inner, low=-(inner**-0.5), high=inner**-0.5)))
    with warpwright.use_backend("native"):
        compared = compare(SPECS["linear"], sample)
    assert all(c.ok for c in compared), compared


def test_operands_in_another_order_do_not_go_to_onednn():
    """With gaps in its weight it takes a thousand times as long, and of its input torch makes a copy first."""
    x, wide = torch.zeros(192, 192), torch.zeros(192, 384)
    for weight in (wide[:, :192], wide[:, ::2], torch.zeros(384, 192)[::2]):
        assert "aten" in warpwright.explain("linear", x, weight).kernel, weight.stride()
    for weight in (torch.zeros(192, 192), torch.zeros(192, 192).t()):
        assert "oneDNN" in warpwright.explain("linear", x, weight).kernel
        assert "aten" in warpwright.explain("linear", x.t(), weight).kernel


# ---- batch_invariant ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_batch_invariant_rows_are_those_that_they_have_alone(dtype):
    """BLAS and oneDNN choose kernels by the number of rows, and so the order of a sum."""
    make = Make(dtype)
    x, w, b = make.tensor(150, 700, grad=False), make.tensor(77, 700, grad=False), make.tensor(77, grad=False)
    with warpwright.batch_invariant():
        full = warpwright.ops.linear(x, w, b, activation="silu")
        for rows in (1, 2, 3, 63, 65):
            assert torch.equal(warpwright.ops.linear(x[:rows], w, b, activation="silu"), full[:rows])
        assert torch.equal(warpwright.ops.linear(x[40:41], w, b, activation="silu"), full[40:41])
    assert not warpwright._arithmetic._batch_invariant


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_invariant_products_are_right(dtype):
    make = Make(dtype)
    long = Sample("long", (make.tensor(70, 1100), make.tensor(1100, 45)), {"activation": "gelu", "alpha": 0.5})
    heads = Sample("heads", (make.tensor(2, 5, 3, 8).transpose(1, 2), make.tensor(2, 6, 3, 8).permute(0, 2, 3, 1)))
    with warpwright.batch_invariant():
        for sample in (long, heads, Sample("empty", (make.tensor(0, 4), make.tensor(4, 3)))):
            compared = compare(SPECS["matmul"], sample)
            assert all(c.ok for c in compared), compared


# ---- settings ----


def test_float32_precision_is_checked_and_restored():
    with pytest.raises(RuntimeError, match="mode must be None or one of ieee, tf32, tf32x3, got 'bf16'"):
        warpwright.float32_precision("bf16")
    with warpwright.float32_precision("tf32x3"):
        assert warpwright._arithmetic.arithmetic_of(torch.zeros(1)) == ("tf32x3", False)
        assert warpwright._arithmetic.arithmetic_of(torch.zeros(1, dtype=torch.float16)) == ("ieee", False)
    assert warpwright._arithmetic.arithmetic_of(torch.zeros(1)) == ("ieee", False)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_outputs_saturate(dtype):
    x = torch.full((3, 4), 1e4)
    result = warpwright.ops.matmul(x, x.mT, output_scale=0.5, out_dtype=dtype)
    assert torch.equal(result.float(), torch.full((3, 3), torch.finfo(dtype).max))
    small = warpwright.ops.matmul(torch.eye(4), torch.full((4, 4), 0.3), out_dtype=dtype)
    assert torch.equal(small.float(), torch.full((4, 4), 0.3).to(dtype).float())


def test_small_integers_are_exact():
    make = Make(torch.float32)
    a, b = (make.integers(*shape, low=-8, high=9).float() for shape in ((65, 300), (300, 70)))
    assert torch.equal(warpwright.ops.matmul(a, b), (a.double() @ b.double()).float())


@pytest.mark.parametrize("k", [7, 17, 32, 33, 50])
def test_gaps_between_rows_are_not_read(matrix, k):
    """oneDNN reads rows in pieces, and multiplies what lies behind the last element by 0."""
    if warpwright.current_backend() == "reference":
        pytest.skip("the definition is PyTorch's own product, which has this fault on processors with AMX")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        gaps = torch.full((33, k + 3), float("nan"), dtype=dtype, device=matrix)
        gaps[:, :k] = torch.randn((33, k), device=matrix)
        rows, b, bias = (
            gaps[:, :k],
            torch.randn((k, 8), device=matrix).to(dtype),
            torch.ones(8, device=matrix).to(dtype),
        )
        for product in (
            ops.matmul(rows, b),
            ops.linear(rows, b.t()),
            ops.linear(rows, b.t().contiguous(), bias),
            ops.addmm(bias.expand(33, 8), rows, b),
        ):
            assert product.isfinite().all()
