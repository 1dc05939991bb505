"""Batch norms take the convolution before them, and the residual and activation behind."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from warpwright import ops
from warpwright._channels import NORM_ACTIVATIONS
from warpwright.fusion.calls import Call, activation_of
from warpwright.fusion.graph import Emit, Rewriter


def fuse_batch_norms(rw: Rewriter) -> None:
    for node in rw.nodes():
        call = rw.call(node)
        if call is None or call.name not in ("batch_norm", "ops.batch_norm"):
            continue
        if any(call.args.get(key) is not None for key in ("residual", "activation", "process_group")):
            continue
        conv = _convolution_before(rw, call)
        tails = _tails(rw, node)
        if not any(_fuse(rw, call, conv, tail) for tail in reversed(tails) if conv is not None or tail.words) and conv:
            # The convolution may be what the op does not take.
            any(_fuse(rw, call, None, tail) for tail in reversed(tails) if tail.words)
    _fuse_what_shares_statistics(rw)


def _fuse_what_shares_statistics(rw: Rewriter) -> None:
    """PyTorch's batch norm keeps the running statistics for its backward pass, which refuses them once they have been
    written to, and the ops write to them: of one layer's calls all become ops, or none."""
    calls = [call for call in map(rw.call, rw.nodes()) if call is not None]
    moved = {call["running_mean"] for call in calls if call.name in ("ops.batch_norm", "ops.conv2d_batch_norm")}
    for call in calls:
        if call.name == "batch_norm" and call["running_mean"] is not None and call["running_mean"] in moved:
            _fuse(rw, call, None, _Tail([]))


class _Tail:
    """What follows a batch norm: a residual, then an activation, or nothing."""

    def __init__(self, nodes: list[Node], residual: Node | None = None, activation: str | None = None) -> None:
        self.nodes, self.residual, self.activation = nodes, residual, activation
        self.words = (["add"] if residual is not None else []) + ([activation] if activation is not None else [])


def _convolution_before(rw: Rewriter, call: Call) -> Call | None:
    conv = rw.call(call["input"])
    if conv is None or conv.name not in ("conv2d", "ops.conv2d"):
        return None
    input = rw.tensor(conv["input"])
    if input is None or input.dim() != 4 or any(conv.args.get(key) is not None for key in ("residual", "activation")):
        return None
    if len(conv.node.users) > 1:
        rw.skip("conv2d + batch_norm", call.node, f"the convolution is used {len(conv.node.users)} times")
        return None
    return conv


def _tails(rw: Rewriter, node: Node) -> list[_Tail]:
    found = [_Tail([])]
    user = rw.only_user(node)
    call = rw.call(user)
    residual = None
    nodes: list[Node] = []
    if call is not None and call.name == "add" and call["alpha"] == 1:
        other = call["other"] if call["input"] is node else call["input"]
        if other is not node and rw.like(other, node):
            residual, nodes = other, [call.node]
            found.append(_Tail(nodes, residual))
            user = rw.only_user(call.node)
            call = rw.call(user)
    activation = activation_of(call)
    if call is not None and activation in NORM_ACTIVATIONS:
        found.append(_Tail([*nodes, call.node], residual, activation))
    return found


def _fuse(rw: Rewriter, call: Call, conv: Call | None, tail: _Tail) -> bool:
    last = tail.nodes[-1] if tail.nodes else call.node
    running = (call["running_mean"], call["running_var"])
    affine = (call["weight"], call["bias"])
    kwargs: dict[str, Any] = {"training": call["training"], "momentum": call["momentum"], "eps": call["eps"]}
    kwargs |= {"residual": tail.residual} if tail.residual is not None else {}
    kwargs |= {"activation": tail.activation} if tail.activation is not None else {}

    def takes(rw: Rewriter) -> str | None:
        if not isinstance(call["training"], bool) or not isinstance(call["momentum"], (int, float)):
            return "its momentum is computed"
        if tail.activation is not None and tail.residual is not None and rw.written_after(last, tail.residual):
            return "its residual, which the gradient needs, is written to later"
        if conv is None:
            return rw.reason(call["input"], tail.residual) or rw.reason(call["input"], *affine, *running, wide=True)
        reason = rw.reason(conv["input"], conv["weight"], conv["bias"], tail.residual)
        return reason or rw.reason(conv["input"], *affine, *running, wide=True)

    def build(emit: Emit) -> dict[Node, Node]:
        if conv is None:
            return {last: emit(ops.batch_norm, call["input"], *running, *affine, **kwargs)}
        geometry = {key: conv[key] for key in ("bias", "stride", "padding", "dilation", "groups")}
        result = emit(ops.conv2d_batch_norm, conv["input"], conv["weight"], *running, *affine, **geometry, **kwargs)
        return {last: result}

    words = (["conv2d"] if conv is not None else []) + ["batch_norm", *tail.words]
    nodes = ([conv.node] if conv is not None else []) + [call.node, *tail.nodes]
    op = "conv2d_batch_norm" if conv is not None else "batch_norm"
    return rw.fuse(" + ".join(words), nodes, build, takes=takes, op=op)
