"""flash-attention's other kernels: norms with residual, rotary embedding, swiglu and cross entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from warpwright.bench.providers.peers._peer import Adapter, argument, last_dim_norm, matrix, needs, peer
from warpwright.testing import Sample


def _rms_norm(flash: Any) -> Callable[..., Any]:
    def call(
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        eps: float = 1e-6,
        *,
        residual: Tensor | None = None,
    ) -> Any:
        return flash.rms_norm_fn(input, weight, None, residual=residual, eps=eps, prenorm=residual is not None)

    return call


def _layer_norm(flash: Any) -> Callable[..., Any]:
    def call(
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *,
        residual: Tensor | None = None,
    ) -> Any:
        return flash.layer_norm_fn(input, weight, bias, residual=residual, eps=eps, prenorm=residual is not None)

    return call


def _swiglu(flash: Any) -> Callable[..., Any]:
    def call(gate: Tensor, up: Tensor) -> Any:
        return flash.swiglu(gate, up)

    return call


def _rotary_embedding(flash: Any) -> Callable[..., Any]:
    def call(input: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Any:
        return flash.apply_rotary_emb(input, cos, sin, interleaved=interleaved)

    return call


def _one_table(sample: Sample) -> str | None:
    cos = argument(sample, 1, "cos")
    return None if cos.dim() == 2 else "positions of each sequence are not supported"


def _cross_entropy(flash: Any) -> Callable[..., Any]:
    """Its layer, because the function below it has had several signatures."""
    layers: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def call(
        input: Tensor,
        target: Tensor,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Any:
        key = (ignore_index, reduction, label_smoothing)
        if key not in layers:
            layers[key] = flash.CrossEntropyLoss(
                ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
            )
        return layers[key](input, target)

    return call


_NORM = "flash_attn.ops.triton.layer_norm"

FLASH_ATTN = peer(
    "flash-attn",
    "flash-attention's kernels beside attention",
    package="flash_attn",
    install="pip install flash-attn",
    adapters={
        "rms_norm": Adapter(_NORM, _rms_norm, last_dim_norm),
        "layer_norm": Adapter(_NORM, _layer_norm, last_dim_norm),
        "swiglu": Adapter("flash_attn.ops.activations", _swiglu, needs(1, "up")),
        "rotary_embedding": Adapter("flash_attn.layers.rotary", _rotary_embedding, _one_table),
        "cross_entropy": Adapter("flash_attn.losses.cross_entropy", _cross_entropy, matrix),
    },
)
