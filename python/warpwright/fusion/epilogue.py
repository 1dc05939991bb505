"""What follows a product or a convolution goes into its epilogue: a bias, a residual, then an activation.

The ops compute `activation(product + bias + residual)`: what is added after an activation is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from warpwright import ops
from warpwright.fusion.calls import Call, activation_of
from warpwright.fusion.graph import Emit, NotFused, Rewriter


@dataclass(frozen=True)
class _Product:
    """A product that may still take an epilogue: `function(*args, bias=, residual=, activation=None, **kwargs)`."""

    name: str
    node: Node
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    bias: Any = None
    residual: Any = None
    #: Whether the op applies an activation to the sum.
    activates: bool = True


@dataclass
class _Chain:
    """What can be fused so far: the nodes, the last of them that counts, and what the op is told."""

    nodes: list[Node]
    bias: Any
    residual: Any
    activation: str | None = None
    view: Node | None = None
    words: list[str] = field(default_factory=list)


def fuse_epilogues(rw: Rewriter) -> None:
    for node in rw.nodes():
        product = _product(rw, node)
        if product is None:
            continue
        for chain in reversed(_chains(rw, product)):
            if _fuse(rw, product, chain):
                break


def _product(rw: Rewriter, node: Node) -> _Product | None:
    call = rw.call(node)
    if call is None or rw.tensor(node) is None:
        return None
    name = call.name.removeprefix("ops.")
    if call.name == "ops.mlp":
        return _mlp(call)
    if call.name.startswith("ops.") and call.args.get("activation") is not None:
        return None
    bias, residual = call.args.get("bias"), call.args.get("residual")
    if name == "linear":
        return _Product(name, node, ops.linear, (call["input"], call["weight"]), {}, bias, residual)
    if name.startswith("conv") and name[-2:] in ("1d", "2d", "3d") and hasattr(ops, name):
        geometry = ("stride", "padding", "output_padding", "groups", "dilation")
        kwargs = {key: call[key] for key in geometry if key in call.args}
        args = (call["input"], call["weight"])
        return _Product(name, node, getattr(ops, name), args, kwargs, bias, residual)
    if call.name in ("matmul", "mm", "bmm"):
        other = call["other"] if call.name == "matmul" else call["mat2"]
        return _Product(name, node, ops.matmul, (call["input"], other), {})
    if call.name == "addmm":
        return _addmm(rw, call)
    return None


def _mlp(call: Call) -> _Product:
    kwargs = {key: value for key, value in call.args.items() if key not in ("input", "down_bias", "residual")}
    args = (call["input"],)
    gated = "" if call["gate_weight"] is None else " * linear"
    name = f"{call['activation']}(linear){gated}, then linear"
    return _Product(name, call.node, ops.mlp, args, kwargs, call["down_bias"], call["residual"], activates=False)


def _addmm(rw: Rewriter, call: Call) -> _Product | None:
    added, mat2 = rw.tensor(call["input"]), rw.tensor(call["mat2"])
    numbers = {key: float(call[key]) for key in ("alpha", "beta") if isinstance(call[key], (int, float))}
    if added is None or mat2 is None or len(numbers) != 2:
        return None
    kwargs = {} if numbers["alpha"] == 1 else {"alpha": numbers["alpha"]}
    args = (call["mat1"], call["mat2"])
    if added.dim() == 1 and numbers["beta"] == 1:
        return _Product("addmm", call.node, ops.matmul, args, kwargs, bias=call["input"])
    if rw.like(call["input"], call.node):
        return _Product("addmm", call.node, ops.matmul, args, kwargs | {"beta": numbers["beta"]}, None, call["input"])
    return None


def _chains(rw: Rewriter, product: _Product) -> list[_Chain]:
    """The chains behind a product that its op could take, each one step longer than the one before."""
    chain = _Chain([product.node], product.bias, product.residual)
    found: list[_Chain] = []
    while chain.activation is None:
        tip = chain.nodes[-1]
        user = rw.only_user(tip)
        if user is None:
            _explain_users(rw, product, tip)
            break
        longer = _step(rw, product, chain, tip, user)
        if longer is None:
            break
        if len(longer.words) > len(chain.words):
            found.append(longer)
        chain = longer
    return found


def _step(rw: Rewriter, product: _Product, chain: _Chain, tip: Node, user: Node) -> _Chain | None:
    call = rw.call(user)
    if call is None:
        return None
    longer = _Chain([*chain.nodes, user], chain.bias, chain.residual, None, chain.view, list(chain.words))
    activation = activation_of(call)
    if activation is not None:
        if not product.activates:
            return None
        longer.activation = activation
        longer.words.append(activation)
        return longer
    pattern = " + ".join([product.name, *chain.words, call.name])
    if call.name == "leaky_relu":
        rw.skip(pattern, user, f"a slope of {call['negative_slope']}; the op's is 0.01")
        return None
    if call.name == "view" and chain.view is None and call["input"] is tip:
        longer.view = user
        return longer
    if call.name != "add":
        return None
    other = call["other"] if call["input"] is tip else call["input"]
    if other is tip or rw.tensor(other) is None:
        return None
    reason = None
    if call["alpha"] != 1:
        reason = f"what is added is multiplied by {call['alpha']}"
    elif chain.bias is None and _is_bias(rw, product, other, tip):
        longer.bias = other
        longer.words.append("bias")
        return longer
    elif not rw.like(other, tip):
        reason = _unlike(rw, other, tip)
    elif chain.residual is not None:
        reason = "the op adds one residual"
    if reason is not None:
        rw.skip(pattern, user, reason)
        return None
    longer.residual = other
    longer.words.append("add")
    return longer


def _is_bias(rw: Rewriter, product: _Product, other: Node, tip: Node) -> bool:
    """One value a feature; a convolution's features are not its last dimension."""
    bias, output = rw.tensor(other), rw.tensor(tip)
    if bias is None or output is None or product.name.startswith("conv") or bias.dim() != 1 or output.dim() < 2:
        return False
    return bias.dtype == output.dtype and bias.shape[0] == output.shape[-1]


def _unlike(rw: Rewriter, other: Node, tip: Node) -> str:
    a, b = rw.tensor(other), rw.tensor(tip)
    assert a is not None
    assert b is not None
    if a.dtype != b.dtype:
        return f"a {a.dtype} residual for a {b.dtype} result"
    if a.device != b.device:
        return f"a residual on {a.device} for a result on {b.device}"
    return f"a residual of shape {tuple(a.shape)} is broadcast to {tuple(b.shape)}"


def _explain_users(rw: Rewriter, product: _Product, tip: Node) -> None:
    """A product whose result several read could have had an epilogue if only one of them did."""
    for user in tip.users:
        activation = activation_of(rw.call(user))
        if activation is not None:
            rw.skip(f"{product.name} + {activation}", user, f"the product is used {len(tip.users)} times")


def _fuse(rw: Rewriter, product: _Product, chain: _Chain) -> bool:
    last = chain.nodes[-1]
    view = chain.view

    def build(emit: Emit) -> dict[Node, Node]:
        residual = chain.residual
        if view is not None and residual is not None and residual is not product.residual:
            shape = rw.value(product.node).shape
            if len(shape) != 2 or not isinstance(shape[1], int):
                raise NotFused("a residual behind a view")
            residual = emit("reshape", residual, (-1, shape[1]))
        found = {"bias": chain.bias, "residual": residual, "activation": chain.activation}
        given = {key: value for key, value in found.items() if value is not None}
        if product.function is ops.mlp and "bias" in given:
            given["down_bias"] = given.pop("bias")
        result = emit(product.function, *product.args, **product.kwargs, **given)
        if view is not None:
            result = emit(view.target, result, *view.args[1:], **view.kwargs)
        return {last: result}

    return rw.fuse(
        " + ".join([product.name, *chain.words]),
        chain.nodes,
        build,
        takes=lambda rw: rw.reason(*product.args[:2], chain.bias, chain.residual),
        op=product.function.__name__,
    )
