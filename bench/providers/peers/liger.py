"""Liger-Kernel: Triton kernels for the layers of language models.

Where a kernel writes gradients over its inputs (swiglu, geglu, cross_entropy), only its forward pass is compared. Its
rotary embedding is left out: it writes over its input in the forward pass already, and takes queries and keys at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from warpwright.bench.providers.peers._peer import (
    Adapter,
    first_of,
    last_dim,
    last_dim_norm,
    matrix,
    needs,
    no_gradient,
    only,
    peer,
    without,
)
from warpwright.testing import Sample

_FUNCTIONAL = "liger_kernel.transformers.functional"

#: Its kernels hold a row of a normalisation or a softmax in one block of so many elements.
_MAX_WIDTH = 65536


def _narrow(sample: Sample) -> str | None:
    width = sample.args[0].shape[-1]
    return None if width <= _MAX_WIDTH else f"rows are at most {_MAX_WIDTH} wide, got {width}"


def _rms_norm(liger: Any) -> Callable[..., Any]:
    def call(
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        eps: float = 1e-6,
        *,
        residual: Tensor | None = None,
    ) -> Any:
        # in_place would write the gradient over that of the output, which a second backward pass needs again.
        if residual is None:
            return liger.liger_rms_norm(input, weight, eps, in_place=False)
        return liger.liger_fused_add_rms_norm(input, residual, weight, eps, in_place=False)

    return call


def _layer_norm(liger: Any) -> Callable[..., Any]:
    def call(
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *,
        residual: Tensor | None = None,
    ) -> Any:
        return liger.liger_layer_norm(input, weight, bias, eps)

    return call


def _group_norm(liger: Any) -> Callable[..., Any]:
    def call(
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *,
        activation: str | None = None,
    ) -> Any:
        return liger.liger_group_norm(input, weight, bias, input.shape[1], num_groups, eps)

    return call


def _channels_first(sample: Sample) -> str | None:
    return None if sample.args[0].is_contiguous() else "channels last are not supported"


def _swiglu(liger: Any) -> Callable[..., Any]:
    def call(gate: Tensor, up: Tensor) -> Any:
        no_gradient("swiglu", gate, up)
        return liger.liger_swiglu(gate, up)

    return call


def _geglu(liger: Any) -> Callable[..., Any]:
    def call(gate: Tensor, up: Tensor, *, approximate: str = "tanh") -> Any:
        no_gradient("geglu", gate, up)
        return liger.liger_geglu(gate, up)

    return call


def _cross_entropy(liger: Any) -> Callable[..., Any]:
    def call(
        input: Tensor,
        target: Tensor,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Any:
        no_gradient("cross_entropy", input)
        return liger.liger_cross_entropy(
            input, target, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
        )

    return call


def _linear_cross_entropy(liger: Any) -> Callable[..., Any]:
    def call(
        input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, *, reduction: str = "mean"
    ) -> Any:
        return liger.liger_fused_linear_cross_entropy(input, weight, target, bias, reduction=reduction)

    return call


def _softmax(liger: Any) -> Callable[..., Any]:
    def call(input: Tensor, dim: int = -1) -> Any:
        return liger.liger_softmax(input)

    return call


LIGER = peer(
    "liger",
    "Liger-Kernel's Triton kernels",
    package="liger_kernel",
    install="pip install liger-kernel",
    adapters={
        "rms_norm": Adapter(_FUNCTIONAL, _rms_norm, first_of(last_dim_norm, _narrow)),
        "layer_norm": Adapter(
            _FUNCTIONAL, _layer_norm, first_of(without("residual"), last_dim_norm, needs(3, "bias"), _narrow)
        ),
        "group_norm": Adapter(
            _FUNCTIONAL,
            _group_norm,
            first_of(without("activation"), needs(2, "weight"), needs(3, "bias"), _channels_first),
        ),
        "swiglu": Adapter(_FUNCTIONAL, _swiglu, first_of(needs(1, "up"), _narrow)),
        "geglu": Adapter(_FUNCTIONAL, _geglu, first_of(only("approximate", "tanh"), _narrow)),
        "softmax": Adapter(_FUNCTIONAL, _softmax, last_dim),
        "cross_entropy": Adapter(_FUNCTIONAL, _cross_entropy, matrix),
        "linear_cross_entropy": Adapter(_FUNCTIONAL, _linear_cross_entropy),
    },
)
