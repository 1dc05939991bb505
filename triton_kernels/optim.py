"""AdamW: one launch a tensor, one pass over it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import tl_acc

BLOCK = 1024


@triton.jit
def _adamw_kernel(
    param_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, master_ptr, factors_ptr, numel,
    decay, rest1, beta2, rest2, eps, grad_scale_ptr, found_inf_ptr,
    MAXIMIZE: tl.constexpr, HAS_MASTER: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_FOUND_INF: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if HAS_FOUND_INF:
        numel = tl.where(tl.load(found_inf_ptr) == 0.0, numel, 0)
    mask = at < numel
    g = tl.load(grad_ptr + at, mask, 0.0).to(ACC)
    if HAS_SCALE:
        g = g / tl.load(grad_scale_ptr).to(ACC)
    if MAXIMIZE:
        g = -g
    m = tl.load(exp_avg_ptr + at, mask, 0.0).to(ACC)
    v = tl.load(exp_avg_sq_ptr + at, mask, 0.0).to(ACC)
    x = tl.load((master_ptr if HAS_MASTER else param_ptr) + at, mask, 0.0).to(ACC)
    step_size = tl.load(factors_ptr)
    correction = tl.load(factors_ptr + 1)
    m += (g - m) * rest1
    v = v * beta2 + g * g * rest2
    x = x * decay - step_size * m / (tl.sqrt(v) / correction + eps)
    tl.store(exp_avg_ptr + at, m.to(exp_avg_ptr.dtype.element_ty), mask)
    tl.store(exp_avg_sq_ptr + at, v.to(exp_avg_sq_ptr.dtype.element_ty), mask)
    if HAS_MASTER:
        tl.store(master_ptr + at, x, mask)
    tl.store(param_ptr + at, x.to(param_ptr.dtype.element_ty), mask)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one piece of memory, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def adamw_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    masters: list[Tensor],
    steps: list[Tensor],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    for i, param in enumerate(params):
        numel = param.numel()
        if numel == 0:
            continue
        # All in the parameter's order of elements; what lies otherwise is copied there and back.
        order = param if _is_dense(param) else param.contiguous()
        written = [param, exp_avgs[i], exp_avg_sqs[i], *masters[i : i + 1]]
        places = [t if t.stride() == order.stride() else torch.empty_like(order, dtype=t.dtype) for t in written]
        for place, tensor in zip(places, written, strict=True):
            if place is not tensor:
                place.copy_(tensor)
        grad = grads[i] if grads[i].stride() == order.stride() else torch.empty_like(order).copy_(grads[i])
        acc = tl_acc(param.dtype)
        # In float64: 1 - beta^step loses most of its digits in float32.
        step = steps[i].to(torch.float64).reshape(())
        factors = torch.stack((lr / (1 - beta1**step), (1 - beta2**step).sqrt()))
        factors = factors if acc == tl.float64 else factors.float()
        _adamw_kernel[(triton.cdiv(numel, BLOCK),)](
            places[0], grad, places[1], places[2], places[-1], factors, numel,
            1 - lr * weight_decay, 1 - beta1, beta2, 1 - beta2, eps,
            factors if grad_scale is None else grad_scale, factors if found_inf is None else found_inf,
            MAXIMIZE=maximize, HAS_MASTER=bool(masters), HAS_SCALE=grad_scale is not None,
            HAS_FOUND_INF=found_inf is not None, ACC=acc, BLOCK=BLOCK,
        )  # fmt: skip
        for place, tensor in zip(places, written, strict=True):
            if place is not tensor:
                tensor.copy_(place)
