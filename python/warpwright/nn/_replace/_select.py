"""Which modules of a model a call speaks of: types, names and patterns."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch

#: A module type, a module's name, a glob pattern of names, or several of these.
Selection = type[torch.nn.Module] | str | Iterable[type[torch.nn.Module] | str]


def names_of(model: torch.nn.Module) -> dict[torch.nn.Module, list[str]]:
    """Each module of the model -> the names under which it is known; a shared one has several."""
    names: dict[torch.nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def selected(
    function: str, argument: str, selection: Selection, names: Mapping[torch.nn.Module, list[str]]
) -> set[torch.nn.Module]:
    """The modules that `selection` means.

    Raises:
        RuntimeError: a name or pattern matches no module, or a selection is of another type.
    """
    rules = [selection] if isinstance(selection, (str, type)) else list(selection)
    found: set[torch.nn.Module] = set()
    for rule in rules:
        if isinstance(rule, str):
            matches = {module for module, known in names.items() if any(_covers(rule, name) for name in known)}
            if not matches:
                raise RuntimeError(f"warpwright: {function}: {argument}: {rule!r} matches no module of the model")
        elif inspect.isclass(rule) and issubclass(rule, torch.nn.Module):
            matches = {module for module in names if isinstance(module, rule)}
        else:
            raise RuntimeError(
                f"warpwright: {function}: {argument} must hold module types, names or patterns, got {rule!r}"
            )
        found |= matches
    return found


def _covers(pattern: str, name: str) -> bool:
    """Whether the pattern matches the name or that of a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))


def exclusions(
    function: str,
    names: Mapping[torch.nn.Module, list[str]],
    include: Selection | None,
    exclude: Selection | None,
) -> dict[torch.nn.Module, str]:
    """Each module that is not to be touched -> why."""
    included = None if include is None else selected(function, "include", include, names)
    excluded = set() if exclude is None else selected(function, "exclude", exclude, names)
    reasons = {}
    for module in names:
        if module in excluded:
            reasons[module] = "excluded"
        elif included is not None and module not in included:
            reasons[module] = "not included"
    return reasons


def require_eager(function: str, names: Mapping[torch.nn.Module, list[str]]) -> None:
    """Raises RuntimeError for a model that is scripted, compiled or traced, in part or as a whole."""
    for module, (name, *_) in names.items():
        if isinstance(module, torch.jit.ScriptModule):
            what = "scripted"
        elif type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            what = "compiled"
        elif isinstance(module, torch.fx.GraphModule):
            what = "traced (a torch.fx.GraphModule)"
        else:
            continue
        where = f"the module '{name}'" if name else "the model"
        raise RuntimeError(
            f"warpwright: {function}: {where} is {what} already: call {function} first, then torch.compile, torch.jit "
            "or torch.fx"
        )
