"""Norms and scaling of many tensors: one launch a tensor, one pass over it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import acc_dtype, interpreted, rounded, tl_acc
from warpwright.triton_kernels.optim import is_dense

BLOCK = 4096


@triton.jit
def _norm_kernel(x_ptr, partials_ptr, flags_ptr, numel, LARGEST: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, at < numel, 0.0).to(ACC)
    # x - x is 0, unless x is infinite or NaN.
    tl.store(flags_ptr + tl.program_id(0), tl.max(tl.where(x - x == 0.0, 0.0, 1.0), 0))
    if LARGEST:
        odd = tl.max(tl.where(x == x, 0, 1), 0)
        partial = tl.where(odd > 0, float("nan"), tl.max(tl.where(x == x, tl.abs(x), 0.0), 0))
    else:
        partial = tl.sum(x * x, 0)
    tl.store(partials_ptr + tl.program_id(0), partial)


@triton.jit
def _scale_kernel(
    x_ptr, multiplier_ptr, flags_ptr, numel, HAS_FLAGS: tl.constexpr, ACC: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, at < numel, 0.0).to(ACC)
    if HAS_FLAGS:
        tl.store(flags_ptr + tl.program_id(0), tl.max(tl.where(x - x == 0.0, 0.0, 1.0), 0))
    scaled = x * tl.load(multiplier_ptr)
    tl.store(x_ptr + at, rounded(scaled, x_ptr.dtype.element_ty, INTERPRETED), at < numel)


def multi_tensor_norm(tensors: list[Tensor], order: float) -> tuple[Tensor, Tensor]:
    first = tensors[0]
    acc = acc_dtype(first.dtype)
    counts = [triton.cdiv(t.numel(), BLOCK) for t in tensors]
    partials, flags = first.new_zeros(sum(counts), dtype=acc), first.new_zeros(sum(counts), dtype=torch.float32)
    begin = 0
    for tensor, count in zip(tensors, counts, strict=True):
        if count:
            dense = tensor if is_dense(tensor) else tensor.contiguous()
            _norm_kernel[(count,)](
                dense, partials[begin:], flags[begin:], dense.numel(),
                LARGEST=order != 2, ACC=tl_acc(first.dtype), BLOCK=BLOCK,
            )  # fmt: skip
        begin += count
    if begin == 0:
        return first.new_zeros((), dtype=acc), first.new_zeros((), dtype=torch.float32)
    return partials.sum().sqrt() if order == 2 else partials.amax(), flags.amax()


def multi_tensor_scale_(tensors: list[Tensor], multiplier: Tensor, found_inf: Tensor | None) -> None:
    first = tensors[0]
    counts = [triton.cdiv(t.numel(), BLOCK) for t in tensors]
    flags = first.new_zeros(sum(counts) if found_inf is not None else 1, dtype=torch.float32)
    begin = 0
    for tensor, count in zip(tensors, counts, strict=True):
        if count:
            place = tensor if is_dense(tensor) else tensor.contiguous()
            _scale_kernel[(count,)](
                place, multiplier, flags[begin:] if found_inf is not None else flags, place.numel(),
                HAS_FLAGS=found_inf is not None, ACC=tl_acc(first.dtype), INTERPRETED=interpreted(), BLOCK=BLOCK,
            )  # fmt: skip
            if place is not tensor:
                tensor.copy_(place)
        begin += count
    if found_inf is not None and begin:
        found_inf.copy_(torch.maximum(found_inf, flags.amax().reshape(found_inf.shape)))
