"""Convolutions of 8-bit tensors that carry scales: conv.py's forward product, one filter tap at a time.

int8 is multiplied as it is; 8-bit floats as float16, which holds every one of them and keeps float32's digits.
"""

from __future__ import annotations

from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright._conv import channels_last, empty_in_format, output_sizes
from warpwright.triton_kernels._activation import activate
from warpwright.triton_kernels._common import interpreted, round_even, rounded
from warpwright.triton_kernels._conv import Relation, place, pointer
from warpwright.triton_kernels.quantize import _ALL_FORMATS, _encode
from warpwright.triton_kernels.scaled import _FORMATS, _operand


@triton.jit
def _scaled_conv_kernel(
    x_ptr, xn, xc, xd, xh, xw, w_ptr, wk, wc, wt, wr, ws, y_ptr, yn, yk, yd, yh, yw, res_ptr, rn, rk, rd, rh, rw,
    bias_ptr, x_scale_ptr, w_scale_ptr, w_scale_stride, res_scale_ptr, y_scale_ptr,
    batch, depth, height, width, out_d, out_h, out_w, group_channels, group_filters, kernel_d, kernel_h, kernel_w,
    stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    X_FORMAT: tl.constexpr, W_FORMAT: tl.constexpr, RES_FORMAT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, QUANTIZED: tl.constexpr, MANTISSA: tl.constexpr,
    BIAS: tl.constexpr, MAX: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    SUM: tl.constexpr = tl.int32 if X_FORMAT == "int8" else tl.float32
    tiles_n = tl.cdiv(group_filters, BLOCK_N)
    pid = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    m = (pid // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    filter = (pid % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    n, e, p, q = place(m, out_d, out_h, out_w)
    in_m, in_n = n < batch, filter < group_filters
    wide_filter = group * group_filters + filter
    acc = tl.zeros((BLOCK_M, BLOCK_N), SUM)
    for tap in range(kernel_d * kernel_h * kernel_w):
        _, t, r, s = place(tl.cast(tap, tl.int64), kernel_d, kernel_h, kernel_w)
        d = e * stride_d - pad_d + t * dil_d
        h = p * stride_h - pad_h + r * dil_h
        w = q * stride_w - pad_w + s * dil_w
        inside = in_m & (d >= 0) & (d < depth) & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        pixel = n * xn + d * xd + h * xh + w * xw
        for start in range(0, group_channels, BLOCK_K):
            c = start + tl.arange(0, BLOCK_K).to(tl.int64)
            in_c = c < group_channels
            a_at = pixel[:, None] + (group * group_channels + c)[None, :] * xc
            a = tl.load(x_ptr + a_at, inside[:, None] & in_c[None, :], 0)  # (BLOCK_M, BLOCK_K)
            b_at = wide_filter[None, :] * wk + c[:, None] * wc + t * wt + r * wr + s * ws
            b = tl.load(w_ptr + b_at, in_n[None, :] & in_c[:, None], 0)  # (BLOCK_K, BLOCK_N)
            a = _operand(a, X_FORMAT, False, UPCAST)
            b = _operand(b, W_FORMAT, False, UPCAST)
            acc += tl.dot(a, b, out_dtype=SUM)
    total = acc.to(tl.float32) * tl.load(x_scale_ptr)
    total *= tl.load(w_scale_ptr + wide_filter * w_scale_stride, in_n, 0.0)[None, :]
    mask = in_m[:, None] & in_n[None, :]
    if HAS_BIAS:
        total += tl.load(bias_ptr + wide_filter, in_n, 0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        at = (n * rn + e * rd + p * rh + q * rw)[:, None] + wide_filter[None, :] * rk
        addend = tl.load(res_ptr + at, mask, 0)
        if RES_FORMAT == "none":
            total += addend.to(tl.float32)
        else:
            total += _operand(addend, RES_FORMAT, False, False).to(tl.float32) * tl.load(res_scale_ptr)
    value = activate(total, ACTIVATION)
    to = (n * yn + e * yd + p * yh + q * yw)[:, None] + wide_filter[None, :] * yk
    if QUANTIZED:
        value = tl.div_rn(value, tl.zeros_like(value) + tl.load(y_scale_ptr))
        if MANTISSA == 0:
            clamped = tl.where(value != value, 0.0, tl.minimum(tl.maximum(value, -MAX), MAX))
            code = (round_even(clamped).to(tl.int32) & 0xFF).to(tl.uint8)
        else:
            code = _encode(value, MANTISSA, BIAS, MAX)
        tl.store(y_ptr + to, code, mask)
    else:
        tl.store(y_ptr + to, rounded(value, y_ptr.dtype.element_ty, UPCAST), mask)


def _tile(m: int, n: int, k: int) -> dict[str, int]:
    """Fixed on a GPU; the interpreter takes its time by the call, so there a tile holds what it can."""
    if not interpreted():
        # The least K of a product of bytes: with twice as much the addresses of 64 x 64 bytes would be spilled.
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3}
    names = zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), (m, n, k), (256, 64, 256), strict=True)
    return {name: min(limit, max(16, triton.next_power_of_2(size))) for name, size, limit in names}


def _bytes(tensor: Tensor) -> Tensor:
    """What the kernel loads: bytes, or the tensor itself."""
    return tensor.view(torch.uint8) if tensor.dtype in _FORMATS else tensor


def scaled_convolution(
    input: Tensor,
    weight: Tensor,
    input_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    output_scale: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    out_dtype: torch.dtype,
) -> Tensor:
    sizes = output_sizes("scaled_convolution", input, weight, stride, padding, dilation, False, [], groups)
    output = empty_in_format(input.new_empty(0, dtype=out_dtype), sizes, channels_last(input, weight))
    if output.numel() == 0:
        return output
    y = _bytes(output)
    r = Relation(_bytes(input), _bytes(weight), y, stride, padding, dilation, groups, "ieee")
    addend = y if residual is None else _bytes(residual)
    mantissa, exponent_bias, largest = _ALL_FORMATS[out_dtype][:3] if out_dtype in _ALL_FORMATS else (0, 0, 0.0)
    pixels = r.y.shape[0] * prod(r.y_size)
    tile = _tile(pixels, r.filters, r.channels)
    grid = (triton.cdiv(pixels, tile["BLOCK_M"]) * triton.cdiv(r.filters, tile["BLOCK_N"]), groups)
    _scaled_conv_kernel[grid](
        *r.tensors, *pointer(addend), input_scale if bias is None else bias.contiguous(), input_scale, weight_scale,
        0 if weight_scale.numel() == 1 else weight_scale.stride(0),
        input_scale if residual_scale is None else residual_scale,
        input_scale if output_scale is None else output_scale, *r.sizes(r.channels, r.filters),
        X_FORMAT=_FORMATS[input.dtype], W_FORMAT=_FORMATS[weight.dtype],
        RES_FORMAT="none" if residual is None else _FORMATS.get(residual.dtype, "none"), HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None, ACTIVATION=activation, QUANTIZED=out_dtype in _ALL_FORMATS,
        MANTISSA=mantissa, BIAS=exponent_bias, MAX=largest, UPCAST=interpreted(), **tile,
    )  # fmt: skip
    return output
