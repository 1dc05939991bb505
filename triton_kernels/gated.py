"""Gated projections: both products of a tile in one kernel, and the backward of both factors in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright._check import needs_preact
from warpwright.triton_kernels._activation import activate, activation_grad
from warpwright.triton_kernels._common import acc_dtype, interpreted, rounded, tl_acc
from warpwright.triton_kernels._epilogue import MAX_PARTIALS, epilogue_grads
from warpwright.triton_kernels._gemm import gemm, tile_fits
from warpwright.triton_kernels._gemm_tile import tile_of
from warpwright.triton_kernels._partials import sum_partials
from warpwright.tuning import Config, Limits, Tunable, exact, power_of_two


@triton.jit
def _gated_kernel(
    input_ptr, input_row, input_col, gate_weight_ptr, gate_row, gate_col, up_weight_ptr, up_row, up_col,
    gate_bias_ptr, up_bias_ptr, output_ptr, gate_ptr, up_ptr, m, n, k,
    HAS_GATE_BIAS: tl.constexpr, HAS_UP_BIAS: tl.constexpr, SAVE: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N), GROUP_M)
    row = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    gate = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    up = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for start in range(0, k, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K).to(tl.int64)
        a_mask = (row[:, None] < m) & (inner[None, :] < k)
        b_mask = (col[None, :] < n) & (inner[:, None] < k)
        a = tl.load(input_ptr + row[:, None] * input_row + inner[None, :] * input_col, a_mask, 0.0)
        g = tl.load(gate_weight_ptr + col[None, :] * gate_row + inner[:, None] * gate_col, b_mask, 0.0)
        u = tl.load(up_weight_ptr + col[None, :] * up_row + inner[:, None] * up_col, b_mask, 0.0)
        if UPCAST:
            a = a.to(ACC)
            g = g.to(ACC)
            u = u.to(ACC)
        gate += tl.dot(a, g, input_precision=PRECISION, out_dtype=ACC)
        up += tl.dot(a, u, input_precision=PRECISION, out_dtype=ACC)
    if HAS_GATE_BIAS:
        gate += tl.load(gate_bias_ptr + col, col < n, 0.0).to(ACC)[None, :]
    if HAS_UP_BIAS:
        up += tl.load(up_bias_ptr + col, col < n, 0.0).to(ACC)[None, :]
    inside = (row[:, None] < m) & (col[None, :] < n)
    at = row[:, None] * n + col[None, :]
    value = activate(gate, ACTIVATION)
    dtype = output_ptr.dtype.element_ty
    if SAVE == "preact":
        tl.store(gate_ptr + at, rounded(gate, dtype, UPCAST), inside)
    elif SAVE == "value":
        tl.store(gate_ptr + at, rounded(value, dtype, UPCAST), inside)
    if SAVE != "none":
        tl.store(up_ptr + at, rounded(up, dtype, UPCAST), inside)
    tl.store(output_ptr + at, rounded(value * up, dtype, UPCAST), inside)


@triton.jit
def _gated_backward_kernel(
    grad_ptr, grad_row, grad_col, gate_ptr, gate_row, gate_col, up_ptr, up_row, up_col,
    grad_gate_ptr, grad_up_ptr, output_row, product_ptr, gate_partials_ptr, up_partials_ptr, n_rows, cols,
    ACTIVATION: tl.constexpr, PREACT: tl.constexpr, GATED: tl.constexpr, WRITE_GATE: tl.constexpr,
    WRITE_UP: tl.constexpr, WRITE_PRODUCT: tl.constexpr, SUM_GATE: tl.constexpr, SUM_UP: tl.constexpr,
    ACC: tl.constexpr, INTERPRETED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    groups = tl.num_programs(0)
    col = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = col < cols
    dtype = grad_ptr.dtype.element_ty
    gate_total = tl.zeros((BLOCK,), ACC)
    up_total = tl.zeros((BLOCK,), ACC)
    for row in range(n_rows * group // groups, n_rows * (group + 1) // groups):
        dy = tl.load(grad_ptr + row * grad_row + col * grad_col, mask, 0.0).to(ACC)
        x = tl.load(gate_ptr + row * gate_row + col * gate_col, mask, 0.0).to(ACC)
        value = activate(x, ACTIVATION) if PREACT else x
        grad_gate = dy * activation_grad(x, ACTIVATION)
        grad_up = dy * value
        if GATED:
            up = tl.load(up_ptr + row * up_row + col * up_col, mask, 0.0).to(ACC)
            grad_gate *= up
            value *= up
        if WRITE_GATE:
            tl.store(grad_gate_ptr + row * output_row + col, rounded(grad_gate, dtype, INTERPRETED), mask)
        if WRITE_UP:
            tl.store(grad_up_ptr + row * output_row + col, rounded(grad_up, dtype, INTERPRETED), mask)
        if WRITE_PRODUCT:
            tl.store(product_ptr + row * cols + col, rounded(value, dtype, INTERPRETED), mask)
        gate_total += grad_gate
        up_total += grad_up
    if SUM_GATE:
        tl.store(gate_partials_ptr + group * cols + col, gate_total, mask)
    if SUM_UP:
        tl.store(up_partials_ptr + group * cols + col, up_total, mask)


# ---- configurations ----


def _fits(config: Config, sizes: Mapping[str, int], dtype: torch.dtype, limits: Limits) -> bool:
    bands = config["GROUP_M"] == 1 or sizes["m"] > config["GROUP_M"] * config["BLOCK_M"]
    # Tiles of both weights are one of twice the width.
    both = {**config, "BLOCK_N": 2 * config["BLOCK_N"]}
    return bands and tile_fits(both, {**sizes, "n": 2 * sizes["n"]}, dtype, limits)


def _default(m: int, n: int, k: int) -> Config:
    block_m, block_n, block_k = (32, 16, 64) if interpreted() else (64, 32, 32)
    tile = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 1}
    return tile | {"num_warps": 4, "num_stages": 3}


GATED = Tunable(
    "gated",
    files=("gated.py", "_gemm_tile.py", "_gemm.py", "_activation.py", "_common.py"),
    buckets={"m": power_of_two, "n": exact, "k": exact},
    summed=("k",),
    space={
        "BLOCK_M": (16, 32, 64, 128, 256),
        "BLOCK_N": (16, 32, 64, 128),
        "BLOCK_K": (32, 64, 128),
        "GROUP_M": (1, 8),
        "num_warps": (4, 8),
        "num_stages": (3, 4),
    },
    default=_default,
    fits=_fits,
)


# ---- linear_glu ----


def _matrix(tensor: Tensor) -> Tensor:
    """The leading dimensions as one."""
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])


def linear_glu(
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (*input.shape[:-1], gate_weight.shape[0])
    output = input.new_empty(sizes)
    gate, up = (input.new_empty(sizes if save else (0,)) for _ in range(2))
    if output.numel() == 0:
        return output, gate, up
    a = _matrix(input)
    (m, k), n = a.shape, gate_weight.shape[0]
    gate_row, up_row = (output if bias is None else bias.contiguous() for bias in (gate_bias, up_bias))

    def run(config: Config) -> None:
        tiles = triton.cdiv(m, config["BLOCK_M"]) * triton.cdiv(n, config["BLOCK_N"])
        _gated_kernel[(tiles,)](
            a, a.stride(0), a.stride(1), gate_weight, gate_weight.stride(0), gate_weight.stride(1),
            up_weight, up_weight.stride(0), up_weight.stride(1), gate_row, up_row, output, gate, up, m, n, k,
            HAS_GATE_BIAS=gate_bias is not None, HAS_UP_BIAS=up_bias is not None,
            SAVE="none" if not save else "preact" if needs_preact(activation) else "value",
            ACTIVATION=activation, PRECISION=precision, ACC=tl_acc(a.dtype), UPCAST=interpreted(), **config,
        )  # fmt: skip

    if batch_invariant:
        run(GATED.default(m, n, k))  # Which the number of rows does not choose.
    else:
        layout = ("k" if a.stride(1) == 1 else "m") + ("k" if gate_weight.stride(1) == 1 else "n")
        GATED.launch(run, a, (m, n, k), (output, gate, up), layout)
    return output, gate, up


def _factor_grads(
    grad: Tensor,
    gate: Tensor,
    up: Tensor | None,
    activation: str,
    needs: tuple[bool, ...],
    product: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of both factors before the activation, and of their biases. `grad`: the product's, (rows, hidden).

    `needs`: input, gate_weight, up_weight, gate_bias, up_bias. `product`: the product is computed again, over `grad`.
    """
    n_rows, cols = grad.shape
    need_input, need_gate, need_up, *sums = needs
    write_gate, write_up = need_input or need_gate, up is not None and (need_input or need_up)
    both = grad.new_empty(n_rows, (write_gate + write_up) * cols)
    grad_gate, grad_up = both[:, :cols], both[:, cols * write_gate :]
    grad_gate_bias, grad_up_bias = (grad.new_zeros(cols if needed else 0) for needed in sums)
    if not (write_gate or write_up or product or any(sums)) or grad.numel() == 0:
        return grad_gate, grad_up, grad_gate_bias, grad_up_bias
    groups = min(n_rows, MAX_PARTIALS)
    partials = [grad.new_empty((groups, cols) if needed else (0, 0), dtype=acc_dtype(grad.dtype)) for needed in sums]
    factor = gate if up is None else up
    block = min(triton.next_power_of_2(cols), 256)
    _gated_backward_kernel[(groups, triton.cdiv(cols, block))](
        grad, grad.stride(0), grad.stride(1), gate, gate.stride(0), gate.stride(1),
        factor, factor.stride(0), factor.stride(1), grad_gate, grad_up, both.shape[1], grad, *partials, n_rows, cols,
        ACTIVATION=activation, PREACT=needs_preact(activation), GATED=up is not None, WRITE_GATE=write_gate,
        WRITE_UP=write_up, WRITE_PRODUCT=product, SUM_GATE=sums[0], SUM_UP=sums[1], ACC=tl_acc(grad.dtype),
        INTERPRETED=interpreted(), BLOCK=block,
    )  # fmt: skip
    for total, parts, needed in zip((grad_gate_bias, grad_up_bias), partials, sums, strict=True):
        if needed:
            sum_partials(parts, total)
    return grad_gate, grad_up, grad_gate_bias, grad_up_bias


def _projection_grads(
    grad: Tensor,
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor | None,
    gate: Tensor,
    up: Tensor | None,
    activation: str,
    settings: dict[str, Any],
    needs: tuple[bool, ...],
    product: bool = False,
) -> tuple[Tensor, ...]:
    """The gradients of the input, both weights and both biases; without elements where they are not needed."""
    grad_gate, grad_up, *biases = _factor_grads(grad, gate, up, activation, needs, product)
    grads = [input.new_empty(0)] * 3
    if needs[0]:
        total = gemm(grad_gate, gate_weight.t(), **settings)[0]
        if up_weight is not None:
            total = gemm(grad_up, up_weight.t(), residual=total, **settings)[0]
        grads[0] = total.view(input.shape)
    for i, factor in ((1, grad_gate), (2, grad_up)):
        if needs[i]:
            grads[i] = gemm(factor.t(), _matrix(input).t(), **settings)[0]
    return (*grads, *biases)


def linear_glu_backward(
    grad_output: Tensor,
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate: Tensor,
    up: Tensor,
    activation: str,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    settings: dict[str, Any] = {"precision": precision, "batch_invariant": batch_invariant}
    factors = _matrix(gate), _matrix(up), activation
    return _projection_grads(_matrix(grad_output), input, gate_weight, up_weight, *factors, settings, needs)


# ---- mlp ----


def mlp(
    input: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    gate_weight: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    gate_bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    settings: dict[str, Any] = {"precision": precision, "batch_invariant": batch_invariant}
    matrix, gate, up = _matrix(input), input.new_empty(0), input.new_empty(0)
    if gate_weight is not None:
        hidden, gate, up = linear_glu(
            matrix, gate_weight, up_weight, gate_bias, up_bias, activation, precision, batch_invariant, save
        )
    else:
        keep = save and needs_preact(activation)
        hidden, preact = gemm(matrix, up_weight, up_bias, None, activation, keep, **settings)
        up = preact if keep else hidden if save else up
    addend = None if residual is None else _matrix(residual)
    output, _ = gemm(hidden, down_weight, down_bias, addend, **settings)
    lead = input.shape[:-1]
    gate, up = (t.view(*lead, t.shape[-1]) if t.dim() == 2 else t for t in (gate, up))
    return output.view(*lead, output.shape[-1]), gate, up


def mlp_backward(
    grad_output: Tensor,
    input: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    gate_weight: Tensor | None,
    gate: Tensor | None,
    up: Tensor,
    activation: str,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    need_input, need_up, need_down, need_gate, need_up_bias, need_down_bias, need_gate_bias = needs
    settings: dict[str, Any] = {"precision": precision, "batch_invariant": batch_invariant}
    grad, gated = _matrix(grad_output), gate_weight is not None
    # Without a gate `up` takes its place: it is what the activation is applied to.
    weight, factor = up_weight, _matrix(up)
    second_weight: Tensor | None = None
    second: Tensor | None = None
    wanted = need_up, False, need_up_bias, False
    if gate_weight is not None and gate is not None:
        second_weight, second = weight, factor
        weight, factor = gate_weight, _matrix(gate)
        wanted = need_gate, need_up, need_gate_bias, need_up_bias
    # Ungated and saved as a value the product is there already.
    again = need_down and (gated or needs_preact(activation))
    before = need_input or any(wanted)
    hidden = gemm(grad, down_weight.t(), **settings)[0] if before or again else factor
    needs = need_input, *wanted
    grads = _projection_grads(hidden, input, weight, second_weight, factor, second, activation, settings, needs, again)
    of_input, of_gate, of_up, of_gate_bias, of_up_bias = grads
    if not gated:
        of_up, of_up_bias, of_gate, of_gate_bias = of_gate, of_gate_bias, input.new_empty(0), input.new_empty(0)
    of_down = gemm(grad.t(), (hidden if again else factor).t(), **settings)[0] if need_down else input.new_empty(0)
    of_down_bias = epilogue_grads(grad, None, "none", False, need_down_bias)[1]
    return of_input, of_up, of_down, of_gate, of_up_bias, of_down_bias, of_gate_bias
