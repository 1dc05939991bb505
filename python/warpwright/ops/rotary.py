"""Rotary position embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import check_float, check_like, check_same_device, require, shape_text


def rotary_embedding(input: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotates pairs of elements of each head by their position's angles: (a, b) -> (a cos - b sin, b cos + a sin).

    Args:
        input: (batch, sequence, heads, head_dim), float32, float16, bfloat16 (float64 on the CPU), any strides: a
            (batch, heads, sequence, head_dim) tensor is passed as `t.transpose(1, 2)`, without a copy.
        cos, sin: (sequence, rotary_dim / 2), or (batch, sequence, rotary_dim / 2) for positions of each sequence's
            own; input's dtype or float32; rotary_dim at most head_dim, elements past it are copied.
        interleaved: pairs are neighbours (2 i, 2 i + 1), as in GPT-J, instead of (i, i + rotary_dim / 2), as in
            GPT-NeoX and Llama.

    Returns:
        Like input, contiguous.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank or shape does not fit, or a table that requires a
            gradient: it has none.

    Computed in float32 (float64 for float64). Differentiable in input.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    require_constant_tables("rotary_embedding", cos, sin)
    return call("rotary_embedding", input, cos, sin, interleaved)


# ---- argument checks, in the words of csrc/bindings/rotary.h ----


def require_constant_tables(op: str, cos: Tensor, sin: Tensor) -> None:
    for name, table in (("cos", cos), ("sin", sin)):
        require(not table.requires_grad, op, f"{name} has no gradient, got one that requires grad")


def check_heads(op: str, name: str, input: Tensor) -> None:
    check_float(op, name, input)
    dims = f"{name} must have 4 dimensions (batch, sequence, heads, head_dim), got {input.dim()}"
    require(input.dim() == 4, op, dims)


def check_tables(op: str, cos: Tensor, sin: Tensor, input_name: str, input: Tensor) -> None:
    _check_table(op, "cos", cos, input_name, input)
    _check_table(op, "sin", sin, input_name, input)
    check_like(op, "sin", sin, "cos", cos)


def _check_table(op: str, name: str, table: Tensor, input_name: str, input: Tensor) -> None:
    check_same_device(op, name, table, input_name, input)
    message = f"{name} must have the dtype of {input_name} ({input.dtype}) or torch.float32, got {table.dtype}"
    require(table.dtype in (torch.float32, input.dtype), op, message)
    batch, sequence, _, head_dim = input.shape
    fits = table.dim() in (2, 3) and table.shape[-2] == sequence and 2 * table.shape[-1] <= head_dim
    fits = fits and (table.dim() == 2 or table.shape[0] == batch)
    shapes = f"({sequence}, n) or ({batch}, {sequence}, n) with 2 * n at most head_dim {head_dim}"
    require(fits, op, f"{name} must have shape {shapes}, got {shape_text(table.shape)}")


def _check(op: str, input_name: str, input: Tensor, cos: Tensor, sin: Tensor) -> None:
    check_heads(op, input_name, input)
    check_tables(op, cos, sin, "input", input)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.interleaved = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    cos, sin = ctx.saved_tensors
    return ops.rotary_embedding_backward(grad, cos, sin, ctx.interleaved), None, None, None


def _autocast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """Only input is cast: the tables keep the digits that large positions need."""
    input, cos, sin, interleaved = args
    (input,) = _registry.cast_to_ambient((input,), dtype)
    tables = (t if t.dtype == input.dtype else t.float() for t in (cos, sin))
    return input, *tables, interleaved


_registry.define(
    "rotary_embedding",
    family="rotary",
    check=lambda input, cos, sin, interleaved: _check("rotary_embedding", "input", input, cos, sin),
    fake=lambda input, cos, sin, interleaved: input.new_empty(input.shape),
    setup_context=_setup,
    backward=_backward,
    autocast=_autocast,
)
_registry.define(
    "rotary_embedding_backward",
    family="rotary",
    check=lambda grad, cos, sin, interleaved: _check("rotary_embedding_backward", "grad_output", grad, cos, sin),
    fake=lambda grad, cos, sin, interleaved: grad.new_empty(grad.shape),
)
