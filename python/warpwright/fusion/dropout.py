"""warpwright's dropout takes the residual that is added behind it: the mask is a function of the seed, and stays.

torch's dropout is left: its mask is drawn otherwise.
"""

from __future__ import annotations

from torch.fx import Node

from warpwright import ops
from warpwright.fusion.graph import Emit, Rewriter


def fuse_dropouts(rw: Rewriter) -> None:
    for node in rw.nodes():
        call = rw.call(node)
        if call is None or call.name != "ops.dropout" or call["seed"] is None or call["training"] is not True:
            continue
        added = rw.call(rw.only_user(node))
        if added is None or added.name != "add":
            continue
        residual = added["other"] if added["input"] is node else added["input"]
        if residual is node or rw.tensor(residual) is None:
            continue
        _fuse(rw, node, residual, added.node, added["alpha"])


def _fuse(rw: Rewriter, node: Node, residual: Node, root: Node, alpha: float) -> None:
    call = rw.call(node)
    assert call is not None

    def takes(rw: Rewriter) -> str | None:
        if alpha != 1:
            return f"what is added is multiplied by {alpha}"
        if not rw.like(residual, node):
            return "the residual is broadcast, or of another dtype"
        return rw.reason(call["input"], residual)

    def build(emit: Emit) -> dict[Node, Node]:
        options = {"p": call["p"], "seed": call["seed"], "offset": call["offset"]}
        return {root: emit(ops.dropout_add, call["input"], residual, **options)}

    rw.fuse("dropout + add", [node, root], build, takes=takes, op="dropout_add")
