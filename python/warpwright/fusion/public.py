"""warpwright's own layers in a graph: from the operators that Dynamo sees inside the public functions back to those.

The functions' results and names are what the patterns know, and a batch norm that moves its running statistics by
itself is one node.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from warpwright import _registry, ops
from warpwright._arithmetic import arithmetic_of, convolution_precision_of
from warpwright._backend import backend_for
from warpwright.fusion.graph import Emit, Rewriter

#: What a public function is called with: (function, arguments, keywords), or None where it is none of its calls.
_Public = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None


def restore_public_calls(rw: Rewriter) -> None:
    """Operators that a public function would call now, just so, become that call."""
    for node in reversed(list(rw.graph.nodes)):
        # `tensor.is_cpu` of _backend, and outputs that nobody reads.
        if node.op == "call_function" and node.target in (getattr, operator.getitem) and not node.users:
            rw.graph.erase_node(node)
    for node in rw.nodes():
        if not isinstance(node.target, torch._ops.OpOverload) or rw.fake_mode is None:
            continue
        name = node.target._opname
        if name not in _OPERATORS or not _is_current(rw, name, node):
            continue
        public = _OPERATORS[name](rw, *node.args)
        if public is None:
            continue
        if name == "batch_norm":
            _restore_batch_norm(rw, node, public)
        else:
            _restore(rw, node, public)


def _is_current(rw: Rewriter, name: str, node: Node) -> bool:
    """Whether the operator is that of the backend that is chosen now."""
    input = rw.tensor(node.args[0])
    if input is None or node.kwargs:
        return False
    try:
        return node.target is _registry.TABLES[backend_for(name, input.device)][name]
    except RuntimeError:
        return False


def _restore(rw: Rewriter, node: Node, public: Any) -> None:
    function, args, kwargs = public
    if isinstance(rw.value(node), torch.Tensor):
        results, single = {0: node}, True
    else:
        results = {user.args[1]: user for user in node.users if user.target is operator.getitem}  # type: ignore[misc]
        single = not (function in (ops.layer_norm, ops.rms_norm) and kwargs.get("residual") is not None)
        if len(results) != len(node.users) or not set(results) <= ({0} if single else {0, 1}):
            return

    def build(emit: Emit) -> dict[Node, Node]:
        found = emit(function, *args, **kwargs)
        if single:
            return {results[0]: found} if results else {}
        return {old: emit(operator.getitem, found, index) for index, old in results.items()}

    old = [node, *results.values()]
    rw.fuse(node.name, old, build, takes=lambda rw: None, op=None, results=results.values())


def _restore_batch_norm(rw: Rewriter, node: Node, public: Any) -> None:
    """The operator returns the moved statistics, and nodes behind it write them to the buffers."""
    function, args, kwargs = public
    results = {user.args[1]: user for user in node.users if user.target is operator.getitem}
    copies = []
    for index, buffer in ((3, args[1]), (4, args[2])):
        if index in results:
            copy = rw.only_user(results[index])
            if copy is None or copy.target != "copy_" or copy.args != (buffer, results[index]) or copy.users:
                return
            copies.append(copy)
    wanted = 2 if args[5] and args[1] is not None else 0
    if len(results) != len(node.users) or not set(results) <= {0, 3, 4} or len(copies) != wanted:
        return
    ours = {node, *results.values(), *copies}
    if not all(_follows(node, copy, ours) for copy in copies):
        return
    with rw.graph.inserting_before(node):
        found = rw.graph.call_function(function, args, kwargs)
    found.meta.update(node.meta)
    found.meta["example_value"] = rw.value(node)[0]
    rw.adopt(found, node)
    if 0 in results:
        results[0].replace_all_uses_with(found, propagate_meta=False)
    for old in (*copies, *results.values(), node):
        rw.graph.erase_node(old)


def _follows(node: Node, copy: Node, ours: set[Node]) -> bool:
    """Whether nothing but `ours` and the switch of gradients stands between the two."""
    at = node.next
    while at is not copy:
        if at.op == "output" or not (at in ours or at.target is torch._C._set_grad_enabled):
            return False
        at = at.next
    return True


# ---- operators' arguments to functions' ----


def _linear(rw: Rewriter, input: Node, weight: Any, bias: Any, residual: Any, activation: str, *rest: Any) -> _Public:
    if rest[:2] != arithmetic_of(rw.value(input)):
        return None
    return ops.linear, (input, weight, bias), _epilogue(activation, residual)


def _convolution(rw: Rewriter, input: Node, weight: Node, bias: Any, residual: Any, *rest: Any) -> _Public:
    stride, padding, dilation, transposed, output_padding, groups, activation, precision, _ = rest
    value = rw.value(input)
    dims = value.dim() - 2
    if precision != convolution_precision_of(value) or len(padding) != dims:
        return None
    geometry: tuple[Any, ...]
    if transposed:
        geometry = (stride, padding, output_padding, groups, dilation)
        return getattr(ops, f"conv_transpose{dims}d"), (input, weight, bias, *geometry), _epilogue(activation, residual)
    geometry = (stride, padding, dilation, groups)
    return getattr(ops, f"conv{dims}d"), (input, weight, bias, *geometry), _epilogue(activation, residual)


def _batch_norm(
    rw: Rewriter, input: Node, mean: Any, var: Any, weight: Any, bias: Any, residual: Any, training: bool,
    momentum: float, eps: float, activation: str,
) -> _Public:  # fmt: skip
    return ops.batch_norm, (input, mean, var, weight, bias, training, momentum, eps), _epilogue(activation, residual)


def _norm_options(residual: Any, offset: float, dropout_p: float) -> dict[str, Any] | None:
    if dropout_p != 0:
        return None  # The seed's node is part of it: nothing here is fused with a norm that drops.
    kwargs = {} if residual is None else {"residual": residual}
    return kwargs | ({"weight_offset": offset} if offset != 0 else {})


def _rms_norm(
    rw: Rewriter, input: Node, residual: Any, ndim: int, weight: Any, eps: float, offset: float, p: float, *rest: Any
) -> _Public:
    options = _norm_options(residual, offset, p)
    shape = _known_sizes(rw, input, ndim)
    return None if options is None or shape is None else (ops.rms_norm, (input, shape, weight, eps), options)


def _layer_norm(
    rw: Rewriter, input: Node, residual: Any, ndim: int, weight: Any, bias: Any, eps: float, offset: float, p: float,
    *rest: Any,
) -> _Public:  # fmt: skip
    options = _norm_options(residual, offset, p)
    shape = _known_sizes(rw, input, ndim)
    return None if options is None or shape is None else (ops.layer_norm, (input, shape, weight, bias, eps), options)


def _known_sizes(rw: Rewriter, input: Node, ndim: int) -> tuple[int, ...] | None:
    sizes = tuple(rw.value(input).shape[-ndim:])
    return sizes if all(isinstance(size, int) for size in sizes) else None


def _activation(rw: Rewriter, input: Node, bias: Any, activation: str) -> _Public:
    kwargs = {} if bias is None else {"bias": bias}
    if activation in ("gelu", "gelu_tanh"):
        return ops.gelu, (input, "none" if activation == "gelu" else "tanh"), kwargs
    return (getattr(ops, activation), (input,), kwargs) if activation in ("relu", "silu") else None


def _dropout(rw: Rewriter, input: Node, residual: Any, p: float, seed: Node, offset: int) -> _Public:
    return None if residual is not None else (ops.dropout, (input, p, True), {"seed": seed, "offset": offset})


def _softmax(rw: Rewriter, input: Node, mask: Any, dim: int, scale: float, causal: bool, log: bool) -> _Public:
    if log or causal or scale != 1 or mask is not None:
        return None
    return ops.softmax, (input, dim), {}


def _cross_entropy(rw: Rewriter, input: Node, target: Node, weight: Any, *options: Any) -> _Public:
    ignore_index, reduction, label_smoothing, z_loss, softcap, in_float32 = options
    if in_float32:
        return None
    kwargs = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    return ops.cross_entropy, (input, target, weight), kwargs | {"z_loss": z_loss, "softcap": softcap or None}


def _epilogue(activation: str, residual: Any) -> dict[str, Any]:
    return {"activation": None if activation == "none" else activation, "residual": residual}


_OPERATORS: dict[str, Callable[..., _Public]] = {
    "activation": _activation,
    "batch_norm": _batch_norm,
    "convolution": _convolution,
    "cross_entropy": _cross_entropy,
    "dropout_add": _dropout,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "rms_norm": _rms_norm,
    "softmax": _softmax,
}
