"""Embedding: rows of a table by their numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import check_float, check_same_device, fail, require, shape_text

#: Rows are numbered in 32 bits, with one number more for tokens that have no row.
MAX_EMBEDDINGS = 2**31 - 2


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """`weight[input]`: the arguments of torch.nn.functional.embedding.

    Args:
        input: row numbers, int64 or int32, any shape and strides.
        weight: (num_embeddings, embedding_dim), float32, float16, bfloat16 (float64 on the CPU), any strides.
        padding_idx: the row that gets no gradient; negative ones count from the end. None: every row gets one.
        max_norm, norm_type: max_norm must be None: torch renormalises the rows of the weight in place, and this op
            writes to no argument.
        scale_grad_by_freq: divide the gradient of each row by the number of times that the row is in input.
        sparse: must be False: the gradient is a dense tensor.

    Returns:
        (*input.shape, embedding_dim), contiguous, in weight's dtype.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank or value does not fit; on the CPU also for a row
            number outside of the weight. On a GPU nobody can look at the numbers without waiting for it: there such a
            token's output is NaN, and no row gets its gradient. It is never used as an address.

    Differentiable in weight. The gradients of a row are added in float32 (float64 for float64) in the order of the
    tokens, in pieces of 64, and rounded once; the gradient of the weight is written once, without atomics: bitwise the
    same from run to run, and a row's gradient depends on its own tokens alone.
    """
    op = "embedding"
    if max_norm is not None:
        fail(op, f"max_norm must be None: renormalising the weight in place is not supported, got {max_norm}")
    require(not sparse, op, "sparse must be False: the gradient is a dense tensor, got True")
    return call("embedding", input, weight, padding_idx, scale_grad_by_freq)


# ---- argument checks, in the words of csrc/bindings/embedding.cpp ----


def _check_index(op: str, input: Tensor, like_name: str, like: Tensor) -> None:
    message = f"input must be torch.int64 or torch.int32, got {input.dtype}"
    require(input.dtype in (torch.int64, torch.int32), op, message)
    check_same_device(op, "input", input, like_name, like)


def _check_rows(op: str, num_embeddings: int, padding_idx: int | None) -> None:
    message = f"weight must have at most {MAX_EMBEDDINGS} rows, got {num_embeddings}"
    require(0 <= num_embeddings <= MAX_EMBEDDINGS, op, message)
    if padding_idx is not None:
        message = f"padding_idx must be in [{-num_embeddings}, {num_embeddings}), got {padding_idx}"
        require(-num_embeddings <= padding_idx < num_embeddings, op, message)


def _check(input: Tensor, weight: Tensor, padding_idx: int | None, scale_grad_by_freq: bool) -> None:
    op = "embedding"
    check_float(op, "weight", weight)
    require(weight.dim() == 2, op, f"weight must have 2 dimensions, got {weight.dim()}")
    _check_index(op, input, "weight", weight)
    _check_rows(op, weight.shape[0], padding_idx)


def _check_backward(
    grad_output: Tensor, input: Tensor, num_embeddings: int, padding_idx: int | None, scale_grad_by_freq: bool
) -> None:
    op = "embedding_backward"
    check_float(op, "grad_output", grad_output)
    _check_index(op, input, "grad_output", grad_output)
    shape = shape_text(input.shape)
    message = f"grad_output must have the shape of input {shape} and one dimension more"
    fits = grad_output.dim() == input.dim() + 1 and grad_output.shape[:-1] == input.shape
    require(fits, op, f"{message}, got {shape_text(grad_output.shape)}")
    _check_rows(op, num_embeddings, padding_idx)


# ---- fake outputs, autograd ----


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, ctx.padding_idx, ctx.scale_grad_by_freq = inputs
    ctx.num_embeddings = weight.shape[0]
    ctx.save_for_backward(input)


def _backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (input,) = ctx.saved_tensors
    grad_weight = ops.embedding_backward(grad, input, ctx.num_embeddings, ctx.padding_idx, ctx.scale_grad_by_freq)
    return None, grad_weight, None, None


_registry.define(
    "embedding",
    family="embedding",
    check=_check,
    fake=lambda input, weight, *_: weight.new_empty((*input.shape, weight.shape[1])),
    setup_context=_setup,
    backward=_backward,
)
_registry.define(
    "embedding_backward",
    family="embedding",
    check=_check_backward,
    fake=lambda grad, input, num_embeddings, *_: grad.new_empty((num_embeddings, grad.shape[-1])),
)
