"""Argument checks of the Python kernels and of fake, in the words of csrc/bindings/common.cpp.

Every message reads `warpwright: OP: what was expected, what came`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import torch

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "leaky_relu", "hardswish")
#: How float32 matrices are multiplied: see `float32_precision`. In the order of csrc/kernels/common.h.
PRECISIONS = ("ieee", "tf32", "tf32x3")
#: The slope of leaky_relu below zero: torch's default.
LEAKY_SLOPE = 0.01


def needs_preact(activation: str) -> bool:
    """Whether an activation's gradient is taken from the pre-activation; the others' is taken from the output."""
    return activation in ("gelu", "gelu_tanh", "silu", "hardswish")


def fail(op: str, message: str) -> NoReturn:
    raise RuntimeError(f"warpwright: {op}: {message}")


def require(condition: bool, op: str, message: str) -> None:
    if not condition:
        fail(op, message)


def count_of(sizes: Iterable[int]) -> int:
    """Their product, also of symbols: torch.Size.numel() turns those into the numbers that they were traced with."""
    count = 1
    for size in sizes:
        count = count * size
    return count


def require_below(size: Any, limit: Any, op: str, message: str) -> None:
    """A size that a kernel's counters can hold. A symbol is left: it would be bound to that for a whole traced program,
    and the kernels' own bindings look at the real number."""
    if isinstance(size, int):
        require(size < limit, op, message)


def shape_text(shape: Any) -> str:
    """A shape as C++ writes it: "(2, 3)", "(2,)", "()"."""
    return str(tuple(shape))


def check_float(op: str, name: str, tensor: torch.Tensor) -> None:
    """float32, float16, bfloat16, and float64 off the GPU."""
    known = [torch.float32, torch.float16, torch.bfloat16]
    expected = "float32, float16 or bfloat16"
    if tensor.device.type != "cuda":
        known.append(torch.float64)
        expected = "float32, float16, bfloat16 or float64"
    require(tensor.dtype in known, op, f"{name} must be {expected}, got {tensor.dtype}")


def check_same_dtype(op: str, name: str, tensor: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    message = f"{name} must have the dtype of {like_name} ({like.dtype}), got {tensor.dtype}"
    require(tensor.dtype == like.dtype, op, message)


def check_same_device(op: str, name: str, tensor: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    message = f"{name} must be on the device of {like_name} ({like.device}), got {tensor.device}"
    require(tensor.device == like.device, op, message)


def check_same_shape(op: str, name: str, tensor: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    message = f"{name} must have the shape of {like_name} {shape_text(like.shape)}, got {shape_text(tensor.shape)}"
    require(tensor.shape == like.shape, op, message)


def check_like(op: str, name: str, tensor: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    """Device, dtype and shape at once."""
    check_same_device(op, name, tensor, like_name, like)
    check_same_dtype(op, name, tensor, like_name, like)
    check_same_shape(op, name, tensor, like_name, like)


def check_activation(op: str, activation: str) -> None:
    message = f"activation must be one of {', '.join(ACTIVATIONS)}, got '{activation}'"
    require(activation in ACTIVATIONS, op, message)


def check_precision(op: str, precision: str) -> None:
    require(precision in PRECISIONS, op, f"precision must be one of {', '.join(PRECISIONS)}, got '{precision}'")


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """What `dtype` is computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
