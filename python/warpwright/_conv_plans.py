"""What a convolution, or a gradient of one, is for a GPU's C++ kernels: asked of the library that has them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from warpwright._check import PRECISIONS
from warpwright._conv import MOST_DIMS
from warpwright._gemm_plans import DTYPES, ROLES, GemmQuestion, Question, function_of, question_from

#: Where tensors whose data need not exist are taken to start: a multiple of 16 bytes, as allocations do.
_SOMEWHERE = 1 << 20


@dataclass(frozen=True)
class Convolution:
    """The tensors that a convolution, or a transposed one, relates; one of them is written. Their data need not exist.

    Attributes:
        x: (batch, channels, *sizes): what the filters slide over, the output of a transposed convolution.
        w: (filters, channels / groups, *kernel).
        y: (batch, filters, *sizes): an element for each place of each filter.
        stride, padding, dilation: a number for each dimension; padding before the first element.
        groups, precision: see `warpwright.ops.conv2d`.
        device: of the kernels, whatever that of the tensors.
    """

    x: Tensor
    w: Tensor
    y: Tensor
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    precision: str
    device: torch.device

    def question(
        self, library: Path, role: str, residual: Tensor | None = None, measured: bool = False
    ) -> GemmQuestion | None:
        """What the kernels of a library choose by; None where the convolution is no product, but depthwise.

        Args:
            library: of the backend.
            role: "forward" writes y, "input gradient" x, "weight gradient" w.
            residual: like what is written.
            measured: whether statistics of y are wanted.
        """
        params, found = self._params(residual), Question()
        ask = function_of(library, "warpwright_conv_question")
        ask.restype, ask.argtypes = ctypes.c_bool, (ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_void_p)
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            is_product = ask(ctypes.byref(params), ROLES.index(role), measured, ctypes.byref(found))
        return question_from(found) if is_product else None

    def _params(self, residual: Tensor | None) -> _Params:
        params = _Params()
        params.x, params.w, params.y = (_as_conv_tensor(tensor) for tensor in (self.x, self.w, self.y))
        if residual is not None:
            params.residual = _as_conv_tensor(residual)
        params.batch, params.channels, params.filters = *self.x.shape[:2], self.y.shape[1]
        params.groups = self.groups
        for name, values, missing in (
            ("x_size", self.x.shape[2:], 1), ("kernel", self.w.shape[2:], 1), ("y_size", self.y.shape[2:], 1),
            ("stride", self.stride, 1), ("padding", self.padding, 0), ("dilation", self.dilation, 1),
        ):  # fmt: skip
            setattr(params, name, (ctypes.c_int64 * MOST_DIMS)(*[missing] * (MOST_DIMS - len(values)), *values))
        params.dtype, params.precision = DTYPES.index(self.x.dtype), PRECISIONS.index(self.precision)
        return params


# ---- the library's own types: csrc/kernels/conv.h ----

_EACH = ctypes.c_int64 * MOST_DIMS


class _Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * (2 + MOST_DIMS)))


class _PerChannel(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("wide", ctypes.c_bool))


class _Norm(ctypes.Structure):
    _fields_ = (*((name, _PerChannel) for name in ("mean", "var", "weight", "bias")), ("eps", ctypes.c_float))


class _Params(ctypes.Structure):
    _fields_ = (
        *((name, _Tensor) for name in ("x", "w", "y", "residual")),
        *((name, ctypes.c_void_p) for name in ("preact", "bias")),
        ("norm", _Norm),
        *((name, ctypes.c_void_p) for name in ("mean_partials", "square_partials", "grad_bias")),
        *((name, ctypes.c_int64) for name in ("batch", "channels", "filters", "groups")),
        *((name, _EACH) for name in ("x_size", "kernel", "y_size", "stride", "padding", "dilation")),
        *((name, ctypes.c_int32) for name in ("activation", "dtype", "precision")),
    )


def _as_conv_tensor(tensor: Tensor) -> _Tensor:
    """As as_conv_tensor of csrc/bindings/conv.cpp."""
    strides = [0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    missing = [0] * (2 + MOST_DIMS - tensor.dim())
    data = _SOMEWHERE + tensor.storage_offset() * tensor.element_size()
    return _Tensor(data, (ctypes.c_int64 * (2 + MOST_DIMS))(*strides[:2], *missing, *strides[2:]))
