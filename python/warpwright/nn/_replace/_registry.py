"""Which class takes a module's place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.parameter import is_lazy

from warpwright.nn import activation, channel_norm, conv, embedding, lazy, loss, matmul, norm
from warpwright.nn._replace import _huggingface, _timm
from warpwright.nn._replace._adapted import adapted, make

#: torch's layer -> ours.
REPLACEMENTS: Mapping[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.Linear: matmul.Linear,
    torch.nn.Conv1d: conv.Conv1d,
    torch.nn.Conv2d: conv.Conv2d,
    torch.nn.Conv3d: conv.Conv3d,
    torch.nn.ConvTranspose1d: conv.ConvTranspose1d,
    torch.nn.ConvTranspose2d: conv.ConvTranspose2d,
    torch.nn.ConvTranspose3d: conv.ConvTranspose3d,
    torch.nn.BCEWithLogitsLoss: loss.BCEWithLogitsLoss,
    torch.nn.CrossEntropyLoss: loss.CrossEntropyLoss,
    torch.nn.Embedding: embedding.Embedding,
    torch.nn.Dropout: activation.Dropout,
    torch.nn.GELU: activation.GELU,
    torch.nn.GLU: activation.GLU,
    torch.nn.KLDivLoss: loss.KLDivLoss,
    torch.nn.LayerNorm: norm.LayerNorm,
    torch.nn.LogSoftmax: activation.LogSoftmax,
    torch.nn.NLLLoss: loss.NLLLoss,
    torch.nn.ReLU: activation.ReLU,
    torch.nn.RMSNorm: norm.RMSNorm,
    torch.nn.SiLU: activation.SiLU,
    torch.nn.Softmax: activation.Softmax,
    torch.nn.GroupNorm: channel_norm.GroupNorm,
    torch.nn.BatchNorm1d: channel_norm.BatchNorm1d,
    torch.nn.BatchNorm2d: channel_norm.BatchNorm2d,
    torch.nn.BatchNorm3d: channel_norm.BatchNorm3d,
    torch.nn.SyncBatchNorm: channel_norm.SyncBatchNorm,
    torch.nn.InstanceNorm1d: channel_norm.InstanceNorm1d,
    torch.nn.InstanceNorm2d: channel_norm.InstanceNorm2d,
    torch.nn.InstanceNorm3d: channel_norm.InstanceNorm3d,
    torch.nn.LazyLinear: lazy.LazyLinear,
    torch.nn.LazyConv1d: lazy.LazyConv1d,
    torch.nn.LazyConv2d: lazy.LazyConv2d,
    torch.nn.LazyConv3d: lazy.LazyConv3d,
    torch.nn.LazyConvTranspose1d: lazy.LazyConvTranspose1d,
    torch.nn.LazyConvTranspose2d: lazy.LazyConvTranspose2d,
    torch.nn.LazyConvTranspose3d: lazy.LazyConvTranspose3d,
    torch.nn.LazyBatchNorm1d: lazy.LazyBatchNorm1d,
    torch.nn.LazyBatchNorm2d: lazy.LazyBatchNorm2d,
    torch.nn.LazyBatchNorm3d: lazy.LazyBatchNorm3d,
    torch.nn.LazyInstanceNorm1d: lazy.LazyInstanceNorm1d,
    torch.nn.LazyInstanceNorm2d: lazy.LazyInstanceNorm2d,
    torch.nn.LazyInstanceNorm3d: lazy.LazyInstanceNorm3d,
}
ORIGINALS = {ours: theirs for theirs, ours in REPLACEMENTS.items()}
#: Their parameters are read by a module around them, which does not call them.
_NEVER_CALLED = (torch.nn.modules.linear.NonDynamicallyQuantizableLinear,)


def replacement(module: torch.nn.Module) -> type[torch.nn.Module] | str | None:
    """The class that takes the place of the module's, or why there is none though warpwright has such a layer, or None
    for a module of another kind."""
    kind = type(module)
    recipe = _huggingface.recipe_for(module) or _timm.recipe_for(module)
    if recipe is None and not isinstance(module, tuple(REPLACEMENTS)):
        return None
    reason = skip_reason(module)
    if reason is not None:
        return reason
    if recipe is not None:
        return adapted(recipe, kind)
    if kind in REPLACEMENTS:
        return REPLACEMENTS[kind]
    return subclass_reason(kind) or adapted(subclass_recipe, kind)


def skip_reason(module: torch.nn.Module) -> str | None:
    """Why a module cannot change its class. What can be answered call by call is left to the layer's fallback."""
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "parametrised (torch.nn.utils.parametrize): replace before parametrising"
    if type(module) not in REPLACEMENTS and any(map(is_lazy, module.parameters(False))):
        return "lazy: its parameters are not initialised yet"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    return None


def subclass_reason(kind: type[torch.nn.Module]) -> str | None:
    """Why a subclass of torch's layer stays as it is: its own forward does not come to torch's."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if issubclass(kind, _NEVER_CALLED):
        return f"{name}: the module around it reads its parameters and does not call it"
    base = _base_of(kind)
    for own in kind.__mro__[: kind.__mro__.index(base)]:
        for method in ("forward", "_conv_forward", "_check_input_dim"):
            function = vars(own).get(method)
            code = getattr(function, "__code__", None)
            if function is not None and (
                code is None or method != "forward" or not {"super", method} <= {*code.co_names}
            ):
                return f"a subclass with a {method} of its own: {name}"
    return None


def _base_of(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    return next(base for base in kind.__mro__ if base in REPLACEMENTS)


def subclass_recipe(original: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """A subclass of torch's layer with ours behind it: what it does not define, and its `super().forward`, is ours."""
    return make(subclass_recipe, original, (original, REPLACEMENTS[_base_of(original)]), {})
