"""Rotary embeddings as Hugging Face's models write them: `x * cos + rotate_half(x) * sin`."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from warpwright import ops
from warpwright.fusion.graph import Emit, Rewriter

_PATTERN = "x * cos + rotate_half(x) * sin"


@dataclass(frozen=True)
class _Rotation:
    """A tensor (batch, heads, sequence, width) that is rotated, and its tables (batch or 1, sequence, width)."""

    input: Node
    cos: Node
    sin: Node
    nodes: list[Node]
    width: int


def fuse_rotary_embeddings(rw: Rewriter) -> None:
    rotations: list[tuple[Node, _Rotation]] = []
    for node in rw.nodes():
        found = _rotation(rw, node)
        if found is not None:
            rotations.append((node, found))
    while rotations:
        node, first = rotations.pop(0)
        pair = next((other for other in rotations if (other[1].cos, other[1].sin) == (first.cos, first.sin)), None)
        if pair is not None and _fuse(rw, [(node, first), pair]):
            rotations.remove(pair)
        else:
            _fuse(rw, [(node, first)])


def _rotation(rw: Rewriter, node: Node) -> _Rotation | None:
    total = rw.call(node)
    if total is None or total.name != "add" or total["alpha"] != 1:
        return None
    one, other = rw.call(total["input"]), rw.call(total["other"])
    if one is None or other is None or one.name != "mul" or other.name != "mul":
        return None
    for plain, turned in ((one, other), (other, one)):
        for half, sin in ((turned["input"], turned["other"]), (turned["other"], turned["input"])):
            rotated = _rotated_half(rw, half)
            if rotated is None:
                continue
            x, nodes, width = rotated
            cos = plain["other"] if plain["input"] is x else plain["input"]
            if x not in (plain["input"], plain["other"]):
                continue
            tables = _table(rw, cos), _table(rw, sin)
            if tables[0] is None or tables[1] is None:
                continue
            return _Rotation(x, tables[0], tables[1], [*nodes, plain.node, turned.node, node], width)
    return None


def _rotated_half(rw: Rewriter, node: Any) -> tuple[Node, list[Node], int] | None:
    """(x, nodes, width) of `cat((-x[..., width / 2 :], x[..., : width / 2]), -1)`."""
    cat = rw.call(node)
    if cat is None or cat.name != "cat" or not isinstance(cat["tensors"], (tuple, list)) or len(cat["tensors"]) != 2:
        return None
    negative, first = rw.call(cat["tensors"][0]), rw.call(cat["tensors"][1])
    second = rw.call(negative["input"]) if negative is not None and negative.name == "neg" else None
    if negative is None or first is None or second is None or first.name != "getitem" or second.name != "getitem":
        return None
    x = rw.tensor(first["input"])
    if x is None or first["input"] is not second["input"] or x.dim() != 4 or cat["dim"] not in (-1, 3):
        return None
    width = x.shape[-1]
    if not isinstance(width, int) or width % 2:
        return None
    if first["index"] != (..., slice(None, width // 2)) or second["index"] != (..., slice(width // 2, None)):
        return None
    return first["input"], [second.node, negative.node, first.node, cat.node], width


def _table(rw: Rewriter, node: Any) -> Node | None:
    """The table (batch or 1, sequence, width) of `table.unsqueeze(1)`, if its two halves are known to be the same."""
    call = rw.call(node)
    if call is None or call.name != "unsqueeze" or call["dim"] not in (1, -3):
        return None
    table = rw.tensor(call["input"])
    if table is None or table.dim() != 3 or table.requires_grad or not _halves_are_equal(rw, call["input"]):
        return None
    return call["input"]


def _halves_are_equal(rw: Rewriter, node: Any) -> bool:
    """Whether elementwise functions alone stand between `node` and a `cat((x, x), -1)`."""
    call = rw.call(node)
    while call is not None:
        if call.name == "cat":
            tensors, last = call["tensors"], rw.tensor(call.node)
            dims = (-1,) if last is None else (-1, last.dim() - 1)
            return len(tensors) == 2 and tensors[0] is tensors[1] and call["dim"] in dims
        if call.name == "mul" and not isinstance(call["other"], (int, float)):
            return False
        if call.name not in ("cos", "sin", "cast", "mul") or call.inplace:
            return False
        call = rw.call(call["input"])
    return False


def _fuse(rw: Rewriter, rotations: list[tuple[Node, _Rotation]]) -> bool:
    """One tensor, or two that are rotated by the same tables."""
    first = rotations[0][1]
    inputs = [rotation.input for _, rotation in rotations]
    half = first.width // 2

    def takes(rw: Rewriter) -> str | None:
        if any(rotation.width != first.width for _, rotation in rotations):
            return "its tables are of another width"
        return rw.reason(*inputs) or rw.reason(inputs[0], first.cos, first.sin, wide=True)

    def build(emit: Emit) -> dict[Node, Node]:
        heads_last = [emit("transpose", input, 1, 2) for input in inputs]
        tables = [_cut(rw, emit, table, inputs[0], half) for table in (first.cos, first.sin)]
        if len(inputs) == 1:
            found = [emit(ops.rotary_embedding, *heads_last, *tables)]
        else:
            both = emit(ops.rotary_embedding_qk, *heads_last, *tables)
            found = [emit(operator.getitem, both, 0), emit(operator.getitem, both, 1)]
        return {node: emit("transpose", new, 1, 2) for (node, _), new in zip(rotations, found, strict=True)}

    nodes = [node for _, rotation in rotations for node in rotation.nodes]
    op = "rotary_embedding" if len(inputs) == 1 else "rotary_embedding_qk"
    pattern = _PATTERN if len(inputs) == 1 else f"{_PATTERN}, of two"
    return rw.fuse(pattern, nodes, build, takes=takes, op=op, results=[node for node, _ in rotations])


def _cut(rw: Rewriter, emit: Emit, table: Node, input: Node, half: int) -> Node:
    """Half of a table; one of a single sequence, for all of a batch, without that dimension."""
    value, batch = rw.value(table), rw.value(input).shape[0]
    if statically_known_true(value.shape[0] == 1) and not statically_known_true(batch == 1):
        table = emit("select", table, 0, 0)
    return emit("narrow", table, -1, 0, half)
