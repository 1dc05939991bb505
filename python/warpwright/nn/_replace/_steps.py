"""The steps of a chain that one operator takes together: which items fit, and the call.

Every step answers None where its operator cannot take the tensors of this call; the modules then run one by one, and
each says for itself why it falls back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from warpwright import ops
from warpwright._channels import NORM_ACTIVATIONS
from warpwright._check import ACTIVATIONS, LEAKY_SLOPE
from warpwright.nn._reasons import common_reason, dtype_in_op, kind_reason
from warpwright.nn.channel_norm import GroupNorm, _BatchNorm
from warpwright.nn.conv import _PlainConv
from warpwright.nn.conv_batch_norm import conv_batch_norm

__all__ = ["LEAKY_SLOPE", "TAKES_SUM", "Add", "Gated", "Item", "Step", "add_norm", "match"]

#: Items whose operator can add a residual to what it computes.
TAKES_SUM = ("linear", "conv", "batch_norm", "gated")


class Add(NamedTuple):
    """value + other, or other + value where `swapped`, or value += other where `in_place`."""

    other: Any
    swapped: bool = False
    in_place: bool = False

    def to(self, value: Any) -> Any:
        if self.in_place:
            value += self.other
            return value
        return self.other + value if self.swapped else value + self.other


class Gated(NamedTuple):
    """act(gate(value)) * up(value)"""

    gate: Any
    act: Any
    up: Any


class Item(NamedTuple):
    """A stage, what kind of work it is, and the kernels' name of the activation that it applies."""

    kind: str
    stage: Any
    activation: str | None = None


@dataclass(frozen=True)
class Step:
    """`length` items that run(value) computes together; None where it cannot. `name` is for people."""

    length: int
    name: str
    run: Callable[[Any], Any]


def match(items: Sequence[Item], place: int) -> Step | None:
    """The longest step that begins at `place`, or None."""
    rule = _RULES.get(items[place].kind)
    step = None if rule is None else rule(items, place)
    # A gated product is a step even by itself: three modules are in its item.
    return None if step is None or (step.length < 2 and items[place].kind != "gated") else step


# ---- what follows an item ----


def _sum_and_activation(
    items: Sequence[Item], place: int, known: Sequence[str] = ACTIVATIONS
) -> tuple[Add | None, str | None, int]:
    """A sum, an activation, or both in this order, at `place`, and how many items these are."""
    add = name = None
    begin = place
    if place < len(items) and items[place].kind == "add":
        add = items[place].stage
        place += 1
    if place < len(items) and items[place].kind == "activation" and items[place].activation in known:
        name = items[place].activation
        place += 1
    return add, name, place - begin


def _text(name: str, add: Add | None, activation: str | None) -> str:
    return " + ".join([name, *(["residual"] if add is not None else []), *([activation] if activation else [])])


def _fits(add: Add | None, shape: Sequence[int], like: Tensor) -> bool:
    """Whether an operator with an output of `shape` and of like's dtype takes the residual as it is."""
    if add is None:
        return True
    other = add.other
    if not isinstance(other, Tensor) or other.shape != torch.Size(shape):
        return False
    return other.dtype == dtype_in_op(like) and other.device == like.device and kind_reason(other) is None


# ---- products and convolutions ----


def _linear(items: Sequence[Item], place: int) -> Step | None:
    layer = items[place].stage
    hidden = _hidden(items, place)
    if hidden is not None:
        return hidden
    add, name, more = _sum_and_activation(items, place + 1)

    def run(value: Any) -> Any:
        weight, bias = _affine(layer)
        if common_reason(value, weight, bias) is not None or value.dim() == 0:
            return None
        if not _fits(add, (*value.shape[:-1], weight.shape[0]), value):
            return None
        return ops.linear(value, weight, bias, activation=name, residual=None if add is None else add.other)

    return Step(1 + more, _text("linear", add, name), run)


def _hidden(items: Sequence[Item], place: int) -> Step | None:
    """linear, activation, linear (, sum): an MLP, which need not keep what the activation gives."""
    kinds = [item.kind for item in items[place : place + 4]]
    if kinds[:3] != ["linear", "activation", "linear"]:
        return None
    first, act, second = items[place : place + 3]
    add = items[place + 3].stage if kinds[3:] == ["add"] else None
    after = items[place + 3 + (add is not None) :]
    if after and after[0].kind == "activation":  # Of the second layer: its own epilogue takes it.
        return None

    def run(value: Any) -> Any:
        up, up_bias = _affine(first.stage)
        down, down_bias = _affine(second.stage)
        if common_reason(value, up, up_bias, down, down_bias) is not None or value.dim() == 0:
            return None
        if not _fits(add, (*value.shape[:-1], down.shape[0]), value):
            return None
        return ops.mlp(
            value, up, down, up_bias=up_bias, down_bias=down_bias, activation=act.activation,
            residual=None if add is None else add.other,
        )  # fmt: skip

    name = _text(f"linear + {act.activation} + linear", add, None)
    return Step(3 + (add is not None), name, run)


def _gated(items: Sequence[Item], place: int) -> Step | None:
    item = items[place]
    gate, _, up = item.stage
    down = items[place + 1].stage if place + 1 < len(items) and items[place + 1].kind == "linear" else None
    add, more = None, 0
    if down is not None:
        add, name, more = _sum_and_activation(items, place + 2)
        if name is not None:
            down, add, more = None, None, 0

    def run(value: Any) -> Any:
        gate_weight, gate_bias = _affine(gate)
        up_weight, up_bias = _affine(up)
        if common_reason(value, gate_weight, gate_bias, up_weight, up_bias) is not None or value.dim() == 0:
            return None
        if down is None:
            return ops.linear_glu(value, gate_weight, up_weight, gate_bias, up_bias, activation=item.activation)
        weight, bias = _affine(down)
        if common_reason(value, weight, bias) is not None:
            return None
        if not _fits(add, (*value.shape[:-1], weight.shape[0]), value):
            return None
        return ops.mlp(
            value, up_weight, weight, gate_weight=gate_weight, up_bias=up_bias, down_bias=bias, gate_bias=gate_bias,
            activation=item.activation, residual=None if add is None else add.other,
        )  # fmt: skip

    name = f"{item.activation}(gate) * up" + ("" if down is None else _text(" + down", add, None))
    return Step(1 + (down is not None) + more, name, run)


def _affine(layer: Any) -> tuple[Tensor, Tensor | None]:
    """The weight as torch.nn.Linear has it, and the bias."""
    return (layer.weight.t() if type(layer)._warpwright_transposed else layer.weight), layer.bias


def _conv(items: Sequence[Item], place: int) -> Step | None:
    layer: Any = items[place].stage
    follower = items[place + 1] if place + 1 < len(items) else None
    if follower is not None and follower.kind == "batch_norm" and isinstance(layer, torch.nn.Conv2d):
        return _conv_norm(items, place, layer, follower.stage)
    add, name, more = _sum_and_activation(items, place + 1)

    def run(value: Any) -> Any:
        if common_reason(value, layer.weight, layer.bias) is not None:
            return None
        if add is not None and not _fits(add, layer.output_shape(value), value):
            return None
        return layer.call_op(value, name, None if add is None else add.other)

    kind = "conv" if isinstance(layer, _PlainConv) else "conv_transpose"
    return Step(1 + more, _text(kind, add, name), run)


def _conv_norm(items: Sequence[Item], place: int, layer: Any, bn: Any) -> Step | None:
    add, name, more = _sum_and_activation(items, place + 2, NORM_ACTIVATIONS)

    def run(value: Any) -> Any:
        if common_reason(value, layer.weight, layer.bias) is not None or value.dim() != 4:
            return None
        if common_reason(value, bn.weight, bn.bias, bn.running_mean, bn.running_var, wide=True) is not None:
            return None
        if add is not None and not _fits(add, layer.output_shape(value), value):
            return None
        return conv_batch_norm(layer, bn, value, None if add is None else add.other, name)

    return Step(2 + more, _text("conv + batch_norm", add, name), run)


# ---- norms ----


def _batch_norm(items: Sequence[Item], place: int) -> Step | None:
    bn: _BatchNorm = items[place].stage
    add, name, more = _sum_and_activation(items, place + 1, NORM_ACTIVATIONS)

    def run(value: Any) -> Any:
        if common_reason(value, bn.weight, bn.bias, bn.running_mean, bn.running_var, wide=True) is not None:
            return None
        if not _fits(add, value.shape, value):
            return None
        return bn.call_op(value, name, None if add is None else add.other)

    return Step(1 + more, _text("batch_norm", add, name), run)


def _group_norm(items: Sequence[Item], place: int) -> Step | None:
    layer: GroupNorm = items[place].stage
    follower = items[place + 1] if place + 1 < len(items) else None
    name = None if follower is None or follower.kind != "activation" else follower.activation
    if name not in NORM_ACTIVATIONS:
        return None

    def run(value: Any) -> Any:
        if common_reason(value, layer.weight, layer.bias, wide=True) is not None:
            return None
        return ops.group_norm(value, layer.num_groups, layer.weight, layer.bias, layer.eps, activation=name)

    return Step(2, _text("group_norm", None, name), run)


def _dropout(items: Sequence[Item], place: int) -> Step | None:
    """dropout, sum, and a norm of these."""
    if place + 1 == len(items) or items[place + 1].kind != "add":
        return None
    add: Add = items[place + 1].stage
    if place + 2 < len(items) and items[place + 2].kind == "norm":
        return _sum_norm(items, place, items[place])

    def run(value: Any) -> Any:
        if common_reason(value) is not None or not _fits(add, value.shape, value):
            return None
        return ops.dropout_add(value, add.other, items[place].stage.p)

    return Step(2, "dropout + residual", run)


def _add(items: Sequence[Item], place: int) -> Step | None:
    if place + 1 == len(items) or items[place + 1].kind != "norm":
        return None
    return _sum_norm(items, place, None)


def _sum_norm(items: Sequence[Item], place: int, dropped: Item | None) -> Step:
    first = place + (dropped is not None)
    add, layer = items[first].stage, items[first + 1]

    def run(value: Any) -> Any:
        both = add_norm(value, dropped, add, layer)
        return None if both is None else both[0]

    name = ("" if dropped is None else "dropout + ") + f"residual + {_norm_name(layer)}"
    return Step(first + 2 - place, name, run)


def _norm_name(item: Item) -> str:
    return "layer_norm" if isinstance(item.stage, torch.nn.LayerNorm) else "rms_norm"


def add_norm(value: Any, dropped: Item | None, add: Add, item: Item) -> tuple[Tensor, Tensor] | None:
    """The norm of dropout(value) + add.other, and that sum, by one kernel; None where it cannot."""
    layer: Any = item.stage
    if add.in_place or common_reason(value, layer.weight, getattr(layer, "bias", None)) is not None:
        return None
    if not _fits(add, value.shape, value) or value.shape[-1:] == ():
        return None
    p = 0.0 if dropped is None else float(dropped.stage.p)
    both: Any
    if isinstance(layer, torch.nn.LayerNorm):
        both = ops.layer_norm(
            value, layer.normalized_shape, layer.weight, layer.bias, layer.eps, residual=add.other, dropout_p=p
        )
    else:
        shape, eps, offset = layer.op_arguments()
        both = ops.rms_norm(value, shape, layer.weight, eps, residual=add.other, weight_offset=offset, dropout_p=p)
    return both


_RULES: dict[str, Callable[[Sequence[Item], int], Step | None]] = {
    "linear": _linear,
    "gated": _gated,
    "conv": _conv,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "dropout": _dropout,
    "add": _add,
}
