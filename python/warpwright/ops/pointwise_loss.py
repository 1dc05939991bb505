"""Losses of single elements."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import check_float, check_like, fail, require, shape_text
from warpwright.ops._loss import check_grad_loss, check_reduction, empty_loss, float32_loss

KL_REDUCTIONS = ("none", "mean", "sum", "batchmean")

# ---- binary_cross_entropy_with_logits ----


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Binary cross entropy of logits: `(1 - target) * input + (1 + (pos_weight - 1) * target) * softplus(-input)`,
    times weight, reduced.

    Args:
        input: logits, any shape, float32, float16, bfloat16 (float64 on the CPU), any strides.
        target: how probable each element is, of input's shape and dtype.
        weight: how much each element counts, input's dtype, of a shape that broadcasts to input's, or None.
        reduction: "mean" over all elements, "sum", or "none".
        pos_weight: how much the positive side counts, like weight. Neither has a gradient.

    Returns:
        A scalar, or for "none" a tensor like input; in input's dtype, under autocast in float32.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit.

    One pass in each direction; accumulates in float32 (float64 for float64), in a fixed order. Large logits of either
    sign do not overflow. Differentiable in input and target.
    """
    op = "binary_cross_entropy_with_logits"
    weight, pos_weight = _like(op, "weight", weight, input), _like(op, "pos_weight", pos_weight, input)
    return call(op, input, target, weight, pos_weight, reduction, False)


def _like(op: str, name: str, tensor: Tensor | None, input: Tensor) -> Tensor | None:
    """`tensor` seen in input's shape."""
    if tensor is None or tensor.shape == input.shape:
        return tensor
    theirs, ours = tuple(tensor.shape), tuple(input.shape)
    pairs = zip(reversed(theirs), reversed(ours), strict=False)
    message = f"{name} must broadcast to the shape of input {shape_text(ours)}, got {shape_text(theirs)}"
    require(len(theirs) <= len(ours) and all(a in (1, b) for a, b in pairs), op, message)
    return tensor.expand(ours)


def _check_elements(
    op: str, input: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None
) -> None:
    check_float(op, "input", input)
    check_like(op, "target", target, "input", input)
    for name, tensor in (("weight", weight), ("pos_weight", pos_weight)):
        if tensor is not None:
            check_like(op, name, tensor, "input", input)


def _check_bce(op: str, tensors: tuple[Any, ...], reduction: str) -> None:
    _check_elements(op, *tensors)
    check_reduction(op, reduction)


def _check_bce_backward(grad_loss: Tensor, *arguments: Any) -> None:
    op, input, reduction = "binary_cross_entropy_with_logits_backward", arguments[0], arguments[4]
    _check_bce(op, arguments[:4], reduction)
    check_grad_loss(op, grad_loss, input, input.shape, reduction)


def _grads_like(input: Tensor, needs: Any) -> tuple[Tensor, ...]:
    return tuple(input.new_empty(input.shape if need else (0,)) for need in needs)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.reduction = inputs[4]


def _backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad[:2]
    found = ops.binary_cross_entropy_with_logits_backward(grad, *ctx.saved_tensors, ctx.reduction, *needs)
    return (*(g if need else None for g, need in zip(found, needs, strict=True)), *[None] * 4)


def _in_input_dtype(count: int, position: int) -> Any:
    """Autocast: the tensors take input's dtype, and the loss is float32."""

    def rule(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        own = args[0].dtype
        cast = tuple(t if t is None else t.to(own) for t in args[:count])
        return float32_loss(position)((*cast, *args[count:]), dtype)

    return rule


_registry.define(
    "binary_cross_entropy_with_logits",
    family="pointwise_loss",
    check=lambda *arguments: _check_bce("binary_cross_entropy_with_logits", arguments[:4], arguments[4]),
    fake=lambda input, *rest: empty_loss(input, input.shape, rest[3], rest[4])[0],
    setup_context=_setup,
    backward=_backward,
    autocast=_in_input_dtype(4, 5),
)
_registry.define(
    "binary_cross_entropy_with_logits_backward",
    family="pointwise_loss",
    check=_check_bce_backward,
    fake=lambda grad_loss, input, *rest: _grads_like(input, rest[-2:]),
)


# ---- kl_div ----


def kl_div(input: Tensor, target: Tensor, *, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """The Kullback-Leibler divergence of `exp(input)` from `target`: `target * (log(target) - input)`, reduced.

    Args:
        input: log-probabilities, any shape, float32, float16, bfloat16 (float64 on the CPU), any strides.
        target: probabilities, or with log_target their logarithms, of input's shape and dtype.
        reduction: "mean" over all elements, "batchmean" (the sum over the size of the first dimension: what the
            mathematical definition gives for a batch of distributions), "sum", or "none".
        log_target: whether target holds logarithms.

    Returns:
        A scalar, or for "none" a tensor like input; in input's dtype, under autocast in float32.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit.

    One pass in each direction; accumulates in float32 (float64 for float64), in a fixed order. Differentiable in input
    and target.
    """
    return call("kl_div", input, target, reduction, log_target, False)


def check_kl_reduction(op: str, reduction: str) -> None:
    if reduction not in KL_REDUCTIONS:
        fail(op, f"reduction must be one of {', '.join(KL_REDUCTIONS)}, got '{reduction}'")


def _check_kl(op: str, input: Tensor, target: Tensor, reduction: str) -> None:
    _check_elements(op, input, target)
    check_kl_reduction(op, reduction)


def _check_kl_backward(grad_loss: Tensor, input: Tensor, target: Tensor, reduction: str, *_: Any) -> None:
    _check_kl("kl_div_backward", input, target, reduction)
    check_grad_loss("kl_div_backward", grad_loss, input, input.shape, reduction)


def _setup_kl(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[2:4]


def _backward_kl(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad[:2]
    found = ops.kl_div_backward(grad, *ctx.saved_tensors, *ctx.options, *needs)
    return (*(g if need else None for g, need in zip(found, needs, strict=True)), None, None, None)


_registry.define(
    "kl_div",
    family="pointwise_loss",
    check=lambda input, target, reduction, *_: _check_kl("kl_div", input, target, reduction),
    fake=lambda input, target, reduction, _, in_float32: empty_loss(input, input.shape, reduction, in_float32)[0],
    setup_context=_setup_kl,
    backward=_backward_kl,
    autocast=_in_input_dtype(2, 4),
)
_registry.define(
    "kl_div_backward",
    family="pointwise_loss",
    check=_check_kl_backward,
    fake=lambda grad_loss, input, *rest: _grads_like(input, rest[-2:]),
)
