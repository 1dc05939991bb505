"""When a layer may read its children's parameters in place of calling them: questions asked before each call."""

from __future__ import annotations

import torch
from torch.nn.modules import module as _module

from warpwright.nn.activation import Dropout
from warpwright.nn.matmul import Linear

_LINEARS = frozenset((torch.nn.Linear, Linear))
_DROPOUTS = frozenset((torch.nn.Dropout, Dropout))


def plain_linears(*modules: torch.nn.Module) -> str | None:
    """Why one of `modules` must be called as a module, or None when each is `input @ weight.T + bias` and no more.

    A child that was exchanged (LoRA, a quantised layer), parametrised, wrapped or hooked does something that its weight
    and bias do not show. Parameters themselves are `common_reason`'s question: a weight that is a tensor subclass lies
    in a plain module.
    """
    reason = _reason(modules, _LINEARS)
    if reason is None and any(type(module) is Linear and module.activation is not None for module in modules):
        return "a child has an activation of its own"
    return reason


def idle_dropout(module: torch.nn.Module) -> bool:
    """Whether `module` is a dropout that returns what it gets."""
    return _reason((module,), _DROPOUTS) is None and not (module.training and module.p)


def _reason(modules: tuple[torch.nn.Module, ...], known: frozenset[type[torch.nn.Module]]) -> str | None:
    for module in modules:
        kind = type(module)
        if kind not in known:  # Subclasses as well: parametrize and fully_shard make one of the module's class.
            return f"a child is a {kind.__qualname__}"
        reason = altered(module)
        if reason is not None:
            return reason
    return None


def altered(module: torch.nn.Module) -> str | None:
    """Why calling `module` may do something else than its class's forward, or None when it does that alone."""
    if (
        _module._global_forward_pre_hooks
        or _module._global_forward_hooks
        or _module._global_backward_pre_hooks
        or _module._global_backward_hooks
    ):
        return "hooks on all modules"
    if (
        module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    ):  # Among them those of torch.nn.utils.prune, weight_norm and spectral_norm.
        return "a child has hooks"
    if "forward" in module.__dict__:
        return "a child's forward was replaced on the instance"
    if module._compiled_call_impl is not None:
        return "a child is compiled by itself"
    return None
