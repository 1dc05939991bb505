"""What the OpSpecs of dropout cannot say: one mask everywhere, random seeds, and how many elements are lost."""

from __future__ import annotations

import emulated
import pytest
import torch

import warpwright
from warpwright import ops
from warpwright.reference._philox import dropout_threshold, random_words


def seed_of(value: int, device: str = "cpu") -> torch.Tensor:
    return torch.tensor([value], dtype=torch.int64, device=device)


@pytest.mark.parametrize("shape", [(3, 64), (2, 5, 33), (4101,), (7, 1), ()])
@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (-3, 7), (2**62 + 12345, 2**32 - 1), (5, -1)])
def test_the_mask_is_that_of_the_definition(matrix, shape, seed, offset):
    """Bit for bit, on every backend, and in the backward pass."""
    x = torch.ones(shape, device=matrix, requires_grad=True)
    key = seed_of(seed, matrix)
    cols = shape[-1] if shape else 1
    words = random_words(key, x.numel() // cols, cols, offset).reshape(shape)
    expected = (words >= dropout_threshold(0.25)).float() / 0.75
    y = ops.dropout(x, 0.25, seed=key, offset=offset)
    assert torch.equal(y, expected)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)


@pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))
def test_backends_agree_in_every_bit():
    emulated.activate()
    x, r = torch.rand(5, 77), torch.rand(5, 77)
    results = []
    for backend in ("native", "reference", "emulated"):
        with warpwright.use_backend(backend):
            results.append(ops.dropout_add(x, r, 0.3, seed=seed_of(11), offset=3))
    for other in results[1:]:
        assert torch.equal(results[0] == r, other == r)
        torch.testing.assert_close(results[0], other, rtol=1e-6, atol=1e-6)


def test_strides_do_not_matter(matrix):
    x = torch.rand(12, 20, device=matrix)
    moved = x.t().contiguous().t()
    key = seed_of(3, matrix)
    assert torch.equal(ops.dropout(moved, 0.5, seed=key), ops.dropout(x, 0.5, seed=key))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_as_many_are_lost_as_asked(p):
    x = torch.ones(300, 1000)
    lost = (ops.dropout(x, p, seed=seed_of(1)) == 0).float()
    # Five standard deviations of a mean of 300000 independent ones.
    assert abs(lost.mean().item() - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    assert (lost.mean(0) - p).abs().max() < 6 * (p * (1 - p) / 300) ** 0.5
    assert (lost.mean(1) - p).abs().max() < 6 * (p * (1 - p) / 1000) ** 0.5


def test_seeds_and_offsets_give_other_masks():
    x = torch.ones(10, 100)
    masks = [ops.dropout(x, seed=seed_of(s), offset=o) for s, o in ((0, 0), (1, 0), (0, 1), (2**32, 0))]
    for i, a in enumerate(masks):
        for b in masks[i + 1 :]:
            assert 0.4 < (a == b).float().mean() < 0.6


def test_without_a_seed_torchs_generator_decides(matrix):
    x = torch.ones(10, 100, device=matrix)
    torch.manual_seed(0)
    first, second = ops.dropout(x), ops.dropout(x)
    torch.manual_seed(0)
    assert torch.equal(ops.dropout(x), first)
    assert not torch.equal(first, second)


def test_evaluation_adds_the_residual_alone(matrix):
    x, r = torch.rand(3, 8, device=matrix), torch.rand(3, 8, device=matrix)
    assert ops.dropout(x, 0.5, training=False) is x
    assert torch.equal(ops.dropout_add(x, r, 0.5, training=False), x + r)
    assert ops.dropout_add(x, None, 0.5, training=False) is x


def test_a_dropout_layer_trains_and_evaluates():
    layer = warpwright.nn.Dropout(0.5)
    x = torch.ones(20, 50)
    y = layer(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(layer.eval()(x), x)
    assert not warpwright.fallbacks()
