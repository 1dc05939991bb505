"""Dropout, with or without the addition to a residual stream that follows it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from warpwright import _registry, distributed
from warpwright._backend import call
from warpwright._check import check_float, check_like, check_same_device, require


def dropout_add(
    input: Tensor,
    residual: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    *,
    seed: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """`residual + dropout(input)`: elements are zeroed with probability p, the others divided by `1 - p`.

    Args:
        input: any shape, float32, float16, bfloat16 (float64 on the CPU), any strides.
        residual: like input, or None for zeros.
        p: the probability, to 2^-32; 0 keeps everything, 1 nothing.
        training: False for `residual + input`.
        seed: one int64 on input's device, which is read where the kernel runs; None for a random one. In a CUDA graph
            that one is drawn anew in every replay, as all of torch's random numbers.
        offset: tells several masks of one seed apart, by its low 32 bits.

    Returns:
        Like input, contiguous. Zeroed elements are products with 0, as torch's: NaN for a NaN or an infinity.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit.

    The mask is a function of seed, offset and an element's place, whatever the backend, the device and the strides: see
    csrc/kernels/philox.h. It is made again in the backward pass, which keeps nothing but the seed. Computed in float32
    (float64 for float64) and rounded once. Differentiable in input and residual.

    Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014; Salmon et al.,
    "Parallel Random Numbers: As Easy as 1, 2, 3", 2011.
    """
    return _dropout("dropout_add", input, residual, p, training, seed, offset)


def dropout(
    input: Tensor, p: float = 0.5, training: bool = True, *, seed: Tensor | None = None, offset: int = 0
) -> Tensor:
    """Dropout as torch.nn.functional.dropout: `dropout_add` without a residual, and input itself unless `training`."""
    return _dropout("dropout", input, None, p, training, seed, offset)


def _dropout(
    op: str, input: Tensor, residual: Tensor | None, p: float, training: bool, seed: Tensor | None, offset: int
) -> Tensor:
    check_float(op, "input", input)
    require(0 <= p <= 1, op, f"p must be between 0 and 1, got {p:g}")
    if residual is not None:
        check_like(op, "residual", residual, "input", input)
    if not training:
        return input if residual is None else input + residual
    drawn = seed is None
    if seed is None:
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=input.device)
    _check_seed(op, seed, "input", input)
    if distributed.is_dtensor(input):
        from warpwright.distributed import _local

        return _local.dropout_add(cast(Any, input), cast(Any, residual), p, seed, offset, drawn)
    return call("dropout_add", input, residual, p, seed, offset)


# ---- argument checks, in the words of csrc/bindings/dropout.cpp ----


def _check_seed(op: str, seed: Tensor, name: str, input: Tensor) -> None:
    check_same_device(op, "seed", seed, name, input)
    message = f"seed must hold 1 element of torch.int64, got {seed.numel()} of {seed.dtype}"
    require(seed.dtype == torch.int64 and seed.numel() == 1, op, message)


def _check(op: str, name: str, input: Tensor, residual: Tensor | None, p: float, seed: Tensor) -> None:
    check_float(op, name, input)
    if residual is not None:
        check_like(op, "residual", residual, name, input)
    require(0 <= p <= 1, op, f"p must be between 0 and 1, got {p:g}")
    _check_seed(op, seed, name, input)


# ---- autograd ----


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.p, seed, ctx.offset = inputs
    ctx.save_for_backward(seed)


def _backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    need_input, need_residual = ctx.needs_input_grad[:2]
    (seed,) = ctx.saved_tensors
    grad_input = ops.dropout_add_backward(grad, ctx.p, seed, ctx.offset) if need_input else None
    return grad_input, grad if need_residual else None, None, None, None


_registry.define(
    "dropout_add",
    family="dropout",
    check=lambda input, residual, p, seed, offset: _check("dropout_add", "input", input, residual, p, seed),
    fake=lambda input, residual, p, seed, offset: input.new_empty(input.shape),
    setup_context=_setup,
    backward=_backward,
    autocast=_registry.cast_to_ambient,
)
_registry.define(
    "dropout_add_backward",
    family="dropout",
    check=lambda grad, p, seed, offset: _check("dropout_add_backward", "grad_output", grad, None, p, seed),
    fake=lambda grad, p, seed, offset: grad.new_empty(grad.shape),
)
