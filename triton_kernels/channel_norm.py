"""Channel norms: group, batch and instance norm are the same kernels over other cells, see csrc/kernels/channel_norm.h.

Forward: statistics of the slabs, of the cells, then the output. Backward: sums of the slabs, means of the cells, then
the gradients. A program takes a tile of positions and channels, long in the direction of the neighbours in memory.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright._channels import empty_like
from warpwright.triton_kernels._activation import activate, activation_grad
from warpwright.triton_kernels._channel_call import Call, Partials, strided
from warpwright.triton_kernels._common import acc_dtype, interpreted, rounded
from warpwright.triton_kernels._partials import sum_partials


@triton.jit
def _unit(channels, per_sample, slab_size, positions, BLOCK_C: tl.constexpr):
    """Of a program: slab, sample, first position, the one past the last, channels."""
    tiles = tl.cdiv(channels, BLOCK_C)
    unit = tl.program_id(0).to(tl.int64)
    slab = unit // tiles
    channel = unit % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    first = slab % per_sample * slab_size
    return slab, slab // per_sample, first, tl.minimum(first + slab_size, positions), channel


@triton.jit
def _cell_part(cell, i, channels, per_sample, slab_size, positions, groups, width, SHARED: tl.constexpr):
    """Of the partial results of a cell: place, channel, and positions behind it."""
    slab = i // width
    if not SHARED:
        slab += cell // groups * per_sample
    channel = cell % groups * width + i % width
    return slab * channels + channel, channel, tl.minimum(positions - slab % per_sample * slab_size, slab_size)


@triton.jit
def _slab_statistics_kernel(
    x_ptr, x_sample, x_channel, x_position, means_ptr, squares_ptr, channels, positions, slab_size, per_sample,
    ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    slab, sample, first, last, channel = _unit(channels, per_sample, slab_size, positions, BLOCK_C)
    holds = channel < channels
    x_ptr += sample * x_sample
    mean = tl.zeros((BLOCK_C,), ACC)
    squares = tl.zeros((BLOCK_C,), ACC)
    before = tl.zeros((BLOCK_C,), ACC)
    # Sums of large numbers would cost the mean some digits: those of the differences to the first value do not.
    origin = tl.load(x_ptr + first * x_position + channel * x_channel, holds, 0.0).to(ACC)
    for start in range(first, last, BLOCK_P):
        at = start + tl.arange(0, BLOCK_P).to(tl.int64)
        mask = (at < last)[:, None] & holds[None, :]
        x = tl.load(x_ptr + at[:, None] * x_position + channel[None, :] * x_channel, mask, 0.0).to(ACC)
        x = tl.where(mask, x - origin[None, :], 0.0)
        count = before * 0.0 + tl.minimum(last - start, BLOCK_P).to(ACC)
        center = tl.sum(x, 0) / count
        difference = tl.where(mask, x - center[None, :], 0.0)
        # Joins the tile to what came before it (Chan, Golub and LeVeque, 1979).
        share = count / (before + count)
        delta = center - mean
        mean += delta * share
        squares += tl.sum(difference * difference, 0) + delta * delta * before * share
        before += count
    tl.store(means_ptr + slab * channels + channel, mean + origin, holds)
    tl.store(squares_ptr + slab * channels + channel, squares, holds)


@triton.jit
def cell_moments(
    means_ptr, squares_ptr, cell, channels, positions, slab_size, per_sample, groups, width, parts, elements,
    SHARED: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean and variance out of a cell's partial results."""
    first, _first_channel, _first_count = _cell_part(
        cell, cell * 0, channels, per_sample, slab_size, positions, groups, width, SHARED
    )
    origin = tl.load(means_ptr + first, parts > 0, 0.0)
    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, parts, BLOCK):
        i = start + tl.arange(0, BLOCK).to(tl.int64)
        at, _, count = _cell_part(cell, i, channels, per_sample, slab_size, positions, groups, width, SHARED)
        total += tl.where(i < parts, tl.load(means_ptr + at, i < parts, 0.0) - origin, 0.0) * count.to(ACC)
    mean = origin + tl.sum(total, 0) / elements
    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, parts, BLOCK):
        i = start + tl.arange(0, BLOCK).to(tl.int64)
        at, _, count = _cell_part(cell, i, channels, per_sample, slab_size, positions, groups, width, SHARED)
        difference = tl.where(i < parts, tl.load(means_ptr + at, i < parts, 0.0) - mean, 0.0)
        total += tl.load(squares_ptr + at, i < parts, 0.0) + difference * difference * count.to(ACC)
    var = tl.sum(total, 0) / elements
    return mean, var


@triton.jit
def _cell_statistics_kernel(
    means_ptr, squares_ptr, running_mean_ptr, running_var_ptr, new_mean_ptr, new_var_ptr, mean_ptr, rstd_ptr,
    momentum, eps, channels, positions, slab_size, per_sample, groups, width, parts, elements,
    SHARED: tl.constexpr, CONSTANT: tl.constexpr, MOVE_MEAN: tl.constexpr, MOVE_VAR: tl.constexpr,
    INTERPRETED: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    cell = tl.program_id(0).to(tl.int64)
    if CONSTANT:
        mean = tl.load(running_mean_ptr + cell).to(ACC)
        var = tl.load(running_var_ptr + cell).to(ACC)
    else:
        mean, var = cell_moments(
            means_ptr, squares_ptr, cell, channels, positions, slab_size, per_sample, groups, width, parts, elements,
            SHARED, ACC, BLOCK,
        )  # fmt: skip
    tl.store(mean_ptr + cell, mean)
    tl.store(rstd_ptr + cell, 1.0 / tl.sqrt(var + eps))
    if MOVE_MEAN:
        moved = (1.0 - momentum) * tl.load(running_mean_ptr + cell).to(ACC) + momentum * mean
        tl.store(new_mean_ptr + cell, rounded(moved, new_mean_ptr.dtype.element_ty, INTERPRETED))
    if MOVE_VAR:
        unbiased = var * (elements / (elements - 1.0))
        moved = (1.0 - momentum) * tl.load(running_var_ptr + cell).to(ACC) + momentum * unbiased
        tl.store(new_var_ptr + cell, rounded(moved, new_var_ptr.dtype.element_ty, INTERPRETED))


@triton.jit
def _output_kernel(
    x_ptr, x_sample, x_channel, x_position, residual_ptr, residual_sample, residual_channel, residual_position,
    output_ptr, output_sample, output_channel, output_position, weight_ptr, bias_ptr, mean_ptr, rstd_ptr,
    channels, positions, slab_size, per_sample, groups, width,
    SHARED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr,
    ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    _, sample, first, last, channel = _unit(channels, per_sample, slab_size, positions, BLOCK_C)
    holds = channel < channels
    cell = channel // width
    if not SHARED:
        cell += sample * groups
    x_ptr += sample * x_sample
    residual_ptr += sample * residual_sample
    output_ptr += sample * output_sample
    mean = tl.load(mean_ptr + cell, holds, 0.0)
    rstd = tl.load(rstd_ptr + cell, holds, 0.0)
    for start in range(first, last, BLOCK_P):
        at = start + tl.arange(0, BLOCK_P).to(tl.int64)
        mask = (at < last)[:, None] & holds[None, :]
        x = tl.load(x_ptr + at[:, None] * x_position + channel[None, :] * x_channel, mask, 0.0).to(ACC)
        y = (x - mean[None, :]) * rstd[None, :]
        if HAS_WEIGHT:
            y *= tl.load(weight_ptr + channel, holds, 0.0).to(ACC)[None, :]
        if HAS_BIAS:
            y += tl.load(bias_ptr + channel, holds, 0.0).to(ACC)[None, :]
        if HAS_RESIDUAL:
            where = at[:, None] * residual_position + channel[None, :] * residual_channel
            y += tl.load(residual_ptr + where, mask, 0.0).to(ACC)
        y = rounded(activate(y, ACTIVATION), output_ptr.dtype.element_ty, INTERPRETED)
        tl.store(output_ptr + at[:, None] * output_position + channel[None, :] * output_channel, y, mask)


@triton.jit
def _gradient(
    grad_ptr, grad_channel, grad_position, x_ptr, x_channel, x_position,
    residual_ptr, residual_channel, residual_position, weight, bias, mean, rstd, at, channel, mask,
    HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of what goes into the activation, zero past the end, and xhat."""
    g = tl.load(grad_ptr + at[:, None] * grad_position + channel[None, :] * grad_channel, mask, 0.0).to(ACC)
    x = tl.load(x_ptr + at[:, None] * x_position + channel[None, :] * x_channel, mask, 0.0).to(ACC)
    xhat = (x - mean[None, :]) * rstd[None, :]
    z = xhat * weight[None, :] + bias[None, :]
    if HAS_RESIDUAL:
        where = at[:, None] * residual_position + channel[None, :] * residual_channel
        z += tl.load(residual_ptr + where, mask, 0.0).to(ACC)
    return g * activation_grad(z, ACTIVATION), xhat


@triton.jit
def _channel_value(values_ptr, channel, holds, otherwise, PRESENT: tl.constexpr, ACC: tl.constexpr):
    value = (channel * 0).to(ACC) + otherwise
    if PRESENT:
        value = tl.load(values_ptr + channel, holds, 0.0).to(ACC)
    return value


@triton.jit
def _slab_sums_kernel(
    grad_ptr, grad_sample, grad_channel, grad_position, x_ptr, x_sample, x_channel, x_position,
    residual_ptr, residual_sample, residual_channel, residual_position,
    weight_ptr, bias_ptr, mean_ptr, rstd_ptr, grads_ptr, dots_ptr,
    channels, positions, slab_size, per_sample, groups, width,
    SHARED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    slab, sample, first, last, channel = _unit(channels, per_sample, slab_size, positions, BLOCK_C)
    holds = channel < channels
    cell = channel // width
    if not SHARED:
        cell += sample * groups
    mean = tl.load(mean_ptr + cell, holds, 0.0)
    rstd = tl.load(rstd_ptr + cell, holds, 0.0)
    weight = _channel_value(weight_ptr, channel, holds, 1.0, HAS_WEIGHT, ACC)
    bias = _channel_value(bias_ptr, channel, holds, 0.0, HAS_BIAS, ACC)
    grads = tl.zeros((BLOCK_C,), ACC)
    dots = tl.zeros((BLOCK_C,), ACC)
    for start in range(first, last, BLOCK_P):
        at = start + tl.arange(0, BLOCK_P).to(tl.int64)
        g, xhat = _gradient(
            grad_ptr + sample * grad_sample, grad_channel, grad_position,
            x_ptr + sample * x_sample, x_channel, x_position,
            residual_ptr + sample * residual_sample, residual_channel, residual_position,
            weight, bias, mean, rstd, at, channel, (at < last)[:, None] & holds[None, :],
            HAS_RESIDUAL, ACTIVATION, ACC,
        )  # fmt: skip
        grads += tl.sum(g, 0)
        dots += tl.sum(g * xhat, 0)
    tl.store(grads_ptr + slab * channels + channel, grads, holds)
    tl.store(dots_ptr + slab * channels + channel, dots, holds)


@triton.jit
def _cell_means_kernel(
    grads_ptr, dots_ptr, weight_ptr, mean_grad_ptr, mean_dot_ptr,
    channels, positions, slab_size, per_sample, groups, width, parts, elements,
    SHARED: tl.constexpr, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    cell = tl.program_id(0).to(tl.int64)
    grad = tl.zeros((BLOCK,), ACC)
    dot = tl.zeros((BLOCK,), ACC)
    for start in range(0, parts, BLOCK):
        i = start + tl.arange(0, BLOCK).to(tl.int64)
        at, channel, _ = _cell_part(cell, i, channels, per_sample, slab_size, positions, groups, width, SHARED)
        weight = _channel_value(weight_ptr, channel, i < parts, 1.0, HAS_WEIGHT, ACC)
        grad += tl.load(grads_ptr + at, i < parts, 0.0) * weight
        dot += tl.load(dots_ptr + at, i < parts, 0.0) * weight
    tl.store(mean_grad_ptr + cell, tl.sum(grad, 0) / elements)
    tl.store(mean_dot_ptr + cell, tl.sum(dot, 0) / elements)


@triton.jit
def _grads_kernel(
    grad_ptr, grad_sample, grad_channel, grad_position, x_ptr, x_sample, x_channel, x_position,
    residual_ptr, residual_sample, residual_channel, residual_position,
    weight_ptr, bias_ptr, mean_ptr, rstd_ptr, mean_grad_ptr, mean_dot_ptr, elements_ptr,
    grad_input_ptr, grad_residual_ptr, output_sample, output_channel, output_position,
    channels, positions, slab_size, per_sample, groups, width,
    SHARED: tl.constexpr, CONSTANT: tl.constexpr, GIVEN: tl.constexpr,
    NEED_INPUT: tl.constexpr, NEED_RESIDUAL: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr,
    ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    _, sample, first, last, channel = _unit(channels, per_sample, slab_size, positions, BLOCK_C)
    holds = channel < channels
    cell = channel // width
    if not SHARED:
        cell += sample * groups
    mean = tl.load(mean_ptr + cell, holds, 0.0)
    rstd = tl.load(rstd_ptr + cell, holds, 0.0)
    weight = _channel_value(weight_ptr, channel, holds, 1.0, HAS_WEIGHT, ACC)
    bias = _channel_value(bias_ptr, channel, holds, 0.0, HAS_BIAS, ACC)
    mean_grad = mean * 0.0
    mean_dot = mean * 0.0
    if not CONSTANT:
        mean_grad = tl.load(mean_grad_ptr + cell, holds, 0.0)
        mean_dot = tl.load(mean_dot_ptr + cell, holds, 0.0)
    if GIVEN:
        share = weight / tl.load(elements_ptr + cell, holds, 1.0)
        mean_grad *= share
        mean_dot *= share
    for start in range(first, last, BLOCK_P):
        at = start + tl.arange(0, BLOCK_P).to(tl.int64)
        mask = (at < last)[:, None] & holds[None, :]
        g, xhat = _gradient(
            grad_ptr + sample * grad_sample, grad_channel, grad_position,
            x_ptr + sample * x_sample, x_channel, x_position,
            residual_ptr + sample * residual_sample, residual_channel, residual_position,
            weight, bias, mean, rstd, at, channel, mask, HAS_RESIDUAL, ACTIVATION, ACC,
        )  # fmt: skip
        where = sample * output_sample + at[:, None] * output_position + channel[None, :] * output_channel
        if NEED_RESIDUAL:
            residual_dtype: tl.constexpr = grad_residual_ptr.dtype.element_ty
            tl.store(grad_residual_ptr + where, rounded(g, residual_dtype, INTERPRETED), mask)
        if NEED_INPUT:
            dtype: tl.constexpr = grad_input_ptr.dtype.element_ty
            dx = (g * weight[None, :] - mean_grad[None, :] - xhat * mean_dot[None, :]) * rstd[None, :]
            tl.store(grad_input_ptr + where, rounded(dx, dtype, INTERPRETED), mask)


# ---- calls ----


def slab_statistics(call: Call, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of the call's first tensor: (slabs, channels) means, and squared differences to them."""
    x = call.planes[0]
    assert x is not None
    means, squares = call.partials(x), call.partials(x)
    if call.slabs:
        _slab_statistics_kernel[call.units()](*strided(x, None), means, squares, *call.slab_sizes(), **call.tile(dtype))
    return means, squares


def _forward(
    input: Tensor,
    groups: int,
    shared: bool,
    cells: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor | None, Tensor | None],
    residual: Tensor | None,
    constant: bool,
    momentum: float,
    eps: float,
    activation: str,
    found: Partials | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`found` are partial results of the input that came with it."""
    output = empty_like(input)
    mean = input.new_empty(cells, dtype=acc_dtype(input.dtype))
    rstd = torch.empty_like(mean)
    moves = [t is not None and not constant for t in running]
    old = [mean if t is None else t.contiguous() for t in running]
    new = [torch.empty_like(t) if move else mean.new_empty(0) for t, move in zip(old, moves, strict=True)]
    call = Call.of(input, groups, shared, input, residual, output)
    if mean.numel() == 0:
        return output, mean, rstd, new[0], new[1]
    x, addend, y = call.planes
    joined = call
    if constant:
        means = squares = mean
    elif found is not None:
        means, squares, joined = found.means, found.squares, call.in_slabs(found.slab)
    else:
        means, squares = slab_statistics(call, input.dtype)
    _cell_statistics_kernel[(call.cells,)](
        means, squares, *old, *new, mean, rstd, momentum, eps, *joined.cell_sizes(), *joined.parts(),
        CONSTANT=constant, MOVE_MEAN=moves[0], MOVE_VAR=moves[1], INTERPRETED=interpreted(),
        **call.cell_block(input.dtype),
    )  # fmt: skip
    if call.slabs:
        _output_kernel[call.units()](
            *strided(x, None), *strided(addend, x), *strided(y, None),
            mean if weight is None else weight.contiguous(), mean if bias is None else bias.contiguous(), mean, rstd,
            *call.cell_sizes(), SHARED=shared, HAS_RESIDUAL=residual is not None, HAS_WEIGHT=weight is not None,
            HAS_BIAS=bias is not None, ACTIVATION=activation, INTERPRETED=interpreted(), **call.tile(input.dtype),
        )  # fmt: skip
    return output, mean, rstd, new[0], new[1]


def _backward(
    grad_output: Tensor,
    input: Tensor,
    groups: int,
    shared: bool,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    constant: bool,
    activation: str,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_residual: bool,
    found: Tensor | None = None,
    given: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`found` (2, channels), zeros, gets the sums in place of the gradients of bias and weight. `given` are such sums,
    and the number of elements that each is over."""
    grad_input = empty_like(input) if need_input else input.new_empty(0)
    grad_residual = empty_like(input) if need_residual else input.new_empty(0)
    channels = input.shape[1]
    grad_weight = (input if weight is None else weight).new_zeros(channels if need_weight else 0)
    grad_bias = (input if bias is None else bias).new_zeros(channels if need_bias else 0)
    if found is not None:
        grad_bias, grad_weight = found
        need_weight = need_bias = True
    outputs = grad_input if need_input else grad_residual if need_residual else None
    call = Call.of(input, groups, shared, grad_output, input, residual, outputs)
    if call.units()[0] == 0:
        return grad_input, grad_weight, grad_bias, grad_residual
    dy, x, addend, out = call.planes
    dtype = input.dtype
    needs_means = need_input and not constant and given is None
    mean, rstd = mean.contiguous(), rstd.contiguous()
    tensors = (
        *strided(dy, None), *strided(x, None), *strided(addend, x),
        mean if weight is None else weight.contiguous(), mean if bias is None else bias.contiguous(), mean, rstd,
    )  # fmt: skip
    flags: dict[str, Any] = {
        "SHARED": shared,
        "HAS_RESIDUAL": residual is not None,
        "HAS_WEIGHT": weight is not None,
        "HAS_BIAS": bias is not None,
        "ACTIVATION": activation,
    }
    mean_grad, mean_dot = (torch.empty_like(mean), torch.empty_like(mean)) if given is None else given[0]
    if needs_means or need_weight or need_bias:
        grads, dots = call.partials(input), call.partials(input)
        _slab_sums_kernel[call.units()](*tensors, grads, dots, *call.cell_sizes(), **flags, **call.tile(dtype))
        if needs_means:
            _cell_means_kernel[(call.cells,)](
                grads, dots, tensors[12], mean_grad, mean_dot, *call.cell_sizes(), *call.parts(),
                HAS_WEIGHT=weight is not None, **call.cell_block(dtype),
            )  # fmt: skip
        if need_weight:
            sum_partials(dots, grad_weight)
        if need_bias:
            sum_partials(grads, grad_bias)
    if out is not None:
        _grads_kernel[call.units()](
            *tensors, mean_grad, mean_dot, mean if given is None else given[1], grad_input, grad_residual,
            *out.stride(), *call.cell_sizes(), CONSTANT=constant, GIVEN=given is not None,
            NEED_INPUT=need_input, NEED_RESIDUAL=need_residual, INTERPRETED=interpreted(), **flags, **call.tile(dtype),
        )  # fmt: skip
    return grad_input, grad_weight, grad_bias, grad_residual


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    cells = (input.shape[0], num_groups)
    return _forward(
        input, num_groups, False, cells, weight, bias, (None, None), None, False, 0.0, eps, activation
    )[:3]  # fmt: skip


def group_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(
        grad_output, input, num_groups, False, weight, bias, None, mean, rstd, False, activation,
        need_input, need_weight, need_bias, False,
    )[:3]  # fmt: skip


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    found: Partials | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    channels = input.shape[1]
    return _forward(
        input, max(channels, 1), True, (channels,), weight, bias, (running_mean, running_var), residual,
        not training, momentum, eps, activation, found,
    )  # fmt: skip


def batch_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    training: bool,
    activation: str,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_residual: bool,
    found: Tensor | None = None,
    given: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _backward(
        grad_output, input, max(input.shape[1], 1), True, weight, bias, residual, mean, rstd, not training, activation,
        need_input, need_weight, need_bias, need_residual, found, given,
    )  # fmt: skip
