"""Depthwise convolutions: the CPU's kernel on images of several tiles, too large for the other backends' samples, and
what the tiles, strips and sums of the others meet."""

from __future__ import annotations

import itertools

import emulated
import pytest
import torch
import torch.nn.functional as F

import warpwright
from warpwright import ops
from warpwright.testing import SPECS, Make, Sample, compare


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


#: Kernel, stride, padding and dilation: along the height, where strips run, and the width.
GEOMETRIES = {
    "strips": ((3, 3), (1, 1), (1, 1), (1, 1)),
    "two taps of a stride": ((5, 3), (2, 2), (2, 1), (1, 1)),
    "positions a dilation apart": ((3, 2), (1, 2), (3, 1), (3, 1)),
    "stride and dilation with a common divisor": ((4, 2), (4, 1), (2, 0), (6, 2)),
    "stride past the filter": ((2, 1), (3, 4), (0, 0), (1, 1)),
}


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("channels", [5, 72], ids=["odd channels", "packs of channels"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_stride_and_dilation(matrix, name, channels, last):
    """More positions than a strip has, more channels than a block, and columns that end within a block."""
    kernel, *geometry = GEOMETRIES[name]
    make = Make(torch.bfloat16, matrix)
    x, w = _lying(make.tensor(2, channels, 27, 6), last), make.tensor(channels, 1, *kernel)
    args = (x.requires_grad_(), w, make.tensor(channels), *geometry, channels)
    assert all(c.ok for c in compare(SPECS["conv2d"], Sample(name, args, {"activation": "relu"})))


def _lying(tensor, last):
    return tensor.detach().contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("channels", [3, 16], ids=["odd channels", "packs of channels"])
def test_parts_of_a_weights_gradient(matrix, channels, last):
    """More than one part of the sum: in whole numbers nothing is rounded, so the sum is exact."""
    make = Make(torch.bfloat16, matrix)
    x = _lying((make.tensor(3, channels, 30, 41, grad=False) * 2).round(), last)
    w = make.tensor(channels, 1, 5, 3)
    output = ops.conv2d(x, w, None, 1, 1, 1, channels)
    cotangent = _lying(make.tensor(*output.shape, grad=False).round(), last)
    (found,) = torch.autograd.grad(output, w, cotangent)
    w64 = w.detach().double().requires_grad_()
    exact = torch.autograd.grad(F.conv2d(x.double(), w64, None, 1, 1, 1, channels), w64, cotangent.double())[0]
    assert torch.equal(found, exact.to(torch.bfloat16))


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_long_sums_are_added_up_in_parts(matrix, last):
    """A chain of 1023 times 1.1 is 173 units in the last place off; parts of at most 66, and 31 parts, at most 97."""
    if warpwright.current_backend() in ("native", "reference") and matrix == "cpu":
        pytest.skip("on the CPU they are one chain, as torch's")
    x = _lying(torch.full((1, 4, 34, 32), 1.1, device=matrix), last)
    found = ops.conv2d(x, torch.ones(4, 1, 33, 31, device=matrix), None, 1, 0, 1, 4)
    exact = x.flatten()[0].double() * 33 * 31
    assert ((found - exact).abs() / exact).max() <= 97 * 2**-24


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_results_repeat_bit_for_bit(matrix, last):
    make = Make(torch.bfloat16, matrix)
    x, w = _lying(make.tensor(2, 8, 40, 17), last).requires_grad_(), make.tensor(8, 1, 3, 3)
    first, second = (_results(ops.conv2d, x, w, 1, 1, 1) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))
def test_which_kernel_is_taken():
    """The strips' kernels for a filter a channel, unless a column of it has more taps than they hold."""
    emulated.activate()
    launches = {}
    for height, filters in itertools.product((64, 65), (2, 4)):
        before = emulated.launches("conv_depthwise_fprop")
        with warpwright.use_backend("emulated"), torch.no_grad():
            ops.conv2d(torch.ones(1, 2, 66, 3), torch.ones(filters, 1, height, 2), groups=2)
        launches[height, filters] = emulated.launches("conv_depthwise_fprop") - before
    assert launches == {(64, 2): 1, (64, 4): 0, (65, 2): 0, (65, 4): 0}
