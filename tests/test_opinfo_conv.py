"""PyTorch's own samples (torch.testing's OpInfo) of the convolutions, through warpwright.ops."""

from __future__ import annotations

import opinfo
import pytest
import torch

from warpwright import ops
from warpwright.testing import Sample

NAMES = [f"{kind}{dims}d" for kind in ("conv", "conv_transpose") for dims in (1, 2, 3)]


def _not_taken(sample: Sample) -> str | None:
    return "complex" if any(t.is_complex() for t in sample.tensors()) else None


@pytest.mark.parametrize("dtype", opinfo.DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_through_ops(name, dtype):
    theirs = getattr(torch.nn.functional, name)
    wrong = opinfo.wrong(getattr(ops, name), theirs, f"nn.functional.{name}", dtype, _not_taken)
    assert not wrong, "\n".join(wrong)
