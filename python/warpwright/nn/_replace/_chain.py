"""Runs a chain of modules by as few kernels as compute the same, and module by module where nothing fuses.

What the modules are is asked anew at each call: hooks that somebody registers, a child that is exchanged, a layer in
another mode count at once. Classes made for modules of other libraries say what they are by attributes:

    _warpwright_kind         a key of _steps' rules
    _warpwright_activation   the kernels' name of the activation that the module applies
    _warpwright_stages       function of the module -> the stages that it consists of
    _warpwright_alone        method: what an Item of the module's own kind computes, where the module does more
    _warpwright_container    a module around layers, which is none itself
    _warpwright_transposed   a linear layer whose weight is (in_features, out_features)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from warpwright.nn import activation, channel_norm, conv, matmul, norm
from warpwright.nn._children import altered
from warpwright.nn._replace import _steps
from warpwright.nn._replace._steps import Add, Gated, Item, Step

_PLAIN: dict[Any, str] = {
    matmul.Linear.forward: "linear",
    conv._PlainConv.forward: "conv",
    conv._TransposedConv.forward: "conv",
    channel_norm._BatchNorm.forward: "batch_norm",
    channel_norm.GroupNorm.forward: "group_norm",
    norm.LayerNorm.forward: "norm",
    norm.RMSNorm.forward: "norm",
    activation.Dropout.forward: "dropout",
    torch.nn.Identity.forward: "nothing",
}
_ACTIVATIONS: dict[Any, str] = {
    torch.nn.ReLU.forward: "relu",
    activation.ReLU.forward: "relu",
    torch.nn.SiLU.forward: "silu",
    activation.SiLU.forward: "silu",
    torch.nn.Sigmoid.forward: "sigmoid",
    torch.nn.Tanh.forward: "tanh",
    torch.nn.Hardswish.forward: "hardswish",
}
#: Functions that stand in a chain as they are.
FUNCTIONS: dict[Callable[..., Any], str] = {
    torch.relu: "relu",
    F.relu: "relu",
    F.gelu: "gelu",
    F.silu: "silu",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    F.hardswish: "hardswish",
    F.leaky_relu: "leaky_relu",
}


def add(other: Any, swapped: bool, in_place: bool) -> Add:
    return Add(other, swapped, in_place)


def gated(gate: Any, act: Any, up: Any) -> Gated:
    return Gated(gate, act, up)


def item_of(stage: Any) -> Item:
    """What a stage is to the steps that fuse; "other" for what must be called as it is."""
    if isinstance(stage, Item):
        return stage
    if isinstance(stage, Add):
        return Item("add", stage)
    if isinstance(stage, Gated):
        parts = tuple(map(item_of, (stage.gate, stage.act, stage.up)))
        fits = [part.kind for part in parts] == ["linear", "activation", "linear"]
        return Item("gated" if fits else "other", stage, parts[1].activation if fits else None)
    if isinstance(stage, torch.nn.Module):
        return Item("other", stage) if altered(stage) is not None else _item_of_plain(stage)
    name = FUNCTIONS.get(stage) if callable(stage) and type(stage).__hash__ is not None else None
    return Item("other" if name is None else "activation", stage, name)


def _item_of_plain(module: Any) -> Item:
    """The same for a module that computes its class's forward and no more."""
    kind = _PLAIN.get(type(module).forward) or getattr(type(module), "_warpwright_kind", None)
    if kind == "dropout":
        if not module.training or module.p == 0:
            return Item("nothing", module)
        return Item("other" if module.inplace else kind, module)  # In place it changes what others may hold.
    if kind is not None:
        own = getattr(module, "activation", None)
        return Item("other" if own not in (None, "none") else kind, module)
    name = activation_of(module)
    return Item("other" if name is None else "activation", module, name)


def activation_of(module: torch.nn.Module) -> str | None:
    """The name that kernels have for what a module computes."""
    forward = type(module).forward
    name = _ACTIVATIONS.get(forward)
    if name is not None:
        return name
    if forward in (torch.nn.GELU.forward, activation.GELU.forward):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    if forward is torch.nn.LeakyReLU.forward and module.negative_slope == _steps.LEAKY_SLOPE:
        return "leaky_relu"
    return getattr(type(module), "_warpwright_activation", None)


def items_of(stages: Iterable[Any]) -> list[Item]:
    """The items of a chain: modules that are chains themselves are taken apart, what does nothing is left out."""
    items: list[Item] = []
    for stage in stages:
        inside = _stages_inside(stage)
        if inside is not None and altered(stage) is None:
            items += items_of(inside(stage))
            continue
        item = item_of(stage)
        if item.kind != "nothing":
            items.append(item)
    return items


def _stages_inside(stage: Any) -> Callable[[Any], Iterable[Any]] | None:
    """How to list the stages of a module that is a chain."""
    kind = type(stage)
    if isinstance(stage, torch.nn.Sequential) and kind.forward in (torch.nn.Sequential.forward, Sequential.forward):
        return list
    return getattr(kind, "_warpwright_stages", None)


class Sequential(torch.nn.Sequential):
    """torch.nn.Sequential that runs as a chain."""

    _warpwright_container = True

    def forward(self, input: Any) -> Any:
        return run(input, tuple(self))


def run(value: Any, stages: Sequence[Any]) -> Any:
    """What calling the stages one after the other gives."""
    items = items_of(stages)
    place = 0
    while place < len(items):
        step = _steps.match(items, place)
        done = None if step is None else step.run(value)
        if step is None or done is None:
            value = call(items[place], value)
            place += 1
        else:
            value = done
            place += step.length
    return value


def tap(value: Any, stages: Sequence[Any], reader: torch.nn.Module) -> tuple[Any, Any]:
    """The chain's value, whose last stage is a sum, and what `reader` makes of it."""
    *front, last = stages
    item = item_of(reader)
    if item.kind == "norm":
        items = items_of(front)
        dropped = items[-1] if items and items[-1].kind == "dropout" else None
        # A sum that the epilogue of a product can take is cheaper there.
        if not (items and items[-1].kind in _steps.TAKES_SUM):
            value = run(value, items if dropped is None else items[:-1])
            both = _steps.add_norm(value, dropped, last, item)
            if both is not None:
                return both[1], both[0]
            stages = [last] if dropped is None else [dropped, last]
    total = run(value, stages)
    return total, reader(total)


def call(item: Item, value: Any) -> Any:
    stage = item.stage
    if isinstance(stage, Add):
        return stage.to(value)
    if isinstance(stage, Gated):
        return stage.act(stage.gate(value)) * stage.up(value)
    alone = None if item.kind == "other" else getattr(type(stage), "_warpwright_alone", None)
    return stage(value) if alone is None else alone(stage, value)


def fused(stages: Sequence[Any]) -> list[Step]:
    """The steps of more than one stage that `run` would try, for a report."""
    items = items_of(stages)
    steps = []
    place = 0
    while place < len(items):
        step = _steps.match(items, place)
        if step is not None:
            steps.append(step)
        place += 1 if step is None else step.length
    return steps
