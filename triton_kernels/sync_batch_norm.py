"""The stages of a batch norm whose batch is spread over several processes, on channel_norm's kernels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._channel_call import Call, Partials
from warpwright.triton_kernels._common import acc_dtype, interpreted, rounded, tl_acc
from warpwright.triton_kernels.channel_norm import batch_norm_backward, cell_moments, slab_statistics

JOIN_BLOCK = 128


@triton.jit
def _moments_kernel(
    means_ptr, squares_ptr, moments_ptr, channels, positions, slab_size, per_sample, groups, width, parts, elements,
    SHARED: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Cells are channels."""
    cell = tl.program_id(0).to(tl.int64)
    mean, var = cell_moments(
        means_ptr, squares_ptr, cell, channels, positions, slab_size, per_sample, groups, width, parts, elements,
        SHARED, ACC, BLOCK,
    )  # fmt: skip
    tl.store(moments_ptr + cell, mean)
    tl.store(moments_ptr + channels + cell, var)
    tl.store(moments_ptr + 2 * channels + cell, mean * 0.0 + elements)


@triton.jit
def _join_kernel(
    moments_ptr, running_mean_ptr, running_var_ptr, new_mean_ptr, new_var_ptr, mean_ptr, var_ptr, elements_ptr,
    momentum, processes, channels,
    MOVE_MEAN: tl.constexpr, MOVE_VAR: tl.constexpr, INTERPRETED: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    holds = channel < channels
    elements = tl.zeros((BLOCK,), ACC)
    origin = tl.zeros((BLOCK,), ACC)
    for process in range(processes):
        at = moments_ptr + process * 3 * channels + channel
        count = tl.load(at + 2 * channels, holds, 0.0)
        # Of the first process that has values.
        origin = tl.where((elements == 0) & (count > 0), tl.load(at, holds, 0.0), origin)
        elements += count
    total = tl.zeros((BLOCK,), ACC)
    for process in range(processes):
        at = moments_ptr + process * 3 * channels + channel
        count = tl.load(at + 2 * channels, holds, 0.0)
        total += tl.where(count > 0, count * (tl.load(at, holds, 0.0) - origin), 0.0)
    mean = origin + total / elements
    total = tl.zeros((BLOCK,), ACC)
    for process in range(processes):
        at = moments_ptr + process * 3 * channels + channel
        count = tl.load(at + 2 * channels, holds, 0.0)
        difference = tl.load(at, holds, 0.0) - mean
        total += tl.where(count > 0, count * (tl.load(at + channels, holds, 0.0) + difference * difference), 0.0)
    var = total / elements
    tl.store(mean_ptr + channel, mean, holds)
    tl.store(var_ptr + channel, var, holds)
    tl.store(elements_ptr + channel, elements, holds)
    if MOVE_MEAN:
        old = tl.load(running_mean_ptr + channel, holds, 0.0).to(ACC)
        moved = tl.where(elements > 0, (1.0 - momentum) * old + momentum * mean, old)
        tl.store(new_mean_ptr + channel, rounded(moved, new_mean_ptr.dtype.element_ty, INTERPRETED), holds)
    if MOVE_VAR:
        old = tl.load(running_var_ptr + channel, holds, 0.0).to(ACC)
        unbiased = var * (elements / (elements - 1.0))
        moved = tl.where(elements > 0, (1.0 - momentum) * old + momentum * unbiased, old)
        tl.store(new_var_ptr + channel, rounded(moved, new_var_ptr.dtype.element_ty, INTERPRETED), holds)


# ---- calls ----


def batch_norm_moments(input: Tensor, found: Partials | None = None) -> Tensor:
    """`found` are partial results of the input that came with it."""
    channels = input.shape[1]
    moments = input.new_zeros((3, channels), dtype=acc_dtype(input.dtype))
    if input.numel() == 0:
        return moments
    call = Call.of(input, channels, True, input)
    if found is None:
        means, squares = slab_statistics(call, input.dtype)
        joined = call
    else:
        means, squares, joined = found.means, found.squares, call.in_slabs(found.slab)
    _moments_kernel[(channels,)](
        means, squares, moments, *joined.cell_sizes(), *joined.parts(), **call.cell_block(input.dtype)
    )
    return moments


def batch_norm_join(
    moments: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    processes, _, channels = moments.shape
    mean, var, elements = (moments.new_empty(channels) for _ in range(3))
    old = [None if t is None else t.contiguous() for t in (running_mean, running_var)]
    new = [moments.new_empty(0) if t is None else torch.empty_like(t) for t in old]
    if channels:
        _join_kernel[(triton.cdiv(channels, JOIN_BLOCK),)](
            moments.contiguous(), *(mean if t is None else t for t in old), *new, mean, var, elements,
            momentum, processes, channels, MOVE_MEAN=running_mean is not None, MOVE_VAR=running_var is not None,
            INTERPRETED=interpreted(), ACC=tl_acc(moments.dtype), BLOCK=JOIN_BLOCK,
        )  # fmt: skip
    return mean, var, elements, new[0], new[1]


def batch_norm_sums(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str,
) -> Tensor:
    sums = input.new_zeros((2, input.shape[1]), dtype=acc_dtype(input.dtype))
    batch_norm_backward(
        grad_output, input, weight, bias, residual, mean, rstd, True, activation, False, False, False, False, sums
    )
    return sums


def batch_norm_input_grad(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    sums: Tensor,
    elements: Tensor,
    activation: str,
    need_input: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor]:
    grad_input, _, _, grad_residual = batch_norm_backward(
        grad_output, input, weight, bias, residual, mean, rstd, True, activation,
        need_input, False, False, need_residual, None, (sums.contiguous(), elements.contiguous()),
    )  # fmt: skip
    return grad_input, grad_residual
