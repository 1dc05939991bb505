"""Products with weights that are 2:4 sparse: of every four neighbours along k at most two are not zero."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._arithmetic import arithmetic_of
from warpwright._backend import call
from warpwright._check import (
    check_activation,
    check_float,
    check_same_device,
    check_same_dtype,
    fail,
    needs_preact,
    require,
    shape_text,
)
from warpwright.ops._epilogue import check_bias, check_output_like, check_saved, saved_of, wants_grad


class Sparse24Weight(NamedTuple):
    """An (n, k) weight without half of its elements: two of each group of four columns [4g, 4g + 4) are kept.

    Attributes:
        values: (n, k / 2), the kept elements in their order: columns 2g and 2g + 1 are those of group g.
        metadata: (n, ceil(k / 8)), uint8: where in its group each of them was. Kept element j of a row has bits
            2 (j % 4) and 2 (j % 4) + 1 of byte j / 4, the lower one first: a row is one string of 2-bit numbers from
            the low end on, 4 bits a group. The two numbers of a group ascend; the upper half of a last byte that has
            one group is 0.

    A tuple of two tensors: make `values` a leaf or a `torch.nn.Parameter` to fine-tune a pruned network with the mask
    that it has. Metadata of your own are not checked: two equal places, or places that do not ascend, give undefined
    numbers.

    Source: PTX ISA 9.7.14.6, "Sparse mma.sp storage", whose metadata of 16-bit operands are 16 or 32 bits of this
    string at a time.
    """

    values: Tensor
    metadata: Tensor

    @classmethod
    def from_dense(cls, weight: Tensor) -> Sparse24Weight:
        """A weight that is 2:4 sparse already, compressed without loss.

        Args:
            weight: (n, k) as in `prune_24`.

        Raises:
            RuntimeError: a group of four has more than two elements that are not zero; the message names the first such
                group. Or what `prune_24` raises.

        Of two zeros in a group that has room for one it keeps the first; a -0.0 that is not kept comes back as 0.0.
        Reads the weight's values on the host: not for compiled code or CUDA graphs.
        """
        pruned = prune_24(weight)
        groups = weight.detach().reshape(weight.shape[0], weight.shape[1] // 4, 4)
        crowded = ((groups != 0).sum(2) > 2).nonzero()
        if len(crowded):
            row, group = crowded[0].tolist()
            fail(
                "Sparse24Weight.from_dense",
                "weight must have at most 2 elements that are not zero in each group of 4 columns, got "
                f"{groups[row, group].tolist()} in row {row}, columns {4 * group} to {4 * group + 3}; prune_24 drops "
                "the smallest",
            )
        return pruned

    def to_dense(self) -> Tensor:
        """The (n, k) weight, zeros where nothing was kept: `dense_from_sparse24`."""
        return dense_from_sparse24(self)


def prune_24(weight: Tensor) -> Sparse24Weight:
    """Keeps the two largest magnitudes of each group of four columns.

    Args:
        weight: (n, k), float32, float16, bfloat16 (float64 on the CPU), any strides; k is a multiple of 4.

    Returns:
        A `Sparse24Weight` whose values are detached from `weight`.

    Raises:
        RuntimeError: weight has another dtype or shape.

    Of equal magnitudes the first ones are kept. NaN counts as an infinity, so it is dropped only where two infinities
    or NaNs stand before it. The same numbers on every backend. Not differentiable.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021 (arXiv 2104.08378), section 3.
    """
    return Sparse24Weight(*call("prune_24", weight.detach()))


def dense_from_sparse24(weight: Sparse24Weight) -> Tensor:
    """The dense weight, zeros where nothing was kept.

    Args:
        weight: a `Sparse24Weight` of float32, float16, bfloat16 (float64 on the CPU), any strides.

    Returns:
        (n, k), contiguous, in the dtype of the values.

    Raises:
        RuntimeError: naming the part whose dtype, device or shape does not fit.

    The same numbers on every backend. Differentiable in `weight.values`.
    """
    return call("dense_from_sparse24", *_parts("dense_from_sparse24", weight))


def linear_sparse24(
    input: Tensor,
    weight: Sparse24Weight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`activation(input @ weight.to_dense().T + bias + residual)`, from the kept half of the weight.

    Args:
        input: (..., in_features), float32, float16, bfloat16 (float64 on the CPU), any strides.
        weight: a `Sparse24Weight` of (out_features, in_features), values in input's dtype, any strides.
        bias: (out_features), input's dtype, or None.
        activation: see `linear`.
        residual: (..., out_features), input's dtype, added before the activation.

    Returns:
        (..., out_features), contiguous, in input's dtype.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank or shape does not fit.

    Accumulates in float32 (float64 for float64). On a GPU from sm_80 on 16-bit operands take the tensor cores' sparse
    product (mma.sp, on Hopper wgmma.sp) where in_features is a multiple of 64 and the lines of input, values and
    metadata start at multiples of 16, 16 and 8 bytes; anything else is multiplied without tensor cores. Triton has no
    sparse product: its kernel makes tiles of the weight dense, and saves reading half of it.

    Differentiable in input, `weight.values`, bias and residual. The gradient of the values is that of the kept elements
    alone, so a step of an optimizer leaves the mask as it is. Both gradients of the product are dense products on a
    dense copy of the weight, or of its gradient. Bitwise the same from run to run. Whether an infinity or NaN of the
    input meets the zeros of the weight, and becomes NaN there, depends on the kernel.
    """
    name = activation or "none"
    values, metadata = _parts("linear_sparse24", weight)
    save_preact = needs_preact(name) and wants_grad(input, values, bias, residual)
    arguments = (input, values, metadata, bias, residual, name, *arithmetic_of(input), save_preact)
    return call("linear_sparse24", *arguments)[0]


def _parts(op: str, weight: Sparse24Weight) -> tuple[Tensor, Tensor]:
    message = f"weight must be a Sparse24Weight, got a {type(weight).__name__}; prune_24 makes one of a dense weight"
    require(isinstance(weight, Sparse24Weight), op, message)
    return weight.values, weight.metadata


# ---- argument checks, in the words of csrc/bindings/sparse.cpp ----


def _check_dense(op: str, name: str, tensor: Tensor) -> None:
    check_float(op, name, tensor)
    message = f"{name} must have 2 dimensions and a multiple of 4 columns, got {shape_text(tensor.shape)}"
    require(tensor.dim() == 2 and tensor.shape[1] % 4 == 0, op, message)


def _check_metadata(op: str, metadata: Tensor, like_name: str, like: Tensor, k: int) -> None:
    check_same_device(op, "metadata", metadata, like_name, like)
    require(metadata.dtype == torch.uint8, op, f"metadata must be torch.uint8, got {metadata.dtype}")
    expected = (like.shape[0], (k + 7) // 8)
    message = f"metadata must have shape {shape_text(expected)}, got {shape_text(metadata.shape)}"
    require(tuple(metadata.shape) == expected, op, message)


def _check_weight(op: str, values: Tensor, metadata: Tensor) -> None:
    message = f"values must have 2 dimensions and an even number of columns, got {shape_text(values.shape)}"
    require(values.dim() == 2 and values.shape[1] % 2 == 0, op, message)
    _check_metadata(op, metadata, "values", values, 2 * values.shape[1])


def _check_linear(op: str, input: Tensor, values: Tensor, metadata: Tensor) -> None:
    check_float(op, "input", input)
    require(input.dim() >= 1, op, "input must have at least 1 dimension, got 0")
    check_same_device(op, "values", values, "input", input)
    check_same_dtype(op, "values", values, "input", input)
    _check_weight(op, values, metadata)
    message = f"weight has {2 * values.shape[1]} input features, input has {input.shape[-1]}"
    require(2 * values.shape[1] == input.shape[-1], op, message)


# ---- prune_24, dense_from_sparse24 ----


def _fake_prune(weight: Tensor) -> tuple[Tensor, Tensor]:
    n, k = weight.shape
    return weight.new_empty((n, k // 2)), weight.new_empty((n, (k + 7) // 8), dtype=torch.uint8)


def _check_to_dense(values: Tensor, metadata: Tensor) -> None:
    check_float("dense_from_sparse24", "values", values)
    _check_weight("dense_from_sparse24", values, metadata)


def _setup_to_dense(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward_to_dense(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return ops.dense_from_sparse24_backward(grad, *ctx.saved_tensors), None


def _check_to_dense_backward(grad_output: Tensor, metadata: Tensor) -> None:
    op = "dense_from_sparse24_backward"
    _check_dense(op, "grad_output", grad_output)
    _check_metadata(op, metadata, "grad_output", grad_output, grad_output.shape[1])


_registry.define(
    "prune_24", family="sparse", check=lambda weight: _check_dense("prune_24", "weight", weight), fake=_fake_prune
)
_registry.define(
    "dense_from_sparse24",
    family="sparse",
    check=_check_to_dense,
    fake=lambda values, metadata: values.new_empty((values.shape[0], 2 * values.shape[1])),
    setup_context=_setup_to_dense,
    backward=_backward_to_dense,
)
_registry.define(
    "dense_from_sparse24_backward",
    family="sparse",
    check=_check_to_dense_backward,
    fake=lambda grad_output, metadata: grad_output.new_empty((grad_output.shape[0], grad_output.shape[1] // 2)),
)


# ---- linear_sparse24 ----


def _check_forward(
    input: Tensor,
    values: Tensor,
    metadata: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save_preact: bool,
) -> None:
    op = "linear_sparse24"
    _check_linear(op, input, values, metadata)
    check_activation(op, activation)
    check_bias(op, "bias", bias, input, values.shape[0])
    if residual is not None:
        check_output_like(op, "residual", residual, input, values.shape[0])
        check_same_dtype(op, "residual", residual, "input", input)


def _fake_forward(
    input: Tensor,
    values: Tensor,
    metadata: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    sizes = (*input.shape[:-1], values.shape[0])
    return input.new_empty(sizes), input.new_empty(sizes if save_preact and needs_preact(activation) else (0,))


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, values, metadata, bias, residual, activation, *arithmetic, _ = inputs
    result, preact = output
    ctx.mark_non_differentiable(preact)
    ctx.activation, ctx.arithmetic = activation, arithmetic
    saved = saved_of(activation, result, preact)
    # Without a saved pre-activation it is computed again in the backward pass, from the forward's own arguments.
    ctx.recompute = activation != "none" and saved is None
    ctx.save_for_backward(input, values, metadata, saved, *((bias, residual) if ctx.recompute else ()))


def _backward_forward(ops: Any, ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    input, values, metadata, saved, *rest = ctx.saved_tensors
    if ctx.recompute:
        saved, _ = ops.linear_sparse24(input, values, metadata, *rest, "none", *ctx.arithmetic, False)
    need_input, need_values, _, need_bias, need_residual = ctx.needs_input_grad[:5]
    needs = need_input, need_values, need_bias, need_residual
    grads = ops.linear_sparse24_backward(grad, input, values, metadata, saved, ctx.activation, *ctx.arithmetic, *needs)
    wanted = [g if need else None for g, need in zip(grads, needs, strict=True)]
    return (*wanted[:2], None, *wanted[2:], *[None] * 4)


def _check_backward(
    grad_output: Tensor,
    input: Tensor,
    values: Tensor,
    metadata: Tensor,
    saved: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> None:
    op = "linear_sparse24_backward"
    _check_linear(op, input, values, metadata)
    check_activation(op, activation)
    check_output_like(op, "grad_output", grad_output, input, values.shape[0])
    check_same_dtype(op, "grad_output", grad_output, "input", input)
    check_saved(op, saved, activation, grad_output)


def _fake_backward(
    grad_output: Tensor,
    input: Tensor,
    values: Tensor,
    metadata: Tensor,
    saved: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    need_input: bool,
    need_values: bool,
    need_bias: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        input.new_empty(input.shape if need_input else (0,)),
        values.new_empty(values.shape if need_values else (0,)),
        values.new_empty(values.shape[:1] if need_bias else (0,)),
        input.new_empty(grad_output.shape if need_residual else (0,)),
    )


_registry.define(
    "linear_sparse24",
    family="sparse",
    check=_check_forward,
    fake=_fake_forward,
    setup_context=_setup_forward,
    backward=_backward_forward,
    autocast=_registry.cast_to_ambient,
)
_registry.define("linear_sparse24_backward", family="sparse", check=_check_backward, fake=_fake_backward)
