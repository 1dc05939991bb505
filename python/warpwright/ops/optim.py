"""Optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import resolve
from warpwright._check import acc_dtype, check_float, check_same_device, require, shape_text


def adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    masters: Sequence[Tensor] = (),
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One AdamW step of many parameters at once, in place.

    Args:
        params: any shapes, all float32, float16 or bfloat16 (float64 on the CPU), on one device, any strides that do
            not make a tensor overlap itself. Updated.
        grads: like params. Left as they are.
        exp_avgs, exp_avg_sqs: first and second moments, shaped like params, in their dtype or float32. Updated.
        steps: the number of this step for each parameter, counted from 1: one float32 element each, on the device of
            params, so that nothing waits for the GPU. Left as they are.
        masters: for float16 and bfloat16 params a float32 copy of each; then the moments must be float32 too. The step
            is made on the copy, and the parameter is the copy rounded. Updated.
        lr, beta1, beta2, eps, weight_decay, maximize: as torch.optim.AdamW's.
        grad_scale: one float32 element by which gradients are divided (torch.amp.GradScaler's scale).
        found_inf: one float32 element; nothing is changed where it is not 0.

    Raises:
        RuntimeError: naming the argument, and its place in the list, that does not fit.

    Computed in float32 (float64 for float64). A tensor whose memory is laid out unlike its parameter's, or with gaps,
    is updated through a temporary copy. One launch updates up to 48 tensors in C++; Triton launches once for each.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2; torch.optim.AdamW.
    """
    if not params:
        return
    overload = resolve("adamw_", params[0])
    written = [*params, *exp_avgs, *exp_avg_sqs, *masters]
    with torch.no_grad():
        overload(
            list(params),
            list(grads),
            list(exp_avgs),
            list(exp_avg_sqs),
            list(masters),
            list(steps),
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            maximize,
            grad_scale,
            found_inf,
        )
    if not torch.compiler.is_compiling():
        # A graph that saved one of these for its backward must notice.
        torch.autograd.graph.increment_version(written)


# ---- argument checks, in the words of csrc/bindings/optim.cpp ----

_OP = "adamw_"


def _check_count(name: str, tensors: list[Tensor], params: list[Tensor]) -> None:
    message = f"{name} must hold {len(params)} tensors, one for each of params, got {len(tensors)}"
    require(len(tensors) == len(params), _OP, message)


def _check_list(name: str, tensors: list[Tensor], params: list[Tensor], dtype: torch.dtype) -> None:
    _check_count(name, tensors, params)
    device = params[0].device
    for i, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
        fits = tensor.dtype == dtype and tensor.device == device and tensor.shape == param.shape
        expected = f"{dtype} of shape {shape_text(param.shape)} on {device}"
        got = f"{tensor.dtype} of shape {shape_text(tensor.shape)} on {tensor.device}"
        require(fits, _OP, f"{name}[{i}] must be {expected}, got {got}")


def _check_writable(name: str, tensors: list[Tensor]) -> None:
    for i, tensor in enumerate(tensors):
        overlaps = any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
        require(not overlaps, _OP, f"{name}[{i}] must not be expanded: it is written to")


def _check_scalar(name: str, tensor: Tensor, like: Tensor) -> None:
    check_same_device(_OP, name, tensor, "params", like)
    message = f"{name} must be 1 element of torch.float32, got {tensor.numel()} of {tensor.dtype}"
    require(tensor.dtype == torch.float32 and tensor.numel() == 1, _OP, message)


def _check(
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
    first, dtype = params[0], params[0].dtype
    acc = acc_dtype(dtype)
    check_float(_OP, "params[0]", first)
    _check_list("params", params, params, dtype)
    _check_list("grads", grads, params, dtype)
    _check_count("exp_avgs", exp_avgs, params)
    state = exp_avgs[0].dtype
    message = f"masters must be empty for {dtype} params, got {len(masters)} tensors"
    require(not masters or dtype != acc, _OP, message)
    expected = f"{acc}{' with masters' if masters else ' or have the dtype of params'}"
    message = f"exp_avgs[0] must be {expected}, got {state}"
    require(state == acc or (state == dtype and not masters), _OP, message)
    _check_list("exp_avgs", exp_avgs, params, state)
    _check_list("exp_avg_sqs", exp_avg_sqs, params, state)
    if masters:
        _check_list("masters", masters, params, acc)
    written = {"params": params, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "masters": masters}
    for name, tensors in written.items():
        _check_writable(name, tensors)
    _check_count("steps", steps, params)
    for i, step in enumerate(steps):
        _check_scalar(f"steps[{i}]", step, first)
    if grad_scale is not None:
        _check_scalar("grad_scale", grad_scale, first)
    if found_inf is not None:
        _check_scalar("found_inf", found_inf, first)
    require(lr >= 0, _OP, f"lr must be at least 0, got {lr:g}")
    require(0 <= beta1 < 1, _OP, f"beta1 must be in [0, 1), got {beta1:g}")
    require(0 <= beta2 < 1, _OP, f"beta2 must be in [0, 1), got {beta2:g}")
    require(eps >= 0, _OP, f"eps must be at least 0, got {eps:g}")
    require(weight_decay >= 0, _OP, f"weight_decay must be at least 0, got {weight_decay:g}")


_registry.define("adamw_", family="optim", check=_check, fake=lambda *args: None)
