"""Matrix products of 8-bit operands that carry scales."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import check_activation, check_same_device, require, shape_text
from warpwright.ops.quantize import FLOAT8_TYPES

#: Elements of k that share a scale, and rows of `other` where a block of those does.
SCALE_BLOCK = 128
#: The largest sum of int8 products, 2^14 each, must stay below 2^31.
MOST_INT8_TERMS = 1 << 17
OUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def scaled_matmul(
    input: Tensor,
    other: Tensor,
    input_scale: Tensor,
    other_scale: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """`activation((input * input_scale) @ (other * other_scale).T + bias + residual)` of 8-bit operands.

    `other` is a weight as `linear` takes it, (n, k): quantize_fp8 gives rows their scales, so that k, which is summed
    over, must run along them, and the tensor cores want k to lie together in both operands. torch._scaled_mm takes the
    same memory as `other.t()`.

        x, x_scale = warpwright.ops.quantize_fp8(input, 128)
        w, w_scale = warpwright.ops.quantize_fp8(weight)
        y = warpwright.ops.scaled_matmul(x, w, x_scale, w_scale)

    Args:
        input: (m, k), torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8, any strides.
        other: (n, k), either 8-bit float where input is one, torch.int8 where input is, any strides. The tensor cores'
            fastest kernels take both where rows lie together and start at multiples of 16 bytes.
        input_scale: float32, any strides: one element, for the whole input; (m,) or (m, 1), for each row; or, with
            8-bit floats, (m, ceil(k / 128)), for each 128 elements of a row.
        other_scale: the same of other: one element; (n,) or (n, 1); (n, ceil(k / 128)); or, with 8-bit floats,
            (ceil(n / 128), ceil(k / 128)), for each block of 128 x 128 as in DeepSeek-V3's weights. Both operands may
            have scales of different kinds.
        bias: (n,), in out_dtype, or None.
        residual: (m, n), in out_dtype, any strides, added before the activation, or None.
        activation: see `linear`.
        out_dtype: float32, float16 or bfloat16.

    Returns:
        (m, n), contiguous, in out_dtype, rounded once.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank or shape does not fit; int8 operands with 2^17
            columns or more, whose sums int32 may not hold.

    int8 products are added up in int32: exact. Those of 8-bit floats are added up in a float32 sum for each 128 of k,
    which is scaled and added to a second one. On Hopper, with a 16-bit out_dtype, the first sum is that of the 8-bit
    tensor cores, which keeps about 14 bits; with out_dtype float32, and before Hopper, operands are multiplied as
    float16, which holds every 8-bit float, and both sums keep float32's digits.

    Not differentiable: 8-bit numbers have no gradient. To train, quantize in the forward and the backward pass of a
    torch.autograd.Function: y = x w.T, dx = dy w and dw = dy.T x are a scaled_matmul each, of operands quantized along
    what that product sums over (dx: dy along n, w.t() along n; dw: dy.t() and x.t() along m).

    Source: block scales and the promotion of sums as in DeepSeek-V3 Technical Report, section 3.3.
    """
    return call(
        "scaled_matmul", input, other, input_scale, other_scale, bias, residual, activation or "none", out_dtype
    )


# ---- argument checks, in the words of csrc/bindings/scaled.cpp ----


def _check_operands(op: str, input: Tensor, other: Tensor) -> None:
    int8 = input.dtype == torch.int8
    message = f"input must be torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8, got {input.dtype}"
    require(int8 or input.dtype in FLOAT8_TYPES, op, message)
    require(input.dim() == 2, op, f"input must have 2 dimensions, got {input.dim()}")
    require(other.dim() == 2, op, f"other must have 2 dimensions, got {other.dim()}")
    check_same_device(op, "other", other, "input", input)
    known = (torch.int8,) if int8 else FLOAT8_TYPES
    message = f"other must be {' or '.join(map(str, known))}, as input is {input.dtype}, got {other.dtype}"
    require(other.dtype in known, op, message)
    k = input.shape[1]
    require(other.shape[1] == k, op, f"other has {other.shape[1]} columns, input has {k}")
    message = f"int8 operands must have fewer than {MOST_INT8_TERMS} columns, whose sum int32 holds, got {k}"
    require(not int8 or k < MOST_INT8_TERMS, op, message)


def _check_scale(op: str, name: str, scale: Tensor, input: Tensor, rows: int, tall: bool) -> None:
    """`tall`: whether 128 rows may share a scale."""
    check_same_device(op, name, scale, "input", input)
    require(scale.dtype == torch.float32, op, f"{name} must be torch.float32, got {scale.dtype}")
    if scale.numel() == 1 and scale.dim() <= 2:
        return
    blocks, bands = -(-input.shape[1] // SCALE_BLOCK), -(-rows // SCALE_BLOCK)
    shapes = [(rows,), (rows, 1)]
    if input.dtype != torch.int8:
        shapes += [(rows, blocks), (bands, blocks)] if tall else [(rows, blocks)]
    texts = [shape_text(shape) for shape in shapes]
    listed = f"{', '.join(texts[:-1])} or {texts[-1]}"
    message = f"{name} must have one element or shape {listed}, got {shape_text(scale.shape)}"
    require(tuple(scale.shape) in shapes, op, message)


def _check_addend(
    op: str, name: str, tensor: Tensor, input: Tensor, out_dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    check_same_device(op, name, tensor, "input", input)
    message = f"{name} must have the dtype of the output ({out_dtype}), got {tensor.dtype}"
    require(tensor.dtype == out_dtype, op, message)
    message = f"{name} must have shape {shape_text(shape)}, got {shape_text(tensor.shape)}"
    require(tuple(tensor.shape) == shape, op, message)


def _check(
    input: Tensor,
    other: Tensor,
    input_scale: Tensor,
    other_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
) -> None:
    op = "scaled_matmul"
    _check_operands(op, input, other)
    m, n = input.shape[0], other.shape[0]
    _check_scale(op, "input_scale", input_scale, input, m, tall=False)
    _check_scale(op, "other_scale", other_scale, input, n, tall=True)
    message = f"out_dtype must be float32, float16 or bfloat16, got {out_dtype}"
    require(out_dtype in OUT_DTYPES, op, message)
    if bias is not None:
        _check_addend(op, "bias", bias, input, out_dtype, (n,))
    if residual is not None:
        _check_addend(op, "residual", residual, input, out_dtype, (m, n))
    check_activation(op, activation)


def _fake(
    input: Tensor,
    other: Tensor,
    input_scale: Tensor,
    other_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
) -> Tensor:
    return input.new_empty((input.shape[0], other.shape[0]), dtype=out_dtype)


_registry.define("scaled_matmul", family="scaled", check=_check, fake=_fake)
