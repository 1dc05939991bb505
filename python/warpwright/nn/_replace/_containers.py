"""Modules around layers: their forward with chains of layers taken together, and with functions replaced."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from warpwright.nn._replace import _chain, _rewrite
from warpwright.nn._replace._adapted import adapted, make
from warpwright.nn._replace._huggingface import rotary_names
from warpwright.nn._replace._source import rewrappable, tree_of, unwrapped, with_body
from warpwright.nn._replace._steps import Add

_HELPERS = {
    _rewrite.RUN: _chain.run,
    _rewrite.TAP: _chain.tap,
    _rewrite.ADD: _chain.add,
    _rewrite.GATED: _chain.gated,
}


class _Method(NamedTuple):
    """A method that can be written anew: its syntax tree, the stages of its chains, the globals to exchange."""

    name: str
    function: Callable[..., Any]
    tree: ast.FunctionDef
    chains: list[list[ast.expr]]
    names: Mapping[str, Callable[..., Any]]
    module: str
    space: Mapping[str, Any]


def fused_class(module: torch.nn.Module) -> tuple[type[torch.nn.Module], list[str]] | None:
    """The class for a module in which something fuses, and what that is, in words; None for another."""
    kind = type(module)
    if kind is torch.nn.Sequential:
        names = _names_of([list(module)])  # type: ignore[call-overload]
        return (_chain.Sequential, names) if names else None
    methods = _methods(kind)
    stages = [_stages(method, chain, module) for method in methods for chain in method.chains]
    names = _names_of(stages)
    names += ["rotary_embedding" for method in methods for _ in method.names]
    return (adapted(fused_recipe, kind, of=tuple(method.function for method in methods)), names) if names else None


def _names_of(chains: Iterable[Sequence[Any]]) -> list[str]:
    return [step.name for chain in chains for step in _chain.fused(chain)]


def fused_recipe(original: type[torch.nn.Module]) -> type[torch.nn.Module]:
    members: dict[str, Any] = {"_warpwright_container": True}
    for method in _methods(original):
        function = getattr(original, method.name)
        members[method.name] = with_body(
            function, method.tree if method.chains else None, {**method.names, **(_HELPERS if method.chains else {})}
        )
        whole = _whole_chain(method)
        if whole is not None and method.name == "forward":
            members["_warpwright_stages"] = whole
    return make(fused_recipe, original, (original,), members)


def _methods(kind: type[torch.nn.Module]) -> list[_Method]:
    """The methods of a class, of it and those of its bases that have a forward of their own."""
    found: dict[str, _Method] = {}
    for base in kind.__mro__:
        if base is torch.nn.Module or "forward" not in vars(base):
            continue
        for name, function in vars(base).items():
            if name in found or name.startswith("__") or getattr(kind, name, None) is not function:
                continue
            if not callable(function) or not _hashable(function):
                continue
            method = _method(kind, name, function)  # type: ignore[arg-type]
            if method is not None:
                found[name] = method
    return list(found.values())


@functools.cache
def _method(kind: type[torch.nn.Module], name: str, function: Callable[..., Any]) -> _Method | None:
    inner = unwrapped(function)
    tree = None if inner is None else tree_of(inner.__code__)
    if inner is None or tree is None or not tree.args.args or not rewrappable(function):
        return None
    new, chains = _rewrite.rewrite(tree, _functions_in(tree, inner.__globals__))
    names = rotary_names(kind) if name == "forward" else {}
    if not chains and not names:
        return None
    return _Method(name, function, new, chains, names, tree.args.args[0].arg, inner.__globals__)


def _functions_in(tree: ast.FunctionDef, space: Mapping[str, Any]) -> frozenset[str]:
    """The activation functions that a method calls, as it writes them."""
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    known = set()
    for function in called:
        if isinstance(function, (ast.Name, ast.Attribute)):
            value = _looked_up(function, space)
            if callable(value) and _hashable(value) and value in _chain.FUNCTIONS:
                known.add(ast.unparse(function))
    return frozenset(known)


def _looked_up(expression: ast.expr, space: Mapping[str, Any]) -> Any:
    """The value of a name or a dotted name; None where there is none."""
    if isinstance(expression, ast.Name):
        return space.get(expression.id)
    if isinstance(expression, ast.Attribute):
        return getattr(_looked_up(expression.value, space), expression.attr, None)
    if isinstance(expression, ast.Subscript) and isinstance(expression.slice, ast.Constant):
        outer = _looked_up(expression.value, space)
        try:
            return outer[expression.slice.value]
        except (IndexError, KeyError, TypeError):
            return None
    return None


def _hashable(value: Any) -> bool:
    return type(value).__hash__ is not None


def _stages(method: _Method, chain: Sequence[ast.expr], module: torch.nn.Module) -> list[Any]:
    """The modules and functions of a chain of an instance; sums without their other side."""
    space = {**method.space, method.module: module}
    stages: list[Any] = []
    for expression in chain:
        if isinstance(expression, ast.Starred):
            inner = _rewrite.conditional_stages(expression)
            stages += [_stage(stage, space) for stage in inner] if _is_there(expression, method.module, module) else []
        else:
            stages.append(_stage(expression, space))
    return stages


def _is_there(expression: ast.Starred, name: str, module: torch.nn.Module) -> bool:
    """Whether the module has these conditional stages now."""
    assert isinstance(expression.value, ast.IfExp)
    try:
        test = eval(
            compile(ast.fix_missing_locations(ast.Expression(expression.value.test)), "", "eval"), {name: module}
        )
    except Exception:  # The condition is the model's own: what it may raise is not known. So it would at a call.
        return False
    return bool(test) == bool(expression.value.body.elts)  # type: ignore[attr-defined]


def _stage(expression: ast.expr, space: Mapping[str, Any]) -> Any:
    if not isinstance(expression, ast.Call):
        return _looked_up(expression, space)
    assert isinstance(expression.func, ast.Name)
    if expression.func.id == _rewrite.ADD:
        return Add(None)
    return _chain.gated(*(_stage(argument, space) for argument in expression.args))


def _whole_chain(method: _Method) -> Callable[[torch.nn.Module], list[Any]] | None:
    """For a forward that is one chain of its argument and nothing else: the stages, as a function of the module."""
    body = [part for part in method.tree.body if not _is_text(part)]
    arguments = method.tree.args
    value = body[-1].value if body and isinstance(body[-1], ast.Return) else None
    if len(body) == 2 and isinstance(body[0], ast.Assign) and isinstance(value, ast.Name):
        target = body[0].targets[0]
        value = body[0].value if isinstance(target, ast.Name) and target.id == value.id else None
    elif len(body) != 1:
        return None
    if len(arguments.args) != 2 or arguments.vararg or arguments.kwonlyargs or arguments.kwarg:
        return None
    if not isinstance(value, ast.Call) or ast.unparse(value.func) != _rewrite.RUN:
        return None
    base, stages = value.args
    if not isinstance(base, ast.Name) or base.id != arguments.args[1].arg or not isinstance(stages, ast.Tuple):
        return None
    if any(isinstance(n, ast.Name) and n.id == base.id for stage in stages.elts for n in ast.walk(stage)):
        return None
    chain = stages.elts
    return lambda module: _stages(method, chain, module)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
