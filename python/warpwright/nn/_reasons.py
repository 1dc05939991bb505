"""When a layer must leave the work to PyTorch: one question, asked before each call, answered in words or with None."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from warpwright import distributed
from warpwright._backend import missing_for
from warpwright._fallbacks import run_at_trace_time

_FLOATS = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.float64))


def common_reason(input: object, *parameters: Tensor | None, wide: bool = False, op: str | None = None) -> str | None:
    """Why no op can take `input` together with a layer's `parameters` (weight, bias), or None when it can.

    Wrong shapes are not a reason: the op answers those with its own clear error. `wide`: beside an input of half
    precision parameters may be in float32. `op`: the operator, where it may take DTensors.
    """
    if not isinstance(input, Tensor):  # Among them the proxies of torch.fx.
        return f"input is a {type(input).__name__}, not a tensor"
    device = input.device
    kind = device.type
    autocast = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
    dtype = _cast_to(input, autocast)
    if dtype not in _FLOATS or (dtype == torch.float64 and kind == "cuda"):
        return f"{input.dtype} input on {kind}"
    for tensor in (input, *parameters):
        if tensor is None:
            continue
        reason = kind_reason(tensor, op)
        if reason is not None:
            return reason
        if tensor.device != device:
            return f"input on {kind}, a parameter on {tensor.device.type}"
        if wide and tensor.dtype == torch.float32 and dtype != torch.float64:
            continue
        if (_cast_to(tensor, autocast) if autocast else tensor.dtype) != dtype:
            return f"{input.dtype} input, {tensor.dtype} parameter"
    if _transformed():
        return "forward-mode AD or a torch.func transform"
    return missing_for(device)


def dtype_in_op(tensor: Tensor) -> torch.dtype:
    """The dtype in which an op sees `tensor`: under autocast every floating tensor but float64 is cast."""
    kind = tensor.device.type
    return _cast_to(tensor, kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind))


def _cast_to(tensor: Tensor, autocast: bool) -> torch.dtype:
    if autocast and tensor.is_floating_point() and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(tensor.device.type)
    return tensor.dtype


def kind_reason(tensor: Tensor, op: str | None = None) -> str | None:
    """Why no op, or `op`, can take this kind of tensor, whatever its dtype, or None when it can."""
    if tensor.is_nested:
        return "nested tensor"
    if tensor.layout != torch.strided:
        return f"{tensor.layout} tensor"
    kind = type(tensor)
    if kind is Tensor or kind is Parameter:
        return None
    if op is not None and distributed.is_dtensor(tensor) and distributed.has_rule(op):
        return None
    # A subclass that takes over dispatch (DTensor, torchao's quantised weights) may know nothing of our operators;
    # the fake and functional tensors of torch.compile and torch.export do.
    plain = kind.__torch_dispatch__ is Tensor.__torch_dispatch__ or kind.__module__.startswith("torch._subclasses.")
    return None if plain else f"tensor subclass {kind.__name__}"


@run_at_trace_time
def _transformed() -> bool:
    """Whether the call stands inside torch.func's vmap, grad or jvp, or computes forward-mode derivatives.

    Our operators have no batching rules and no forward derivatives; without this question jvp would return zeros.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
