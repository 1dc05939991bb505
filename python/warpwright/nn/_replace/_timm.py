"""Classes of timm that compute with their own forward what a layer of ours computes. timm itself is never imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from warpwright import ops
from warpwright._fallbacks import count_fallback
from warpwright.nn import channel_norm, norm
from warpwright.nn._reasons import common_reason
from warpwright.nn._replace import _chain
from warpwright.nn._replace._adapted import Recipe, make
from warpwright.nn._replace._steps import Item


def recipe_for(module: torch.nn.Module) -> Recipe | None:
    """How the module's class is adapted, or None for a class that is none of these."""
    kind = type(module)
    return _RECIPES.get((kind.__module__, kind.__name__))


def layer_norm_recipe(original: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """LayerNorm, and LayerNorm2d over the channels of (batch, channels, height, width)."""
    images = original.__name__ == "LayerNorm2d"
    theirs = original.forward

    def forward(self: Any, x: Tensor) -> Tensor:
        reason = common_reason(x, self.weight, self.bias)
        if reason is not None:
            count_fallback(original.__name__, reason)
            return theirs(self, x)
        value = x.permute(0, 2, 3, 1) if images else x
        value = ops.layer_norm(value, self.normalized_shape, self.weight, self.bias, self.eps)  # type: ignore[assignment]
        return value.permute(0, 3, 1, 2) if images else value

    members = {"forward": forward, **({} if images else {"_warpwright_kind": "norm"})}
    return make(layer_norm_recipe, original, (original, norm.LayerNorm), members)


def rms_norm_recipe(original: type[torch.nn.Module]) -> type[torch.nn.Module]:
    images = original.__name__ == "RmsNorm2d"
    theirs = original.forward

    def forward(self: Any, x: Tensor) -> Tensor:
        reason = common_reason(x, self.weight)
        if reason is not None:
            count_fallback(original.__name__, reason)
            return theirs(self, x)
        value = x.permute(0, 2, 3, 1) if images else x
        value = ops.rms_norm(value, self.normalized_shape, self.weight, self.eps)  # type: ignore[assignment]
        return value.permute(0, 3, 1, 2) if images else value

    return make(rms_norm_recipe, original, (original,), {"forward": forward})


def batch_norm_act_recipe(original: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """BatchNormAct2d: a batch norm with `drop` and `act` inside, which a chain sees as three stages."""

    def stages(self: Any) -> list[Any]:
        return [Item("batch_norm", self), self.drop, self.act]

    def alone(self: Any, x: Tensor) -> Tensor:
        return channel_norm.BatchNorm2d.forward(self, x)

    def forward(self: Any, x: Tensor) -> Tensor:
        return _chain.run(x, stages(self))

    members = {"forward": forward, "_warpwright_stages": stages, "_warpwright_alone": alone}
    return make(batch_norm_act_recipe, original, (original, channel_norm.BatchNorm2d), members)


def activation_recipe(original: type[torch.nn.Module]) -> type[torch.nn.Module]:
    name, function = _ACTIVATIONS[original.__name__]
    theirs = original.forward

    def forward(self: Any, input: Tensor) -> Tensor:
        reason = "inplace=True" if getattr(self, "inplace", False) else common_reason(input)
        if reason is not None:
            count_fallback(original.__name__, reason)
            return theirs(self, input)
        return function(input)

    return make(activation_recipe, original, (original,), {"forward": forward, "_warpwright_activation": name})


_ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "GELU": ("gelu", ops.gelu),
    "GELUTanh": ("gelu_tanh", lambda input: ops.gelu(input, "tanh")),
    "Swish": ("silu", ops.silu),
}
_RECIPES: dict[tuple[str, str], Recipe] = {
    ("timm.layers.norm", "LayerNorm"): layer_norm_recipe,
    ("timm.layers.norm", "LayerNorm2d"): layer_norm_recipe,
    ("timm.layers.norm", "RmsNorm"): rms_norm_recipe,
    ("timm.layers.norm", "RmsNorm2d"): rms_norm_recipe,
    ("timm.layers.norm_act", "BatchNormAct2d"): batch_norm_act_recipe,
    **{("timm.layers.activations", name): activation_recipe for name in _ACTIVATIONS},
}
