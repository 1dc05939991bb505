"""QuACK: kernels in CuTe DSL for Hopper and Blackwell.

Its layer norm has no gradient and takes float32 weights only; it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from warpwright.bench.providers.peers._peer import (
    Adapter,
    first_of,
    last_dim,
    last_dim_norm,
    matrix,
    only,
    peer,
    without,
)
from warpwright.testing import Sample

#: Its products and its rotary embedding load and store so many elements at once.
_VECTOR = 8
#: As its own benchmarks choose it.
_CHUNK = 4096


def _rms_norm(quack: Any) -> Callable[..., Any]:
    def call(
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        eps: float = 1e-6,
        *,
        residual: Tensor | None = None,
    ) -> Any:
        if residual is None:
            return quack.rmsnorm(input, weight, eps=eps)
        return quack.rmsnorm(input, weight, residual=residual, eps=eps, prenorm=True)

    return call


def _softmax(quack: Any) -> Callable[..., Any]:
    def call(input: Tensor, dim: int = -1) -> Any:
        return quack.softmax(input)

    return call


def _cross_entropy(quack: Any) -> Callable[..., Any]:
    def call(input: Tensor, target: Tensor, *, ignore_index: int = -100, reduction: str = "mean") -> Any:
        return quack.cross_entropy(input, target, ignore_index=ignore_index, reduction=reduction)

    return call


def _linear(quack: Any) -> Callable[..., Any]:
    def call(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        return quack.linear_func(input, weight, bias)

    return call


def _linear_cross_entropy(quack: Any) -> Callable[..., Any]:
    def call(input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Any:
        return quack.chunked_linear_cross_entropy(input, weight, target, chunk_size=_CHUNK)

    return call


def _rotary_embedding(quack: Any) -> Callable[..., Any]:
    def call(input: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Any:
        return quack.apply_rotary_emb(input, cos, sin, interleaved=interleaved)

    return call


def _whole_vectors(*sizes: int) -> str | None:
    odd = [size for size in sizes if size % _VECTOR]
    return f"sizes must be multiples of {_VECTOR}, got {odd[0]}" if odd else None


def _accepts_linear(sample: Sample) -> str | None:
    input, weight = sample.args[:2]
    if input.dtype == torch.float32:
        return "float32 products are not supported"
    return _whole_vectors(*weight.shape)


def _accepts_linear_cross_entropy(sample: Sample) -> str | None:
    input, weight = sample.args[:2]
    if len(sample.args) > 3 and sample.args[3] is not None:
        return "a bias is not supported"
    if input.dtype == torch.float32:
        return "float32 products are not supported"
    return _whole_vectors(*weight.shape, input.shape[:-1].numel())


def _accepts_rotary(sample: Sample) -> str | None:
    input, cos = sample.args[:2]
    if cos.dim() != 2:
        return "positions of each sequence are not supported"
    return _whole_vectors(input.shape[-1], 2 * cos.shape[-1])


QUACK = peer(
    "quack",
    "QuACK's CuTe DSL kernels",
    package="quack",
    install="pip install quack-kernels",
    adapters={
        "rms_norm": Adapter("quack.rmsnorm", _rms_norm, last_dim_norm),
        "softmax": Adapter("quack.softmax", _softmax, first_of(matrix, last_dim)),
        "cross_entropy": Adapter("quack.cross_entropy", _cross_entropy, first_of(matrix, only("label_smoothing", 0.0))),
        "linear": Adapter("quack.linear", _linear, first_of(without("activation", "residual"), _accepts_linear)),
        "linear_cross_entropy": Adapter(
            "quack.linear_cross_entropy",
            _linear_cross_entropy,
            first_of(only("reduction", "mean"), _accepts_linear_cross_entropy),
        ),
        "rotary_embedding": Adapter("quack.rotary", _rotary_embedding, _accepts_rotary),
    },
)
