"""What the ops that end in an epilogue share: the checks of its arguments, and what its gradient is taken from."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import (
    check_float,
    check_like,
    check_same_device,
    check_same_dtype,
    needs_preact,
    require,
    shape_text,
)


def saved_of(activation: str, result: Tensor, preact: Tensor) -> Tensor | None:
    """What the gradient of an activation is taken from: the output where that serves, else what was kept, if it was."""
    if activation == "none":
        return None
    return (preact if preact.shape == result.shape else None) if needs_preact(activation) else result


def wants_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def check_operands(op: str, input: Tensor, name: str, weight: Tensor) -> None:
    """`weight`, an argument called `name`, takes input's features."""
    check_float(op, "input", input)
    require(input.dim() >= 1, op, "input must have at least 1 dimension, got 0")
    require(weight.dim() == 2, op, f"{name} must have 2 dimensions, got {weight.dim()}")
    check_same_device(op, name, weight, "input", input)
    check_same_dtype(op, name, weight, "input", input)
    message = f"{name} has {weight.shape[1]} input features, input has {input.shape[-1]}"
    require(weight.shape[1] == input.shape[-1], op, message)


def check_bias(op: str, name: str, bias: Tensor | None, input: Tensor, features: int) -> None:
    if bias is None:
        return
    check_same_device(op, name, bias, "input", input)
    check_same_dtype(op, name, bias, "input", input)
    message = f"{name} must have shape {shape_text((features,))}, got {shape_text(bias.shape)}"
    require(tuple(bias.shape) == (features,), op, message)


def check_output_like(op: str, name: str, tensor: Tensor, input: Tensor, features: int) -> None:
    check_same_device(op, name, tensor, "input", input)
    expected = (*input.shape[:-1], features)
    message = f"{name} must have the shape of the output {shape_text(expected)}, got {shape_text(tensor.shape)}"
    require(tuple(tensor.shape) == expected, op, message)


def check_saved(op: str, saved: Tensor | None, activation: str, grad_output: Tensor) -> None:
    """`saved` goes with an activation, and is like the gradient."""
    require((saved is not None) == (activation != "none"), op, "saved must be given with an activation and only then")
    if saved is not None:
        check_like(op, "saved", saved, "grad_output", grad_output)


def keeps_preact(
    dtype: torch.dtype, activation: str, output_scale: float, out_dtype: torch.dtype | None, save_preact: bool
) -> bool:
    """Whether there is more to save than the output: that serves where it is the activation's value itself."""
    own = out_dtype in (None, dtype) and output_scale == 1
    return save_preact and activation != "none" and (needs_preact(activation) or not own)
