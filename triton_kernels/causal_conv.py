"""Causal convolutions. A program takes some channels of some neighbouring positions, and reads what the taps meet again
out of the cache; which of both it takes more of is what lies together in memory.

Backward, a program makes the sums of a slab for the weights beside its input's gradient; a second kernel adds the slabs
in order. The gradient of the pre-activation is computed again for each tap that it goes through.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright._channels import empty_like, lies_channels_last
from warpwright.triton_kernels._activation import activate, activation_grad
from warpwright.triton_kernels._common import interpreted, rounded, tl_acc
from warpwright.triton_kernels._partials import sum_partials

#: Positions of a slab, as channels lie last or not.
_SLAB = {False: 1024, True: 256}
#: Channels and positions that a program holds at a time: along short sequences, along others, and where channels are
#: neighbours in memory. Few, as each is another kernel to compile.
_SHORT, _LONG, _LAST = (16, 64), (1, 1024), (64, 16)
#: Widths that are constants of the kernels; others are counted.
_UNROLLED = (2, 3, 4)


@triton.jit
def _sequence(x_ptr, xc, xt, state_ptr, sc, sj, c, t, c_mask, length, before, HAS_STATE: tl.constexpr,
              ACC: tl.constexpr):  # fmt: skip
    """x[t] of the channels; `before` elements of a state, or zeros, come before the first input."""
    value = tl.load(x_ptr + c * xc + t * xt, c_mask & (t >= 0) & (t < length), 0.0).to(ACC)
    if HAS_STATE:
        earlier = c_mask & (t < 0) & (t >= -before)
        value += tl.load(state_ptr + c * sc + (t + before) * sj, earlier, 0.0).to(ACC)
    return value


@triton.jit
def _preact(x_ptr, xc, xt, state_ptr, sc, sj, weight_ptr, bias_ptr, c, t, c_mask, length, width,
            HAS_STATE: tl.constexpr, HAS_BIAS: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    total = tl.zeros((c.shape[0], t.shape[1]), ACC)
    if HAS_BIAS:
        total += tl.load(bias_ptr + c, c_mask, 0.0).to(ACC)
    for k in range(width):
        tap = tl.load(weight_ptr + c * width + k, c_mask, 0.0).to(ACC)
        at = t - (width - 1) + k
        total += tap * _sequence(x_ptr, xc, xt, state_ptr, sc, sj, c, at, c_mask, length, width - 1, HAS_STATE, ACC)
    return total


@triton.jit
def _place(channels, length, SLAB: tl.constexpr, BLOCK_C: tl.constexpr):
    """The slab, its sample and first position, and the channels (BLOCK_C, 1) of a program."""
    slab = tl.program_id(0).to(tl.int64)
    per_sample = tl.maximum((length + SLAB - 1) // SLAB, 1)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    return slab, slab // per_sample, slab % per_sample * SLAB, c, c < channels


@triton.jit
def _causal_conv_kernel(
    x_ptr, xb, xc, xt, state_ptr, sb, sc, sj, weight_ptr, bias_ptr, y_ptr, yb, yc, yt, channels, length, width,
    WIDTH: tl.constexpr, HAS_STATE: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, ACC: tl.constexpr,
    INTERPRETED: tl.constexpr, SLAB: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    if WIDTH > 0:
        width = WIDTH
    _, sample, first, c, c_mask = _place(channels, length, SLAB, BLOCK_C)
    x_ptr += sample * xb
    state_ptr += sample * sb
    y_ptr += sample * yb
    for start in range(0, tl.minimum(length - first, SLAB), BLOCK_T):
        t = first + start + tl.arange(0, BLOCK_T).to(tl.int64)[None, :]
        value = _preact(x_ptr, xc, xt, state_ptr, sc, sj, weight_ptr, bias_ptr, c, t, c_mask, length, width, HAS_STATE,
                        HAS_BIAS, ACC)  # fmt: skip
        value = rounded(activate(value, ACTIVATION), y_ptr.dtype.element_ty, INTERPRETED)
        tl.store(y_ptr + c * yc + t * yt, value, c_mask & (t < length))


@triton.jit
def _preact_grad(
    grad_ptr, gc, gt, x_ptr, xc, xt, state_ptr, sc, sj, weight_ptr, bias_ptr, c, t, c_mask, length, width,
    HAS_STATE: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of the pre-activation, 0 where there is no output."""
    there = c_mask & (t >= 0) & (t < length)
    grad = tl.load(grad_ptr + c * gc + t * gt, there, 0.0).to(ACC)
    if ACTIVATION != "none":
        preact = _preact(x_ptr, xc, xt, state_ptr, sc, sj, weight_ptr, bias_ptr, c, t, c_mask, length, width,
                         HAS_STATE, HAS_BIAS, ACC)  # fmt: skip
        grad = tl.where(there, grad * activation_grad(preact, ACTIVATION), 0.0)
    return grad


@triton.jit
def _sequence_grad(
    grad_ptr, gc, gt, final_ptr, fc, fj, x_ptr, xc, xt, state_ptr, sc, sj, weight_ptr, bias_ptr, c, t, c_mask, length,
    width, HAS_STATE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_FINAL: tl.constexpr,
    ACTIVATION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of x[t], t < 0 for the initial state."""
    total = tl.zeros((c.shape[0], t.shape[1]), ACC)
    if HAS_FINAL:
        j = t - (length - (width - 1))
        total += tl.load(final_ptr + c * fc + j * fj, c_mask & (j >= 0) & (j < width - 1), 0.0).to(ACC)
    for k in range(width):
        tap = tl.load(weight_ptr + c * width + (width - 1) - k, c_mask, 0.0).to(ACC)
        total += tap * _preact_grad(grad_ptr, gc, gt, x_ptr, xc, xt, state_ptr, sc, sj, weight_ptr, bias_ptr, c, t + k,
                                    c_mask, length, width, HAS_STATE, HAS_BIAS, ACTIVATION, ACC)  # fmt: skip
    return total


@triton.jit
def _causal_conv_backward_kernel(
    grad_ptr, gb, gc, gt, final_ptr, fb, fc, fj, x_ptr, xb, xc, xt, state_ptr, sb, sc, sj, weight_ptr, bias_ptr,
    dx_ptr, db, dc, dt, weight_partials_ptr, bias_partials_ptr, channels, length, width,
    WIDTH: tl.constexpr, HAS_STATE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_FINAL: tl.constexpr,
    NEED_INPUT: tl.constexpr, NEED_WEIGHT: tl.constexpr, NEED_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    ACC: tl.constexpr, INTERPRETED: tl.constexpr, SLAB: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr,
    TAPS: tl.constexpr,
):  # fmt: skip
    if WIDTH > 0:
        width = WIDTH
    slab, sample, first, c, c_mask = _place(channels, length, SLAB, BLOCK_C)
    x_ptr += sample * xb
    state_ptr += sample * sb
    grad_ptr += sample * gb
    tap = tl.arange(0, TAPS)[None, :]
    weight_sums = tl.zeros((BLOCK_C, TAPS), ACC)
    bias_sum = tl.zeros((BLOCK_C, 1), ACC)
    for start in range(0, tl.minimum(length - first, SLAB), BLOCK_T):
        t = first + start + tl.arange(0, BLOCK_T).to(tl.int64)[None, :]
        if NEED_WEIGHT or NEED_BIAS:
            grad = _preact_grad(grad_ptr, gc, gt, x_ptr, xc, xt, state_ptr, sc, sj, weight_ptr, bias_ptr, c, t, c_mask,
                                length, width, HAS_STATE, HAS_BIAS, ACTIVATION, ACC)  # fmt: skip
            bias_sum += tl.sum(grad, 1)[:, None]
            for k in range(width):
                at = t - (width - 1) + k
                x = _sequence(x_ptr, xc, xt, state_ptr, sc, sj, c, at, c_mask, length, width - 1, HAS_STATE, ACC)
                weight_sums += tl.where(tap == k, tl.sum(grad * x, 1)[:, None], 0.0)
        if NEED_INPUT:
            dx = _sequence_grad(grad_ptr, gc, gt, final_ptr + sample * fb, fc, fj, x_ptr, xc, xt, state_ptr, sc, sj,
                                weight_ptr, bias_ptr, c, t, c_mask, length, width, HAS_STATE, HAS_BIAS, HAS_FINAL,
                                ACTIVATION, ACC)  # fmt: skip
            dx = rounded(dx, dx_ptr.dtype.element_ty, INTERPRETED)
            tl.store(dx_ptr + sample * db + c * dc + t * dt, dx, c_mask & (t < length))
    row = slab * channels + c
    if NEED_WEIGHT:
        tl.store(weight_partials_ptr + row * width + tap, weight_sums, c_mask & (tap < width))
    if NEED_BIAS:
        tl.store(bias_partials_ptr + row, bias_sum, c_mask)


@triton.jit
def _causal_conv_state_grad_kernel(
    grad_ptr, gb, gc, gt, final_ptr, fb, fc, fj, x_ptr, xb, xc, xt, state_ptr, sb, sc, sj, weight_ptr, bias_ptr,
    ds_ptr, channels, length, width,
    WIDTH: tl.constexpr, HAS_STATE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_FINAL: tl.constexpr,
    ACTIVATION: tl.constexpr, ACC: tl.constexpr, INTERPRETED: tl.constexpr, BLOCK_C: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    if WIDTH > 0:
        width = WIDTH
    sample = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    c_mask = c < channels
    t = tl.arange(0, TAPS).to(tl.int64)[None, :] - (width - 1)
    ds = _sequence_grad(grad_ptr + sample * gb, gc, gt, final_ptr + sample * fb, fc, fj, x_ptr + sample * xb, xc, xt,
                        state_ptr + sample * sb, sc, sj, weight_ptr, bias_ptr, c, t, c_mask, length, width, HAS_STATE,
                        HAS_BIAS, HAS_FINAL, ACTIVATION, ACC)  # fmt: skip
    row = (sample * channels + c) * (width - 1) + t + (width - 1)
    tl.store(ds_ptr + row, rounded(ds, ds_ptr.dtype.element_ty, INTERPRETED), c_mask & (t < 0))


@triton.jit
def _causal_conv_update_kernel(
    state_ptr, sb, sc, sj, x_ptr, xb, xc, xt, weight_ptr, bias_ptr, indices_ptr, index_stride, y_ptr, yb, yc, yt,
    slots, channels, steps, width,
    WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INDICES: tl.constexpr, ACTIVATION: tl.constexpr,
    ACC: tl.constexpr, INTERPRETED: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    if WIDTH > 0:
        width = WIDTH
    sample = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    slot = sample
    if HAS_INDICES:
        slot = tl.load(indices_ptr + sample * index_stride).to(tl.int64)
    there = (slot >= 0) & (slot < slots)
    mask = c < channels
    state_ptr += slot * sb + c * sc
    x_ptr += sample * xb + c * xc
    for step in range(steps):
        total = tl.zeros((BLOCK_C,), ACC)
        if HAS_BIAS:
            total += tl.load(bias_ptr + c, mask, 0.0).to(ACC)
        for k in range(width):
            j = tl.cast(step + k, tl.int64)
            old = tl.load(state_ptr + j * sj, mask & there & (j < width - 1), 0.0).to(ACC)
            new = tl.load(x_ptr + (j - (width - 1)) * xt, mask & (j >= width - 1), 0.0).to(ACC)
            total += tl.load(weight_ptr + c * width + k, mask, 0.0).to(ACC) * (old + new)
        value = tl.where(there, activate(total, ACTIVATION), tl.where(slot < 0, 0.0, float("nan")))
        value = rounded(value.to(ACC), y_ptr.dtype.element_ty, INTERPRETED)
        tl.store(y_ptr + sample * yb + c * yc + tl.cast(step, tl.int64) * yt, value, mask)
    # What is read lies behind what is written: elements move one after the other.
    for to in range(width - 1):
        tl.debug_barrier()
        j = tl.cast(to + steps, tl.int64)
        old = tl.load(state_ptr + j * sj, mask & there & (j < width - 1), 0.0)
        new = tl.load(x_ptr + (j - (width - 1)) * xt, mask & (j >= width - 1), 0.0)
        tl.store(state_ptr + tl.cast(to, tl.int64) * sj, tl.where(j < width - 1, old, new), mask & there)


# ---- launches ----


def _strided(tensor: Tensor | None, like: Tensor) -> tuple[Any, ...]:
    """A tensor (batch, channels, positions) and its strides; `like` stands for none."""
    return (like, 0, 0, 0) if tensor is None else (tensor, *tensor.stride())


def _constants(input: Tensor, weight: Tensor, activation: str) -> dict[str, Any]:
    acc = tl_acc(input.dtype)
    width = weight.shape[1]
    return {
        "width": width,
        "WIDTH": width if width in _UNROLLED else 0,
        "ACTIVATION": activation,
        "ACC": acc,
        "INTERPRETED": interpreted(),
    }


def _tile(input: Tensor, last: bool) -> tuple[int, int]:
    if last:
        return _LAST
    return _SHORT if input.shape[2] <= _SHORT[1] else _LONG


def _slabs(input: Tensor, last: bool) -> int:
    return input.shape[0] * max(1, triton.cdiv(input.shape[2], _SLAB[last]))


def causal_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    activation: str,
    return_final_state: bool,
) -> tuple[Tensor, Tensor]:
    output, final_state = empty_like(input), input.new_empty(0)
    length, before = input.shape[2], weight.shape[1] - 1
    if return_final_state:
        first = initial_state if initial_state is not None else input.new_zeros(*input.shape[:2], before)
        seen = torch.cat((first, input[..., max(0, length - before) :]), 2)
        final_state = seen[..., seen.shape[2] - before :].contiguous()
    if output.numel() == 0:
        return output, final_state
    last = lies_channels_last(input)
    block_c, block_t = _tile(input, last)
    _causal_conv_kernel[(_slabs(input, last), triton.cdiv(input.shape[1], block_c))](
        *_strided(input, input), *_strided(initial_state, input), weight.contiguous(),
        weight if bias is None else bias.contiguous(), *_strided(output, output), input.shape[1], length,
        HAS_STATE=initial_state is not None, HAS_BIAS=bias is not None, SLAB=_SLAB[last], BLOCK_C=block_c,
        BLOCK_T=block_t, **_constants(input, weight, activation),
    )  # fmt: skip
    return output, final_state


def causal_conv1d_backward(
    grad_output: Tensor,
    grad_final_state: Tensor | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    activation: str,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_initial_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, channels, length = input.shape
    width = weight.shape[1]
    grad_input = empty_like(input) if need_input else input.new_empty(0)
    grad_weight = input.new_zeros(weight.shape if need_weight else (0,))
    grad_bias = input.new_zeros(channels if need_bias else 0)
    grad_state = input.new_empty((batch, channels, width - 1) if need_initial_state else (0,))
    if batch * channels == 0:
        return grad_input, grad_weight, grad_bias, grad_state
    last = lies_channels_last(input)
    block_c, block_t = _tile(input, last)
    taps = triton.next_power_of_2(width)
    tensors = (
        *_strided(grad_output, input), *_strided(grad_final_state, input), *_strided(input, input),
        *_strided(initial_state, input), weight.contiguous(), weight if bias is None else bias.contiguous(),
    )  # fmt: skip
    constants = {
        "HAS_STATE": initial_state is not None, "HAS_BIAS": bias is not None, "TAPS": taps,
        "HAS_FINAL": grad_final_state is not None, **_constants(input, weight, activation),
    }  # fmt: skip
    if need_input or need_weight or need_bias:
        slabs, acc = _slabs(input, last), torch.float64 if input.dtype == torch.float64 else torch.float32
        weight_partials = input.new_empty((slabs if need_weight else 0, channels * width), dtype=acc)
        bias_partials = input.new_empty((slabs if need_bias else 0, channels), dtype=acc)
        _causal_conv_backward_kernel[(slabs, triton.cdiv(channels, block_c))](
            *tensors, *_strided(grad_input if need_input else None, input), weight_partials, bias_partials,
            channels, length, NEED_INPUT=need_input, NEED_WEIGHT=need_weight, NEED_BIAS=need_bias, SLAB=_SLAB[last],
            BLOCK_C=block_c, BLOCK_T=block_t, **constants,
        )  # fmt: skip
        if need_weight:
            sum_partials(weight_partials, grad_weight)
        if need_bias:
            sum_partials(bias_partials, grad_bias)
    if grad_state.numel() > 0:
        _causal_conv_state_grad_kernel[(batch, triton.cdiv(channels, 8))](
            *tensors, grad_state, channels, length, BLOCK_C=8, **constants, num_warps=1
        )
    return grad_input, grad_weight, grad_bias, grad_state


def causal_conv1d_update_(
    state: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, state_indices: Tensor | None, activation: str
) -> Tensor:
    output = empty_like(input)
    batch, channels, steps = input.shape
    if output.numel() == 0:
        return output
    indices, step = (state, 0) if state_indices is None else (state_indices, state_indices.stride(0))
    _causal_conv_update_kernel[(batch, triton.cdiv(channels, 128))](
        *_strided(state, state), *_strided(input, input), weight.contiguous(),
        weight if bias is None else bias.contiguous(), indices, step, *_strided(output, output), state.shape[0],
        channels, steps, HAS_BIAS=bias is not None, HAS_INDICES=state_indices is not None, BLOCK_C=128,
        **_constants(input, weight, activation),
    )  # fmt: skip
    return output
