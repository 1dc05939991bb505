"""Rotary position embedding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import check_float, check_like, check_same_device, check_same_dtype, require, shape_text


def rotary_embedding(
    input: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    positions: Tensor | None = None,
    base: float | None = None,
    rotary_dim: int | None = None,
    interleaved: bool = False,
) -> Tensor:
    """Rotates pairs of elements of each head by their position's angles: (a, b) -> (a cos - b sin, b cos + a sin).

    Args:
        input: (batch, sequence, heads, head_dim), float32, float16, bfloat16 (float64 on the CPU), any strides: a
            (batch, heads, sequence, head_dim) tensor is passed as `t.transpose(1, 2)`, without a copy.
        cos, sin: (sequence, rotary_dim / 2), or (batch, sequence, rotary_dim / 2) for positions of each sequence's
            own; with `positions` a table (rows, rotary_dim / 2) of which a token takes row positions[b, s]. input's
            dtype or float32; rotary_dim at most head_dim, elements past it are copied.
        positions: (sequence,) or (batch, sequence), int64, any strides. None: 0, 1, 2, ... Sequences that are packed
            into one count from 0 again where each begins.
        base: without cos and sin, of the angles position * base^(-2 i / rotary_dim) of pair i, in radians: 10000 in
            most models. No table is read or written.
        rotary_dim: with base, the elements of a head that are rotated, even. None: all of head_dim.
        interleaved: pairs are neighbours (2 i, 2 i + 1), as in GPT-J, instead of (i, i + rotary_dim / 2), as in
            GPT-NeoX and Llama.

    Returns:
        Like input, contiguous.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank or shape does not fit, or a table that requires a
            gradient: it has none. On the CPU also for a position that the table lacks; on a GPU, where nobody can look
            at the positions without waiting for it, such a token's result is NaN.

    Computed in float32 (float64 for float64). Angles from `base` keep float32's digits at any position: their
    frequencies have float64's 53 bits, and whole turns are dropped in 64-bit integers, without rounding, so that at
    position 10^6 an angle is off by 10^-9 at most. Differentiable in input.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    require_constant_tables("rotary_embedding", cos, sin)
    return call("rotary_embedding", input, None, cos, sin, positions, base, rotary_dim, interleaved)[0]


def rotary_embedding_qk(
    query: Tensor,
    key: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    positions: Tensor | None = None,
    base: float | None = None,
    rotary_dim: int | None = None,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """`rotary_embedding` of queries and keys by one kernel, which looks up or computes each angle once for both.

    Args:
        query: (batch, sequence, heads, head_dim), as rotary_embedding's input.
        key: (batch, sequence, key_heads, head_dim), query's dtype; fewer heads in grouped-query attention.
        cos, sin, positions, base, rotary_dim, interleaved: see rotary_embedding.

    Returns:
        The rotated query and key, contiguous. Differentiable in both.

    Raises:
        RuntimeError: as rotary_embedding; also for a key that does not fit the query.
    """
    require_constant_tables("rotary_embedding_qk", cos, sin)
    query, key = call("rotary_embedding", query, key, cos, sin, positions, base, rotary_dim, interleaved)
    return query, key


def require_constant_tables(op: str, cos: Tensor | None, sin: Tensor | None) -> None:
    for name, table in (("cos", cos), ("sin", sin)):
        require(table is None or not table.requires_grad, op, f"{name} has no gradient, got one that requires grad")


# ---- argument checks, in the words of csrc/bindings/rotary.cpp ----

#: What errors call the operator and its tensors.
_Names = tuple[str, str, str]


def _names(key: Tensor | None) -> _Names:
    """One public function takes a key, the other does not."""
    return ("rotary_embedding", "input", "") if key is None else ("rotary_embedding_qk", "query", "key")


def check_heads(op: str, name: str, input: Tensor) -> None:
    check_float(op, name, input)
    dims = f"{name} must have 4 dimensions (batch, sequence, heads, head_dim), got {input.dim()}"
    require(input.dim() == 4, op, dims)


def check_tables(op: str, cos: Tensor, sin: Tensor, input_name: str, input: Tensor, positions: bool = False) -> None:
    """`positions`: rows of the tables are looked up, so that there may be any number of them."""
    _check_table(op, "cos", cos, input_name, input, positions)
    _check_table(op, "sin", sin, input_name, input, positions)
    check_like(op, "sin", sin, "cos", cos)


def _check_table(op: str, name: str, table: Tensor, input_name: str, input: Tensor, positions: bool) -> None:
    check_same_device(op, name, table, input_name, input)
    message = f"{name} must have the dtype of {input_name} ({input.dtype}) or torch.float32, got {table.dtype}"
    require(table.dtype in (torch.float32, input.dtype), op, message)
    batch, sequence, _, head_dim = input.shape
    narrow = table.dim() >= 2 and 2 * table.shape[-1] <= head_dim
    if positions:
        message = f"{name} must have shape (rows, n) with 2 * n at most head_dim {head_dim}"
        require(narrow and table.dim() == 2, op, f"{message}, got {shape_text(table.shape)}")
        return
    fits = narrow and table.dim() in (2, 3) and table.shape[-2] == sequence
    fits = fits and (table.dim() == 2 or table.shape[0] == batch)
    shapes = f"({sequence}, n) or ({batch}, {sequence}, n) with 2 * n at most head_dim {head_dim}"
    require(fits, op, f"{name} must have shape {shapes}, got {shape_text(table.shape)}")


def _check_positions(names: _Names, positions: Tensor, input: Tensor) -> None:
    op, input_name, _ = names
    check_same_device(op, "positions", positions, input_name, input)
    require(positions.dtype == torch.int64, op, f"positions must be torch.int64, got {positions.dtype}")
    batch, sequence = input.shape[:2]
    message = f"positions must have shape ({sequence},) or ({batch}, {sequence}), got {shape_text(positions.shape)}"
    require(tuple(positions.shape) in ((sequence,), (batch, sequence)), op, message)


def _check(
    names: _Names,
    input: Tensor,
    key: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    positions: Tensor | None,
    base: float | None,
    rotary_dim: int | None,
) -> None:
    op, input_name, key_name = names
    check_heads(op, input_name, input)
    if key is not None:
        check_same_device(op, key_name, key, input_name, input)
        check_same_dtype(op, key_name, key, input_name, input)
        fits = key.dim() == 4 and key.shape[:2] == input.shape[:2] and key.shape[3] == input.shape[3]
        message = (
            f"{key_name} must have the shape of {input_name} {shape_text(input.shape)} but for the number of heads"
        )
        require(fits, op, f"{message}, got {shape_text(key.shape)}")
    if positions is not None:
        _check_positions(names, positions, input)
    given = (cos is not None, sin is not None, base is not None)
    message = "angles must come from cos and sin, or from base alone"
    require(given in ((True, True, False), (False, False, True)), op, message)
    if cos is not None and sin is not None:
        check_tables(op, cos, sin, input_name, input, positions is not None)
        require(rotary_dim is None, op, f"rotary_dim goes with base, got {rotary_dim} beside cos and sin")
        return
    assert base is not None
    require(0 < base < math.inf, op, f"base must be positive and finite, got {base:g}")
    head_dim = input.shape[3]
    message = f"rotary_dim must be even and at most head_dim {head_dim}"
    dim = head_dim if rotary_dim is None else rotary_dim
    require(0 <= dim <= head_dim and dim % 2 == 0, op, f"{message}, got {dim}")


# ---- fake outputs, autograd, autocast ----


def _fake(input: Tensor, key: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    return input.new_empty(input.shape), input.new_empty((0,) if key is None else key.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, *tables, ctx.base, ctx.rotary_dim, ctx.interleaved = inputs
    ctx.mark_non_differentiable(*(t for t, need in zip(output, ctx.needs_input_grad, strict=False) if not need))
    ctx.save_for_backward(*tables)


def _backward(ops: Any, ctx: Any, grad: Tensor, key_grad: Tensor) -> tuple[Any, ...]:
    rest = (*ctx.saved_tensors, ctx.base, ctx.rotary_dim, ctx.interleaved)
    if not ctx.needs_input_grad[1]:
        return ops.rotary_embedding_backward(grad, None, *rest)[0], *[None] * 7
    if not ctx.needs_input_grad[0]:
        return None, ops.rotary_embedding_backward(key_grad, None, *rest)[0], *[None] * 6
    return *ops.rotary_embedding_backward(grad, key_grad, *rest), *[None] * 6


def _autocast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """Only the rotated tensors are cast: the tables keep the digits that large positions need."""
    input, key, cos, sin, *rest = args
    input, key = _registry.cast_to_ambient((input, key), dtype)
    tables = (t if t is None or t.dtype == input.dtype else t.float() for t in (cos, sin))
    return input, key, *tables, *rest


_registry.define(
    "rotary_embedding",
    family="rotary",
    check=lambda input, key, *rest: _check(_names(key), input, key, *rest[:-1]),
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
    autocast=_autocast,
)
_registry.define(
    "rotary_embedding_backward",
    family="rotary",
    check=lambda grad, *rest: _check(("rotary_embedding_backward", "grad_output", "grad_key"), grad, *rest[:-1]),
    fake=_fake,
)
