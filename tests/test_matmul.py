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


def test_a_weight_with_gaps_does_not_go_to_onednn():
    """It would take a thousand times as long there, for a product that is no slower with gaps in aten's."""
    x, wide = torch.zeros(128, 128), torch.zeros(128, 256)
    for weight in (wide[:, :128], wide[:, ::2], torch.zeros(256, 128)[::2], wide.t()[:128].t()):
        kernel = warpwright.explain("linear", x, weight).kernel
        assert ("oneDNN" in kernel) == (weight.is_contiguous() or weight.t().is_contiguous()), weight.stride()
