"""Groups that do not mix, and offsets that are no ends of groups: answered, never used as an address."""

from __future__ import annotations

import pytest
import torch

import warpwright
from warpwright.testing import Make

grouped_matmul = warpwright.ops.grouped_matmul

#: Offsets into 6 rows, and what they count as where nobody can look without waiting.
BAD_OFFSETS = [
    ([2, 7, 7], [2, 6, 6], "got 7 after 2"),
    ([-1, 3, 4], [0, 3, 4], "got -1 after 0"),
    ([4, 2, 5], [4, 4, 5], "got 2 after 4"),
    ([2**31 - 1, -(2**31), 1], [6, 6, 6], "got 2147483647 after 0"),
]


def _run(offsets, x, w, b, activation="gelu"):
    """The output and the gradients of every argument."""
    ends = torch.tensor(offsets, dtype=torch.int32, device=x.device)
    output = grouped_matmul(x, w, ends, bias=b, activation=activation)
    cotangent = torch.linspace(-1, 1, output.numel(), device=x.device).view_as(output).to(output.dtype)
    return [output, *torch.autograd.grad(output, (x, w, b), cotangent)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("offsets", "meant", "message"), BAD_OFFSETS)
def test_offsets_that_are_no_ends_are_answered(matrix, offsets, meant, message, dtype):
    """On the CPU by an error; elsewhere each counts as the limit that it oversteps."""
    make = Make(dtype, matrix)
    args = make.tensor(6, 16), make.tensor(3, 8, 16), make.tensor(3, 8)
    if warpwright.current_backend() == "native" and matrix == "cpu":
        expected = f"warpwright: grouped_matmul: offsets must not decrease, .* 6 rows of input, {message}"
        with pytest.raises(RuntimeError, match=expected):
            _run(offsets, *args)
        return
    for ours, theirs in zip(_run(offsets, *args), _run(meant, *args), strict=True):
        assert torch.equal(ours, theirs)


def test_bad_offsets_raise_in_backward_too():
    ops = torch.ops.warpwright
    x, w, grad = torch.randn(4, 3), torch.randn(2, 5, 3), torch.randn(4, 5)
    offsets = torch.tensor([3, 5], dtype=torch.int32)
    message = "warpwright: grouped_matmul_backward: offsets must not decrease, .* 4 rows of input, got 5 after 3"
    with pytest.raises(RuntimeError, match=message):
        ops.grouped_matmul_backward(grad, x, w, offsets, None, "none", False, True, True, True)


@pytest.mark.parametrize("architecture", ["80", "90"])
@pytest.mark.parametrize("features", [(72, 40), (5, 3)], ids=["chunks", "odd"])
def test_what_is_wrong_in_one_group_stays_there(matrix, monkeypatch, architecture, features):
    """Tiles reach over the ends of groups. Group 1 and the rows of no group are NaN: nobody else's numbers are."""
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_ARCH", architecture)
    n, k = features
    make = Make(torch.bfloat16, matrix)
    x, w, b = make.tensor(80, k), make.tensor(3, n, k), make.tensor(3, n)
    clean = _run([10, 47, 75], x, w, b)
    with torch.no_grad():
        x[10:47] = x[75:] = torch.nan
    output, grad_x, grad_w, grad_b = _run([10, 47, 75], x, w, b)
    assert output[10:47].isnan().all()
    assert not output[75:].any()
    assert not grad_x[75:].any()
    assert grad_w[1].isnan().all()
    for ours, theirs in ((output, clean[0]), (grad_x, clean[1])):
        assert torch.equal(ours[:10], theirs[:10])
        assert torch.equal(ours[47:75], theirs[47:75])
    for ours, theirs in ((grad_w, clean[2]), (grad_b, clean[3])):
        assert torch.equal(ours[::2], theirs[::2])


def test_without_a_group_every_row_is_zero(matrix):
    make = Make(torch.float32, matrix)
    output, grad_x, grad_w, grad_b = _run([], make.tensor(5, 4), make.tensor(0, 3, 4), make.tensor(0, 3))
    assert output.shape == (5, 3)
    assert not output.any()
    assert not grad_x.any()
    assert (grad_w.shape, grad_b.shape) == ((0, 3, 4), (0, 3))


@pytest.mark.parametrize("wanted", range(3))
def test_one_gradient_alone_is_that_of_all_together(matrix, wanted):
    make = Make(torch.float32, matrix)
    args = make.tensor(7, 4), make.tensor(2, 5, 4), make.tensor(2, 5)
    every = _run([3, 6], *args)[1:]
    alone = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(args)]
    offsets = torch.tensor([3, 6], dtype=torch.int32, device=matrix)
    output = grouped_matmul(alone[0], alone[1], offsets, bias=alone[2], activation="gelu")
    cotangent = torch.linspace(-1, 1, output.numel(), device=matrix).view_as(output)
    (grad,) = torch.autograd.grad(output, alone[wanted], cotangent)
    assert torch.equal(grad, every[wanted])
