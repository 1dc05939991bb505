"""The norms beyond their OpSpecs: seeds, what is not a number, and layers."""

from __future__ import annotations

import pytest
import torch

import warpwright
from warpwright import ops


def test_a_seed_is_drawn_where_none_is_given(matrix):
    x = torch.ones(4, 64, device=matrix)
    torch.manual_seed(0)
    first, second = (ops.rms_norm(x, (64,), dropout_p=0.5) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(first, ops.rms_norm(x, (64,), dropout_p=0.5))
    assert not torch.equal(first, second)


def test_offsets_of_one_seed_drop_other_elements(matrix):
    x, seed = torch.ones(4, 64, device=matrix), torch.tensor([7], device=matrix)
    masks = [ops.layer_norm(x, (64,), dropout_p=0.5, seed=seed, offset=i, residual=x)[1] for i in range(2)]
    assert {float(v) for mask in masks for v in mask.unique()} == {1.0, 3.0}
    assert not torch.equal(*masks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_default_eps_is_torch_s(matrix, dtype):
    """Half inputs are computed in float32, and it is float32's epsilon that is added: bfloat16's would be most of the
    mean square of these."""
    x = (torch.linspace(-0.1, 0.1, 40) + torch.zeros(3, 1)).to(matrix, dtype)
    expected = torch.nn.functional.rms_norm(x, (40,))
    assert expected.abs().max() > 1.6
    torch.testing.assert_close(ops.rms_norm(x, (40,)), expected, rtol=torch.finfo(dtype).eps, atol=0)
    _, scale = ops.rms_norm_quantize(x, (40,))
    torch.testing.assert_close(scale[:, 0] * 448, expected.float().amax(1), rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(matrix, value):
    x = torch.randn(3, 40, device=matrix)
    clean = x.clone()
    x[1, 5] = value
    for op in (lambda t: ops.rms_norm(t, (40,)), lambda t: ops.layer_norm(t, (40,)), ops.l2_normalize):
        found = op(x)
        assert torch.equal(found[[0, 2]], op(clean)[[0, 2]])
        assert found[1].isnan().any()


def test_a_row_of_zeros_has_no_direction(matrix):
    x = torch.zeros(2, 8, device=matrix, requires_grad=True)
    y = ops.l2_normalize(x, eps=0.5)
    assert torch.equal(y, torch.zeros_like(y))
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, torch.full_like(grad, 2.0))


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_only_the_sum_is_used(matrix, name):
    x, r = (torch.randn(3, 16, device=matrix, requires_grad=True) for _ in range(2))
    seed = torch.tensor([3], device=matrix)
    total = getattr(ops, name)(x, (16,), residual=r, dropout_p=0.5, seed=seed)[1]
    of_x, of_r = torch.autograd.grad(total.sum(), (x, r))
    assert torch.equal(of_r, torch.ones_like(of_r))
    assert torch.equal(of_x.unique(), torch.tensor([0.0, 2.0], device=matrix))


def test_gemma_s_layer_starts_as_torch_s():
    layer = warpwright.nn.RMSNorm(8, eps=1e-6, weight_offset=1.0)
    x = torch.randn(3, 8)
    assert torch.equal(layer.weight, torch.zeros(8))
    assert torch.allclose(layer(x), torch.nn.RMSNorm(8, eps=1e-6)(x), atol=1e-6)
    assert "weight_offset=1.0" in repr(layer)
    with pytest.raises(ValueError, match="weight_offset needs elementwise_affine"):
        warpwright.nn.RMSNorm(8, elementwise_affine=False, weight_offset=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_default_epsilon_of_an_rms_norm_is_torchs(matrix, dtype):
    """That of float32, where rows are so short that it matters which."""
    x = torch.full((2, 8), 2**-12, dtype=dtype, device=matrix)
    torch.testing.assert_close(ops.rms_norm(x, (8,)), torch.nn.functional.rms_norm(x, (8,)), rtol=0.01, atol=0)
