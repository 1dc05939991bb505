"""The RMS norm of each head of queries and keys, with rotary position embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import (
    acc_dtype,
    check_like,
    check_same_device,
    check_same_dtype,
    count_of,
    require,
    require_below,
    shape_text,
)
from warpwright.ops.rotary import check_heads, check_tables, require_constant_tables

#: csrc/kernels/qk_norm.h's.
MAX_HEAD_DIM = 512
MAX_HEADS = 2**31 - 1


def qk_norm_rotary(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """rms_norm over each head, then rotary_embedding, of queries and keys at once, as Qwen 3 and Gemma 3 have it.

    Args:
        query: (batch, sequence, heads, head_dim), float32, float16, bfloat16 (float64 on the CPU), any strides;
            head_dim at most 512.
        key: (batch, sequence, key heads, head_dim), the dtype and device of query.
        query_weight, key_weight: (head_dim,), query's dtype, or None for ones.
        cos, sin, interleaved: as in rotary_embedding.
        eps: added to the mean square.
        weight_offset: added to both weights, in float32: 1 for Gemma.

    Returns:
        (query, key), each like its input and contiguous. What is between norm and rotation is not rounded.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank or shape does not fit, or a table that requires a
            gradient: it has none.

    Computed in float32 (float64 for float64). Differentiable in query, key and both weights; bitwise the same from run
    to run.

    Source: Henry, Dachapally, Pawar and Chen, "Query-Key Normalization for Transformers", 2020; here with RMS norm.
    """
    require_constant_tables("qk_norm_rotary", cos, sin)
    query_output, key_output, _, _ = call(
        "qk_norm_rotary", query, key, query_weight, key_weight, cos, sin, interleaved, eps, weight_offset
    )
    return query_output, key_output


# ---- argument checks, in the words of csrc/bindings/qk_norm.cpp ----


def _check_weight(
    op: str, name: str, weight: Tensor | None, weight_offset: float, side_name: str, side: Tensor
) -> None:
    require(weight is not None or weight_offset == 0, op, f"{name} must be given with weight_offset")
    if weight is None:
        return
    check_same_device(op, name, weight, side_name, side)
    check_same_dtype(op, name, weight, side_name, side)
    expected = (side.shape[3],)
    message = f"{name} must have shape {shape_text(expected)}, got {shape_text(weight.shape)}"
    require(tuple(weight.shape) == expected, op, message)


def _check(
    op: str,
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    weight_offset: float,
) -> None:
    check_heads(op, "query", query)
    check_heads(op, "key", key)
    check_same_device(op, "key", key, "query", query)
    check_same_dtype(op, "key", key, "query", query)
    shape = shape_text(query.shape)
    message = f"key must have the batch, sequence and head_dim of query {shape}, got {shape_text(key.shape)}"
    require(all(key.shape[d] == query.shape[d] for d in (0, 1, 3)), op, message)
    head_dim = query.shape[3]
    require(head_dim <= MAX_HEAD_DIM, op, f"head_dim must be at most {MAX_HEAD_DIM}, got {head_dim}")
    for side in (query, key):
        message = f"batch * sequence * heads must be at most {MAX_HEADS}, got {shape_text(side.shape)}"
        require_below(count_of(side.shape[:3]), MAX_HEADS + 1, op, message)
    _check_weight(op, "query_weight", query_weight, weight_offset, "query", query)
    _check_weight(op, "key_weight", key_weight, weight_offset, "key", key)
    check_tables(op, cos, sin, "query", query)


def _check_rstd(op: str, name: str, rstd: Tensor, side_name: str, side: Tensor) -> None:
    check_same_device(op, name, rstd, side_name, side)
    heads, dtype = count_of(side.shape[:3]), acc_dtype(side.dtype)
    message = f"{name} must hold {heads} elements of {dtype}, got {rstd.numel()} of {rstd.dtype}"
    require(rstd.numel() == heads and rstd.dtype == dtype, op, message)


def _check_backward(
    grad_query: Tensor,
    grad_key: Tensor,
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    query_rstd: Tensor,
    key_rstd: Tensor,
    interleaved: bool,
    weight_offset: float,
    *needs: bool,
) -> None:
    op = "qk_norm_rotary_backward"
    _check(op, query, key, query_weight, key_weight, cos, sin, weight_offset)
    check_like(op, "grad_query", grad_query, "query", query)
    check_like(op, "grad_key", grad_key, "key", key)
    _check_rstd(op, "query_rstd", query_rstd, "query", query)
    _check_rstd(op, "key_rstd", key_rstd, "key", key)


# ---- fake outputs ----


def _fake(query: Tensor, key: Tensor, *_: Any) -> tuple[Tensor, ...]:
    rstds = (x.new_empty(x.shape[:3], dtype=acc_dtype(x.dtype)) for x in (query, key))
    return query.new_empty(query.shape), key.new_empty(key.shape), *rstds


def _fake_backward(grad_query: Tensor, grad_key: Tensor, query: Tensor, key: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    needs = rest[-4:]
    grads = (x.new_empty(x.shape if need else (0,)) for x, need in zip((query, key), needs[:2], strict=True))
    weights = (query.new_empty(query.shape[3] if need else 0) for need in needs[2:])
    return *grads, *weights


# ---- autograd ----


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.interleaved, _, ctx.weight_offset = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*tensors, *output[2:])


def _backward(ops: Any, ctx: Any, grad_query: Tensor, grad_key: Tensor, *_: Any) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad[:4]
    grads = ops.qk_norm_rotary_backward(
        grad_query, grad_key, *ctx.saved_tensors, ctx.interleaved, ctx.weight_offset, *needs
    )
    return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 5


def _autocast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """The tables keep the digits that large positions need."""
    cast = _registry.cast_to_ambient(args[:4], dtype)
    tables = (t if t.dtype == cast[0].dtype else t.float() for t in args[4:6])
    return *cast, *tables, *args[6:]


_registry.define(
    "qk_norm_rotary",
    family="qk_norm",
    check=lambda query, key, query_weight, key_weight, cos, sin, interleaved, eps, weight_offset: _check(
        "qk_norm_rotary", query, key, query_weight, key_weight, cos, sin, weight_offset
    ),
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
    autocast=_autocast,
)
_registry.define("qk_norm_rotary_backward", family="qk_norm", check=_check_backward, fake=_fake_backward)
