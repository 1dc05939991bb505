"""Tensors (batch, channels, ...) of the channel norms: how they lie, how sums over them are cut, what goes with them.

As csrc/kernels/channel_norm.h and csrc/bindings/channel_norm.cpp do it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from warpwright._check import acc_dtype, check_float, check_like, check_same_device, require, shape_text

#: What may follow a channel norm, of an epilogue's activations.
NORM_ACTIVATIONS = ("none", "relu", "silu")

_PLANE_SLAB, _LEAST_SLAB, _MOST_SLAB, _WANTED_SLABS, _SLAB_STEP = 2048, 128, 512, 64, 8


def lies_channels_last(input: Tensor) -> bool:
    """Whether the channels lie closest. The output then lies so too."""
    if input.shape[1] <= 1:
        return False
    steps = [stride for size, stride in zip(input.shape[2:], input.stride()[2:], strict=True) if size > 1]
    return bool(steps) and all(step > input.stride(1) for step in steps)


def empty_like(input: Tensor) -> Tensor:
    """Room for an output, contiguous in the memory format that it shares with the input."""
    if not lies_channels_last(input):
        return torch.empty(input.shape, dtype=input.dtype, device=input.device)
    batch, channels, *positions = input.shape
    return torch.empty((batch, *positions, channels), dtype=input.dtype, device=input.device).movedim(-1, 1)


def slab_size(positions: int, channels_last: bool) -> int:
    """Positions that give one partial result for each channel."""
    if not channels_last:
        return _PLANE_SLAB
    wanted = -(-(positions // _WANTED_SLABS) // _LEAST_SLAB) * _LEAST_SLAB
    slabs = max(1, -(-positions // min(max(wanted, _LEAST_SLAB), _MOST_SLAB)))
    return max(1, -(-positions // (slabs * _SLAB_STEP))) * _SLAB_STEP


def check_norm_activation(op: str, activation: str) -> None:
    message = f"activation must be one of {', '.join(NORM_ACTIVATIONS)}, got '{activation}'"
    require(activation in NORM_ACTIVATIONS, op, message)


def check_channels(op: str, name: str, tensor: Tensor | None, input: Tensor, channels: int) -> None:
    """One value a channel, of input's dtype or of the one that it is computed in."""
    if tensor is None:
        return
    check_same_device(op, name, tensor, "input", input)
    known = dict.fromkeys((input.dtype, acc_dtype(input.dtype)))
    require(tensor.dtype in known, op, f"{name} must be {' or '.join(map(str, known))}, got {tensor.dtype}")
    message = f"{name} must have shape {shape_text((channels,))}, got {shape_text(tensor.shape)}"
    require(tuple(tensor.shape) == (channels,), op, message)


def check_norm_input(op: str, input: Tensor) -> None:
    check_float(op, "input", input)
    require(input.dim() >= 2, op, f"input must have at least 2 dimensions, got {input.dim()}")


def check_statistics(op: str, name: str, tensor: Tensor, input: Tensor, cells: int) -> None:
    """Values of the cells, in the dtype that input is computed in."""
    check_same_device(op, name, tensor, "input", input)
    dtype = acc_dtype(input.dtype)
    message = f"{name} must hold {cells} elements of {dtype}, got {tensor.numel()} of {tensor.dtype}"
    require(tensor.numel() == cells and tensor.dtype == dtype, op, message)


def check_batch_norm_grads(
    op: str,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    """What a batch norm's gradients are taken from."""
    check_norm_input(op, input)
    check_like(op, "grad_output", grad_output, "input", input)
    channels = input.shape[1]
    check_channels(op, "weight", weight, input, channels)
    check_channels(op, "bias", bias, input, channels)
    if residual is not None:
        check_like(op, "residual", residual, "input", input)
    check_statistics(op, "mean", mean, input, channels)
    check_statistics(op, "rstd", rstd, input, channels)


def cast_tensors(*places: int) -> Callable[[tuple[Any, ...], torch.dtype], tuple[Any, ...]]:
    """The arguments at `places` take the ambient dtype; those of one value a channel may stay in float32."""

    def rule(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        def cast(place: int, value: Any) -> Any:
            eligible = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
            if not eligible or (place not in places and value.dtype == torch.float32):
                return value
            return value.to(dtype)

        return tuple(cast(place, value) for place, value in enumerate(args))

    return rule


@torch.no_grad()
def move_running(running: Sequence[Tensor | None], moved: Sequence[Tensor]) -> None:
    """Running statistics, where there are any, become what an operator found for them."""
    for old, new in zip(running, moved, strict=True):
        if old is not None:
            old.copy_(new)
