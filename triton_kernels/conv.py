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
from warpwright._conv import MOST_DIMS, channels_last, empty_in_format, output_sizes
from warpwright.triton_kernels._activation import activate
from warpwright.triton_kernels._channel_call import Partials
from warpwright.triton_kernels._common import interpreted, rounded, tl_acc
from warpwright.triton_kernels._epilogue import epilogue_grads
from warpwright.triton_kernels._gemm import tile_fits
from warpwright.tuning import Config, Tunable, exact, power_of_two


@triton.jit
def _place(flat, size_d, size_h, size_w):
    """The line of a flat index over (line, depth, height, width), and its place in it."""
    rest = flat // size_w
    return rest // size_h // size_d, rest // size_h % size_d, rest % size_h, flat % size_w


@triton.jit
def _finish(
    acc, at, wide_n, mask, n, d, h, w, y_ptr, yc, res_ptr, rn, rc, rd, rh, rw, bias_ptr, preact_ptr, in_n,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE_PREACT: tl.constexpr, ACTIVATION: tl.constexpr,
    ACC: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Bias, residual and activation of a tile whose rows lie at offsets `at` of the output. Returns what is stored."""
    if HAS_BIAS:
        acc += tl.load(bias_ptr + wide_n, in_n, 0.0).to(ACC)[None, :]
    if HAS_RESIDUAL:
        from_row = n * rn + d * rd + h * rh + w * rw
        acc += tl.load(res_ptr + from_row[:, None] + wide_n[None, :] * rc, mask, 0.0).to(ACC)
    to = at[:, None] + wide_n[None, :] * yc
    if SAVE_PREACT:
        tl.store(preact_ptr + to, rounded(acc, preact_ptr.dtype.element_ty, INTERPRETED), mask)
    result = rounded(activate(acc, ACTIVATION), y_ptr.dtype.element_ty, INTERPRETED)
    tl.store(y_ptr + to, result, mask)
    return result


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
    res_ptr, rn, rk, rd, rh, rw, bias_ptr, preact_ptr, means_ptr, squares_ptr,
    batch, depth, height, width, out_d, out_h, out_w, group_channels, group_filters, kernel_d, kernel_h, kernel_w,
    stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE_PREACT: tl.constexpr, ACTIVATION: tl.constexpr,
    HAS_STATISTICS: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(group_filters, BLOCK_N)
    pid = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    m = (pid // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    filter = (pid % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    n, e, p, q = _place(m, out_d, out_h, out_w)
    in_m, in_n = n < batch, filter < group_filters
    wide_filter = group * group_filters + filter
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for tap in range(kernel_d * kernel_h * kernel_w):
        _, t, r, s = _place(tl.cast(tap, tl.int64), kernel_d, kernel_h, kernel_w)
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
            acc += tl.dot(a, b, input_precision="ieee", out_dtype=ACC)
    at = n * yn + e * yd + p * yh + q * yw
    result = _finish(
        acc, at, wide_filter, in_m[:, None] & in_n[None, :], n, e, p, q, y_ptr, yk, res_ptr, rn, rk, rd, rh, rw,
        bias_ptr, preact_ptr, in_n, HAS_BIAS, HAS_RESIDUAL, SAVE_PREACT, ACTIVATION, ACC, UPCAST,
    )  # fmt: skip
    if HAS_STATISTICS:
        slab = (pid // tiles_n).to(tl.int64)
        left = tl.cast(batch, tl.int64) * out_d * out_h * out_w - slab * BLOCK_M
        to = slab * tl.num_programs(1) * group_filters + wide_filter
        _store_statistics(
            result.to(ACC), in_m, tl.minimum(left, BLOCK_M).to(ACC), to, means_ptr, squares_ptr, in_n
        )  # fmt: skip


@triton.jit
def _phase(index, size, kernel, stride, pad, dil):
    """Of the positions index + i * stride: how many there are, the first tap that meets them, the step to the next such
    tap, their number, and the output that the first position meets through the first tap."""
    step = tl.cast(1, tl.int64)
    while step * dil % stride != 0:
        step += 1
    first = tl.cast(0, tl.int64)
    # Not below zero: the sign of a remainder is nothing to rely on.
    while (first < step) & ((index + pad + (step - first) * dil) % stride != 0):
        first += 1
    taps = tl.where(first < step, tl.maximum(kernel - first + step - 1, 0) // step, 0)
    met = index + pad - tl.where(first < step, first * dil, 0)
    # Exact where there are taps; floor division of a negative would be nothing to rely on either.
    y = tl.where(met >= 0, met // stride, -((-met) // stride))
    return tl.maximum(size - index + stride - 1, 0) // stride, first, step, taps, y


@triton.jit
def _dgrad_kernel(
    x_ptr, xn, xc, xd, xh, xw, w_ptr, wk, wc, wt, wr, ws, y_ptr, yn, yk, yd, yh, yw,
    res_ptr, rn, rc, rd, rh, rw, bias_ptr, preact_ptr,
    batch, depth, height, width, out_d, out_h, out_w, group_channels, group_filters, kernel_d, kernel_h, kernel_w,
    stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE_PREACT: tl.constexpr, ACTIVATION: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(group_channels, BLOCK_N)
    pid = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    _, phase_d, phase_h, phase_w = _place(tl.program_id(2).to(tl.int64), stride_d, stride_h, stride_w)
    size_d, first_t, step_t, taps_d, y_d = _phase(phase_d, depth, kernel_d, stride_d, pad_d, dil_d)
    size_h, first_r, step_r, taps_h, y_h = _phase(phase_h, height, kernel_h, stride_h, pad_h, dil_h)
    size_w, first_s, step_s, taps_w, y_w = _phase(phase_w, width, kernel_w, stride_w, pad_w, dil_w)
    pixels = batch * size_d * size_h * size_w
    m = (pid // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (pid % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    n, i, j, k = _place(m, tl.maximum(size_d, 1), tl.maximum(size_h, 1), tl.maximum(size_w, 1))
    in_m, in_n = m < pixels, c < group_channels
    wide_c = group * group_channels + c
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for tap in range(taps_d * taps_h * taps_w):
        _, t, r, s = _place(tl.cast(tap, tl.int64), taps_d, taps_h, taps_w)
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
            acc += tl.dot(a, b, input_precision="ieee", out_dtype=ACC)
    d, h, w = phase_d + i * stride_d, phase_h + j * stride_h, phase_w + k * stride_w
    at = n * xn + d * xd + h * xh + w * xw
    _finish(
        acc, at, wide_c, in_m[:, None] & in_n[None, :], n, d, h, w, x_ptr, xc, res_ptr, rn, rc, rd, rh, rw,
        bias_ptr, preact_ptr, in_n, HAS_BIAS, HAS_RESIDUAL, SAVE_PREACT, ACTIVATION, ACC, UPCAST,
    )  # fmt: skip


@triton.jit
def _wgrad_kernel(
    x_ptr, xn, xc, xd, xh, xw, w_ptr, wk, wc, wt, wr, ws, y_ptr, yn, yk, yd, yh, yw,
    batch, depth, height, width, out_d, out_h, out_w, group_channels, group_filters, kernel_d, kernel_h, kernel_w,
    stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    ACC: tl.constexpr, UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(group_channels, BLOCK_N)
    tiles = tl.cdiv(group_filters, BLOCK_M) * tiles_n
    pid = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    _, t, r, s = _place((pid // tiles).to(tl.int64), kernel_d, kernel_h, kernel_w)
    k = (pid % tiles // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (pid % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_k, in_c = k < group_filters, c < group_channels
    wide_k, wide_c = group * group_filters + k, group * group_channels + c
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    pixels = tl.cast(batch, tl.int64) * out_d * out_h * out_w
    for start in range(0, pixels, BLOCK_K):
        at = start + tl.arange(0, BLOCK_K).to(tl.int64)
        n, e, p, q = _place(at, out_d, out_h, out_w)
        d = e * stride_d - pad_d + t * dil_d
        h = p * stride_h - pad_h + r * dil_h
        w = q * stride_w - pad_w + s * dil_w
        there = at < pixels
        inside = there & (d >= 0) & (d < depth) & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        a_at = (n * yn + e * yd + p * yh + q * yw)[None, :] + wide_k[:, None] * yk
        a = tl.load(y_ptr + a_at, in_k[:, None] & there[None, :], 0.0)  # (BLOCK_M, BLOCK_K)
        b_at = (n * xn + d * xd + h * xh + w * xw)[:, None] + wide_c[None, :] * xc
        b = tl.load(x_ptr + b_at, inside[:, None] & in_c[None, :], 0.0)  # (BLOCK_K, BLOCK_N)
        if UPCAST:
            a = a.to(ACC)
            b = b.to(ACC)
        acc += tl.dot(a, b, input_precision="ieee", out_dtype=ACC)
    to = wide_k[:, None] * wk + c[None, :] * wc + t * wt + r * wr + s * ws
    tl.store(w_ptr + to, acc.to(w_ptr.dtype.element_ty), in_k[:, None] & in_c[None, :])


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
        files=("conv.py", "_activation.py", "_common.py"),
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


class _Relation:
    """x, w and y of a convolution, of which a kernel writes one from the others: see csrc/kernels/conv.h."""

    def __init__(
        self, x: Tensor, w: Tensor, y: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
    ) -> None:
        self.x, self.w, self.y, self.groups = x, w, y, groups
        missing = [1] * (MOST_DIMS - len(stride))
        self.x_size, self.y_size, self.kernel = ([*missing, *t.shape[2:]] for t in (x, y, w))
        self.stride, self.dilation = [*missing, *stride], [*missing, *dilation]
        self.channels, self.filters = w.shape[1], w.shape[0] // groups  # of a group
        zeros = [0] * len(missing)
        self.sizes = (
            x.shape[0], *self.x_size, *self.y_size, self.channels, self.filters, *self.kernel, *self.stride,
            *zeros, *padding[: len(stride)], *self.dilation,
        )  # fmt: skip
        self.tensors = (*_pointer(x), *_pointer(w), *_pointer(y))
        self.common = {"ACC": tl_acc(x.dtype), "UPCAST": interpreted()}

    def taps(self) -> int:
        return prod(self.kernel)

    def layout(self) -> str:
        return "channels_last" if self.x.stride(1) == 1 else ""

    def fprop(self, epilogue: _Epilogue) -> None:
        m, n = self.y.shape[0] * prod(self.y_size), self.filters

        def run(config: Config) -> None:
            grid = (_tiles(m, n, config), self.groups)
            found = None
            if epilogue.measure:
                found = Partials.empty(m, self.y.shape[1], config["BLOCK_M"], self.y)
            partials = (self.y, self.y) if found is None else (found.means, found.squares)
            _fprop_kernel[grid](
                *self.tensors, *epilogue.tensors(self.y), *partials, *self.sizes, **epilogue.flags(),
                HAS_STATISTICS=epilogue.measure, **self.common, **config,
            )  # fmt: skip
            epilogue.found = found

        key = (m, n, self.channels, self.taps(), self.groups)
        if self.y.numel() > 0:
            FPROP.launch(run, self.x, key, (self.y, epilogue.preact), self.layout())

    def dgrad(self, epilogue: _Epilogue) -> None:
        # Of the first phase, which has the most pixels.
        most = self.x.shape[0] * prod(triton.cdiv(size, s) for size, s in zip(self.x_size, self.stride, strict=True))

        def run(config: Config) -> None:
            grid = (_tiles(most, self.channels, config), self.groups, prod(self.stride))
            _dgrad_kernel[grid](
                *self.tensors, *epilogue.tensors(self.x), *self.sizes, **epilogue.flags(), **self.common, **config
            )

        m = self.x.shape[0] * prod(self.x_size)
        key = (m, self.channels, self.filters, self.taps(), self.groups)
        if self.x.numel() > 0:
            DGRAD.launch(run, self.x, key, (self.x, epilogue.preact), self.layout())

    def wgrad(self) -> None:
        pixels = self.y.shape[0] * prod(self.y_size)

        def run(config: Config) -> None:
            grid = (self.taps() * _tiles(self.filters, self.channels, config), self.groups)
            _wgrad_kernel[grid](*self.tensors, *self.sizes, **self.common, **config)

        key = (self.filters, self.channels, pixels, self.taps(), self.groups)
        if self.w.numel() > 0:
            WGRAD.launch(run, self.x, key, (self.w,), self.layout())


def _pointer(tensor: Tensor) -> tuple[Tensor | int, ...]:
    """A tensor, and its strides as one of three dimensions."""
    return (tensor, *tensor.stride()[:2], *[0] * (MOST_DIMS + 2 - tensor.dim()), *tensor.stride()[2:])


class _Epilogue:
    """What follows a product's sums; of nothing, for gradients."""

    def __init__(
        self,
        preact: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        activation: str = "none",
        keep: bool = False,
        measure: bool = False,
    ) -> None:
        self.preact, self.activation, self.keep = preact, activation, keep
        self.measure = measure
        self.found: Partials | None = None  # The statistics of a forward product's tiles, if it is to `measure` them.
        self.bias, self.residual = None if bias is None else bias.contiguous(), residual

    def tensors(self, output: Tensor) -> tuple[Tensor | int, ...]:
        """`output` stands for what is not there."""
        residual = output if self.residual is None else self.residual
        return (*_pointer(residual), output if self.bias is None else self.bias, self.preact)

    def flags(self) -> dict[str, bool | str]:
        return {
            "HAS_BIAS": self.bias is not None,
            "HAS_RESIDUAL": self.residual is not None,
            "SAVE_PREACT": self.keep,
            "ACTIVATION": self.activation,
        }


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
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    sizes = output_sizes("convolution", input, weight, stride, padding, dilation, transposed, output_padding, groups)
    output = empty_in_format(input, sizes, channels_last(input, weight))
    keep = save_preact and needs_preact(activation)
    epilogue = _Epilogue(torch.empty_like(output) if keep else input.new_empty(0), bias, residual, activation, keep)
    if transposed:
        _Relation(output, weight, input, stride, padding, dilation, groups).dgrad(epilogue)
    else:
        _Relation(input, weight, output, stride, padding, dilation, groups).fprop(epilogue)
    return output, epilogue.preact


def measured(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Partials | None]:
    """convolution + bias, and the statistics of its tiles; none of no elements."""
    sizes = output_sizes("convolution", input, weight, stride, padding, dilation, False, [], groups)
    output = empty_in_format(input, sizes, channels_last(input, weight))
    epilogue = _Epilogue(input.new_empty(0), bias, measure=True)
    _Relation(input, weight, output, stride, padding, dilation, groups).fprop(epilogue)
    return output, epilogue.found


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
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = [input.new_empty(0) for _ in range(4)]
    need_preact = need_input or need_weight or need_residual
    grad, grad_bias = _grad_preact(grad_output, saved, activation, need_preact, need_bias)
    geometry = (stride, padding, dilation, groups)
    if need_input:
        grads[0] = empty_in_format(input, input.shape, channels_last(input))
        if transposed:
            _Relation(grad, weight, grads[0], *geometry).fprop(_Epilogue(grads[3]))
        else:
            _Relation(grads[0], weight, grad, *geometry).dgrad(_Epilogue(grads[3]))
    if need_weight:
        grads[1] = empty_in_format(weight, weight.shape, channels_last(weight))
        x, y = (grad, input) if transposed else (input, grad)
        _Relation(x, grads[1], y, *geometry).wgrad()
    if need_bias:
        grads[2] = grad_bias
    if need_residual:
        grads[3] = empty_in_format(input, grad.shape, channels_last(input, weight)).copy_(grad)
    return grads[0], grads[1], grads[2], grads[3]
