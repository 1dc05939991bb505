"""Depthwise convolutions: a filter for each channel, so a tile is one of positions and channels, and nothing is summed
over channels. The same relation as triton_kernels/conv.py's, and the same phases for the gradient of x."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import acc_dtype, interpreted
from warpwright.triton_kernels._conv import Epilogue, Relation, finish, phase, place
from warpwright.triton_kernels._partials import sum_partials
from warpwright.tuning import Config, Limits, Tunable, exact, power_of_two

#: Positions and channels of a tile: where channels lie together, and where positions do; interpreted, the most.
_LAST, _FIRST, _MOST = (16, 64), (256, 4), (1024, 64)
#: Positions of y that one partial sum of the weight's gradient is over.
_SLAB = 4096


@triton.jit
def _axis(index, x_size, y_size, kernel, stride, pad, dil, GRADIENT: tl.constexpr):
    """Of one dimension: positions; the element of the source that position 0 meets through tap 0, and how much further
    the next position and the next tap are; taps, the first one and the step between them; the place that position 0
    writes, and the step between them."""
    if GRADIENT:
        size, first, step, taps, origin = phase(index, x_size, kernel, stride, pad, dil)
        at, at_step, tap, to = origin, tl.cast(1, tl.int64), -(step * dil // stride), index
        each = tl.cast(stride, tl.int64)
    else:
        size, at, at_step = tl.cast(y_size, tl.int64), tl.cast(-pad, tl.int64), tl.cast(stride, tl.int64)
        tap, taps, first, step = tl.cast(dil, tl.int64), tl.cast(kernel, tl.int64), index * 0, index * 0 + 1
        to, each = index * 0, index * 0 + 1
    return size, at, at_step, tap, taps, first, step, to, each


@triton.jit
def _depthwise_kernel(
    x_ptr, xn, xc, xd, xh, xw, w_ptr, wk, wc, wt, wr, ws, y_ptr, yn, yk, yd, yh, yw,
    res_ptr, rn, rc, rd, rh, rw, bias_ptr, preact_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, eps,
    batch, depth, height, width, out_d, out_h, out_w, channels, kernel_d, kernel_h, kernel_w,
    stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    GRADIENT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE_PREACT: tl.constexpr, ACTIVATION: tl.constexpr,
    ACC: tl.constexpr, INTERPRETED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Writes y from x, or with GRADIENT x from y."""
    _, phase_d, phase_h, phase_w = place(tl.program_id(2).to(tl.int64), stride_d, stride_h, stride_w)
    size_d, at_d, step_d, tap_d, taps_d, first_t, step_t, to_d, each_d = _axis(
        phase_d, depth, out_d, kernel_d, stride_d, pad_d, dil_d, GRADIENT
    )
    size_h, at_h, step_h, tap_h, taps_h, first_r, step_r, to_h, each_h = _axis(
        phase_h, height, out_h, kernel_h, stride_h, pad_h, dil_h, GRADIENT
    )
    size_w, at_w, step_w, tap_w, taps_w, first_s, step_s, to_w, each_w = _axis(
        phase_w, width, out_w, kernel_w, stride_w, pad_w, dil_w, GRADIENT
    )
    if GRADIENT:
        from_ptr, fn, fc, fd, fh, fw, from_d, from_h, from_w = y_ptr, yn, yk, yd, yh, yw, out_d, out_h, out_w
        to_ptr, tn, tc, td, th, tw = x_ptr, xn, xc, xd, xh, xw
    else:
        from_ptr, fn, fc, fd, fh, fw, from_d, from_h, from_w = x_ptr, xn, xc, xd, xh, xw, depth, height, width
        to_ptr, tn, tc, td, th, tw = y_ptr, yn, yk, yd, yh, yw
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    n, i, j, k = place(m, tl.maximum(size_d, 1), tl.maximum(size_h, 1), tl.maximum(size_w, 1))
    in_m, in_c = m < batch * size_d * size_h * size_w, c < channels
    base = (n * fn)[:, None] + (c * fc)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    for row in range(taps_d * taps_h):
        t, r = row // taps_h, row % taps_h
        d, h = at_d + i * step_d + t * tap_d, at_h + j * step_h + r * tap_h
        in_row = in_m & (d >= 0) & (d < from_d) & (h >= 0) & (h < from_h)
        at_row = base + (d * fd + h * fh)[:, None]
        # Of each row apart, then added: a chain of many hundred terms would leave the error bound of float32.
        part = tl.zeros((BLOCK_M, BLOCK_C), ACC)
        for s in range(taps_w):
            w = at_w + k * step_w + s * tap_w
            inside = in_row & (w >= 0) & (w < from_w)
            value = tl.load(from_ptr + at_row + (w * fw)[:, None], inside[:, None] & in_c[None, :], 0.0)
            at = c * wk + (first_t + t * step_t) * wt + (first_r + r * step_r) * wr + (first_s + s * step_s) * ws
            part += value.to(ACC) * tl.load(w_ptr + at, in_c, 0.0).to(ACC)[None, :]
        acc += part
    d, h, w = to_d + i * each_d, to_h + j * each_h, to_w + k * each_w
    finish(
        acc, n * tn + d * td + h * th + w * tw, c, in_m[:, None] & in_c[None, :], n, d, h, w, to_ptr, tc,
        res_ptr, rn, rc, rd, rh, rw, bias_ptr, preact_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, eps, in_c,
        HAS_BIAS, HAS_NORM, HAS_SCALE, HAS_SHIFT, HAS_RESIDUAL, SAVE_PREACT, ACTIVATION, ACC,
        INTERPRETED,
    )  # fmt: skip


@triton.jit
def _depthwise_wgrad_kernel(
    x_ptr, xn, xc, xd, xh, xw, y_ptr, yn, yk, yd, yh, yw, partials_ptr, sums_ptr,
    batch, depth, height, width, out_d, out_h, out_w, channels, kernel_d, kernel_h, kernel_w,
    stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    SUM_Y: tl.constexpr, ACC: tl.constexpr, SLAB: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of one tap over a slab of positions: partials (slabs, channels, taps). With SUM_Y those of y too: (slabs,
    channels)."""
    taps = kernel_d * kernel_h * kernel_w
    tap, slab = tl.program_id(0) % taps, (tl.program_id(0) // taps).to(tl.int64)
    _, t, r, s = place(tap.to(tl.int64), kernel_d, kernel_h, kernel_w)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    pixels = tl.cast(batch, tl.int64) * out_d * out_h * out_w
    acc = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    sums = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    for start in range(0, tl.minimum(pixels - slab * SLAB, SLAB), BLOCK_M):
        m = slab * SLAB + start + tl.arange(0, BLOCK_M)
        n, e, p, q = place(m, out_d, out_h, out_w)
        d, h, w = e * stride_d - pad_d + t * dil_d, p * stride_h - pad_h + r * dil_h, q * stride_w - pad_w + s * dil_w
        there = (m < pixels) & (d >= 0) & (d < depth) & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        inside = there[:, None] & in_c[None, :]
        y_at = (n * yn + e * yd + p * yh + q * yw)[:, None] + (c * yk)[None, :]
        if SUM_Y:
            y = tl.load(y_ptr + y_at, (m < pixels)[:, None] & in_c[None, :], 0.0)
            sums += y.to(ACC)
            y = tl.where(inside, y, 0.0)  # What meets the padding alone.
        else:
            y = tl.load(y_ptr + y_at, inside, 0.0)
        x = tl.load(x_ptr + (n * xn + d * xd + h * xh + w * xw)[:, None] + (c * xc)[None, :], inside, 0.0)
        acc += y.to(ACC) * x.to(ACC)
    tl.store(partials_ptr + (slab * channels + c) * taps + tap, tl.sum(acc, 0), in_c)
    if SUM_Y:
        tl.store(sums_ptr + slab * channels + c, tl.sum(sums, 0), in_c & (tap == 0))


# ---- configurations ----


def _default(positions: int, channels: int, taps: int, channels_last: int) -> Config:
    if not interpreted():
        block_m, block_c = _LAST if channels_last else _FIRST
        return {"BLOCK_M": block_m, "BLOCK_C": block_c, "num_warps": 8}  # Four would spill the addresses.
    sizes = {"BLOCK_M": (positions, _MOST[0]), "BLOCK_C": (channels, _MOST[1])}
    tile = {name: min(most, triton.next_power_of_2(max(size, 1))) for name, (size, most) in sizes.items()}
    return {**tile, "num_warps": 8}


def _fits(config: Config, sizes: Mapping[str, int], dtype: torch.dtype, limits: Limits) -> bool:
    # Nothing but padding beyond the next power of two. A thread holds a value, its address and two sums.
    elements = config["BLOCK_M"] * config["BLOCK_C"] // (32 * config["num_warps"])
    return config["BLOCK_C"] <= max(4, power_of_two(sizes["channels"])) and (not limits.warps or 1 <= elements <= 8)


def _tunable(name: str, summed: str) -> Tunable:
    return Tunable(
        name,
        files=("depthwise.py", "_conv.py", "_activation.py", "_common.py", "_partials.py"),
        buckets={"positions": power_of_two, "channels": exact, "taps": exact, "channels_last": exact},
        summed=(summed,),
        space={"BLOCK_M": (16, 32, 64, 128, 256), "BLOCK_C": (1, 4, 16, 32, 64), "num_warps": (4, 8)},
        default=_default,
        fits=_fits,
    )


FORWARD = _tunable("conv_depthwise", "taps")
INPUT_GRAD = _tunable("conv_depthwise_input_grad", "taps")
WEIGHT_GRAD = _tunable("conv_depthwise_weight_grad", "positions")


# ---- launches ----


def depthwise(relation: Relation, epilogue: Epilogue, gradient: bool) -> None:
    """Writes y of the relation, or with `gradient` x."""
    r = relation
    written, source = (r.x, r.y) if gradient else (r.y, r.x)
    if written.numel() == 0:
        return
    # Of the first phase, which has the most.
    size = [triton.cdiv(n, s) for n, s in zip(r.x_size, r.stride, strict=True)] if gradient else r.y_size
    positions, phases = written.shape[0] * prod(size), prod(r.stride) if gradient else 1

    def run(config: Config) -> None:
        grid = (triton.cdiv(positions, config["BLOCK_M"]), triton.cdiv(r.groups, config["BLOCK_C"]), phases)
        _depthwise_kernel[grid](
            *r.tensors, *epilogue.tensors(written), *r.sizes(r.groups), GRADIENT=gradient, ACC=r.common["ACC"],
            INTERPRETED=interpreted(), **epilogue.flags(), **config,
        )  # fmt: skip

    key = (positions, r.groups, r.taps(), int(source.stride(1) == 1))
    (INPUT_GRAD if gradient else FORWARD).launch(run, r.x, key, (written, epilogue.preact))


def depthwise_wgrad(relation: Relation, grad_bias: Tensor | None) -> None:
    """Writes w of the relation, the gradient of the weight, and to `grad_bias` the sums of y."""
    r = relation
    if r.w.numel() == 0:
        return
    pixels, taps = r.y.shape[0] * prod(r.y_size), r.taps()
    slabs = max(triton.cdiv(pixels, _SLAB), 1)
    partials = torch.empty(slabs, r.w.numel(), dtype=acc_dtype(r.x.dtype), device=r.x.device)
    sums = partials if grad_bias is None else partials.new_empty(slabs, grad_bias.numel())
    found = r.w if r.w.is_contiguous() else torch.empty(r.w.shape, dtype=r.w.dtype, device=r.w.device)
    x, y = r.tensors[:6], r.tensors[12:]

    def run(config: Config) -> None:
        grid = (slabs * taps, triton.cdiv(r.groups, config["BLOCK_C"]))
        _depthwise_wgrad_kernel[grid](
            *x, *y, partials, sums, *r.sizes(r.groups), SUM_Y=grad_bias is not None, ACC=r.common["ACC"], SLAB=_SLAB,
            **config,
        )  # fmt: skip
        sum_partials(partials, found)
        if grad_bias is not None:
            sum_partials(sums, grad_bias)

    written = (found,) if grad_bias is None else (found, grad_bias)
    WEIGHT_GRAD.launch(run, r.x, (pixels, r.groups, taps, int(r.y.stride(1) == 1)), written)
    if found is not r.w:
        r.w.copy_(found)
