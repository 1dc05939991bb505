"""Norms and scaling of many tensors at once: what gradients need before an optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import resolve
from warpwright._check import acc_dtype, check_float, check_same_device, check_same_dtype, require
from warpwright.ops.optim import check_scalar, check_writable


def multi_tensor_norm(tensors: Sequence[Tensor], order: float = 2.0) -> tuple[Tensor, Tensor]:
    """The norm of many tensors, as if they were one vector, and whether an element is infinite or NaN.

    Args:
        tensors: at least one; any shapes and strides, all float32, float16 or bfloat16 (float64 on the CPU), on one
            device.
        order: 2, the root of the sum of squares, or math.inf, the largest magnitude.

    Returns:
        norm: one element, (), float32 (float64 for float64), 0 for tensors without elements. Infinite or NaN where an
            element is; also where the sum of squares leaves float32.
        found_inf: one float32 element, (): 1 where an element is infinite or NaN, else 0.

    Raises:
        RuntimeError: there is no tensor, or one does not fit the first; another order.

    One pass over the tensors, up to 192 a launch in C++; sums are made in a fixed order, in two stages. Nothing waits
    for the GPU. Not differentiable.
    """
    require(len(tensors) > 0, "multi_tensor_norm", "tensors must hold at least 1 tensor, got 0")
    with torch.no_grad():
        norm, found_inf = resolve("multi_tensor_norm", tensors[0])(list(tensors), float(order))
    return norm, found_inf


def multi_tensor_scale_(tensors: Sequence[Tensor], multiplier: Tensor, *, found_inf: Tensor | None = None) -> None:
    """Multiplies many tensors in place by one number that is on their device.

    Args:
        tensors: as multi_tensor_norm's, none overlapping itself. Updated: the product in float32 (float64 for
            float64), rounded once.
        multiplier: one element, float32 (float64 for float64 tensors).
        found_inf: one float32 element, set to 1 where an element is infinite or NaN before it is multiplied, else left
            as it is: so several calls can share it. Updated.

    Raises:
        RuntimeError: there is no tensor, one does not fit the first, or multiplier or found_inf is something else.

    One pass over the tensors. With found_inf it is what torch.amp.GradScaler.unscale_ does.
    """
    op = "multi_tensor_scale_"
    require(len(tensors) > 0, op, "tensors must hold at least 1 tensor, got 0")
    with torch.no_grad():
        resolve(op, tensors[0])(list(tensors), multiplier, found_inf)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version([*tensors, *([] if found_inf is None else [found_inf])])


# ---- argument checks, in the words of csrc/bindings ----


def _check_tensors(op: str, tensors: list[Tensor]) -> None:
    require(len(tensors) > 0, op, "tensors must hold at least 1 tensor, got 0")
    first = tensors[0]
    check_float(op, "tensors[0]", first)
    for i, tensor in enumerate(tensors):
        check_same_device(op, f"tensors[{i}]", tensor, "tensors[0]", first)
        check_same_dtype(op, f"tensors[{i}]", tensor, "tensors[0]", first)


def _check_norm(tensors: list[Tensor], order: float) -> None:
    op = "multi_tensor_norm"
    _check_tensors(op, tensors)
    require(order == 2 or math.isinf(order), op, f"order must be 2 or inf, got {order:g}")


def _fake_norm(tensors: list[Tensor], order: float) -> tuple[Tensor, Tensor]:
    first = tensors[0]
    return first.new_empty((), dtype=acc_dtype(first.dtype)), first.new_empty((), dtype=torch.float32)


def _check_scale(tensors: list[Tensor], multiplier: Tensor, found_inf: Tensor | None) -> None:
    op = "multi_tensor_scale_"
    _check_tensors(op, tensors)
    check_writable(op, "tensors", tensors)
    acc = acc_dtype(tensors[0].dtype)
    check_same_device(op, "multiplier", multiplier, "tensors[0]", tensors[0])
    message = f"multiplier must be 1 element of {acc}, got {multiplier.numel()} of {multiplier.dtype}"
    require(multiplier.dtype == acc and multiplier.numel() == 1, op, message)
    if found_inf is not None:
        check_scalar(op, "found_inf", found_inf, "tensors[0]", tensors[0])


_registry.define("multi_tensor_norm", family="multi_tensor", check=_check_norm, fake=_fake_norm)
_registry.define("multi_tensor_scale_", family="multi_tensor", check=_check_scale, fake=lambda *args: None)
