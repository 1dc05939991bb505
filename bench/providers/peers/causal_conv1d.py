"""causal-conv1d: the short depthwise convolution of Mamba, in CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from warpwright.bench.providers.peers._peer import Adapter, first_of, only, peer
from warpwright.testing import Sample

_WIDTHS = (2, 3, 4)


def _causal_conv1d(module: Any) -> Callable[..., Any]:
    def call(input: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None) -> Any:
        return module.causal_conv1d_fn(input, weight, bias, activation=activation)

    return call


def _width(sample: Sample) -> str | None:
    width = sample.args[1].shape[1]
    return None if width in _WIDTHS else f"kernels must be {_WIDTHS[0]} to {_WIDTHS[-1]} wide, got {width}"


CAUSAL_CONV1D = peer(
    "causal-conv1d",
    "Dao-AILab's causal-conv1d",
    package="causal_conv1d",
    install="pip install causal-conv1d",
    adapters={
        "causal_conv1d": Adapter("causal_conv1d", _causal_conv1d, first_of(only("activation", None, "silu"), _width))
    },
)
