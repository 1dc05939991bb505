"""RMS norms that models write out, and residuals that are added right before a norm."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from warpwright import ops
from warpwright.fusion.calls import Call
from warpwright.fusion.graph import Emit, Rewriter

# ---- x * rsqrt(mean(x ** 2) + eps) * weight ----


@dataclass
class _Written:
    """An RMS norm found in pieces: what it normalises, its nodes so far (the last is its result), and its settings."""

    input: Node
    nodes: list[Node]
    eps: float
    weight: Node | None = None
    weight_offset: float = 0.0


def fuse_written_rms_norms(rw: Rewriter) -> None:
    for node in rw.nodes():
        found = _normalised(rw, node)
        if found is not None:
            for norm in reversed(_weighted(rw, found)):
                if _fuse_rms_norm(rw, norm):
                    break


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _normalised(rw: Rewriter, node: Node) -> _Written | None:
    """`x * rsqrt(mean(x ** 2, -1) + eps)` around the root `node`."""
    root = rw.call(node)
    if root is None or not (root.name == "rsqrt" or (root.name == "pow" and root["exponent"] == -0.5)):
        return None
    added = rw.call(root["input"])
    if added is None or added.name != "add" or not _number(added["other"]) or added["alpha"] != 1:
        return None
    mean = rw.call(added["input"])
    if mean is None or mean.name != "mean" or mean["dim"] not in (-1, (-1,), [-1]) or not mean["keepdim"]:
        return None
    if mean["dtype"] is not None:
        return None
    square = rw.call(mean["input"])
    if square is None or not _squares(square):
        return None
    product = rw.call(rw.only_user(node))
    if product is None or product.name != "mul" or {product["input"], product["other"]} != {square["input"], node}:
        return None
    nodes = [square.node, mean.node, added.node, node, product.node]
    wide = rw.call(square["input"])
    if wide is not None and wide.name == "cast" and set(wide.node.users) == {square.node, product.node}:
        return _Written(wide["input"], [wide.node, *nodes], float(added["other"]))
    return _Written(square["input"], nodes, float(added["other"]))


def _squares(call: Call) -> bool:
    if call.name == "mul":
        return call["input"] is call["other"] and isinstance(call["input"], Node)
    return call.name == "square" or (call.name == "pow" and call["exponent"] == 2)


def _weighted(rw: Rewriter, norm: _Written) -> list[_Written]:
    """The same, and what it may go on with: back to the input's dtype, a weight, back to its dtype after that."""
    found = [norm]
    last = norm
    for _ in range(3):
        call = rw.call(rw.only_user(last.nodes[-1]))
        if call is None:
            break
        longer = [*last.nodes, call.node]
        if call.name == "cast":
            last = _Written(norm.input, longer, norm.eps, last.weight, last.weight_offset)
        elif call.name == "mul" and last.weight is None:
            other = call["other"] if call["input"] is last.nodes[-1] else call["input"]
            scaled = _weight(rw, other)
            if scaled is None:
                break
            weight, offset, before = scaled
            last = _Written(norm.input, [*before, *longer], norm.eps, weight, offset)
        else:
            break
        found.append(last)
    return found


def _weight(rw: Rewriter, node: Any) -> tuple[Node, float, list[Node]] | None:
    """(weight, offset, nodes) of `weight`, or of `offset + weight.float()` as Gemma has it."""
    nodes: list[Node] = []
    offset = 0.0
    call = rw.call(node)
    if call is not None and call.name == "add" and call["alpha"] == 1 and len(call.node.users) == 1:
        numbers = [x for x in (call["input"], call["other"]) if _number(x)]
        if len(numbers) == 1:
            offset, node = float(numbers[0]), next(x for x in (call["input"], call["other"]) if isinstance(x, Node))
            nodes.append(call.node)
            call = rw.call(node)
    if call is not None and call.name == "cast" and len(call.node.users) == 1:
        nodes.append(call.node)
        node = call["input"]
    tensor = rw.tensor(node)
    return (node, offset, nodes) if tensor is not None and tensor.dim() == 1 else None


def _fuse_rms_norm(rw: Rewriter, norm: _Written) -> bool:
    size = rw.value(norm.input).shape[-1]
    kwargs = {"weight_offset": norm.weight_offset} if norm.weight_offset else {}

    def takes(rw: Rewriter) -> str | None:
        if not isinstance(size, int):
            return "the size of the last dimension is not known"
        return rw.reason(norm.input, norm.weight)

    def build(emit: Emit) -> dict[Node, Node]:
        return {norm.nodes[-1]: emit(ops.rms_norm, norm.input, (size,), norm.weight, norm.eps, **kwargs)}

    return rw.fuse("rms_norm written out", norm.nodes, build, takes=takes, op="rms_norm")


# ---- residual, then norm ----


def fuse_residuals(rw: Rewriter) -> None:
    """`norm(x + residual)`: the op gives the norm and the sum."""
    for node in rw.nodes():
        call = rw.call(node)
        if call is None or call.name.removeprefix("ops.") not in ("layer_norm", "rms_norm"):
            continue
        added = rw.call(call["input"])
        if added is None or added.name != "add" or any(rw.tensor(added[key]) is None for key in ("input", "other")):
            continue
        if call.args.get("residual") is None and call.args.get("dropout_p", 0) == 0:
            _fuse_residual(rw, call, added)


def _fuse_residual(rw: Rewriter, call: Call, added: Call) -> bool:
    name = call.name.removeprefix("ops.")
    function = getattr(ops, name)
    affine = [call["weight"]] + ([call["bias"]] if name == "layer_norm" else [])
    kwargs = {"weight_offset": call["weight_offset"]} if call.args.get("weight_offset") else {}
    eps = call["eps"]

    def takes(rw: Rewriter) -> str | None:
        if added["alpha"] != 1:
            return f"what is added is multiplied by {added['alpha']}"
        if not (rw.like(added["input"], added.node) and rw.like(added["other"], added.node)):
            return "the residual is broadcast, or of another dtype"
        return rw.reason(added["input"], added["other"], *affine)

    def build(emit: Emit) -> dict[Node, Node]:
        both = emit(
            function, added["input"], call["normalized_shape"], *affine, eps, residual=added["other"], **kwargs
        )  # fmt: skip
        result = {call.node: emit(operator.getitem, both, 0)}
        if len(added.node.users) > 1:
            result[added.node] = emit(operator.getitem, both, 1)
        return result

    nodes = [added.node, call.node]
    return rw.fuse(f"add + {name}", nodes, build, takes=takes, op=name, results=nodes)
