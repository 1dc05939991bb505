"""The activation that a layer may apply in its own kernel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from warpwright._check import check_activation


def checked_activation(layer: str, activation: str) -> str:
    """The name itself; raises RuntimeError for one that no kernel has."""
    check_activation(f"nn.{layer}", activation)
    return activation


def apply_activation(output: Tensor, activation: str | None) -> Tensor:
    """PyTorch's own, for a layer that fell back."""
    if activation == "relu":
        return F.relu(output)
    if activation in ("gelu", "gelu_tanh"):
        return F.gelu(output, approximate="tanh" if activation == "gelu_tanh" else "none")
    return F.silu(output) if activation == "silu" else output
