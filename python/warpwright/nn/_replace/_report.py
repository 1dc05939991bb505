"""What `replace_modules` did, and the way back."""

from __future__ import annotations

import torch

from warpwright.nn._replace._adapted import AdaptedType


class ReplaceReport:
    """What `replace_modules` did. `print` shows a table.

    Attributes:
        replaced: the name of each layer that was switched -> its class now. A module with several names is listed
            under each. Classes of other libraries keep their name and their place in `isinstance`.
        fused: the name of each module around layers whose forward takes some of them together -> what, in words. It
            is asked anew at each call whether these layers still can be.
        skipped: the name of each module that was left as it is -> why: those of a type that warpwright has a layer
            for, and all others that hold parameters.
        coverage: the share of the model's parameters, by elements, that belong to warpwright's layers, 0 to 1.
    """

    def __init__(self) -> None:
        self.replaced: dict[str, type[torch.nn.Module]] = {}
        self.fused: dict[str, list[str]] = {}
        self.skipped: dict[str, str] = {}
        self.coverage = 0.0
        self._modules: dict[str, tuple[torch.nn.Module, type[torch.nn.Module], type[torch.nn.Module]]] = {}

    def restore(self) -> dict[str, str]:
        """Switches every module back to the class that it had; a second call does nothing.

        Returns:
            Name -> why it was left, for modules whose class something else has changed since (parametrize, FSDP2).
        """
        left = {}
        for name, (module, before, after) in self._modules.items():
            if type(module) is after:
                module.__class__ = before
            elif type(module) is getattr(after, "cls_to_become", None):  # A lazy layer that has seen an input.
                module.__class__ = before.cls_to_become  # type: ignore[attr-defined]
            elif type(module) not in (before, getattr(before, "cls_to_become", None)):
                left[name] = f"its class became {type(module).__qualname__} after it was replaced"
        return left

    def _switch(self, module: torch.nn.Module, names: list[str], kind: type[torch.nn.Module]) -> None:
        """A module that is switched twice goes back to its first class."""
        before = self._modules[names[0]][1] if names[0] in self._modules else type(module)
        module.__class__ = kind
        self._modules |= dict.fromkeys(names, (module, before, kind))

    def __str__(self) -> str:
        rows = [(name or "(model)", _class_text(kind)) for name, kind in self.replaced.items()]
        rows += [(name or "(model)", f"fused: {_counted(what)}") for name, what in self.fused.items()]
        rows += [(name or "(model)", f"skipped: {reason}") for name, reason in self.skipped.items()]
        width = max((len(name) for name, _ in rows), default=0)
        lines = [f"{name:<{width}}  {what}" for name, what in rows]
        fused = f"{len(self.fused)} fused, " if self.fused else ""
        lines.append(f"{len(self.replaced)} replaced, {fused}{len(self.skipped)} skipped")
        lines[-1] += f"; {self.coverage:.1%} of the parameters are in warpwright's layers"
        return "\n".join(lines)

    __repr__ = __str__


def _class_text(kind: type[torch.nn.Module]) -> str:
    if isinstance(kind, AdaptedType):
        return f"warpwright's {kind.__module__.split('.')[0]} {kind.__name__}"
    return f"{kind.__module__.split('.')[0]}.nn.{kind.__name__}"


def _counted(what: list[str]) -> str:
    return ", ".join(name if what.count(name) == 1 else f"{what.count(name)} x {name}" for name in dict.fromkeys(what))
