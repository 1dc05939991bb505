"""Activations that models write out, and the products of gated MLPs."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from warpwright import ops
from warpwright.fusion.calls import Call, activation_of
from warpwright.fusion.graph import Emit, Rewriter

# ---- gelu and silu in pieces ----


def fuse_written_activations(rw: Rewriter) -> None:
    for node in rw.nodes():
        call = rw.call(node)
        if call is None or call.name != "mul":
            continue
        for match in (_gelu_tanh, _gelu_erf, _silu):
            found = match(rw, call)
            if found is not None:
                _fuse_activation(rw, node, *found)
                break


def _fuse_activation(rw: Rewriter, root: Node, name: str, input: Node, nodes: list[Node]) -> None:
    def build(emit: Emit) -> dict[Node, Node]:
        if name == "silu":
            return {root: emit(ops.silu, input)}
        return {root: emit(ops.gelu, input, "tanh" if name == "gelu_tanh" else "none")}

    op = "silu" if name == "silu" else "gelu"
    rw.fuse(f"{name} written out", [*nodes, root], build, takes=lambda rw: rw.reason(input), op=op)


def _factors(rw: Rewriter, node: Any) -> tuple[float, list[Any], list[Node]]:
    """(constant, other factors, nodes) of a product: multiplications and divisions by constants taken together."""
    call = rw.call(node)
    if call is None or call.name not in ("mul", "div"):
        return 1.0, [node], []
    a, b = call["input"], call["other"]
    if call.name == "div":
        return (1 / b, [a], [node]) if _number(b) and b != 0 and call["rounding_mode"] is None else (1.0, [node], [])
    if _number(a) or _number(b):
        return (a, [b], [node]) if _number(a) else (b, [a], [node])
    return 1.0, [node], []


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _near(value: float, expected: float) -> bool:
    return math.isclose(value, expected, rel_tol=1e-6)


def _sum_with_one(rw: Rewriter, node: Any) -> tuple[Any, list[Node]] | None:
    """(x, nodes) of 1 + x."""
    call = rw.call(node)
    if call is None or call.name != "add" or call["alpha"] != 1:
        return None
    for one, other in ((call["input"], call["other"]), (call["other"], call["input"])):
        if _number(one) and one == 1 and isinstance(other, Node):
            return other, [call.node]
    return None


def _half_times(rw: Rewriter, call: Call) -> tuple[Any, Any, list[Node]] | None:
    """(x, y, nodes) of 0.5 * x * (1 + y), however it is bracketed."""
    for first, second in ((call["input"], call["other"]), (call["other"], call["input"])):
        for near, far in ((first, second), (second, first)):
            inner = _sum_with_one(rw, far)
            constant, (rest,), nodes = _factors(rw, near)
            if inner is not None and _near(constant, 0.5) and isinstance(rest, Node):
                return rest, inner[0], [*nodes, *inner[1]]
            # x * (0.5 * (1 + y))
            constant, (rest,), nodes = _factors(rw, far)
            inner = _sum_with_one(rw, rest)
            if inner is not None and _near(constant, 0.5) and isinstance(near, Node):
                return near, inner[0], [*nodes, *inner[1]]
    # 0.5 * (x * (1 + y))
    constant, (rest,), nodes = _factors(rw, call.node)
    inside = rw.call(rest)
    if nodes and _near(constant, 0.5) and inside is not None and inside.name == "mul":
        for x, far in ((inside["input"], inside["other"]), (inside["other"], inside["input"])):
            inner = _sum_with_one(rw, far)
            if inner is not None and isinstance(x, Node):
                return x, inner[0], [inside.node, *inner[1]]
    return None


def _gelu_tanh(rw: Rewriter, call: Call) -> tuple[str, Node, list[Node]] | None:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    halves = _half_times(rw, call)
    tanh = rw.call(halves[1]) if halves is not None else None
    if halves is None or tanh is None or tanh.name != "tanh":
        return None
    x, _, nodes = halves
    constant, (inside,), scaled = _factors(rw, tanh["input"])
    total = rw.call(inside)
    if not _near(constant, math.sqrt(2 / math.pi)) or total is None or total.name != "add" or total["alpha"] != 1:
        return None
    for one, cubic in ((total["input"], total["other"]), (total["other"], total["input"])):
        constant, (power,), cubed = _factors(rw, cubic)
        cube = rw.call(power)
        is_cube = cube is not None and cube.name == "pow" and cube["exponent"] == 3 and cube["input"] is x
        if one is x and is_cube and _near(constant, 0.044715):
            return "gelu_tanh", x, [*nodes, tanh.node, *scaled, total.node, *cubed, power]
    return None


def _gelu_erf(rw: Rewriter, call: Call) -> tuple[str, Node, list[Node]] | None:
    """0.5 x (1 + erf(x / sqrt(2)))."""
    halves = _half_times(rw, call)
    erf = rw.call(halves[1]) if halves is not None else None
    if halves is None or erf is None or erf.name != "erf":
        return None
    x, _, nodes = halves
    constant, (inside,), scaled = _factors(rw, erf["input"])
    if inside is not x or not _near(constant, math.sqrt(0.5)):
        return None
    return "gelu", x, [*nodes, erf.node, *scaled]


def _silu(rw: Rewriter, call: Call) -> tuple[str, Node, list[Node]] | None:
    """x * sigmoid(x)."""
    for x, other in ((call["input"], call["other"]), (call["other"], call["input"])):
        sigmoid = rw.call(other)
        if sigmoid is not None and sigmoid.name == "sigmoid" and sigmoid["input"] is x and not sigmoid.inplace:
            return "silu", x, [sigmoid.node]
    return None


# ---- activation(gate) * up ----

_GATED = {"silu": ops.swiglu, "gelu": ops.geglu, "gelu_tanh": ops.geglu, "relu": ops.reglu}


def fuse_gates(rw: Rewriter) -> None:
    for node in rw.nodes():
        call = rw.call(node)
        if call is None or call.name != "mul":
            continue
        for gate, up in ((call["input"], call["other"]), (call["other"], call["input"])):
            activation = activation_of(rw.call(gate))
            if activation is None or gate is up or rw.tensor(up) is None:
                continue
            if not _fuse_projections(rw, call, gate, up, activation):
                _fuse_gate(rw, call, gate, up, activation)
            break


def _fuse_gate(rw: Rewriter, call: Call, gate: Node, up: Node, activation: str) -> None:
    """Without the projections: one pass over both factors."""
    function = _GATED.get(activation)
    before = rw.call(gate)
    if function is None or before is None:
        return
    kwargs = {"approximate": "tanh"} if activation == "gelu_tanh" else {}
    input = before["input"]

    def takes(rw: Rewriter) -> str | None:
        if not rw.like(gate, up):
            return "its factors are of different shapes or dtypes"
        return rw.reason(input, up)

    def build(emit: Emit) -> dict[Node, Node]:
        return {call.node: emit(function, input, up, **kwargs)}

    rw.fuse(f"{activation} * up", [gate, call.node], build, takes=takes, op=function.__name__)


def _linear(rw: Rewriter, node: Any) -> Call | None:
    """A linear layer without an epilogue, of which this is the only use."""
    call = rw.call(node)
    if call is None or call.name not in ("linear", "ops.linear") or len(call.node.users) > 1:
        return None
    return None if any(call.args.get(key) is not None for key in ("residual", "activation")) else call


@dataclass(frozen=True)
class _Projections:
    """The linear layers of a gate and of what it multiplies: their input, nodes and tensors, and the op's arguments."""

    input: Node
    nodes: list[Node]
    tensors: list[Any]
    layers: Callable[[Emit], dict[str, Any]]
    words: str


def _two_layers(rw: Rewriter, gate: Any, up: Any) -> _Projections | None:
    first, second = _linear(rw, gate), _linear(rw, up)
    if first is None or second is None or first["input"] is not second["input"]:
        return None
    layers = {"gate_weight": first["weight"], "up_weight": second["weight"]}
    layers |= {"gate_bias": first["bias"], "up_bias": second["bias"]}
    nodes = [first.node, second.node]
    return _Projections(first["input"], nodes, list(layers.values()), lambda emit: layers, "(linear) * linear")


def _packed_layer(rw: Rewriter, gate: Any, up: Any) -> _Projections | None:
    """One layer of twice the width, whose output is cut in two: so is its weight, where it lies."""
    first, second = rw.call(gate), rw.call(up)
    if first is None or second is None or first.name != "getitem" or second.name != "getitem":
        return None
    chunk = rw.call(first["input"])
    places = (first["index"], second["index"])
    if (
        chunk is None
        or chunk.name != "chunk"
        or second["input"] is not chunk.node
        or sorted(map(str, places)) != ["0", "1"]
    ):
        return None
    layer, output = _linear(rw, chunk["input"]), rw.tensor(chunk["input"])
    if layer is None or output is None or chunk["chunks"] != 2 or chunk["dim"] not in (-1, output.dim() - 1):
        return None
    weight, bias = layer["weight"], layer["bias"]

    def layers(emit: Emit) -> dict[str, Any]:
        found: dict[str, Any] = {"gate_bias": None, "up_bias": None}
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None:
                halves = emit(torch.chunk, tensor, 2, 0)
                for side, place in zip(("gate", "up"), places, strict=True):
                    found[f"{side}_{name}"] = emit(operator.getitem, halves, place)
        return found

    nodes = [layer.node, chunk.node, first.node, second.node]
    return _Projections(layer["input"], nodes, [weight, bias], layers, "(half) * half of linear")


def _fuse_projections(rw: Rewriter, call: Call, gate: Node, up: Node, activation: str) -> bool:
    """Both factors are linear layers of one input; with the one behind it is a whole MLP."""
    before = rw.call(gate)
    source = before["input"] if before is not None else None
    found = _two_layers(rw, source, up) or _packed_layer(rw, source, up)
    if found is None or not rw.like(gate, up):
        return False
    nodes = [*found.nodes, gate, call.node]
    pattern = activation + found.words
    behind = rw.call(rw.only_user(call.node))
    if behind is not None and _linear_behind(behind) and behind["input"] is call.node:
        down = {"down_weight": behind["weight"], "down_bias": behind["bias"]}

        def build_mlp(emit: Emit) -> dict[Node, Node]:
            given = {key: value for key, value in (found.layers(emit) | down).items() if value is not None}
            return {behind.node: emit(ops.mlp, found.input, activation=activation, **given)}

        def takes_mlp(rw: Rewriter) -> str | None:
            return rw.reason(found.input, *found.tensors, *down.values())

        if rw.fuse(f"{pattern}, then linear", [*nodes, behind.node], build_mlp, takes=takes_mlp, op="mlp"):
            return True

    def build(emit: Emit) -> dict[Node, Node]:
        return {call.node: emit(ops.linear_glu, found.input, **found.layers(emit), activation=activation)}

    return rw.fuse(pattern, nodes, build, takes=lambda rw: rw.reason(found.input, *found.tensors), op="linear_glu")


def _linear_behind(call: Call) -> bool:
    plain = all(call.args.get(key) is None for key in ("residual", "activation"))
    return call.name in ("linear", "ops.linear") and plain
