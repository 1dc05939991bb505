"""torch.compile's backend "warpwright", and `fuse`, which runs it on a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.fx import GraphModule

from warpwright.fusion.report import FusionReport

_REPORT = FusionReport()


def fuse_report() -> FusionReport:
    """What the backend "warpwright" did in all graphs of this process: live; `print` shows a table.

    Returns:
        A `FusionReport`: `fused`, `skipped`, `counts()`, and `clear()` to start again.
    """
    return _REPORT


def fuse_graph(module: GraphModule) -> FusionReport:
    """Rewrites a graph in place, as far as patterns of warpwright's ops are found in it.

    Args:
        module: with fake tensors as `example_value` or `val` in its nodes' meta, as Dynamo's and torch.export's have.

    Returns:
        What was fused and what was left. A graph without fake tensors is left as it is.
    """
    from warpwright.fusion.patterns import rewrite  # With sympy behind it, which takes a third of a second.

    report = FusionReport()
    rewrite(module, report)
    report.graphs = 1
    _REPORT.add(report)
    return report


def register_backend() -> None:
    """Makes torch.compile know the name "warpwright" where the package's entry points are not installed."""
    import torch._dynamo

    if "warpwright" not in torch._dynamo.list_backends(exclude_tags=None):
        torch._dynamo.register_backend(compile_graph, "warpwright")


def compile_graph(
    module: GraphModule,
    inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
    report: FusionReport | None = None,
) -> Callable[..., Any]:
    """torch.compile's backend "warpwright": `fuse_graph`, then Inductor.

    Args:
        module, inputs: Dynamo's.
        mode: Inductor's, as torch.compile takes it: "reduce-overhead", "max-autotune", ...
        options: Inductor's, and `inductor`: False runs the rewritten graph as it is, without a compiler.
        report: filled beside `fuse_report()`, if given.

    Returns:
        What runs the graph. Precision, batch invariance and backend of warpwright's ops are those of the moment of
        compilation with Inductor; without it, those of each call.
    """
    found = fuse_graph(module)
    if report is not None:
        report.add(found)
    settings = dict(options or {})
    if not settings.pop("inductor", True):
        return module.forward
    from torch._inductor import list_mode_options
    from torch._inductor.compile_fx import compile_fx

    patches = {**(list_mode_options(mode) if mode not in (None, "default") else {}), **settings}
    compiled: Any = compile_fx(module, list(inputs), config_patches=patches or None)
    return compiled


def fuse(
    model: Callable[..., Any],
    *,
    inductor: bool = True,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Any:
    """Compiles `model` so that what can be one op of warpwright's is one.

    Args:
        model: a module or a function. It is not changed: a module's parameters, state_dict and hooks are shared.
        inductor: compile what is left with Inductor; False runs it as PyTorch would, and needs no compiler.
        fullgraph, dynamic: torch.compile's.
        mode, options: Inductor's, as torch.compile takes them; only with inductor.

    Returns:
        `torch.compile(model, backend="warpwright")`, with what was fused as its `report`: empty until the first call.
        Results and gradients are the model's within the error of one rounding in place of several.

    Raises:
        RuntimeError: the model is compiled or scripted already, or mode or options come without inductor.
    """
    import torch._dynamo

    where = "warpwright: fuse:"
    if not callable(model) or isinstance(model, (type, torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise RuntimeError(f"{where} model must be a module or a function, got {_words(model)}")
    if hasattr(model, "_torchdynamo_orig_callable") or isinstance(model, torch._dynamo.OptimizedModule):
        raise RuntimeError(f"{where} model must not be compiled yet: pass the model that torch.compile was given")
    if not inductor and (mode is not None or options):
        raise RuntimeError(f"{where} mode and options are Inductor's, got inductor=False with them")
    report = FusionReport()
    own = {**(options or {})} if inductor else {"inductor": False}
    backend = partial(compile_graph, mode=mode, options=own, report=report)
    compiled: Any = torch.compile(model, backend=backend, fullgraph=fullgraph, dynamic=dynamic)
    object.__setattr__(compiled, "report", report)
    return compiled


def _words(model: object) -> str:
    scripted = isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction))
    return "a scripted one" if scripted else f"a {type(model).__name__}"
