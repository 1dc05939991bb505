"""From exported programs with warpwright's operators to programs with PyTorch's alone.

`torch.export` keeps the operators, and AOTInductor and `torch.export.load` run them where warpwright's library is
loaded. Where it is not, in ONNX and in other runtimes, each becomes what it computes:

    program = warpwright.export.decompose(torch.export.export(model, inputs))
    torch.onnx.export(program, inputs, "model.onnx")
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from warpwright import _library, _registry

if TYPE_CHECKING:
    from torch.export import ExportedProgram

#: Families whose operators write to what they are given: a program for inference has none of them.
_WRITING = ("multi_tensor", "optim")


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What each operator of warpwright computes, in PyTorch's functions: a table for `run_decompositions`.

    Returns:
        Operator -> function, for every one that a forward pass may hold, on every backend in use. Products,
        convolutions, norms and activations are PyTorch's own functions of the same meaning; the rest are the
        definitions in `warpwright.reference`. Together with PyTorch's table, to reach core ATen:
        `{**torch.export.default_decompositions(), **decompositions()}`.
    """
    from warpwright.export import standard

    table: dict[Any, Callable[..., Any]] = {}
    for name, op in _registry.OPS.items():
        if op.family in _WRITING or name.endswith(("_", "_backward")):
            continue
        definition = getattr(standard, name, None)
        if definition is None:
            definition = getattr(importlib.import_module(f"warpwright.reference.{op.family}"), name)
        for operators in _registry.TABLES.values():
            table[operators[name]] = definition
    return table


def libraries() -> list[str]:
    """The files that hold warpwright's operators, in the order to open them.

    Returns:
        Paths for `torch.ops.load_library`, or for dlopen in a C++ program: after that, packages of AOTInductor and
        programs of torch.export that use the operators run where warpwright is not imported.
    """
    found = [_library.CPU_LIBRARY]
    if _library.CUDA_MISSING is None:
        found.append(_library.CUDA_LIBRARY)
    return [str(path) for path in found]


def decompose(program: ExportedProgram) -> ExportedProgram:
    """The same program without operators of warpwright.

    Args:
        program: from torch.export.export.

    Returns:
        A new program; the other operators stay as they are. Intermediate results are rounded where PyTorch's functions
        round theirs. Gradients are PyTorch's.

    Raises:
        RuntimeError: an operator is left that has no other form, such as one that writes to its arguments.
    """
    found = program.run_decompositions(decompositions())
    # An operator that writes stands among the arguments of another, which gives it copies.
    called = {str(leaf) for node in found.graph.nodes for leaf in (node.target, *node.args, *node.kwargs.values())}
    left = sorted(name for name in called if name.startswith("warpwright"))
    if left:
        raise RuntimeError(f"warpwright: export.decompose: no other form of {', '.join(left)}")
    return found


__all__ = ["decompose", "decompositions", "libraries"]
