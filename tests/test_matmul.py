"""Products on the CPU in sizes that the samples of every backend have no time for."""

from __future__ import annotations

import pytest
import torch

import warpwright
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
