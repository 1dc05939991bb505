"""Convolution kernels: implicit matrix products, one filter tap at a time, over tensors of any strides.

One, two and three dimensions are the same kernels: what is missing has size 1. The gradient of a convolution's input,
which is also the transposed convolution, gathers the output positions that meet an input. Positions a stride apart meet
them through the same taps: a program takes only such, so nothing is upsampled and no product is with zeros. The
weight's gradient walks the pixels in order: no atomics.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright._check import needs_preact
from warpwright._conv import channels_last, empty_in_format, output_sizes
from warpwright.triton_kernels._channel_call import Partials
from warpwright.triton_kernels._common import interpreted, rounded
from warpwright.triton_kernels._conv import Epilogue, Norm, Relation, finish, phase, place
from warpwright.triton_kernels._epilogue import epilogue_grads
from warpwright.triton_kernels._gemm import tile_fits
from warpwright.triton_kernels.depthwise import depthwise, depthwise_wgrad
from warpwright.tuning import Config, Tunable, exact, power_of_two


@triton.jit
def _store_statistics(values, in_m, rows, to, means_ptr, squares_ptr, in_n):
    """Each column's mean over the first `rows` rows, and the squared differences to it."""
    # Differences to the first value: a sum of large numbers would cost the mean some digits.
    first = tl.arange(0, values.shape[0])[:, None] == 0
    origin = tl.sum(tl.where(first, values, 0.0), 0)
    shifted = tl.where(in_m[:, None], values - origin[None, :], 0.0)
    offset = tl.sum(shifted, 0) / rows
    difference = tl.where(in_m[:, None], shifted - offset[None, :], 0.0)
    tl.store(means_ptr + to, origin + offset, in_n)
    tl.store(squares_ptr + to, tl.sum(difference * difference, 0), in_n)


@triton.jit
def _fprop_kernel(
    x_ptr, xn, xc, xd, xh, xw, w_ptr, wk, wc, wt, wr, ws, y_ptr, yn, yk, yd, yh, yw,
    res_ptr, rn, rk, rd, rh, rw, bias_ptr, preact_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, eps,
    means_ptr, squares_ptr,
    batch, depth, height, width, out_d, out_h, out_w, group_channels, group_filters, kernel_d, kernel_h, kernel_w,
    stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, SAVE_PREACT: tl.constexpr, ACTIVATION: tl.constexpr,
    HAS_STATISTICS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(group_filters, BLOCK_N)
    pid = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    m = (pid // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    filter = (pid % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    n, e, p, q = place(m, out_d, out_h, out_w)
    in_m, in_n = n < batch, filter < group_filters
    wide_filter = group * group_filters + filter
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
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
            a = tl.load(x_ptr + a_at, inside[:, None] & in_c[None, :], 0.0)  # (BLOCK_M, BLOCK_K)
            b_at = wide_filter[None, :] * wk + c[:, None] * wc + t * wt + r * wr + s * ws
            b = tl.load(w_ptr + b_at, in_n[None, :] & in_c[:, None], 0.0)  # (BLOCK_K, BLOCK_N)
            if UPCAST:
                a = a.to(ACC)
                b = b.to(ACC)
            acc += tl.dot(a, b, input_precision=PRECISION, out_dtype=ACC)
    at = n * yn + e * yd + p * yh + q * yw
    result = finish(
        acc, at, wide_filter, in_m[:, None] & in_n[None, :], n, e, p, q, y_ptr, yk, res_ptr, rn, rk, rd, rh, rw,
        bias_ptr, preact_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, eps, in_n,
        HAS_BIAS, HAS_NORM, HAS_SCALE, HAS_SHIFT, HAS_RESIDUAL, SAVE_PREACT, ACTIVATION, ACC, UPCAST,
    )  # fmt: skip
    if HAS_STATISTICS:
        slab = (pid // tiles_n).to(tl.int64)
        left = tl.cast(batch, tl.int64) * out_d * out_h * out_w - slab * BLOCK_M
        to = slab * tl.num_programs(1) * group_filters + wide_filter
        _store_statistics(
            result.to(ACC), in_m, tl.minimum(left, BLOCK_M).to(ACC), to, means_ptr, squares_ptr, in_n
        )  # fmt: skip


@triton.jit
def _dgrad_kernel(
    x_ptr, xn, xc, xd, xh, xw, w_ptr, wk, wc, wt, wr, ws, y_ptr, yn, yk, yd, yh, yw,
    res_ptr, rn, rc, rd, rh, rw, bias_ptr, preact_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, eps,
    batch, depth, height, width, out_d, out_h, out_w, group_channels, group_filters, kernel_d, kernel_h, kernel_w,
    stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, SAVE_PREACT: tl.constexpr, ACTIVATION: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(group_channels, BLOCK_N)
    pid = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    _, phase_d, phase_h, phase_w = place(tl.program_id(2).to(tl.int64), stride_d, stride_h, stride_w)
    size_d, first_t, step_t, taps_d, y_d = phase(phase_d, depth, kernel_d, stride_d, pad_d, dil_d)
    size_h, first_r, step_r, taps_h, y_h = phase(phase_h, height, kernel_h, stride_h, pad_h, dil_h)
    size_w, first_s, step_s, taps_w, y_w = phase(phase_w, width, kernel_w, stride_w, pad_w, dil_w)
    pixels = batch * size_d * size_h * size_w
    m = (pid // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (pid % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    n, i, j, k = place(m, tl.maximum(size_d, 1), tl.maximum(size_h, 1), tl.maximum(size_w, 1))
    in_m, in_n = m < pixels, c < group_channels
    wide_c = group * group_channels + c
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for tap in range(taps_d * taps_h * taps_w):
        _, t, r, s = place(tl.cast(tap, tl.int64), taps_d, taps_h, taps_w)
        e = y_d + i - t * (step_t * dil_d // stride_d)
        p = y_h + j - r * (step_r * dil_h // stride_h)
        q = y_w + k - s * (step_s * dil_w // stride_w)
        inside = in_m & (e >= 0) & (e < out_d) & (p >= 0) & (p < out_h) & (q >= 0) & (q < out_w)
        pixel = n * yn + e * yd + p * yh + q * yw
        at_tap = (first_t + t * step_t) * wt + (first_r + r * step_r) * wr + (first_s + s * step_s) * ws
        for start in range(0, group_filters, BLOCK_K):
            f = start + tl.arange(0, BLOCK_K).to(tl.int64)
            in_f = f < group_filters
            wide_f = group * group_filters + f
            a = tl.load(y_ptr + pixel[:, None] + wide_f[None, :] * yk, inside[:, None] & in_f[None, :], 0.0)
            b_at = wide_f[:, None] * wk + c[None, :] * wc + at_tap
            b = tl.load(w_ptr + b_at, in_f[:, None] & in_n[None, :], 0.0)
            if UPCAST:
                a = a.to(ACC)
                b = b.to(ACC)
            acc += tl.dot(a, b, input_precision=PRECISION, out_dtype=ACC)
    d, h, w = phase_d + i * stride_d, phase_h + j * stride_h, phase_w + k * stride_w
    at = n * xn + d * xd + h * xh + w * xw
    finish(
        acc, at, wide_c, in_m[:, None] & in_n[None, :], n, d, h, w, x_ptr, xc, res_ptr, rn, rc, rd, rh, rw,
        bias_ptr, preact_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, eps, in_n,
        HAS_BIAS, HAS_NORM, HAS_SCALE, HAS_SHIFT, HAS_RESIDUAL, SAVE_PREACT, ACTIVATION, ACC, UPCAST,
    )  # fmt: skip


@triton.jit
def _wgrad_kernel(
    x_ptr, xn, xc, xd, xh, xw, w_ptr, wk, wc, wt, wr, ws, y_ptr, yn, yk, yd, yh, yw, grad_bias_ptr,
    batch, depth, height, width, out_d, out_h, out_w, group_channels, group_filters, kernel_d, kernel_h, kernel_w,
    stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    SUM_Y: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(group_channels, BLOCK_N)
    tiles = tl.cdiv(group_filters, BLOCK_M) * tiles_n
    pid = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    _, t, r, s = place((pid // tiles).to(tl.int64), kernel_d, kernel_h, kernel_w)
    k = (pid % tiles // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (pid % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_k, in_c = k < group_filters, c < group_channels
    wide_k, wide_c = group * group_filters + k, group * group_channels + c
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    sums = tl.zeros((BLOCK_M, BLOCK_K), ACC)
    pixels = tl.cast(batch, tl.int64) * out_d * out_h * out_w
    for start in range(0, pixels, BLOCK_K):
        at = start + tl.arange(0, BLOCK_K).to(tl.int64)
        n, e, p, q = place(at, out_d, out_h, out_w)
        d = e * stride_d - pad_d + t * dil_d
        h = p * stride_h - pad_h + r * dil_h
        w = q * stride_w - pad_w + s * dil_w
        there = at < pixels
        inside = there & (d >= 0) & (d < depth) & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        a_at = (n * yn + e * yd + p * yh + q * yw)[None, :] + wide_k[:, None] * yk
        a = tl.load(y_ptr + a_at, in_k[:, None] & there[None, :], 0.0)  # (BLOCK_M, BLOCK_K)
        if SUM_Y:
            sums += a.to(ACC)
        b_at = (n * xn + d * xd + h * xh + w * xw)[:, None] + wide_c[None, :] * xc
        b = tl.load(x_ptr + b_at, inside[:, None] & in_c[None, :], 0.0)  # (BLOCK_K, BLOCK_N)
        if UPCAST:
            a = a.to(ACC)
            b = b.to(ACC)
        acc += tl.dot(a, b, input_precision=PRECISION, out_dtype=ACC)
    to = wide_k[:, None] * wk + c[None, :] * wc + t * wt + r * wr + s * ws
    tl.store(w_ptr + to, acc.to(w_ptr.dtype.element_ty), in_k[:, None] & in_c[None, :])
    if SUM_Y:
        first = (pid // tiles == 0) & (pid % tiles_n == 0)
        result = rounded(tl.sum(sums, 1), grad_bias_ptr.dtype.element_ty, UPCAST)
        tl.store(grad_bias_ptr + wide_k, result, in_k & first)


# ---- configurations ----


def _default(block_n: int, block_k: int) -> Callable[..., Config]:
    """Tile sizes: fixed on a GPU; the interpreter takes its time by the call, so there a tile holds what it can."""

    def default(m: int, n: int, k: int, taps: int, groups: int) -> Config:
        if not interpreted():
            # Eight warps share the addresses: four would spill them.
            return {"BLOCK_M": 64, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": 8, "num_stages": 3}
        names = zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), (m, n, k), (256, 64, 256), strict=True)
        return {name: min(limit, max(16, triton.next_power_of_2(size))) for name, size, limit in names}

    return default


def _tunable(name: str, grows: str, summed: tuple[str, ...], block_n: int, block_k: int) -> Tunable:
    """As of a product of m x k and k x n for each tap and group; `grows` is the dimension that holds the pixels."""
    return Tunable(
        name,
        files=("conv.py", "_conv.py", "_activation.py", "_common.py"),
        buckets={size: power_of_two if size == grows else exact for size in ("m", "n", "k", "taps", "groups")},
        summed=summed,
        space={
            "BLOCK_M": (16, 32, 64, 128),
            "BLOCK_N": (16, 32, 64, 128),
            "BLOCK_K": (16, 32, 64),
            "num_warps": (4, 8),
            "num_stages": (3, 4),
        },
        default=_default(block_n, block_k),
        fits=tile_fits,
    )


FPROP = _tunable("conv_fprop", "m", ("k", "taps"), 64, 32)
# Smaller ones, where more addresses are held: a phase's, or those of two gathered operands.
DGRAD = _tunable("conv_dgrad", "m", ("k", "taps"), 32, 16)
WGRAD = _tunable("conv_wgrad", "k", ("k",), 64, 16)


def _tiles(m: int, n: int, config: Config) -> int:
    return triton.cdiv(m, config["BLOCK_M"]) * triton.cdiv(n, config["BLOCK_N"])


# ---- launches ----


def _fprop(r: Relation, epilogue: Epilogue) -> None:
    if r.depthwise():
        depthwise(r, epilogue, gradient=False)
        return
    m, n = r.y.shape[0] * prod(r.y_size), r.filters

    def run(config: Config) -> None:
        grid = (_tiles(m, n, config), r.groups)
        found = None
        if epilogue.measure:
            found = Partials.empty(m, r.y.shape[1], config["BLOCK_M"], r.y)
        partials = (r.y, r.y) if found is None else (found.means, found.squares)
        _fprop_kernel[grid](
            *r.tensors, *epilogue.tensors(r.y), *partials, *r.sizes(r.channels, r.filters), **epilogue.flags(),
            HAS_STATISTICS=epilogue.measure, **r.common, **config,
        )  # fmt: skip
        epilogue.found = found

    key = (m, n, r.channels, r.taps(), r.groups)
    if r.y.numel() > 0:
        FPROP.launch(run, r.x, key, (r.y, epilogue.preact), r.layout())


def _dgrad(r: Relation, epilogue: Epilogue) -> None:
    if r.depthwise():
        depthwise(r, epilogue, gradient=True)
        return
    # Of the first phase, which has the most pixels.
    most = r.x.shape[0] * prod(triton.cdiv(size, s) for size, s in zip(r.x_size, r.stride, strict=True))

    def run(config: Config) -> None:
        grid = (_tiles(most, r.channels, config), r.groups, prod(r.stride))
        sizes = r.sizes(r.channels, r.filters)
        _dgrad_kernel[grid](*r.tensors, *epilogue.tensors(r.x), *sizes, **epilogue.flags(), **r.common, **config)

    key = (r.x.shape[0] * prod(r.x_size), r.channels, r.filters, r.taps(), r.groups)
    if r.x.numel() > 0:
        DGRAD.launch(run, r.x, key, (r.x, epilogue.preact), r.layout())


def _wgrad(r: Relation, grad_bias: Tensor | None = None) -> None:
    """Writes w of the relation, and to `grad_bias` the sums of y."""
    if r.depthwise():
        depthwise_wgrad(r, grad_bias)
        return
    pixels = r.y.shape[0] * prod(r.y_size)

    def run(config: Config) -> None:
        grid = (r.taps() * _tiles(r.filters, r.channels, config), r.groups)
        _wgrad_kernel[grid](
            *r.tensors, r.w if grad_bias is None else grad_bias, *r.sizes(r.channels, r.filters),
            SUM_Y=grad_bias is not None, **r.common, **config,
        )  # fmt: skip

    key = (r.filters, r.channels, pixels, r.taps(), r.groups)
    if r.w.numel() > 0:
        WGRAD.launch(run, r.x, key, (r.w,) if grad_bias is None else (r.w, grad_bias), r.layout())


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    activation: str,
    precision: str,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    sizes = output_sizes("convolution", input, weight, stride, padding, dilation, transposed, output_padding, groups)
    output = empty_in_format(input, sizes, channels_last(input, weight))
    keep = save_preact and needs_preact(activation)
    epilogue = Epilogue(torch.empty_like(output) if keep else input.new_empty(0), bias, residual, activation, keep)
    if transposed:
        _dgrad(Relation(output, weight, input, stride, padding, dilation, groups, precision), epilogue)
    else:
        _fprop(Relation(input, weight, output, stride, padding, dilation, groups, precision), epilogue)
    return output, epilogue.preact


def measured(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    precision: str,
) -> tuple[Tensor, Partials | None]:
    """convolution + bias, and the statistics of its tiles; none of no elements, or of depthwise ones."""
    sizes = output_sizes("convolution", input, weight, stride, padding, dilation, False, [], groups)
    output = empty_in_format(input, sizes, channels_last(input, weight))
    epilogue = Epilogue(input.new_empty(0), bias, measure=True)
    _fprop(Relation(input, weight, output, stride, padding, dilation, groups, precision), epilogue)
    return output, epilogue.found


def normalized(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: Norm,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    precision: str,
) -> Tensor:
    """activation(norm(convolution + bias) + residual)."""
    sizes = output_sizes("convolution", input, weight, stride, padding, dilation, False, [], groups)
    output = empty_in_format(input, sizes, channels_last(input, weight))
    epilogue = Epilogue(input.new_empty(0), bias, residual, activation, norm=norm)
    _fprop(Relation(input, weight, output, stride, padding, dilation, groups, precision), epilogue)
    return output


def _as_rows(tensor: Tensor) -> Tensor:
    """(pixels, channels), a view where the strides allow it."""
    return tensor.movedim(1, -1).reshape(-1, tensor.shape[1])


def _grad_preact(
    grad: Tensor, saved: Tensor | None, activation: str, need_preact: bool, need_bias: bool
) -> tuple[Tensor, Tensor]:
    if activation == "none" and not need_bias:
        return grad, grad.new_empty(0)
    rows, bias = epilogue_grads(
        _as_rows(grad), None if saved is None else _as_rows(saved), activation, need_preact, need_bias
    )
    if activation == "none" or not need_preact:
        return grad, bias
    return rows.view(grad.shape[0], *grad.shape[2:], grad.shape[1]).movedim(-1, 1), bias


def convolution_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    activation: str,
    precision: str,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = [input.new_empty(0) for _ in range(4)]
    need_preact = need_input or need_weight or need_residual
    geometry = (stride, padding, dilation, groups, precision)
    # What the weight's gradient reads is what the bias's is the sum of, but where an activation's derivative comes
    # first, whose pass adds it up. In float32 the sum over so many pixels in one piece would lose digits.
    depthwise = weight.shape[1] == 1 and weight.shape[0] == groups
    in_pieces = depthwise or input.dtype in (torch.float16, torch.bfloat16)
    sum_y = need_bias and need_weight and activation == "none" and not transposed and in_pieces and weight.numel() > 0
    grad, grad_bias = _grad_preact(grad_output, saved, activation, need_preact, need_bias and not sum_y)
    if sum_y:
        grad_bias = grad.new_empty(weight.shape[0])
    if need_input:
        grads[0] = empty_in_format(input, input.shape, channels_last(input))
        if transposed:
            _fprop(Relation(grad, weight, grads[0], *geometry), Epilogue(grads[3]))
        else:
            _dgrad(Relation(grads[0], weight, grad, *geometry), Epilogue(grads[3]))
    if need_weight:
        grads[1] = empty_in_format(weight, weight.shape, channels_last(weight))
        x, y = (grad, input) if transposed else (input, grad)
        _wgrad(Relation(x, grads[1], y, *geometry), grad_bias if sum_y else None)
    if need_bias:
        grads[2] = grad_bias
    if need_residual:
        grads[3] = empty_in_format(input, grad.shape, channels_last(input, weight)).copy_(grad)
    return grads[0], grads[1], grads[2], grads[3]
