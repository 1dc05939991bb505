"""How the rules of one operator are written, and how torch is told of them.

A rule is a generator with an operator's name and arguments, where torch's description (shape, ndim, dtype) has each
tensor's place. It yields, for one dimension of a mesh, (outputs, inputs): how outputs lie when tensors lie so. torch
joins those of several dimensions, and takes the one that moves the least. That everything may be whole goes without
saying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec
from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
from torch.distributed.tensor.experimental import register_sharding

from warpwright import _registry

#: (outputs, inputs); None, or nothing at the end, for an input that is no tensor. A tensor that is not given needs no
#: None of its own.
Lying = tuple[Sequence[Placement], Sequence[Placement | None]]
Rule = Callable[..., Iterator[Lying]]

WHOLE, SUM = Replicate(), Partial()

RULES: dict[str, Rule] = {}


def rule(name: str) -> Callable[[Rule], Rule]:
    """Makes the function below the rule of operator `name`."""

    def keep(function: Rule) -> Rule:
        RULES[name] = function
        return function

    return keep


def dim(index: int) -> Shard:
    """A tensor that is cut along this dimension."""
    return Shard(index)


def if_(made: bool, placement: Placement) -> Placement:
    """An output that has no elements unless it is `made`."""
    return placement if made else WHOLE


def needed(needs: Iterable[bool], *placements: Placement) -> list[Placement]:
    """The gradients that were asked for; the others have no elements."""
    return [if_(need, placement) for need, placement in zip(needs, placements, strict=True)]


def register(backend: str) -> None:
    """Registers every rule for the operators of a backend."""
    for name, function in RULES.items():
        _register(_registry.TABLES[backend][name], function)


def _register(overload: Any, function: Rule) -> None:
    outputs = len(overload._schema.returns)

    def acceptable(*args: Any) -> list[tuple[list[Placement], list[Placement | None]]]:
        given = [isinstance(arg, DTensorSpec) for arg in args]

        def of_tensors(inputs: Sequence[Placement | None]) -> list[Placement | None]:
            padded = [*inputs, *[None] * (len(args) - len(inputs))]
            return [placement if there else None for placement, there in zip(padded, given, strict=True)]

        found: list[tuple[list[Placement], list[Placement | None]]] = [
            ([WHOLE] * outputs, of_tensors([WHOLE] * len(args)))
        ]
        return found + [(list(outs), of_tensors(ins)) for outs, ins in function(*args)]

    register_sharding(overload)(acceptable)
    # torch remembers what a rule said by the placements and by the arguments from the first integer on. Ours depend on
    # names and flags before it, and on which optional tensors there are.
    info = RuntimeSchemaInfo(static_argnum=0, needs_pytree=True)
    DTensor._op_dispatcher.sharding_propagator.op_to_schema_info[overload] = info
