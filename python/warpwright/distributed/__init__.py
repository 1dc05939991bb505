"""warpwright's ops on torch.distributed.tensor's DTensors: a sharding rule for each operator that has one.

Nothing need be imported or called: the rules are registered when the first DTensor reaches an op. A rule says how
outputs lie when inputs lie so, and then nothing is exchanged but what the sum of a product needs; tensors that lie
otherwise are brought there by torch, which moves as little as it can. Layers whose op has no rule, or none for how
their tensors lie, leave DTensors to torch, and count it in warpwright.fallbacks().

    products        rows, columns, or parts of the sum, which stay partial sums until they are wanted whole
    mlp             rows, or the hidden features, whose output is parts of a sum
    norms, softmax  rows
    activations     any dimension
    embedding       tokens, or columns of the table; rows of the table are torch's
    dropout         any dimension: each part has a mask of its own
    rotary          batch, heads, and with tables of angles the sequence
    losses          the batch: a mean over several processes exchanges two numbers. Classes in parts are torch's
                    (torch.distributed.tensor.parallel.loss_parallel); linear_cross_entropy gathers such a weight
    convolutions    batch, output channels, or input channels as parts of the sum
    batch norm      channels; the batch, whose statistics are exchanged in training
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from warpwright._check import fail
from warpwright._fallbacks import run_at_trace_time

_FAMILIES = ("_matmul", "_rows", "_loss", "_conv")
#: Operators that have no rule of their own, because a function of ops/ makes their part of the work on local tensors.
_LOCAL = frozenset(("dropout_add",))

#: Backends whose operators' rules torch knows, and the operators that have one.
_registered: set[str] = set()
_known: set[str] = set()


def is_dtensor(value: object) -> bool:
    """Whether this is a DTensor, without importing what defines them."""
    kind = type(value)
    if kind is Tensor or kind is Parameter:
        return False
    return kind.__name__ == "DTensor" and kind.__module__.startswith("torch.distributed")


def is_cut(value: Any, dim: int | None = None) -> bool:
    """Whether this is a DTensor of which a process has a part, along this dimension, or any."""
    if not is_dtensor(value):
        return False
    if dim is not None:
        return any(placement.is_shard(dim % value.ndim) for placement in value.placements)
    return not all(placement.is_replicate() or placement.is_partial() for placement in value.placements)


def local_parts(tensors: list[Tensor]) -> list[Tensor]:
    """Of DTensors the parts in this process, which writing to writes to them; other tensors as they are."""
    if not any(map(is_dtensor, tensors)):
        return tensors
    here: Callable[[Tensor], Tensor] = importlib.import_module("warpwright.distributed._lists").here
    with torch.no_grad():
        return [here(tensor) for tensor in tensors]


def part_of(tensor: Tensor) -> int:
    """The number of a DTensor's part in this process; 0 for what is whole."""
    if not is_dtensor(tensor):
        return 0
    number: int = importlib.import_module("warpwright.distributed._lists").part_of(tensor)
    return number


def placed_like(grad: Tensor, param: Tensor) -> Tensor:
    """A gradient that lies as its parameter does: of a DTensor, a sum whose parts are apart is added up."""
    if not is_dtensor(grad):
        return grad
    placed: Tensor = importlib.import_module("warpwright.distributed._lists").placed_like(grad, param)
    return placed


def _all_rules() -> Any:
    """The module of the rules, with all of them in it."""
    for family in _FAMILIES:
        importlib.import_module(f"warpwright.distributed.{family}")
    return importlib.import_module("warpwright.distributed._rules")


@run_at_trace_time
def register_rules(backend: str, op: str) -> bool:
    """Tells torch the rules of a backend's operators, unless it was told. Raises where `op` has none."""
    if not has_rule(op):
        fail(op, "input must be a plain tensor, got a DTensor: this op has no sharding rule")
    if backend not in _registered:
        _all_rules().register(backend)
        _registered.add(backend)
    return True


@run_at_trace_time
def has_rule(op: str) -> bool:
    """Whether operator `op` takes DTensors."""
    if not _known:
        _known.update(_all_rules().RULES, _LOCAL)
    return op in _known
