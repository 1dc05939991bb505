"""`replace_modules`: torch's layers inside a model become warpwright's, in place, and back."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch.nn.parameter import is_lazy

from warpwright.nn import activation, channel_norm, conv, embedding, loss, matmul, norm

#: torch's layer -> ours.
REPLACEMENTS: Mapping[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.Linear: matmul.Linear,
    torch.nn.Conv1d: conv.Conv1d,
    torch.nn.Conv2d: conv.Conv2d,
    torch.nn.Conv3d: conv.Conv3d,
    torch.nn.ConvTranspose1d: conv.ConvTranspose1d,
    torch.nn.ConvTranspose2d: conv.ConvTranspose2d,
    torch.nn.ConvTranspose3d: conv.ConvTranspose3d,
    torch.nn.BCEWithLogitsLoss: loss.BCEWithLogitsLoss,
    torch.nn.CrossEntropyLoss: loss.CrossEntropyLoss,
    torch.nn.Embedding: embedding.Embedding,
    torch.nn.Dropout: activation.Dropout,
    torch.nn.GELU: activation.GELU,
    torch.nn.GLU: activation.GLU,
    torch.nn.KLDivLoss: loss.KLDivLoss,
    torch.nn.LayerNorm: norm.LayerNorm,
    torch.nn.LogSoftmax: activation.LogSoftmax,
    torch.nn.NLLLoss: loss.NLLLoss,
    torch.nn.ReLU: activation.ReLU,
    torch.nn.RMSNorm: norm.RMSNorm,
    torch.nn.SiLU: activation.SiLU,
    torch.nn.Softmax: activation.Softmax,
    torch.nn.GroupNorm: channel_norm.GroupNorm,
    torch.nn.BatchNorm1d: channel_norm.BatchNorm1d,
    torch.nn.BatchNorm2d: channel_norm.BatchNorm2d,
    torch.nn.BatchNorm3d: channel_norm.BatchNorm3d,
    torch.nn.SyncBatchNorm: channel_norm.SyncBatchNorm,
    torch.nn.InstanceNorm1d: channel_norm.InstanceNorm1d,
    torch.nn.InstanceNorm2d: channel_norm.InstanceNorm2d,
    torch.nn.InstanceNorm3d: channel_norm.InstanceNorm3d,
}
_ORIGINALS = {ours: theirs for theirs, ours in REPLACEMENTS.items()}

#: A module type, a module's name, a glob pattern of names, or several of these.
Selection = type[torch.nn.Module] | str | Iterable[type[torch.nn.Module] | str]


class ReplaceReport:
    """What `replace_modules` did. `print` shows a table.

    Attributes:
        replaced: the name of each module that was switched -> its class now. A module with several names is listed
            under each.
        skipped: the name of each module of a type that warpwright has a layer for, but which was left as it is -> why.
    """

    def __init__(self) -> None:
        self.replaced: dict[str, type[torch.nn.Module]] = {}
        self.skipped: dict[str, str] = {}
        self._modules: dict[str, torch.nn.Module] = {}

    def restore(self) -> dict[str, str]:
        """Switches every replaced module back to torch's class; a second call does nothing.

        Returns:
            Name -> why it was left, for modules whose class something else has changed since (parametrize, FSDP2).
        """
        left = {}
        for name, module in self._modules.items():
            if type(module) in _ORIGINALS:
                module.__class__ = _ORIGINALS[type(module)]
            elif type(module) not in REPLACEMENTS:
                left[name] = f"its class became {type(module).__qualname__} after it was replaced"
        return left

    def __str__(self) -> str:
        rows = [(name or "(model)", f"{kind.__module__.split('.')[0]}.nn.{kind.__name__}") for name, kind in
                self.replaced.items()]  # fmt: skip
        rows += [(name or "(model)", f"skipped: {reason}") for name, reason in self.skipped.items()]
        width = max((len(name) for name, _ in rows), default=0)
        lines = [f"{name:<{width}}  {what}" for name, what in rows]
        lines.append(f"{len(self.replaced)} replaced, {len(self.skipped)} skipped")
        return "\n".join(lines)

    __repr__ = __str__


def replace_modules(
    model: torch.nn.Module, include: Selection | None = None, exclude: Selection | None = None
) -> ReplaceReport:
    """Switches the layers of `model` that warpwright has to warpwright's, in place.

    Only the class of each module object changes, so parameters, buffers, hooks, names, shared modules and the
    optimizers that hold their parameters all stay as they are. Calling it again changes nothing.

    Args:
        model: any module; it may itself be a layer.
        include: what to replace; None for everything. A module type, a name as in `model.named_modules()`, a glob
            pattern ("encoder.*.norm"), or an iterable of these. A name stands for everything inside that module too.
        exclude: what to leave as it is, in the same form; stronger than include. A module known under several names
            is left when one of them is excluded.

    Returns:
        A report with `replaced`, `skipped` (name -> reason) and `restore()`.

    Raises:
        RuntimeError: a name or pattern matches no module, or a selection is of another type.
    """
    names: dict[torch.nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    included = None if include is None else _selected("include", include, names)
    excluded = set() if exclude is None else _selected("exclude", exclude, names)
    report = ReplaceReport()
    for module, known in names.items():
        if type(module) in _ORIGINALS or not isinstance(module, tuple(REPLACEMENTS)):
            continue
        if module in excluded:
            reason: str | None = "excluded"
        elif included is not None and module not in included:
            reason = "not included"
        else:
            reason = _skip_reason(module)
        if reason is not None:
            report.skipped |= dict.fromkeys(known, reason)
            continue
        module.__class__ = REPLACEMENTS[type(module)]
        report.replaced |= dict.fromkeys(known, type(module))
        report._modules |= dict.fromkeys(known, module)
    return report


def _skip_reason(module: torch.nn.Module) -> str | None:
    """Why a module cannot change its class. What can be answered call by call is left to the layer's fallback."""
    kind = type(module)
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "parametrised (torch.nn.utils.parametrize): replace before parametrising"
    if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin) or any(map(is_lazy, module.parameters(False))):
        return "lazy: its parameters are not initialised yet"
    if kind not in REPLACEMENTS:
        return f"a subclass: {kind.__module__}.{kind.__qualname__}"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    return None


def _selected(argument: str, selection: Selection, names: Mapping[torch.nn.Module, list[str]]) -> set[torch.nn.Module]:
    rules = [selection] if isinstance(selection, (str, type)) else list(selection)
    found: set[torch.nn.Module] = set()
    for rule in rules:
        if isinstance(rule, str):
            matches = {module for module, known in names.items() if any(_covers(rule, name) for name in known)}
            if not matches:
                raise RuntimeError(f"warpwright: replace_modules: {argument}: {rule!r} matches no module of the model")
        elif inspect.isclass(rule) and issubclass(rule, torch.nn.Module):
            matches = {module for module in names if isinstance(module, rule)}
        else:
            raise RuntimeError(
                f"warpwright: replace_modules: {argument} must hold module types, names or patterns, got {rule!r}"
            )
        found |= matches
    return found


def _covers(pattern: str, name: str) -> bool:
    """Whether the pattern matches the name or that of a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))
