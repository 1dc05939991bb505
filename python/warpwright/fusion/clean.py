"""Small repairs before the patterns, after which who computes what from what is plain to see."""

from __future__ import annotations

from torch import Tensor
from torch.fx import Node

from warpwright.fusion.calls import Call
from warpwright.fusion.graph import Rewriter, same_sizes


def thread_in_place_results(rw: Rewriter) -> None:
    """`x.add_(y); f(x)` becomes `z = x.add_(y); f(z)`: z is x, and who follows whom is seen by the arguments alone."""
    order = {node: place for place, node in enumerate(rw.graph.nodes)}
    for node in rw.nodes():
        call = rw.call(node)
        if call is None or not call.inplace or not isinstance(call.args.get("input"), Node):
            continue
        for user in list(call["input"].users):
            if order[user] > order[node]:
                user.replace_input_with(call["input"], node)


def drop_dead_calls(rw: Rewriter) -> None:
    """What nobody uses is dropped, unless it writes to what others see: a norm whose result is dead is no reason to
    compute it."""
    for node in reversed(list(rw.graph.nodes)):
        call = rw.call(node)
        if call is not None and not node.users and call.name not in _RANDOM and rw.written_in_vain(node):
            rw.graph.erase_node(node)


#: What draws random numbers leaves the generator in another state.
_RANDOM = ("dropout", "ops.dropout", "ops.dropout_add")


def drop_identities(rw: Rewriter) -> None:
    """Casts to the dtype that is there, and dropout that drops nothing."""
    for node in rw.nodes():
        call = rw.call(node)
        if call is not None and _is_identity(rw, call):
            _drop(rw, node, call["input"])


def _is_identity(rw: Rewriter, call: Call) -> bool:
    before, after = rw.tensor(call.args.get("input")), rw.tensor(call.node)
    if before is None or after is None or before.dtype != after.dtype:
        return False
    if call.name == "dropout":
        return call["training"] is False or call["p"] == 0
    return call.name == "cast" and _same_memory(before, after)


def _same_memory(before: Tensor, after: Tensor) -> bool:
    shared = before.untyped_storage()._cdata == after.untyped_storage()._cdata
    return shared and same_sizes(before, after) and before.stride() == after.stride()


def _drop(rw: Rewriter, node: Node, input: Node) -> None:
    node.replace_all_uses_with(input, propagate_meta=False)
    rw.graph.erase_node(node)
