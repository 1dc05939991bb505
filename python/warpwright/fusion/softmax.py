"""The scale and the mask before a softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from warpwright import ops
from warpwright.fusion.calls import Call
from warpwright.fusion.graph import Emit, Rewriter, same_sizes


@dataclass(frozen=True)
class _Scores:
    """What goes into a softmax: `scale * input`, to which `mask` is added, or of which it drops elements."""

    input: Node
    nodes: tuple[Node, ...] = ()
    scale: float = 1.0
    mask: Node | None = None
    drops: bool = False
    words: tuple[str, ...] = ()


def fuse_softmaxes(rw: Rewriter) -> None:
    for node in rw.nodes():
        call = rw.call(node)
        if call is None or call.name not in ("softmax", "ops.softmax") or not isinstance(call["dim"], int):
            continue
        if call.name == "ops.softmax" and (call["mask"] is not None or call["scale"] != 1 or call["causal"]):
            continue
        if rw.tensor(call["input"]) is None:
            continue
        masked = _masked(rw, call)
        for scores in (_scaled(rw, masked), masked, _scaled(rw, _Scores(call["input"]))):
            if scores.nodes and _fuse(rw, call, scores):
                break


def _masked(rw: Rewriter, softmax: Call) -> _Scores:
    plain = _Scores(softmax["input"])
    call = rw.call(softmax["input"])
    if call is None or len(call.node.users) > 1:
        return plain
    if call.name == "add" and call["alpha"] == 1:
        for input, mask in ((call["input"], call["other"]), (call["other"], call["input"])):
            if _spreads(rw, mask, input, call.node):
                return _Scores(input, (call.node,), mask=mask, words=("add",))
    is_fill = call.name == "masked_fill" and call["value"] == -math.inf
    if is_fill and _spreads(rw, call["mask"], call["input"], call.node):
        return _Scores(call["input"], (call.node,), mask=call["mask"], drops=True, words=("masked_fill",))
    return plain


def _spreads(rw: Rewriter, mask: Any, input: Any, result: Node) -> bool:
    """Whether `input` has the result's shape: the mask alone is broadcast, and has no gradient."""
    a, b, c = rw.tensor(input), rw.tensor(mask), rw.tensor(result)
    if a is None or b is None or c is None or b.requires_grad or not same_sizes(a, c) or a.dtype != c.dtype:
        return False
    return b.dtype in (a.dtype, torch.bool)


def _scaled(rw: Rewriter, scores: _Scores) -> _Scores:
    call = rw.call(scores.input)
    if call is None or call.name not in ("mul", "div") or len(call.node.users) > 1:
        return scores
    input, number = call["input"], call["other"]
    if call.name == "mul" and isinstance(number, Node):
        input, number = number, input
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not rw.like(input, call.node):
        return scores
    if call.name == "div" and (number == 0 or call["rounding_mode"] is not None):
        return scores
    scale = float(number) if call.name == "mul" else 1 / number
    return replace(scores, input=input, nodes=(*scores.nodes, call.node), scale=scale, words=("scale", *scores.words))


def _fuse(rw: Rewriter, call: Call, scores: _Scores) -> bool:
    value, dtype = rw.tensor(scores.input), call["dtype"]
    assert value is not None

    def takes(rw: Rewriter) -> str | None:
        if dtype is not None and dtype != value.dtype and scores.mask is not None and not scores.drops:
            return f"a mask of {value.dtype} is added before the scores become {dtype}"
        return rw.reason(scores.input)

    def build(emit: Emit) -> dict[Node, Node]:
        mask = emit(torch.logical_not, scores.mask) if scores.drops else scores.mask
        kwargs = {"scale": scores.scale, "mask": mask, "dtype": dtype}
        given = {
            key: found for key, found in kwargs.items() if found is not None and not (key == "scale" and found == 1)
        }
        return {call.node: emit(ops.softmax, scores.input, call["dim"], **given)}

    pattern = " + ".join([*scores.words, "softmax"])
    return rw.fuse(pattern, [*scores.nodes, call.node], build, takes=takes, op="softmax")
