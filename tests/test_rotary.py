"""Angles at late positions, positions that a table lacks, and sequences packed into one."""

from __future__ import annotations

import pytest
import torch

import warpwright
from warpwright.testing import Make


@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("start", [0, 999_900, 2**24, -1000])
def test_computed_angles_keep_their_digits_at_any_position(matrix, start, base):
    """Of the unit vector (1, 0) the rotation is the angle's cosine and sine: within a unit of float32's last place."""
    positions = torch.arange(start, start + 40, device=matrix)
    x = torch.zeros(1, 40, 1, 64, device=matrix)
    x[..., :32] = 1
    y = warpwright.ops.rotary_embedding(x, positions=positions, base=base)[0, :, 0].cpu()
    pair = torch.arange(32, dtype=torch.float64)
    angles = positions.cpu().double()[:, None] * base ** (-pair / 32)
    limit = 2.0**-23 + 2.0**-52 * angles.abs()
    for found, exact in ((y[:, :32], angles.cos()), (y[:, 32:], angles.sin())):
        assert ((found.double() - exact).abs() <= limit).all()


@pytest.mark.parametrize("bad", [-1, 7, 2**40])
def test_a_position_that_the_table_lacks_is_answered(matrix, bad):
    """On the CPU by an error; elsewhere, where nobody can look without waiting, by NaN in that token alone."""
    make = Make(torch.float32, matrix)
    x, cos, sin = make.tensor(1, 3, 2, 8), make.tensor(7, 3, grad=False), make.tensor(7, 3, grad=False)
    positions = torch.tensor([0, bad, 6], device=matrix)
    if warpwright.current_backend() == "native" and matrix == "cpu":
        with pytest.raises(
            RuntimeError, match=rf"warpwright: rotary_embedding: positions must be in .0, 7\), got {bad}$"
        ):
            warpwright.ops.rotary_embedding(x, cos, sin, positions=positions)
        return
    y = warpwright.ops.rotary_embedding(x, cos, sin, positions=positions)
    assert y[..., :6].isnan().all(-1).all(-1).tolist() == [[False, True, False]]
    assert not y[:, ::2].isnan().any()
    assert torch.equal(y[..., 6:], x[..., 6:])


@pytest.mark.parametrize("interleaved", [False, True])
def test_packed_sequences_are_those_alone(matrix, interleaved):
    make = Make(torch.bfloat16, matrix)
    parts = [make.tensor(1, n, 2, 16, grad=False) for n in (3, 1, 5)]
    positions = torch.cat([torch.arange(part.shape[1], device=matrix) for part in parts])
    together = warpwright.ops.rotary_embedding(
        torch.cat(parts, 1), positions=positions, base=10000.0, interleaved=interleaved
    )
    alone = [warpwright.ops.rotary_embedding(part, base=10000.0, interleaved=interleaved) for part in parts]
    assert torch.equal(together, torch.cat(alone, 1))


@pytest.mark.parametrize("kwargs", [{"base": 10000.0}, {}])
def test_queries_and_keys_at_once_are_those_one_by_one(matrix, kwargs):
    """The same bits, forward and backward, with heads before the sequence in memory."""
    make = Make(torch.float16, matrix)
    query = make.tensor(2, 6, 4, 32).detach().transpose(1, 2).requires_grad_()
    key = make.tensor(2, 3, 4, 32).detach().transpose(1, 2).requires_grad_()
    tables = () if kwargs else (make.tensor(4, 16, grad=False), make.tensor(4, 16, grad=False))
    both = warpwright.ops.rotary_embedding_qk(query, key, *tables, **kwargs)
    each = [warpwright.ops.rotary_embedding(t, *tables, **kwargs) for t in (query, key)]
    for ours, expected, leaf in zip(both, each, (query, key), strict=True):
        assert torch.equal(ours, expected)
        cotangent = make.tensor(*ours.shape, grad=False)
        (found,) = torch.autograd.grad(ours, leaf, cotangent, retain_graph=True)
        assert torch.equal(found, torch.autograd.grad(expected, leaf, cotangent)[0])
