"""The backward of an epilogue: grad_preact = grad_output * activation'(saved), and the bias gradient in two stages."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._activation import activation_grad
from warpwright.triton_kernels._common import acc_dtype, tl_acc
from warpwright.triton_kernels._partials import sum_partials

# Row groups of the first stage: fixed, so that the sums come out the same everywhere.
MAX_PARTIALS = 128


@triton.jit
def _epilogue_backward_kernel(
    grad_ptr, grad_row, grad_col, saved_ptr, saved_row, saved_col, output_ptr, partials_ptr, n_rows, cols, scale,
    ACTIVATION: tl.constexpr, WRITE: tl.constexpr, SUM: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    groups = tl.num_programs(0)
    col = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = col < cols
    total = tl.zeros((BLOCK,), ACC)
    for row in range(n_rows * group // groups, n_rows * (group + 1) // groups):
        g = tl.load(grad_ptr + row * grad_row + col * grad_col, mask, 0.0).to(ACC) * scale
        if ACTIVATION != "none":
            saved = tl.load(saved_ptr + row * saved_row + col * saved_col, mask, 0.0).to(ACC)
            g *= activation_grad(saved, ACTIVATION)
        if WRITE:
            tl.store(output_ptr + row * cols + col, g.to(output_ptr.dtype.element_ty), mask)
        total += g
    if SUM:
        tl.store(partials_ptr + group * cols + col, total, mask)


def epilogue_grads(
    grad: Tensor,
    saved: Tensor | None,
    activation: str,
    need_preact: bool,
    need_bias: bool,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(grad_preact, grad_bias) of a (rows, channels) gradient; grad_preact is `grad` itself without an activation and a
    scale, which multiplies both."""
    n_rows, cols = grad.shape
    write = need_preact and (activation != "none" or scale != 1)
    grad_preact = torch.empty((n_rows, cols), dtype=grad.dtype, device=grad.device) if write else grad
    grad_bias = torch.zeros(cols if need_bias else 0, dtype=grad.dtype, device=grad.device)
    if not (write or need_bias) or grad.numel() == 0:
        return grad_preact, grad_bias
    groups = min(n_rows, MAX_PARTIALS)
    partials = grad.new_empty((groups, cols) if need_bias else (0, 0), dtype=acc_dtype(grad.dtype))
    saved = grad if saved is None else saved
    block = min(triton.next_power_of_2(cols), 256)
    _epilogue_backward_kernel[(groups, triton.cdiv(cols, block))](
        grad, grad.stride(0), grad.stride(1), saved, saved.stride(0), saved.stride(1), grad_preact, partials,
        n_rows, cols, scale, ACTIVATION=activation, WRITE=write, SUM=need_bias, ACC=tl_acc(grad.dtype), BLOCK=block,
    )  # fmt: skip
    if need_bias:
        sum_partials(partials, grad_bias)
    return grad_preact, grad_bias


def residual_grad(grad_preact: Tensor, grad: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of a residual of `shape`. An output may not be an input: where it is `grad` itself it is copied."""
    own = torch.clone(grad, memory_format=torch.contiguous_format) if grad_preact is grad else grad_preact
    return own.view(shape)
