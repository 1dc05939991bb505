"""What the losses' sums keep, and targets that are no class: answered, never used as an address."""

from __future__ import annotations

import pytest
import torch

import warpwright
from warpwright.testing import Make

BAD_TARGETS = [-1, 5, 2**31, -(2**62), 2**62]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("bad", BAD_TARGETS)
def test_a_target_that_is_no_class_is_answered(matrix, bad, reduction):
    """On the CPU by an error; elsewhere, where nobody can look without waiting, by NaN in that row alone."""
    make = Make(torch.float32, matrix)
    x, target = make.tensor(4, 5), torch.tensor([0, bad, 4, -100], device=matrix)
    if warpwright.current_backend() == "native" and matrix == "cpu":
        with pytest.raises(RuntimeError, match=rf"warpwright: cross_entropy: target must be in \[0, 5\) .*got {bad}"):
            warpwright.ops.cross_entropy(x, target, reduction=reduction)
        return
    loss = warpwright.ops.cross_entropy(x, target, reduction=reduction)
    loss.sum().backward()
    assert loss.isnan().tolist() == ([False, True, False, False] if reduction == "none" else True)
    assert x.grad.isnan().any(1).tolist() == [False, True, False, False]


def test_bad_targets_raise_in_backward_too():
    ops = torch.ops.warpwright
    x, target = torch.randn(3, 5), torch.tensor([0, 1, 2])
    settings = -100, "mean", 0.0, 0.0, 0.0
    _, *statistics = ops.cross_entropy(x, target, None, *settings, False)
    target[1] = 7
    with pytest.raises(RuntimeError, match=r"warpwright: cross_entropy_backward: target must be in \[0, 5\) .*got 7"):
        ops.cross_entropy_backward(torch.ones(()), x, target, None, *statistics, *settings, True, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_under_autocast_the_loss_is_float32(matrix, dtype):
    make = Make(dtype, matrix)
    x, target = make.tensor(6, 50), make.integers(6, low=0, high=50)
    with torch.autocast(matrix, dtype=torch.bfloat16):
        loss = warpwright.ops.cross_entropy(x, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(x.float(), target))
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.dtype == dtype


@pytest.mark.parametrize(("reduction", "expected"), [("sum", 3.0), ("mean", 0.75)])
def test_losses_that_cancel_leave_their_rest(matrix, reduction, expected):
    """nll_loss has both signs: rows are added up in double, whatever their order."""
    if warpwright.current_backend() == "reference":
        pytest.skip("the definition is torch's sum, in float32")
    input = torch.zeros(4, 2, device=matrix)
    input[:, 0] = torch.tensor([2.0**25, -1.0, -(2.0**25), -2.0])
    loss = warpwright.ops.nll_loss(input, torch.zeros(4, dtype=torch.int64, device=matrix), reduction=reduction)
    assert loss.item() == expected
