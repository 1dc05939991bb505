"""The float layers that quantised and sparse ones are made of, in one form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from warpwright._check import require, shape_text
from warpwright.nn.matmul import Linear

#: What a float weight may be.
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class FloatLinear(NamedTuple):
    """What a linear layer computes: `activation(input @ weight.T + bias)`.

    Attributes:
        weight: (out_features, in_features), detached.
        bias: the layer's own Parameter.
        activation: one of `ops.linear`'s names, or None.
        transposed: whether the layer's own weight is (in_features, out_features).
        trainable: whether the weight wants gradients.
    """

    weight: Tensor
    bias: torch.nn.Parameter | None
    activation: str | None
    transposed: bool
    trainable: bool


def is_conv1d(kind: type[torch.nn.Module]) -> bool:
    """Whether this is the linear layer of Hugging Face's GPT-2; by name, as transformers is not a dependency."""
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def is_linear(kind: type[torch.nn.Module]) -> bool:
    """Whether layers of this very class compute what FloatLinear says."""
    return kind in (torch.nn.Linear, Linear) or is_conv1d(kind)


def float_linear(function: str, linear: torch.nn.Module) -> FloatLinear:
    """The parts of a layer; raises RuntimeError, in the name of `function`, where it is none of the known ones."""
    kind = type(linear)
    message = f"linear must be a torch.nn.Linear, a warpwright.nn.Linear or a Conv1D of transformers, got {kind}"
    require(is_linear(kind), function, message)
    transposed = is_conv1d(kind)
    parameter: Any = linear.weight
    weight: Tensor = parameter.detach()
    bias: Any = linear.bias
    activation = linear.activation if isinstance(linear, Linear) else None
    return FloatLinear(weight.t() if transposed else weight, bias, activation, transposed, parameter.requires_grad)


def dense_weight(
    state_dict: Mapping[str, Any], prefix: str, shape: tuple[int, int], transposed: bool, errors: list[str]
) -> tuple[Tensor | None, dict[str, Any]]:
    """The float weight that a state_dict has for a layer which keeps another form of it, and the state without it.

    `shape` is (out_features, in_features), and so is the result's. A weight of another shape is left where it is and
    told to `errors`, as torch.nn.Module._load_from_state_dict does.
    """
    others = dict(state_dict)
    weight = others.get(prefix + "weight")
    if not isinstance(weight, Tensor) or weight.dtype not in FLOATS:
        return None, others
    expected = shape[::-1] if transposed else shape
    del others[prefix + "weight"]
    if tuple(weight.shape) != expected:
        shapes = f"{shape_text(weight.shape)} in the checkpoint, {shape_text(expected)} in the layer"
        errors.append(f"size mismatch for {prefix}weight: {shapes}.")
        return None, others
    weight = weight.detach()
    return weight.t() if transposed else weight, others
