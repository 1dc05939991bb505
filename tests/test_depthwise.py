"""The CPU's depthwise kernel on images of several tiles, too large for the other backends' samples."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from warpwright import ops


def _tensors(dtype, last, shape, kernel):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    weight = torch.randn(shape[1], 1, *kernel, generator=generator, dtype=dtype)
    return x.requires_grad_(), weight.requires_grad_()


def _results(conv, x, weight, *geometry):
    output = conv(x, weight, None, *geometry, x.shape[1])
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    return output, *torch.autograd.grad(output, (x, weight), grad)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("geometry", [(1, 2, 1), ((2, 3), 1, (3, 1))], ids=str)
def test_tiles(last, geometry):
    x, weight = _tensors(torch.float64, last, (1, 9, 70, 270), (5, 3))
    for ours, theirs in zip(
        _results(ops.conv2d, x, weight, *geometry), _results(F.conv2d, x, weight, *geometry), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("kernel", [(3, 3), (11, 11)], ids=str)
def test_the_same_bits_for_any_number_of_threads(last, kernel):
    x, weight = _tensors(torch.float32, last, (9, 40, 30, 30), kernel)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_results(ops.conv2d, x, weight, 1, kernel[0] // 2, 1))
    finally:
        torch.set_num_threads(before)
    for one, *others in zip(*results, strict=True):
        assert all(torch.equal(one, other) for other in others)
