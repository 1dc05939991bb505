"""`replace_modules`: the layers inside a model become warpwright's, in place, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.parameter import is_lazy

from warpwright.nn._replace._adapted import AdaptedType, adapted
from warpwright.nn._replace._containers import fused_class
from warpwright.nn._replace._deferred import FUSED, head_of, head_recipe
from warpwright.nn._replace._registry import ORIGINALS, replacement, skip_reason
from warpwright.nn._replace._report import ReplaceReport
from warpwright.nn._replace._select import Selection, exclusions, names_of, require_eager

__all__ = ["ReplaceReport", "Selection", "replace_modules"]


def replace_modules(
    model: torch.nn.Module,
    include: Selection | None = None,
    exclude: Selection | None = None,
    *,
    fuse: bool = True,
) -> ReplaceReport:
    """Switches the layers of `model` that warpwright has to warpwright's, in place.

    Only the class of each module object changes, so parameters, buffers, hooks, names, shared modules and the
    optimizers that hold their parameters all stay as they are. Calling it again changes nothing. Known are torch.nn's
    layers, subclasses of them that leave the work to torch's forward, and layers of Hugging Face's transformers and of
    timm.

    Args:
        model: any module; it may itself be a layer.
        include: what to replace; None for everything. A module type, a name as in `model.named_modules()`, a glob
            pattern ("encoder.*.norm"), or an iterable of these. A name stands for everything inside that module too.
        exclude: what to leave as it is, in the same form; stronger than include. A module known under several names
            is left when one of them is excluded.
        fuse: the modules around layers too: where the source of a method passes a value through layers that one kernel
            can take together (a convolution, its batch norm, a residual and an activation; a linear layer and its
            activation; a sum and its norm; a gated MLP; rotary embeddings of queries and keys), they are. A layer that
            carries hooks, is parametrised, compiled by itself or exchanged later is called as a module, as before.

    Returns:
        A report with `replaced`, `fused`, `skipped` (name -> reason), `coverage` and `restore()`.

    Raises:
        RuntimeError: a name or pattern matches no module, or a selection is of another type; the model is scripted or
            compiled.
    """
    names = names_of(model)
    require_eager("replace_modules", names)
    reasons = exclusions("replace_modules", names, include, exclude)
    report = ReplaceReport()
    for module, known in names.items():
        if _is_ours(module):
            continue
        kind = replacement(module)
        if kind is None:
            continue
        kind = reasons.get(module, kind)
        if isinstance(kind, str):
            report.skipped |= dict.fromkeys(known, kind)
        else:
            report._switch(module, known, kind)
            report.replaced |= dict.fromkeys(known, kind)
    if fuse:
        _fuse(names, reasons, report)
        _defer_logits(names, reasons, report)
    _explain_the_rest(model, names, report)
    return report


def _is_ours(module: torch.nn.Module) -> bool:
    kind = type(module)
    return kind in ORIGINALS or isinstance(kind, AdaptedType) or kind.__module__.startswith("warpwright.")


def _fuse(
    names: Mapping[torch.nn.Module, list[str]], reasons: Mapping[torch.nn.Module, str], report: ReplaceReport
) -> None:
    """Inner modules first: what they are together is known when the module around them is looked at."""
    for module, known in reversed(list(names.items())):
        if _is_ours(module) or module in reasons or skip_reason(module) is not None:
            continue
        found = fused_class(module)
        if found is not None:
            report._switch(module, known, found[0])
            report.fused |= dict.fromkeys(known, found[1])
    report.fused = {name: report.fused[name] for known in names.values() for name in known if name in report.fused}


def _defer_logits(
    names: Mapping[torch.nn.Module, list[str]], reasons: Mapping[torch.nn.Module, str], report: ReplaceReport
) -> None:
    """Output layers of language models, whose loss need not have their logits."""
    for module in names:
        head = head_of(module)
        if head is None or module in reasons or head in reasons or skip_reason(head) is not None:
            continue
        report._switch(head, names[head], adapted(head_recipe, type(head)))
        report.fused |= {name: [FUSED] for name in names[head]}


def _explain_the_rest(
    model: torch.nn.Module, names: Mapping[torch.nn.Module, list[str]], report: ReplaceReport
) -> None:
    """Counts the parameters of warpwright's layers, and says of every other module with parameters why it is none."""
    sizes = {id(p): p.numel() for p in model.parameters() if not is_lazy(p)}
    ours = {id(p) for module in names if _is_layer(module) for p in module.parameters()}
    report.coverage = sum(sizes[p] for p in ours if p in sizes) / sum(sizes.values()) if any(sizes.values()) else 1.0
    for module, known in names.items():
        if isinstance(module, torch.nn.utils.parametrize.ParametrizationList):  # Its owner is listed.
            continue
        if any(id(p) in sizes and id(p) not in ours for p in module.parameters(recurse=False)):
            kind = type(module)
            reason = f"warpwright has no layer for {kind.__module__}.{kind.__qualname__}"
            for name in known:
                report.skipped.setdefault(name, reason)


def _is_layer(module: torch.nn.Module) -> bool:
    return _is_ours(module) and not getattr(type(module), "_warpwright_container", False)
