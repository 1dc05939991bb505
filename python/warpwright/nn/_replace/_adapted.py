"""Classes made for modules of other libraries: the original's, with another forward, and its name.

`isinstance` and code that looks at class names see what they saw before. The classes exist in no module, so pickle
learns how to make them again.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any

import torch

#: How a class is adapted: original class -> adapted class. Known to pickle by its name in warpwright.
Recipe = Callable[[type[torch.nn.Module]], type[torch.nn.Module]]

_CLASSES: dict[tuple[Recipe, type[torch.nn.Module]], tuple[tuple[Any, ...] | None, type[torch.nn.Module]]] = {}


class AdaptedType(type):
    """The type of adapted classes. A metaclass, because pickle has a hook for the classes of classes alone."""

    _recipe: Recipe
    _original: type[torch.nn.Module]


def adapted(
    recipe: Recipe, original: type[torch.nn.Module], of: tuple[Any, ...] | None = None
) -> type[torch.nn.Module]:
    """The class that `recipe` makes of `original`: the same one each time, as long as it is made `of` the same."""
    made_of, known = _CLASSES.get((recipe, original), (None, None))
    if known is None or (of is not None and made_of != of):
        known = recipe(original)
        _CLASSES[recipe, original] = of, known
    return known


def make(
    recipe: Recipe, original: type[torch.nn.Module], bases: tuple[type, ...], members: dict[str, Any]
) -> type[torch.nn.Module]:
    """A new class with the original's name, to be returned by a recipe."""
    names = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
    kind = AdaptedType(original.__name__, bases, {**names, **members})
    kind._recipe = recipe
    kind._original = original
    return kind  # type: ignore[return-value]


def _reduced(kind: AdaptedType) -> tuple[Any, ...]:
    return adapted, (kind._recipe, kind._original)


copyreg.pickle(AdaptedType, _reduced)
