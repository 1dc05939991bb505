"""Methods as syntax trees: reading them, comparing what they compute, and making a method of a changed tree."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Mapping
from typing import Any


def unwrapped(function: Callable[..., Any]) -> types.FunctionType | None:
    """The function behind decorators that used functools.wraps; None for what is no Python function."""
    inner = inspect.unwrap(function)
    return inner if isinstance(inner, types.FunctionType) else None


@functools.cache
def tree_of(code: types.CodeType) -> ast.FunctionDef | None:
    """The definition that `code` was compiled from, without decorators, at its own lines; None where there is none."""
    try:
        lines, first = inspect.getsourcelines(code)
        module = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):  # Typed in, generated, or a lambda in the middle of an expression.
        return None
    definition = module.body[0]
    if not isinstance(definition, ast.FunctionDef) or definition.name != code.co_name:
        return None
    ast.increment_lineno(definition, first - 1)
    definition.decorator_list = []
    return definition


def meaning(function: Callable[..., Any] | str) -> str | None:
    """A text that is equal for functions that compute the same in the same way: their statements, with the parameters
    and variables renamed by the order in which they come, without annotations and docstrings. None without a source.
    """
    if isinstance(function, str):
        definition = ast.parse(textwrap.dedent(function)).body[0]
        assert isinstance(definition, ast.FunctionDef)
    else:
        inner = unwrapped(function)
        found = None if inner is None else tree_of(inner.__code__)
        if found is None:
            return None
        definition = found
    body = _without_docstring(definition.body)
    arguments = [*definition.args.posonlyargs, *definition.args.args]
    local = {argument.arg for argument in [*arguments, *definition.args.kwonlyargs]}
    local |= {node.id for part in body for node in ast.walk(part) if isinstance(node, ast.Name) and _is_store(node.ctx)}
    names = {argument.arg: f"v{i}" for i, argument in enumerate(arguments)}
    renamed = ast.parse(ast.unparse(ast.Module(body, [])))
    for node in _in_order(renamed):
        if isinstance(node, ast.Name) and node.id in local:
            node.id = names.setdefault(node.id, f"v{len(names)}")
    return ast.unparse(renamed)


def _is_store(context: ast.expr_context) -> bool:
    return isinstance(context, ast.Store)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return body[1:] if text else body


def _in_order(node: ast.AST) -> Any:
    """The nodes depth first, as they are written."""
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


def with_body(
    function: Callable[..., Any], tree: ast.FunctionDef | None, names: Mapping[str, Any]
) -> Callable[..., Any]:
    """`function` with its innermost body replaced by `tree` (None: as it is), and with the global `names` changed.

    Decorators that wrapped the function wrap the new one as well. The other globals are those of its module now: a
    change made there later is seen when a class is made of this module the next time.
    """
    inner = unwrapped(function)
    assert inner is not None
    space = _module_of(inner, names)
    if tree is None:
        made = types.FunctionType(inner.__code__, space, inner.__name__, inner.__defaults__, inner.__closure__)
        made.__kwdefaults__ = inner.__kwdefaults__
    else:
        module = ast.fix_missing_locations(ast.Module([tree], []))
        scope: dict[str, Any] = {}
        exec(compile(module, inner.__code__.co_filename, "exec"), space, scope)
        made = scope[inner.__name__]
        made.__defaults__, made.__kwdefaults__ = inner.__defaults__, inner.__kwdefaults__
        made.__annotations__ = inner.__annotations__
    made.__qualname__, made.__doc__ = inner.__qualname__, inner.__doc__
    return _wrapped_again(function, inner, made)


def _module_of(function: types.FunctionType, names: Mapping[str, Any]) -> dict[str, Any]:
    """The globals of a function's module with `names` changed: those of a module of our own, since torch.compile looks
    a global up in the module that `__name__` names."""
    original = function.__globals__
    key = "".join(f".{name}_{getattr(value, '__name__', '')}" for name, value in sorted(names.items()))
    name = f"warpwright._fused.{original.get('__name__', '')}{key}"
    space = sys.modules.setdefault(name, types.ModuleType(name)).__dict__
    space.update({**original, "__name__": name, **names})
    return space


def _wrapped_again(function: Callable[..., Any], inner: Callable[..., Any], made: Callable[..., Any]) -> Any:
    """`function` with `made` in place of `inner`, the innermost of its wrapped functions."""
    if function is inner:
        return made
    assert isinstance(function, types.FunctionType)
    wrapped = function.__wrapped__  # type: ignore[attr-defined]
    again = _wrapped_again(wrapped, inner, made)
    cells = tuple(
        types.CellType(again) if cell.cell_contents is wrapped else cell for cell in function.__closure__ or ()
    )
    copy = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__dict__.update({**function.__dict__, "__wrapped__": again})
    copy.__qualname__, copy.__doc__ = function.__qualname__, function.__doc__
    return copy


def rewrappable(function: Callable[..., Any]) -> bool:
    """Whether `with_body` can change the function: each decorator around it keeps the wrapped function in a closure,
    and it uses no variable of an enclosing function (`super()` without arguments is one)."""
    while True:
        if not isinstance(function, types.FunctionType):
            return False
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is None:
            return not function.__code__.co_freevars
        if all(_contents(cell) is not wrapped for cell in function.__closure__ or ()):
            return False
        function = wrapped


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # Not filled yet.
        return None
