"""A linear layer whose output only a cross entropy reads: the logits need not exist."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from warpwright import ops
from warpwright.fusion.calls import Call
from warpwright.fusion.graph import Emit, NotFused, Rewriter

_PATTERN = "linear + cross_entropy"


def fuse_losses(rw: Rewriter) -> None:
    for node in rw.nodes():
        call = rw.call(node)
        if call is None or call.name not in ("cross_entropy", "ops.cross_entropy"):
            continue
        nodes, tip = [node], call["input"]
        found = rw.call(tip)
        while found is not None and found.name in ("view", "cast"):
            nodes.append(found.node)
            found = rw.call(found["input"])
        if found is None or found.name not in ("linear", "ops.linear") or rw.tensor(found.node) is None:
            continue
        if found.args.get("residual") is None and found.args.get("activation") is None:
            _fuse(rw, call, found, [found.node, *nodes])


def _fuse(rw: Rewriter, call: Call, linear: Call, nodes: list[Node]) -> bool:
    input, weight, bias = linear["input"], linear["weight"], linear["bias"]
    logits, target = rw.tensor(call["input"]), rw.tensor(call["target"])
    keys = ("ignore_index", "reduction", "label_smoothing", "z_loss", "softcap")
    kwargs: dict[str, Any] = {key: call[key] for key in keys if key in call.args}
    kwargs |= {"bias": bias} if bias is not None else {}
    kwargs |= {"class_weight": call["weight"]} if call["weight"] is not None else {}

    def takes(rw: Rewriter) -> str | None:
        if call.args.get("size_average") is not None or call.args.get("reduce") is not None:
            return "size_average and reduce are not the op's arguments"
        if logits is None or target is None or logits.dim() != 2 or target.dim() != 1 or target.dtype.is_floating_point:
            return "its target is not one class for each row of two-dimensional logits"
        return rw.reason(input, weight, bias)

    def build(emit: Emit) -> dict[Node, Node]:
        features, classes = rw.value(weight).shape[1], rw.value(weight).shape[0]
        if not isinstance(features, int) or logits is None or logits.shape[1] != classes:
            raise NotFused("its logits are not the layer's rows")
        rows = input if rw.value(input).dim() == 2 else emit("reshape", input, (-1, features))
        return {call.node: emit(ops.linear_cross_entropy, rows, weight, call["target"], **kwargs)}

    return rw.fuse(_PATTERN, nodes, build, takes=takes, op="linear_cross_entropy")
