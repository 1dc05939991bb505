"""Activations, gated or not: one pass. Forward, each program takes one block of one row; backward, one block of a group
of rows, whose sums for the biases' gradients it keeps."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright._check import needs_preact
from warpwright.triton_kernels._activation import activate, activation_grad
from warpwright.triton_kernels._common import acc_dtype, num_warps, row_block, rows, tl_acc
from warpwright.triton_kernels._partials import sum_partials

BLOCK_LIMIT = 2048
# Row groups of the biases' gradients: fixed, so that they are summed in the same order everywhere.
MAX_PARTIALS = 128


@triton.jit
def _value_of(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu_squared":
        value = activate(x, "relu")
        value = value * value
    else:
        value = activate(x, ACTIVATION)
    return value


@triton.jit
def _gradient_of(x, grad, ACTIVATION: tl.constexpr, PREACT: tl.constexpr):
    """grad times the derivative at x. Where relu is zero its gradient is, even of an infinite one, and NaN lets
    gradients pass: as torch."""
    if ACTIVATION == "relu_squared":
        grad = tl.where(x <= 0, 0.0, 2.0 * x * grad)
    elif ACTIVATION == "relu":
        grad = tl.where(x <= 0, 0.0, grad)
    elif PREACT:
        grad = grad * activation_grad(x, ACTIVATION)
    else:
        grad = grad * activation_grad(activate(x, ACTIVATION), ACTIVATION)
    return grad


@triton.jit
def _glu_kernel(
    gate_ptr, gate_row, gate_col, up_ptr, up_row, up_col, gate_bias_ptr, up_bias_ptr, output_ptr, cols,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_GATE_BIAS: tl.constexpr, HAS_UP_BIAS: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(cols, BLOCK)
    row = tl.program_id(0).to(tl.int64) // blocks
    col = tl.program_id(0).to(tl.int64) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = col < cols
    x = tl.load(gate_ptr + row * gate_row + col * gate_col, mask, 0.0).to(ACC)
    if HAS_GATE_BIAS:
        x += tl.load(gate_bias_ptr + col, mask, 0.0).to(ACC)
    value = _value_of(x, ACTIVATION)
    if GATED:
        up = tl.load(up_ptr + row * up_row + col * up_col, mask, 0.0).to(ACC)
        if HAS_UP_BIAS:
            up += tl.load(up_bias_ptr + col, mask, 0.0).to(ACC)
        value *= up
    tl.store(output_ptr + row * cols + col, value.to(output_ptr.dtype.element_ty), mask)


@triton.jit
def _glu_backward_kernel(
    grad_ptr, grad_row, grad_col, gate_ptr, gate_row, gate_col, up_ptr, up_row, up_col, gate_bias_ptr, up_bias_ptr,
    grad_gate_ptr, grad_up_ptr, gate_partials_ptr, up_partials_ptr, n_rows, cols, groups,
    ACTIVATION: tl.constexpr, PREACT: tl.constexpr, GATED: tl.constexpr, HAS_GATE_BIAS: tl.constexpr,
    HAS_UP_BIAS: tl.constexpr, NEED_GATE: tl.constexpr, NEED_UP: tl.constexpr, SUM_GATE: tl.constexpr,
    SUM_UP: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(cols, BLOCK)
    group = tl.program_id(0).to(tl.int64) // blocks
    col = tl.program_id(0).to(tl.int64) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = col < cols
    dtype = grad_gate_ptr.dtype.element_ty
    gate_total = tl.zeros((BLOCK,), ACC)
    up_total = tl.zeros((BLOCK,), ACC)
    for index in range(n_rows * group // groups, n_rows * (group + 1) // groups):
        row = tl.cast(index, tl.int64)
        dy = tl.load(grad_ptr + row * grad_row + col * grad_col, mask, 0.0).to(ACC)
        x = tl.load(gate_ptr + row * gate_row + col * gate_col, mask, 0.0).to(ACC)
        if HAS_GATE_BIAS:
            x += tl.load(gate_bias_ptr + col, mask, 0.0).to(ACC)
        dx = dy
        if GATED:
            up = tl.load(up_ptr + row * up_row + col * up_col, mask, 0.0).to(ACC)
            if HAS_UP_BIAS:
                up += tl.load(up_bias_ptr + col, mask, 0.0).to(ACC)
            dx = dy * up
            du = dy * _value_of(x, ACTIVATION)
            if NEED_UP:
                tl.store(grad_up_ptr + row * cols + col, du.to(dtype), mask)
            if SUM_UP:
                up_total += du
        dx = _gradient_of(x, dx, ACTIVATION, PREACT)
        if NEED_GATE:
            tl.store(grad_gate_ptr + row * cols + col, dx.to(dtype), mask)
        if SUM_GATE:
            gate_total += dx
    if SUM_GATE:
        tl.store(gate_partials_ptr + group * cols + col, gate_total, mask)
    if SUM_UP:
        tl.store(up_partials_ptr + group * cols + col, up_total, mask)


def _row_ndim(tensors: list[Tensor], by_column: bool) -> int:
    """All dimensions make one long row where every tensor is contiguous and nothing is added to a column, else the
    last one makes a row."""
    whole = not by_column and all(t.is_contiguous() for t in tensors)
    return tensors[0].dim() if whole else min(tensors[0].dim(), 1)


def _forward(
    gate: Tensor, up: Tensor | None, gate_bias: Tensor | None, up_bias: Tensor | None, activation: str
) -> Tensor:
    output = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if gate.numel() == 0:
        return output
    row_ndim = _row_ndim([t for t in (gate, up) if t is not None], gate_bias is not None or up_bias is not None)
    x = rows(gate, row_ndim)
    y = x if up is None else rows(up, row_ndim)
    n_rows, cols = x.shape
    block = row_block(cols, BLOCK_LIMIT)
    _glu_kernel[(n_rows * triton.cdiv(cols, block),)](
        x, x.stride(0), x.stride(1), y, y.stride(0), y.stride(1),
        x if gate_bias is None else gate_bias.contiguous(), x if up_bias is None else up_bias.contiguous(),
        output, cols, ACTIVATION=activation, GATED=up is not None, HAS_GATE_BIAS=gate_bias is not None,
        HAS_UP_BIAS=up_bias is not None, ACC=tl_acc(gate.dtype), BLOCK=block, num_warps=num_warps(block),
    )  # fmt: skip
    return output


def _backward(
    grad_output: Tensor,
    gate: Tensor,
    up: Tensor | None,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    need_gate: bool,
    need_up: bool,
    need_gate_bias: bool,
    need_up_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = need_gate_bias or need_up_bias
    by_column = sums or gate_bias is not None or up_bias is not None
    row_ndim = _row_ndim([t for t in (gate, up, grad_output) if t is not None], by_column)
    grad_gate = torch.empty(gate.shape if need_gate else (0,), dtype=gate.dtype, device=gate.device)
    grad_up = torch.empty(gate.shape if need_up else (0,), dtype=gate.dtype, device=gate.device)
    dy, x = rows(grad_output, row_ndim), rows(gate, row_ndim)
    y = x if up is None else rows(up, row_ndim)
    n_rows, cols = x.shape
    grad_gate_bias = gate.new_zeros(cols if need_gate_bias else 0)
    grad_up_bias = gate.new_zeros(cols if need_up_bias else 0)
    if gate.numel() == 0:
        return grad_gate, grad_up, grad_gate_bias, grad_up_bias
    groups = min(n_rows, MAX_PARTIALS) if sums else n_rows
    gate_partials = x.new_empty((groups, cols) if need_gate_bias else (0, 0), dtype=acc_dtype(gate.dtype))
    up_partials = x.new_empty((groups, cols) if need_up_bias else (0, 0), dtype=acc_dtype(gate.dtype))
    block = row_block(cols, BLOCK_LIMIT)
    _glu_backward_kernel[(groups * triton.cdiv(cols, block),)](
        dy, dy.stride(0), dy.stride(1), x, x.stride(0), x.stride(1), y, y.stride(0), y.stride(1),
        x if gate_bias is None else gate_bias.contiguous(), x if up_bias is None else up_bias.contiguous(),
        grad_gate, grad_up, gate_partials, up_partials, n_rows, cols, groups,
        ACTIVATION=activation, PREACT=needs_preact(activation), GATED=up is not None,
        HAS_GATE_BIAS=gate_bias is not None, HAS_UP_BIAS=up_bias is not None,
        NEED_GATE=need_gate, NEED_UP=need_up, SUM_GATE=need_gate_bias, SUM_UP=need_up_bias,
        ACC=tl_acc(gate.dtype), BLOCK=block, num_warps=num_warps(block),
    )  # fmt: skip
    if need_gate_bias:
        sum_partials(gate_partials, grad_gate_bias)
    if need_up_bias:
        sum_partials(up_partials, grad_up_bias)
    return grad_gate, grad_up, grad_gate_bias, grad_up_bias


def activation(input: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return _forward(input, None, bias, None, activation)


def activation_backward(
    grad_output: Tensor, input: Tensor, bias: Tensor | None, activation: str, need_input: bool, need_bias: bool
) -> tuple[Tensor, Tensor]:
    grad_input, _, grad_bias, _ = _backward(
        grad_output, input, None, bias, None, activation, need_input, False, need_bias, False
    )
    return grad_input, grad_bias


def glu(gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None, activation: str) -> Tensor:
    return _forward(gate, up, gate_bias, up_bias, activation)


def glu_backward(
    grad_output: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    need_gate: bool,
    need_up: bool,
    need_gate_bias: bool,
    need_up_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _backward(
        grad_output, gate, up, gate_bias, up_bias, activation, need_gate, need_up, need_gate_bias, need_up_bias
    )
