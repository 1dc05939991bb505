"""Norms over the last dimensions, with an optional dropout and residual first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import (
    acc_dtype,
    check_float,
    check_like,
    check_same_device,
    check_same_dtype,
    count_of,
    fail,
    require,
    shape_text,
)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    offset: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """Root-mean-square norm: `h / sqrt(mean(h^2) + eps) * (weight_offset + weight)`, `h = dropout(input) + residual`.

    Args:
        input: (..., *normalized_shape), float32, float16, bfloat16 (float64 on the CPU), any strides.
        normalized_shape: the last dimensions of input, over which the mean is taken.
        weight: normalized_shape, input's dtype, or None for ones.
        eps: added to the mean square; None for the machine epsilon of float32 (float64's for float64), in which half
            inputs are computed, as torch.nn.functional.rms_norm.
        residual: like input, added to it (and rounded to its dtype) before the norm.
        weight_offset: added to weight, in float32: 1 for Gemma, whose weights are kept as differences to 1.
        dropout_p: the probability with which an element of input becomes zero before the residual is added; the
            others are divided by 1 - dropout_p.
        seed: of the dropout, one int64 on input's device; None draws one there. The same seed and offset drop the same
            elements on every backend: by the words of Philox4x32-10, a row of them for each row that is normalised.
        offset: chooses one of 2^32 sequences of a seed, say for each of several layers.

    Returns:
        The normalised tensor, contiguous, in input's dtype and shape. With a residual, a tuple of it and of the sum
        `dropout(input) + residual`, which is what the next block of a transformer adds to.

    Raises:
        RuntimeError: naming the argument whose dtype, device, shape or range does not fit.

    Accumulates in float32 (float64 for float64). Differentiable in input, residual and weight; bitwise the same from
    run to run.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    ndim = _normalized_ndim("rms_norm", input, normalized_shape)
    if eps is None:
        eps = torch.finfo(acc_dtype(input.dtype)).eps
    seed = _seed(input, dropout_p, seed)
    output, total, _ = call("rms_norm", input, residual, ndim, weight, eps, weight_offset, dropout_p, seed, offset)
    return output if residual is None else (output, total)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    offset: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """Layer norm: `(h - mean(h)) / sqrt(var(h) + eps) * (weight_offset + weight) + bias`, with h as in rms_norm.

    Args:
        input: (..., *normalized_shape), float32, float16, bfloat16 (float64 on the CPU), any strides.
        normalized_shape: the last dimensions of input, over which mean and variance are taken.
        weight: normalized_shape, input's dtype, or None for ones.
        bias: normalized_shape, input's dtype, or None for zeros.
        eps: added to the variance.
        residual: like input, added to it (and rounded to its dtype) before the norm.
        weight_offset, dropout_p, seed, offset: as in rms_norm.

    Returns:
        The normalised tensor, contiguous, in input's dtype and shape. With a residual, a tuple of it and of the sum
        `dropout(input) + residual`.

    Raises:
        RuntimeError: naming the argument whose dtype, device, shape or range does not fit.

    Accumulates in float32 (float64 for float64), the variance from the differences to the mean, so a large mean costs
    no digits. Differentiable in input, residual, weight and bias; bitwise the same from run to run.

    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.
    """
    ndim = _normalized_ndim("layer_norm", input, normalized_shape)
    seed = _seed(input, dropout_p, seed)
    output, total, _, _ = call(
        "layer_norm", input, residual, ndim, weight, bias, eps, weight_offset, dropout_p, seed, offset
    )
    return output if residual is None else (output, total)


def l2_normalize(input: Tensor, dim: int = -1, eps: float = 1e-12) -> Tensor:
    """Divides each row by its Euclidean length: `input / max(|input|, eps)`, as torch.nn.functional.normalize.

    Args:
        input: (...), float32, float16, bfloat16 (float64 on the CPU), any strides.
        dim: the dimension of the rows; the last one is the fastest.
        eps: the least divisor. A shorter row is divided by it, and its gradient is that of a constant divisor.

    Returns:
        Like input; contiguous where dim is the last dimension, else so once dim is moved to the end.

    Raises:
        RuntimeError: input's dtype or dim does not fit.

    Accumulates in float32 (float64 for float64). Differentiable in input.
    """
    require(-input.dim() <= dim < input.dim(), "l2_normalize", f"dim must be one of input's {input.dim()}, got {dim}")
    if dim % input.dim() == input.dim() - 1:
        return call("l2_normalize", input, eps)[0]
    return call("l2_normalize", input.movedim(dim, -1), eps)[0].movedim(-1, dim)


def _seed(input: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor | None:
    """One drawn where input lies: the host need not know it, so that a CUDA graph draws another at each replay."""
    if seed is None and dropout_p > 0:
        return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=input.device)
    return seed


def _normalized_ndim(op: str, input: Tensor, normalized_shape: Sequence[int]) -> int:
    ndim = len(normalized_shape)
    if not (1 <= ndim <= input.dim() and input.shape[-ndim:] == tuple(normalized_shape)):
        message = f"normalized_shape {shape_text(normalized_shape)} must be the last dimensions of input, "
        fail(op, message + f"got input {shape_text(input.shape)}")
    return ndim


# ---- argument checks, in the words of csrc/bindings/norm.cpp ----


def _check_ndim(op: str, input: Tensor, normalized_ndim: int) -> None:
    message = f"normalized_shape must have between 1 and input.dim() = {input.dim()} dimensions, got {normalized_ndim}"
    require(1 <= normalized_ndim <= input.dim(), op, message)


def check_affine(op: str, name: str, tensor: Tensor | None, input: Tensor, normalized_ndim: int) -> None:
    if tensor is None:
        return
    check_same_device(op, name, tensor, "input", input)
    check_same_dtype(op, name, tensor, "input", input)
    expected = input.shape[input.dim() - normalized_ndim :]
    message = f"{name} must have shape {shape_text(expected)}, got {shape_text(tensor.shape)}"
    require(tensor.shape == expected, op, message)


def _check_statistics(
    op: str, name: str, tensor: Tensor, sum: Tensor, normalized_ndim: int, sum_name: str = "sum"
) -> None:
    check_same_device(op, name, tensor, sum_name, sum)
    rows = count_of(sum.shape[: sum.dim() - normalized_ndim])
    dtype = acc_dtype(sum.dtype)
    message = f"{name} must hold {rows} elements of {dtype}, got {tensor.numel()} of {tensor.dtype}"
    require(tensor.numel() == rows and tensor.dtype == dtype, op, message)


def _check_dropout(op: str, dropout_p: float, seed: Tensor | None, like_name: str, like: Tensor) -> None:
    require(0 <= dropout_p <= 1, op, f"dropout_p must be between 0 and 1, got {dropout_p:g}")
    if dropout_p == 0:
        return
    if seed is None:
        fail(op, "seed must be given with dropout_p")
    check_same_device(op, "seed", seed, like_name, like)
    message = f"seed must be one torch.int64, got {seed.numel()} of {seed.dtype}"
    require(seed.dtype == torch.int64 and seed.numel() == 1, op, message)


def _check_forward(
    op: str,
    input: Tensor,
    residual: Tensor | None,
    normalized_ndim: int,
    weight: Tensor | None,
    bias: Tensor | None,
    weight_offset: float,
    dropout_p: float,
    seed: Tensor | None,
) -> None:
    check_float(op, "input", input)
    _check_ndim(op, input, normalized_ndim)
    if residual is not None:
        check_like(op, "residual", residual, "input", input)
    check_affine(op, "weight", weight, input, normalized_ndim)
    check_affine(op, "bias", bias, input, normalized_ndim)
    require(weight_offset == 0 or weight is not None, op, "weight must be given with weight_offset")
    _check_dropout(op, dropout_p, seed, "input", input)


def _check_backward(
    op: str,
    grad_output: Tensor,
    grad_sum: Tensor | None,
    sum: Tensor,
    weight: Tensor | None,
    statistics: dict[str, Tensor],
    normalized_ndim: int,
    dropout_p: float,
    seed: Tensor | None,
) -> None:
    check_float(op, "sum", sum)
    _check_ndim(op, sum, normalized_ndim)
    check_like(op, "grad_output", grad_output, "sum", sum)
    if grad_sum is not None:
        check_like(op, "grad_sum", grad_sum, "sum", sum)
    check_affine(op, "weight", weight, sum, normalized_ndim)
    for name, tensor in statistics.items():
        _check_statistics(op, name, tensor, sum, normalized_ndim)
    _check_dropout(op, dropout_p, seed, "sum", sum)


def _check_l2_normalize_backward(grad_output: Tensor, input: Tensor, norm: Tensor, eps: float) -> None:
    op = "l2_normalize_backward"
    check_float(op, "input", input)
    _check_ndim(op, input, 1)
    check_like(op, "grad_output", grad_output, "input", input)
    _check_statistics(op, "norm", norm, input, 1, "input")


# ---- fake outputs ----


def _fake_statistics(input: Tensor, normalized_ndim: int) -> Tensor:
    return input.new_empty(input.shape[: input.dim() - normalized_ndim], dtype=acc_dtype(input.dtype))


def _fake_sum(input: Tensor, residual: Tensor | None, dropout_p: float) -> Tensor:
    return input.new_empty(input.shape if residual is not None or dropout_p > 0 else (0,))


def _fake_like(sum: Tensor, *needed: bool) -> tuple[Tensor, ...]:
    return tuple(sum.new_empty(sum.shape if need else (0,)) for need in needed)


def _fake_affine(sum: Tensor, normalized_ndim: int, needed: bool) -> Tensor:
    return sum.new_empty(sum.shape[sum.dim() - normalized_ndim :] if needed else (0,))


# ---- autograd ----


def _save(ctx: Any, inputs: tuple[Any, ...], total: Tensor, *rest: Tensor | None) -> None:
    """Saves what was normalised (the sum, or input itself) and the rest; gradients of unused outputs stay None."""
    input, residual, ctx.normalized_ndim, *_ = inputs
    ctx.weight_offset, ctx.dropout_p, seed, ctx.offset = inputs[-4:]
    ctx.set_materialize_grads(False)
    ctx.has_residual = residual is not None
    ctx.save_for_backward(input if residual is None and ctx.dropout_p == 0 else total, seed, *rest)


def _backward(
    kernel: Any, ctx: Any, grad: Tensor | None, grad_total: Tensor | None, affine: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of input and residual, and those of weight and bias that `affine` asks for."""
    total, seed, weight, *statistics = ctx.saved_tensors
    of_input, of_residual = ctx.needs_input_grad[:2]
    dropout = ctx.dropout_p > 0
    grad = torch.zeros_like(total) if grad is None else grad  # Only the sum was used.
    grad_total = grad_total if ctx.has_residual else None
    options = (ctx.weight_offset, ctx.dropout_p, seed, ctx.offset)
    # Without dropout the two gradients are one.
    needs = (of_input or (of_residual and not dropout), of_residual and dropout)
    grad_input, grad_residual, *grads = kernel(
        grad, grad_total, total, weight, *statistics, ctx.normalized_ndim, *options, *needs, *affine
    )
    return (
        grad_input if of_input else None,
        (grad_residual if dropout else grad_input) if of_residual else None,
        *(grad if need else None for grad, need in zip(grads, affine, strict=True)),
    )


def _setup_rms_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, total, rstd = output
    ctx.mark_non_differentiable(*((rstd,) if inputs[1] is not None else (total, rstd)))
    _save(ctx, inputs, total, inputs[3], rstd)


def _backward_rms_norm(ops: Any, ctx: Any, grad: Tensor | None, grad_total: Tensor | None, _: Any) -> tuple[Any, ...]:
    need_weight = ctx.needs_input_grad[3]
    of_input, of_residual, of_weight = _backward(ops.rms_norm_backward, ctx, grad, grad_total, (need_weight,))
    return of_input, of_residual, None, of_weight, *(None,) * 5


def _setup_layer_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    _, total, mean, rstd = output
    ctx.mark_non_differentiable(*((mean, rstd) if inputs[1] is not None else (total, mean, rstd)))
    _save(ctx, inputs, total, inputs[3], mean, rstd)


def _backward_layer_norm(
    ops: Any, ctx: Any, grad: Tensor | None, grad_total: Tensor | None, *_: Any
) -> tuple[Any, ...]:
    affine = ctx.needs_input_grad[3:5]
    of_input, of_residual, *grads = _backward(ops.layer_norm_backward, ctx, grad, grad_total, affine)
    return of_input, of_residual, None, *grads, *(None,) * 5


def _setup_l2_normalize(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, ctx.eps = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(input, output[1])


def _backward_l2_normalize(ops: Any, ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    input, norm = ctx.saved_tensors
    return ops.l2_normalize_backward(grad, input, norm, ctx.eps), None


# ---- definitions ----

_registry.define(
    "rms_norm",
    family="norm",
    check=lambda input, residual, ndim, weight, eps, weight_offset, p, seed, offset: _check_forward(
        "rms_norm", input, residual, ndim, weight, None, weight_offset, p, seed
    ),
    fake=lambda input, residual, ndim, weight, eps, weight_offset, p, seed, offset: (
        input.new_empty(input.shape),
        _fake_sum(input, residual, p),
        _fake_statistics(input, ndim),
    ),
    setup_context=_setup_rms_norm,
    backward=_backward_rms_norm,
    autocast=_registry.cast_to_ambient,
)
_registry.define(
    "rms_norm_backward",
    family="norm",
    check=lambda grad, grad_sum, sum, weight, rstd, ndim, weight_offset, p, seed, *rest: _check_backward(
        "rms_norm_backward", grad, grad_sum, sum, weight, {"rstd": rstd}, ndim, p, seed
    ),
    fake=lambda grad, grad_sum, sum, weight, rstd, ndim, weight_offset, p, seed, offset, *needs: (
        *_fake_like(sum, *needs[:2]),
        _fake_affine(sum, ndim, needs[2]),
    ),
)
_registry.define(
    "layer_norm",
    family="norm",
    check=lambda input, residual, ndim, weight, bias, eps, weight_offset, p, seed, offset: _check_forward(
        "layer_norm", input, residual, ndim, weight, bias, weight_offset, p, seed
    ),
    fake=lambda input, residual, ndim, weight, bias, eps, weight_offset, p, seed, offset: (
        input.new_empty(input.shape),
        _fake_sum(input, residual, p),
        _fake_statistics(input, ndim),
        _fake_statistics(input, ndim),
    ),
    setup_context=_setup_layer_norm,
    backward=_backward_layer_norm,
    autocast=_registry.cast_to_ambient,
)
_registry.define(
    "layer_norm_backward",
    family="norm",
    check=lambda grad, grad_sum, sum, weight, mean, rstd, ndim, weight_offset, p, seed, *rest: _check_backward(
        "layer_norm_backward", grad, grad_sum, sum, weight, {"mean": mean, "rstd": rstd}, ndim, p, seed
    ),
    fake=lambda grad, grad_sum, sum, weight, mean, rstd, ndim, weight_offset, p, seed, offset, *needs: (
        *_fake_like(sum, *needs[:2]),
        _fake_affine(sum, ndim, needs[2]),
        _fake_affine(sum, ndim, needs[3]),
    ),
)


def _check_l2_normalize(input: Tensor, eps: float) -> None:
    check_float("l2_normalize", "input", input)
    _check_ndim("l2_normalize", input, 1)


_registry.define(
    "l2_normalize",
    family="norm",
    check=_check_l2_normalize,
    fake=lambda input, eps: (input.new_empty(input.shape), _fake_statistics(input, 1)),
    setup_context=_setup_l2_normalize,
    backward=_backward_l2_normalize,
    autocast=_registry.cast_to_ambient,
)
_registry.define(
    "l2_normalize_backward",
    family="norm",
    check=_check_l2_normalize_backward,
    fake=lambda grad, input, norm, eps: input.new_empty(input.shape),
)
