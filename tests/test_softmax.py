"""What the OpSpecs of softmax cannot say: wide rows, masks with a gradient, autocast and the ways to give rows to
threads."""

from __future__ import annotations

import pytest
import torch

import warpwright
from warpwright import ops
from warpwright.testing import SPECS, Make, Sample, compare

BOTH = pytest.mark.parametrize("name", ["softmax", "log_softmax"])


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cols", [16416, 4111])
def test_rows_wider_than_a_block_holds(matrix, monkeypatch, name, dtype, cols):
    """Before Hopper there are no clusters: 16384 elements of 16 bits are the most that a block has room for, or 4096
    one by one; wider rows are read again."""
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_ARCH", "80")
    make = Make(dtype, matrix)
    sample = Sample(f"{cols} columns", (make.tensor(2, cols, low=-8, high=8),), {"mask": make.tensor(cols) > -0.9})
    wrong = [str(c) for c in compare(SPECS[name], sample) if not c.ok]
    assert not wrong, "\n".join(wrong)


@BOTH
def test_a_cluster_takes_a_wide_row(matrix, name):
    make = Make(torch.bfloat16, matrix)
    sample = Sample("a cluster's row", (make.tensor(1, 32800, low=-8, high=8),))
    wrong = [str(c) for c in compare(SPECS[name], sample) if not c.ok]
    assert not wrong, "\n".join(wrong)


@BOTH
def test_a_wide_row_whose_maximum_comes_late(matrix, name):
    """Exponentials of its start are less than the smallest number beside those of its end."""
    x = torch.linspace(-300, 300, 9000, device=matrix).reshape(1, -1).requires_grad_()
    wrong = [str(c) for c in compare(SPECS[name], Sample("rising", (x,))) if not c.ok]
    assert not wrong, "\n".join(wrong)


@BOTH
def test_a_wide_row_that_is_masked_in_parts(matrix, name):
    """Whole pieces of it have nothing left."""
    keep = torch.zeros(3, 9000, dtype=torch.bool, device=matrix)
    keep[0, 8500:], keep[1, :7] = True, True
    make = Make(torch.float32, matrix)
    sample = Sample("parts", (make.tensor(3, 9000, low=-4, high=4),), {"mask": keep})
    wrong = [str(c) for c in compare(SPECS[name], sample) if not c.ok]
    assert not wrong, "\n".join(wrong)


@BOTH
@pytest.mark.parametrize("shape", [(4, 6), (6,), (3, 1, 6), (2, 1, 1, 6)])
def test_an_added_mask_has_a_gradient(matrix, name, shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 4, 6, generator=generator).to(matrix).requires_grad_()
    mask = torch.rand(shape, generator=generator).to(matrix).requires_grad_()
    ours = torch.autograd.grad(getattr(ops, name)(x, scale=0.5, mask=mask).square().sum(), (x, mask))
    theirs = torch.autograd.grad(getattr(torch, name)(x * 0.5 + mask, -1).square().sum(), (x, mask))
    torch.testing.assert_close(ours, theirs)


def test_attention_by_hand(matrix):
    """Scale and the causal bound are those of torch's own attention."""
    make = Make(torch.float32, matrix)
    q, k, v = (make.tensor(2, 3, 9, 16, grad=False) for _ in range(3))
    weights = ops.softmax(q @ k.mT, scale=16**-0.5, causal=True)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(weights @ v, expected)


@BOTH
def test_dtype_converts_first(matrix, name):
    x = torch.rand(3, 8, dtype=torch.bfloat16, device=matrix, requires_grad=True)
    result, expected = getattr(ops, name)(x, dtype=torch.float32), getattr(torch, name)(x, -1, dtype=torch.float32)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected)
    ours, theirs = (torch.autograd.grad(y.square().sum(), x) for y in (result, expected))
    torch.testing.assert_close(ours, theirs)


@BOTH
def test_autocast_is_torchs(name):
    x = torch.rand(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        for value in (x, x.to(torch.bfloat16)):
            assert getattr(ops, name)(value).dtype == getattr(torch, name)(value, -1).dtype


@BOTH
def test_a_row_does_not_depend_on_the_others(matrix, name):
    if warpwright.current_backend() == "reference":
        pytest.skip("the definitions are torch's")
    x = Make(torch.float32, matrix).tensor(40, 333, grad=False)
    whole = getattr(ops, name)(x)
    for row in (0, 17, 39):
        assert torch.equal(getattr(ops, name)(x[row]), whole[row])
