"""Softmax and its logarithm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import check_float, check_like, check_same_device, require, require_below, shape_text


def softmax(
    input: Tensor,
    dim: int = -1,
    *,
    scale: float = 1.0,
    mask: Tensor | None = None,
    causal: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Softmax along a dimension: `exp(x) / sum(exp(x))` with `x = scale * input`, masked.

    Args:
        input: float32, float16, bfloat16 (float64 on the CPU), any strides and any width.
        dim: along which it sums.
        scale: of input, such as 1 / sqrt(head_dim).
        mask: what counts: torch.bool (True keeps an element), or of input's dtype, which is added to `scale * input`.
            Broadcastable to input; read where it lies.
        causal: elements of (..., rows, cols) with column > row + cols - rows do not count, as in
            torch.nn.functional.scaled_dot_product_attention with equal sizes; dim must be the last.
        dtype: input is converted to it first, as in torch.softmax.

    Returns:
        Like input (in dtype, if one is given), contiguous. Where nothing counts in a row it is NaN, as in PyTorch.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit.

    The maximum is subtracted first, so that no logit overflows. Accumulates in float32 (float64 for float64) and rounds
    once. Differentiable in input, and in a mask that is added; the backward pass keeps the result alone. Bitwise the
    same from run to run. Under autocast on a GPU it is computed and returned in float32, as PyTorch's.

    Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
    """
    return _softmax("softmax", input, dim, scale, mask, causal, dtype)


def log_softmax(
    input: Tensor,
    dim: int = -1,
    *,
    scale: float = 1.0,
    mask: Tensor | None = None,
    causal: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The logarithm of `softmax`, without its underflow: minus infinity where an element does not count."""
    return _softmax("log_softmax", input, dim, scale, mask, causal, dtype)


def _softmax(
    op: str,
    input: Tensor,
    dim: int,
    scale: float,
    mask: Tensor | None,
    causal: bool,
    dtype: torch.dtype | None,
) -> Tensor:
    if dtype is not None:
        input = input.to(dtype)
    if input.dim() == 0 and dim in (-1, 0) and mask is None and not causal:  # As torch takes it: one element.
        return _softmax(op, input.reshape(1), 0, scale, None, False, None).reshape(())
    if mask is not None and mask.requires_grad:  # The addition is torch's, which reduces its gradient to the mask's.
        _check(op, "input", input, mask, dim, causal)
        input, scale, mask = input * scale + mask, 1.0, None
    return call("softmax", input, mask, dim, scale, causal, op == "log_softmax")


# ---- argument checks, in the words of csrc/bindings/softmax.cpp ----


def _check(op: str, name: str, input: Tensor, mask: Tensor | None, dim: int, causal: bool) -> None:
    check_float(op, name, input)
    ndim, shape = input.dim(), shape_text(input.shape)
    require(ndim >= 1, op, f"{name} must have at least 1 dimension, got 0")
    message = f"dim must be between {-ndim} and {ndim - 1} for {name} {shape}, got {dim}"
    require(-ndim <= dim < ndim, op, message)
    message = f"causal needs {name} of at least 2 dimensions and dim to be the last, got {shape} and {dim}"
    require(not causal or (ndim >= 2 and dim in (-1, ndim - 1)), op, message)
    rows = f"causal takes fewer than 2^32 rows, got {name} {shape}"
    if causal:
        require_below(input.numel(), 2**32 * max(input.shape[-1], 1), op, rows)
    if mask is None:
        return
    check_same_device(op, "mask", mask, name, input)
    message = f"mask must be torch.bool or have the dtype of {name} ({input.dtype}), got {mask.dtype}"
    require(mask.dtype in (torch.bool, input.dtype), op, message)
    fits = mask.dim() <= ndim and all(
        a in (1, b) for a, b in zip(reversed(mask.shape), reversed(input.shape), strict=False)
    )
    require(fits, op, f"mask must be broadcastable to {name} {shape}, got {shape_text(mask.shape)}")


def _check_forward(input: Tensor, mask: Tensor | None, dim: int, scale: float, causal: bool, log: bool) -> None:
    _check("log_softmax" if log else "softmax", "input", input, mask, dim, causal)


def _check_backward(
    grad_output: Tensor, output: Tensor, mask: Tensor | None, dim: int, scale: float, causal: bool, log: bool
) -> None:
    op = "log_softmax_backward" if log else "softmax_backward"
    check_float(op, "output", output)
    check_like(op, "grad_output", grad_output, "output", output)
    _check(op, "output", output, mask, dim, causal)


# ---- autograd and autocast ----


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, mask, ctx.dim, ctx.scale, ctx.causal, ctx.log = inputs
    # The gradient needs only what a mask drops.
    ctx.save_for_backward(output, mask if mask is not None and mask.dtype == torch.bool else None)


def _backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    output, mask = ctx.saved_tensors
    grad_input = None
    if ctx.needs_input_grad[0]:
        grad_input = ops.softmax_backward(grad, output, mask, ctx.dim, ctx.scale, ctx.causal, ctx.log)
    return grad_input, None, None, None, None, None


def _autocast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """As PyTorch's: float32 on a GPU, and what comes on a CPU."""
    return _registry.cast_to_ambient(args, torch.float32) if args[0].device.type == "cuda" else args


_registry.define(
    "softmax",
    family="softmax",
    check=_check_forward,
    fake=lambda input, mask, dim, scale, causal, log: input.new_empty(input.shape),
    setup_context=_setup,
    backward=_backward,
    autocast=_autocast,
)
_registry.define(
    "softmax_backward",
    family="softmax",
    check=_check_backward,
    fake=lambda grad, output, mask, dim, scale, causal, log: output.new_empty(output.shape),
)
