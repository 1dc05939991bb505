"""Sharding rules of what works on rows or on single elements: norms, softmax, activations, embedding, rotary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from warpwright.distributed._rules import SUM, WHOLE, Lying, dim, if_, needed, rule

# ---- norms: a row is never cut ----


def _norm(input: Any, residual: Any, ndim: int, dropout_p: float, statistics: int) -> Iterator[Lying]:
    if dropout_p > 0:  # The mask is made of an element's place in the whole.
        return
    for i in range(input.ndim - ndim):
        outputs = (dim(i), if_(residual is not None, dim(i)), *[dim(i)] * statistics)
        yield outputs, (dim(i), dim(i), None, WHOLE, *[WHOLE] * (statistics - 1))


def _norm_backward(sum: Any, ndim: int, dropout_p: float, needs: tuple[bool, ...], statistics: int) -> Iterator[Lying]:
    if dropout_p > 0:
        return
    for i in range(sum.ndim - ndim):
        grads = needed(needs, dim(i), dim(i), *[SUM] * (len(needs) - 2))
        yield grads, (dim(i), dim(i), dim(i), WHOLE, *[dim(i)] * statistics)


@rule("rms_norm")
def rms_norm(
    input: Any, residual: Any, ndim: int, weight: Any, eps: float, weight_offset: float, dropout_p: float, *_: Any
) -> Iterator[Lying]:
    return _norm(input, residual, ndim, dropout_p, 1)


@rule("rms_norm_backward")
def rms_norm_backward(
    grad: Any, grad_sum: Any, sum: Any, weight: Any, rstd: Any, ndim: int, weight_offset: float, dropout_p: float,
    seed: Any, offset: int, *needs: bool,
) -> Iterator[Lying]:  # fmt: skip
    return _norm_backward(sum, ndim, dropout_p, needs, 1)


@rule("layer_norm")
def layer_norm(
    input: Any, residual: Any, ndim: int, weight: Any, bias: Any, eps: float, weight_offset: float, dropout_p: float,
    *_: Any,
) -> Iterator[Lying]:  # fmt: skip
    return _norm(input, residual, ndim, dropout_p, 2)


@rule("layer_norm_backward")
def layer_norm_backward(
    grad: Any, grad_sum: Any, sum: Any, weight: Any, mean: Any, rstd: Any, ndim: int, weight_offset: float,
    dropout_p: float, seed: Any, offset: int, *needs: bool,
) -> Iterator[Lying]:  # fmt: skip
    return _norm_backward(sum, ndim, dropout_p, needs, 2)


@rule("l2_normalize")
def l2_normalize(input: Any, eps: float) -> Iterator[Lying]:
    for i in range(input.ndim - 1):
        yield (dim(i), dim(i)), (dim(i),)


@rule("l2_normalize_backward")
def l2_normalize_backward(grad: Any, input: Any, norm: Any, eps: float) -> Iterator[Lying]:
    for i in range(input.ndim - 1):
        yield (dim(i),), (dim(i), dim(i), dim(i))


# ---- softmax ----


def _softmax(tensors: int, input: Any, mask: Any, along: int, causal: bool) -> Iterator[Lying]:
    for i in range(input.ndim):
        if i == along % input.ndim or (causal and i == input.ndim - 2):  # A row's place says what it may see.
            continue
        at = -1 if mask is None else i - (input.ndim - mask.ndim)  # A mask is broadcast.
        yield (dim(i),), (*[dim(i)] * tensors, dim(at) if at >= 0 and mask.shape[at] != 1 else WHOLE)


@rule("softmax")
def softmax(input: Any, mask: Any, along: int, scale: float, causal: bool, log: bool) -> Iterator[Lying]:
    return _softmax(1, input, mask, along, causal)


@rule("softmax_backward")
def softmax_backward(
    grad: Any, output: Any, mask: Any, along: int, scale: float, causal: bool, log: bool
) -> Iterator[Lying]:
    return _softmax(2, output, mask, along, causal)


# ---- activations: single elements, and a bias of the last dimension ----


@rule("activation")
def activation(input: Any, bias: Any, name: str) -> Iterator[Lying]:
    for i in range(input.ndim):
        yield (dim(i),), (dim(i), dim(0) if i == input.ndim - 1 else WHOLE)


@rule("activation_backward")
def activation_backward(grad: Any, input: Any, bias: Any, name: str, *needs: bool) -> Iterator[Lying]:
    for i in range(input.ndim):
        own = i == input.ndim - 1
        yield needed(needs, dim(i), dim(0) if own else SUM), (dim(i), dim(i), dim(0) if own else WHOLE)


@rule("glu")
def glu(gate: Any, up: Any, gate_bias: Any, up_bias: Any, name: str) -> Iterator[Lying]:
    for i in range(gate.ndim):
        bias = dim(0) if i == gate.ndim - 1 else WHOLE
        yield (dim(i),), (dim(i), dim(i), bias, bias)


@rule("glu_backward")
def glu_backward(
    grad: Any, gate: Any, up: Any, gate_bias: Any, up_bias: Any, name: str, *needs: bool
) -> Iterator[Lying]:
    for i in range(gate.ndim):
        own = i == gate.ndim - 1
        of_bias, bias = (dim(0), dim(0)) if own else (SUM, WHOLE)
        yield needed(needs, dim(i), dim(i), of_bias, of_bias), (dim(i), dim(i), dim(i), bias, bias)


# ---- embedding: tokens, or columns. Rows of the table are torch's, whose placement knows what a process lacks ----


@rule("embedding")
def embedding(input: Any, weight: Any, padding_idx: int | None, scale_grad_by_freq: bool) -> Iterator[Lying]:
    yield (dim(input.ndim),), (WHOLE, dim(1))
    if not scale_grad_by_freq:  # Which counts the tokens of the whole.
        for i in range(input.ndim):
            yield (dim(i),), (dim(i), WHOLE)


@rule("embedding_backward")
def embedding_backward(
    grad: Any, input: Any, num_embeddings: int, padding_idx: int | None, scale_grad_by_freq: bool
) -> Iterator[Lying]:
    yield (dim(1),), (dim(input.ndim), WHOLE)
    if not scale_grad_by_freq:
        for i in range(input.ndim):
            yield (SUM,), (dim(i), dim(i))


# ---- rotary: (batch, sequence, heads, head_dim), and tables (sequence, ...) or (batch, sequence, ...) ----


def _table(table: Any, i: int) -> Any:
    """How a table lies whose tensor is cut along batch (0), sequence (1) or heads (2)."""
    if table is None or i == 2:
        return WHOLE
    at = i - (3 - table.ndim)
    return WHOLE if at < 0 or table.shape[at] == 1 else dim(at)


def _rotary(cos: Any, positions: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(dimension, that of the tables, that of the positions)."""
    yield 2, WHOLE, WHOLE
    if positions is None:
        yield 0, _table(cos, 0), WHOLE
        if cos is not None:  # Without tables an angle is made of the place in the whole.
            yield 1, _table(cos, 1), WHOLE
    else:
        for i in (0, 1):
            at = i - (2 - positions.ndim)
            yield i, WHOLE, WHOLE if at < 0 or positions.shape[at] == 1 else dim(at)


@rule("rotary_embedding")
def rotary_embedding(input: Any, key: Any, cos: Any, sin: Any, positions: Any, *_: Any) -> Iterator[Lying]:
    for i, table, at in _rotary(cos, positions):
        yield (dim(i), if_(key is not None, dim(i))), (dim(i), dim(i), table, table, at)


@rule("qk_norm_rotary")
def qk_norm_rotary(
    query: Any, key: Any, query_weight: Any, key_weight: Any, cos: Any, sin: Any, *_: Any
) -> Iterator[Lying]:
    for i in range(3):
        table = _table(cos, i)
        yield [dim(i)] * 4, (dim(i), dim(i), WHOLE, WHOLE, table, table)


@rule("qk_norm_rotary_backward")
def qk_norm_rotary_backward(
    grad_query: Any, grad_key: Any, query: Any, key: Any, query_weight: Any, key_weight: Any, cos: Any, sin: Any,
    query_rstd: Any, key_rstd: Any, interleaved: bool, weight_offset: float, *needs: bool,
) -> Iterator[Lying]:  # fmt: skip
    for i in range(3):
        table = _table(cos, i)
        inputs = (*[dim(i)] * 4, WHOLE, WHOLE, table, table, dim(i), dim(i))
        yield needed(needs, dim(i), dim(i), SUM, SUM), inputs


@rule("rotary_embedding_backward")
def rotary_embedding_backward(grad: Any, grad_key: Any, cos: Any, sin: Any, positions: Any, *_: Any) -> Iterator[Lying]:
    for i, table, at in _rotary(cos, positions):
        yield (dim(i), if_(grad_key is not None, dim(i))), (dim(i), dim(i), table, table, at)
