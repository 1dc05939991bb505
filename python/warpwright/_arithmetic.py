"""How matrix products are computed: the precision of float32, and whether rows depend on the batch they come in."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

from warpwright._check import PRECISIONS

_precision: str | None = None
_batch_invariant = False


class _Scope:
    """Restores a setting at the end of a `with` block."""

    def __init__(self, name: str, previous: Any):
        self._name = name
        self._previous = previous

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        globals()[self._name] = self._previous


def float32_precision(mode: str | None) -> _Scope:
    """Chooses how float32 matrices and convolutions are multiplied on a GPU's tensor cores, for the whole process.

    Args:
        mode: None (the default) follows PyTorch: "tf32" where `torch.backends.cuda.matmul.fp32_precision` (or the older
            `allow_tf32`, `torch.set_float32_matmul_precision`) asks for it, for convolutions
            `torch.backends.cudnn.conv.fp32_precision` (or `torch.backends.cudnn.allow_tf32`, which is True unless it is
            set), else "ieee".
            "ieee" multiplies and adds in float32, without tensor cores.
            "tf32" rounds the operands to TF32, 10 bits of mantissa, to nearest, and adds in float32.
            "tf32x3" takes three products of TF32 parts: float32's own error, at a third of TF32's speed. Where an
            operand is infinite or above 2^127 the result is NaN.

    Returns:
        A context manager: `with float32_precision("tf32x3"): ...` restores the earlier choice at the end. Without
        `with` the choice stays.

    Raises:
        RuntimeError: the name is unknown.

    The backward pass of an op computes as its forward pass did. CPU tensors are always multiplied as "ieee".
    Source: "Recovering single precision accuracy from Tensor Cores", Ootomo and Yokota, 2022 (arXiv 2203.03341).
    """
    global _precision
    if mode is not None and mode not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise RuntimeError(f"warpwright: float32_precision: mode must be None or one of {known}, got {mode!r}")
    scope = _Scope("_precision", _precision)
    _precision = mode
    return scope


def batch_invariant(mode: bool = True) -> _Scope:
    """Makes a row's result independent of the rows that are computed with it, bit for bit, for the whole process.

    A product chooses its kernel, tile and split of the sum by all its sizes, so a token's logits may differ in their
    last bits with the number of tokens beside it. In this mode the choice depends on the weight's sizes alone.

    Args:
        mode: False goes back to the fastest kernels, the default.

    Returns:
        A context manager: `with batch_invariant(): ...` restores the earlier choice at the end. Without `with` the
        choice stays.

    Covers every product, forward, and its gradient of the input: `linear`, `matmul`, `bmm`, `addmm`, the gated
    projections, `mlp`, `grouped_matmul`, `linear_w4a16`, `linear_w8a16` and `linear_sparse24`; `scaled_matmul` and the
    ops that are no products never depend on the batch. A weight gradient is a sum over the batch, and depends on it by
    definition.
    """
    global _batch_invariant
    scope = _Scope("_batch_invariant", _batch_invariant)
    _batch_invariant = bool(mode)
    return scope


def arithmetic_of(tensor: torch.Tensor) -> tuple[str, bool]:
    """(precision, batch_invariant): what an op passes to its kernels for operands like `tensor`."""
    return _precision_of(tensor, lambda: torch.backends.cuda.matmul.allow_tf32), _batch_invariant


def convolution_precision_of(tensor: torch.Tensor) -> str:
    """The same of a convolution's operands: the precision alone."""
    return _precision_of(tensor, lambda: torch.backends.cudnn.allow_tf32)


def _precision_of(tensor: torch.Tensor, torch_allows: Callable[[], bool]) -> str:
    if tensor.dtype != torch.float32:
        return "ieee"
    if _precision is not None:
        return _precision
    return "tf32" if tensor.is_cuda and torch_allows() else "ieee"
