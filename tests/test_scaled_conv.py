"""scaled_conv beyond its samples: exact integers, chains that stay in 8 bits, what saturates, numbers that are none."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import warpwright
from warpwright._conv import in_format
from warpwright.ops import quantize, scaled_conv1d, scaled_conv2d, scaled_conv3d

E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8


def integers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=generator).to(INT8)


def scalar(value: float, device: str) -> Tensor:
    return torch.tensor(value, device=device)


def rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 values as quantize rounds them with scale 1: from plain comparisons, not from the op's own code."""
    if dtype == INT8:
        return value.clamp(-127, 127).round().nan_to_num(0.0).to(INT8)
    largest = torch.finfo(dtype).max
    return value.clamp(-largest, largest).to(dtype)


#: x, w, stride, padding, dilation, groups.
GEOMETRIES: dict[str, tuple[Any, ...]] = {
    "1x1": ((2, 16, 4, 5), (8, 16, 1, 1), 1, 0, 1, 1),
    "3x3": ((1, 5, 7, 6), (9, 5, 3, 3), 1, 1, 1, 1),
    "3x3 of sixteens, stride 2": ((2, 32, 7, 6), (70, 32, 3, 3), 2, 1, 1, 1),
    "7x7 of three channels": ((1, 3, 12, 13), (16, 3, 7, 7), 2, 3, 1, 1),
    "dilation, groups": ((1, 34, 8, 9), (6, 17, 2, 3), 1, (0, 2), (3, 2), 2),
    "depthwise": ((2, 21, 6, 5), (21, 1, 3, 3), 1, 1, 1, 21),
    "few channels a group": ((1, 6, 6, 5), (9, 2, 3, 3), 1, 1, 1, 3),
    "1d": ((2, 7, 30), (5, 7, 4), 3, 2, 1, 1),
    "3d": ((1, 4, 5, 6, 4), (6, 4, 3, 2, 3), (1, 2, 1), 1, 1, 1),
}
OPS = {3: scaled_conv1d, 4: scaled_conv2d, 5: scaled_conv3d}
CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_sums_of_integers_are_exact(matrix, name, last):
    x_shape, w_shape, *geometry = GEOMETRIES[name]
    x, w = integers(*x_shape).to(matrix), integers(*w_shape, seed=1).to(matrix)
    exact = CONVOLUTIONS[x.dim()](x.double(), w.double(), None, *geometry)
    x, w = in_format(x, last), in_format(w, last)
    one = scalar(1.0, matrix)
    ours = OPS[x.dim()](x, w, one, one / 256, None, *geometry, out_dtype=torch.float32)
    assert torch.equal(ours, (exact / 256).float())
    codes = OPS[x.dim()](x, w, one, one / 64, None, *geometry, out_dtype=INT8, output_scale=one * 16)
    assert torch.equal(codes, rounded((exact / 1024).float(), INT8))


@pytest.mark.parametrize("first", [0, 8])
def test_some_channels_of_a_tensor_are_read_where_they_lie(matrix, first):
    """Sixteen of 24, whose pixels do not all start at multiples of 16 bytes."""
    x, w = in_format(integers(2, 24, 6, 5).to(matrix), True), in_format(integers(8, 16, 3, 3, seed=1).to(matrix), True)
    one, part = scalar(1.0, matrix), x[:, first : first + 16]
    exact = F.conv2d(part.double(), w.double())
    assert torch.equal(scaled_conv2d(part, w, one, one, out_dtype=torch.float32), exact.float())


def test_sums_past_what_float32_counts(matrix):
    """2304 products of up to 2^14: past 2^24, where a float32 sum of integers is not exact."""
    x, w = integers(1, 256, 4, 3) // 16 + 112, integers(3, 256, 3, 3, seed=1) // 16 + 119
    exact = F.conv2d(x.double(), w.double())
    assert exact.min() > 2**24
    assert (exact % 2 == 1).any()
    one = scalar(1.0, matrix)
    ours = scaled_conv2d(x.to(matrix), w.to(matrix), one, one, out_dtype=torch.float32)
    assert torch.equal(ours.cpu(), exact.float())


def test_the_largest_sum_of_integers_fits(matrix):
    channels = 2**15 - 1
    x = torch.full((1, channels, 4), -128, dtype=INT8, device=matrix)
    one = scalar(1.0, matrix)
    ours = scaled_conv1d(x, x, one, one, out_dtype=torch.float32)
    assert ours.item() == torch.tensor(4 * channels * 2.0**14).item()


@pytest.mark.parametrize("dtype", [INT8, E4M3, E5M2])
def test_a_chain_of_two_convolutions_stays_in_8_bits(matrix, dtype):
    """As a residual block is quantized: the second one adds the first one's input, with the scale that it has."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 16, 7, 6, generator=generator).contiguous(memory_format=torch.channels_last).to(matrix)
    weights = [torch.randn(16, 16, 3, 3, generator=generator).to(matrix) / 12 for _ in range(2)]
    bias = torch.randn(16, generator=generator).to(matrix)
    x, x_scale = quantize(images.movedim(1, -1).contiguous(), dtype=dtype, granularity="tensor")
    x = x.movedim(-1, 1)
    w, w_scale = zip(*(quantize(weight.flatten(1), dtype=dtype, granularity="row") for weight in weights), strict=True)
    filters = [in_format(codes.view(16, 16, 3, 3), True) for codes in w]
    wide = torch.float32
    middle = scaled_conv2d(x, filters[0], x_scale, w_scale[0], bias, 1, 1, activation="relu", out_dtype=wide)
    y_scale = middle.abs().amax() / (127.0 if dtype == INT8 else torch.finfo(dtype).max)
    y = scaled_conv2d(
        x, filters[0], x_scale, w_scale[0], bias, 1, 1, activation="relu", out_dtype=dtype, output_scale=y_scale
    )
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y.float(), rounded(middle / y_scale, dtype).float())
    z = scaled_conv2d(
        y, filters[1], y_scale, w_scale[1], None, 1, 1, residual=x, residual_scale=x_scale, activation="relu",
        out_dtype=wide,
    )  # fmt: skip
    # In float64, of the same numbers.
    a, b = (codes.double() * scale.double() for codes, scale in ((x, x_scale), (y, y_scale)))
    second = filters[1].double() * w_scale[1].double().view(-1, 1, 1, 1)
    exact = (F.conv2d(b, second, None, 1, 1) + a).relu()
    assert (z - exact).abs().max() < 1e-5
    # And near what no quantization gives.
    plain = F.conv2d(F.conv2d(images, weights[0], bias, 1, 1).relu(), weights[1], None, 1, 1)
    assert (z - (plain + images).relu()).abs().max() < {INT8: 0.1, E4M3: 0.4, E5M2: 0.8}[dtype]


@pytest.mark.parametrize("dtype", [INT8, E4M3, E5M2])
@pytest.mark.parametrize("channels", [1, 16])
def test_what_is_too_large_becomes_the_largest(matrix, dtype, channels):
    largest = 127.0 if dtype == INT8 else torch.finfo(dtype).max
    bias = torch.tensor([1e5, -1e5, math.inf, -math.inf, math.nan, 0.5, 1.5, -2.5, 0.0], device=matrix)
    x = torch.zeros(1, channels, 2, 1, dtype=INT8, device=matrix)
    w = torch.zeros(9, channels, 1, 1, dtype=INT8, device=matrix)
    one = scalar(1.0, matrix)
    ours = scaled_conv2d(x, w, one, one, bias, out_dtype=dtype, output_scale=one)[0, :, 0, 0].float()
    assert ours[:4].tolist() == [largest, -largest, largest, -largest]
    assert ours[4].item() == 0 if dtype == INT8 else ours[4].isnan()
    assert ours[5:].tolist() == ([0.0, 2.0, -2.0, 0.0] if dtype == INT8 else [0.5, 1.5, -2.5, 0.0])


@pytest.mark.parametrize("channels", [1, 5, 16, 64])
def test_nan_and_infinity_reach_what_they_are_summed_into(matrix, channels):
    groups = channels if channels == 5 else 1  # Depthwise.
    x = torch.ones(1, channels, 5, 5, device=matrix)
    x[0, 0, 0, 0] = math.nan
    w = torch.ones(5, channels // groups, 3, 3, device=matrix)
    one = scalar(1.0, matrix)
    settings = (None, 1, 0, 1, groups)
    found = scaled_conv2d(x.to(E4M3), w.to(E4M3), one, one, *settings, out_dtype=torch.float32)
    expected = F.conv2d(x, w, None, 1, 0, 1, groups)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    x[0, 0, 0, 0] = math.inf
    found = scaled_conv2d(x.to(E5M2), w.to(E4M3), one, one, *settings, out_dtype=torch.float32)
    assert torch.equal(found, F.conv2d(x, w, None, 1, 0, 1, groups))


def test_no_channels_leave_the_bias(matrix):
    x, w = (torch.zeros(s, dtype=INT8, device=matrix) for s in ((1, 0, 4, 4), (2, 0, 3, 3)))
    one, bias = scalar(1.0, matrix), torch.tensor([2.0, -3.0], device=matrix)
    found = scaled_conv2d(x, w, one, one, bias, out_dtype=torch.float32)
    assert torch.equal(found, bias.view(1, 2, 1, 1).expand(1, 2, 2, 2))


def test_scales_meet_the_sum_one_after_the_other(matrix):
    """Their product alone is too small for a float32."""
    x = torch.full((1, 16, 4, 4), 448.0, device=matrix).to(E4M3)
    tiny = scalar(2.0**-75, matrix)
    sums = scaled_conv2d(x, x, tiny, tiny, out_dtype=torch.float32)
    assert sums.double().div(448.0**2 * 256 * 2.0**-150).sub(1).abs().max() < 1e-6


def test_the_output_lies_as_conv2d_has_it(matrix):
    x, w, one = integers(1, 4, 5, 6).to(matrix), integers(8, 4, 3, 3).to(matrix), scalar(1.0, matrix)
    last = torch.channels_last
    for a, b in ((x, w), (in_format(x, True), w), (x, in_format(w, True))):
        y = scaled_conv2d(a, b, one, one, out_dtype=INT8, output_scale=one * 1000)
        assert y.is_contiguous(memory_format=last) == (a is not x or b is not w)


def test_there_is_no_gradient():
    x, one = integers(1, 3, 5, 5), torch.ones(())
    bias = torch.zeros(3, requires_grad=True)
    y = scaled_conv2d(x, integers(3, 3, 3, 3), one, one, bias, out_dtype=torch.float32)
    with pytest.raises(RuntimeError, match="warpwright: scaled_convolution: not differentiable"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("channels", "groups", "last", "dtype", "kernel"),
    [
        (16, 1, True, INT8, "products on the tensor cores as int8, 16 channels at a time"),
        (16, 1, False, E4M3, "products on the tensor cores as float16, one channel at a time"),
        (24, 1, True, INT8, "products on the tensor cores as int8, one channel at a time"),
        (8, 8, True, INT8, "a thread sums each output"),
    ],
)
def test_explain_names_the_kernel(channels, groups, last, dtype, kernel):
    emulated = pytest.importorskip("emulated")
    if emulated.missing() is not None:
        pytest.skip(str(emulated.missing()))
    emulated.activate()
    x, w = (in_format(torch.ones(s).to(dtype), last) for s in ((1, channels, 5, 5), (8, channels // groups, 3, 3)))
    one = torch.ones(())
    with warpwright.use_backend("emulated"):
        found = warpwright.explain(scaled_conv2d, x, w, one, one, groups=groups)
    assert found.kernel == f"scaled_conv2d (C++ CUDA, emulated on the CPU: {kernel})"
    assert found.flops == 2 * 8 * 9 * (channels // groups) * 9
