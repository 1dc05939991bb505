"""Norm kernels, centred (layer norm) or not (RMS norm, and the division by the length).

Forward and the input's gradient take one program a row. Weight gradients take one program for a block of columns and a
group of rows, with its sums in registers, then a fixed-order sum over the groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.reference._philox import dropout_threshold
from warpwright.triton_kernels._common import acc_dtype, interpreted, num_warps, rounded, row_block, rows, tl_acc
from warpwright.triton_kernels._partials import sum_partials
from warpwright.triton_kernels._philox import random_words
from warpwright.tuning import Config, Limits, Tunable, exact, power_of_two

# Row groups of the weight gradients: fixed, so that they are summed in the same order everywhere.
MAX_PARTIALS = 128


@triton.jit
def _factors(
    seed_ptr, offset, threshold, scale, row, start, DROPOUT: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """What dropout multiplies columns [start, start + BLOCK) by."""
    if DROPOUT:
        words = random_words(tl.load(seed_ptr), row, tl.cast(start, tl.int64), offset, BLOCK)
        return tl.where(words >= threshold, scale, 0.0).to(ACC)
    return tl.full((BLOCK,), 1.0, ACC)


@triton.jit
def _load_sum(
    input_ptr, residual_ptr, at_input, at_residual, mask, factors, dtype: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr, ACC: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    # Rounded to the storage type before it is normalised: the result is that of the unfused addition.
    x = tl.load(input_ptr + at_input, mask, 0.0).to(ACC)
    if DROPOUT:
        x = x * factors
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + at_residual, mask, 0.0).to(ACC)
    return rounded(x, dtype, INTERPRETED).to(ACC)


@triton.jit
def _norm_forward_kernel(
    input_ptr, input_row, input_col, residual_ptr, residual_row, residual_col,
    weight_ptr, bias_ptr, output_ptr, sum_ptr, mean_ptr, rstd_ptr, cols, eps, weight_offset,
    seed_ptr, offset, threshold, scale,
    CENTRED: tl.constexpr, L2: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, DROPOUT: tl.constexpr, ACC: tl.constexpr, INTERPRETED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = output_ptr.dtype.element_ty
    input_ptr += row * input_row
    residual_ptr += row * residual_row
    mean = tl.sum(tl.zeros((BLOCK,), ACC), 0)
    if CENTRED:
        total = tl.zeros((BLOCK,), ACC)
        for start in range(0, cols, BLOCK):
            col = start + tl.arange(0, BLOCK).to(tl.int64)
            factors = _factors(seed_ptr, offset, threshold, scale, row, start, DROPOUT, ACC, BLOCK)
            total += _load_sum(
                input_ptr, residual_ptr, col * input_col, col * residual_col, col < cols, factors, dtype,
                HAS_RESIDUAL, DROPOUT, ACC, INTERPRETED,
            )  # fmt: skip
        mean = tl.sum(total, 0) / cols
        tl.store(mean_ptr + row, mean)
    squares = tl.zeros((BLOCK,), ACC)
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK).to(tl.int64)
        mask = col < cols
        factors = _factors(seed_ptr, offset, threshold, scale, row, start, DROPOUT, ACC, BLOCK)
        x = _load_sum(
            input_ptr, residual_ptr, col * input_col, col * residual_col, mask, factors, dtype,
            HAS_RESIDUAL, DROPOUT, ACC, INTERPRETED,
        )  # fmt: skip
        if HAS_RESIDUAL or DROPOUT:
            tl.store(sum_ptr + row * cols + col, x.to(dtype), mask)
        difference = tl.where(mask, x - mean, 0.0)
        squares += difference * difference
    if L2:
        length = tl.sqrt(tl.sum(squares, 0))
        tl.store(rstd_ptr + row, length)
        rstd = 1.0 / tl.where(length < eps, eps, length)
    else:
        rstd = 1.0 / tl.sqrt(tl.sum(squares, 0) / cols + eps)
        tl.store(rstd_ptr + row, rstd)
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK).to(tl.int64)
        mask = col < cols
        factors = _factors(seed_ptr, offset, threshold, scale, row, start, DROPOUT, ACC, BLOCK)
        x = _load_sum(
            input_ptr, residual_ptr, col * input_col, col * residual_col, mask, factors, dtype,
            HAS_RESIDUAL, DROPOUT, ACC, INTERPRETED,
        )  # fmt: skip
        y = (x - mean) * rstd
        if HAS_WEIGHT:
            y *= tl.load(weight_ptr + col, mask, 0.0).to(ACC) + weight_offset
        if HAS_BIAS:
            y += tl.load(bias_ptr + col, mask, 0.0).to(ACC)
        tl.store(output_ptr + row * cols + col, y.to(dtype), mask)


@triton.jit
def _input_grad_kernel(
    grad_ptr, grad_row, grad_col, extra_ptr, extra_row, extra_col, sum_ptr, sum_row, sum_col,
    weight_ptr, mean_ptr, rstd_ptr, output_ptr, residual_ptr, cols, eps, weight_offset,
    seed_ptr, offset, threshold, scale,
    CENTRED: tl.constexpr, L2: tl.constexpr, HAS_EXTRA: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    NEED_INPUT: tl.constexpr, NEED_RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr, ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    rstd = tl.load(rstd_ptr + row)
    length = rstd
    if L2:
        rstd = 1.0 / tl.where(length < eps, eps, length)
    mean = tl.load(mean_ptr + row) if CENTRED else rstd * 0.0
    dot = tl.zeros((BLOCK,), ACC)
    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK).to(tl.int64)
        mask = col < cols
        g = tl.load(grad_ptr + row * grad_row + col * grad_col, mask, 0.0).to(ACC)
        if HAS_WEIGHT:
            g *= tl.load(weight_ptr + col, mask, 0.0).to(ACC) + weight_offset
        xhat = (tl.load(sum_ptr + row * sum_row + col * sum_col, mask, 0.0).to(ACC) - mean) * rstd
        dot += g * xhat
        total += g
    # A divisor that is constant, as eps is, has no gradient.
    mean_dot = tl.where(length < eps, 0.0, tl.sum(dot, 0)) if L2 else tl.sum(dot, 0) / cols
    mean_grad = tl.sum(total, 0) / cols if CENTRED else mean_dot * 0.0
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK).to(tl.int64)
        mask = col < cols
        g = tl.load(grad_ptr + row * grad_row + col * grad_col, mask, 0.0).to(ACC)
        if HAS_WEIGHT:
            g *= tl.load(weight_ptr + col, mask, 0.0).to(ACC) + weight_offset
        xhat = (tl.load(sum_ptr + row * sum_row + col * sum_col, mask, 0.0).to(ACC) - mean) * rstd
        dx = (g - mean_grad - xhat * mean_dot) * rstd
        if HAS_EXTRA:
            dx += tl.load(extra_ptr + row * extra_row + col * extra_col, mask, 0.0).to(ACC)
        if NEED_RESIDUAL:
            tl.store(residual_ptr + row * cols + col, dx.to(residual_ptr.dtype.element_ty), mask)
        if NEED_INPUT:
            if DROPOUT:
                dx *= _factors(seed_ptr, offset, threshold, scale, row, start, DROPOUT, ACC, BLOCK)
            tl.store(output_ptr + row * cols + col, dx.to(output_ptr.dtype.element_ty), mask)


@triton.jit
def _weight_grad_kernel(
    grad_ptr, grad_row, grad_col, sum_ptr, sum_row, sum_col, mean_ptr, rstd_ptr,
    weight_partials_ptr, bias_partials_ptr, n_rows, cols,
    CENTRED: tl.constexpr, NEED_WEIGHT: tl.constexpr, NEED_BIAS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    groups = tl.num_programs(0)
    col = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = col < cols
    weight_sum = tl.zeros((BLOCK,), ACC)
    bias_sum = tl.zeros((BLOCK,), ACC)
    for row in range(n_rows * group // groups, n_rows * (group + 1) // groups):
        wide_row = tl.cast(row, tl.int64)
        dy = tl.load(grad_ptr + wide_row * grad_row + col * grad_col, mask, 0.0).to(ACC)
        bias_sum += dy
        if NEED_WEIGHT:
            rstd = tl.load(rstd_ptr + row)
            mean = tl.load(mean_ptr + row) if CENTRED else rstd * 0.0
            x = tl.load(sum_ptr + wide_row * sum_row + col * sum_col, mask, 0.0).to(ACC)
            weight_sum += dy * (x - mean) * rstd
    if NEED_WEIGHT:
        tl.store(weight_partials_ptr + group * cols + col, weight_sum, mask)
    if NEED_BIAS:
        tl.store(bias_partials_ptr + group * cols + col, bias_sum, mask)


# ---- configurations ----


def _fits(config: Config, sizes: Mapping[str, int], dtype: torch.dtype, limits: Limits) -> bool:
    # Nothing but padding beyond the next power of two. A thread holds up to three times its share in float32.
    elements = config["BLOCK"] // (32 * config["num_warps"])
    return config["BLOCK"] <= max(256, power_of_two(sizes["cols"])) and (not limits.warps or 1 <= elements <= 32)


def _default(n_rows: int, cols: int) -> Config:
    block = max(row_block(cols), 4)  # Random words come in fours.
    return {"BLOCK": block, "num_warps": num_warps(block)}


def _default_weight_grad(n_rows: int, cols: int) -> Config:
    return {"BLOCK": row_block(cols, 256), "num_warps": 4}


_FILES = ("norm.py", "_common.py", "_philox.py")
_BUCKETS = {"rows": power_of_two, "cols": exact}
_SPACE = {"BLOCK": (256, 512, 1024, 2048, 4096, 8192, 16384), "num_warps": (1, 2, 4, 8, 16)}
_SPACE_WEIGHT_GRAD = {"BLOCK": (64, 128, 256, 512, 1024), "num_warps": (1, 2, 4, 8)}

FORWARD = Tunable("norm_forward", _FILES, _BUCKETS, ("cols",), _SPACE, _default, _fits)
INPUT_GRAD = Tunable("norm_input_grad", _FILES, _BUCKETS, ("cols",), _SPACE, _default, _fits)
WEIGHT_GRAD = Tunable("norm_weight_grad", _FILES, _BUCKETS, ("rows",), _SPACE_WEIGHT_GRAD, _default_weight_grad, _fits)


class Options(NamedTuple):
    """The arguments that change what a norm computes, not over what."""

    eps: float = 0.0
    weight_offset: float = 0.0
    dropout_p: float = 0.0
    seed: Tensor | None = None
    offset: int = 0
    centred: bool = False
    l2: bool = False

    def dropout(self, anything: Tensor) -> tuple[Tensor, int, int, float]:
        """A kernel's seed_ptr, offset, threshold and scale."""
        seed = anything if self.seed is None else self.seed
        scale = 1 / (1 - self.dropout_p) if self.dropout_p < 1 else 0.0
        return seed, self.offset, dropout_threshold(self.dropout_p), scale


def _forward(
    input: Tensor,
    residual: Tensor | None,
    normalized_ndim: int,
    weight: Tensor | None,
    bias: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    has_sum = residual is not None or options.dropout_p > 0
    output = torch.empty(input.shape, dtype=input.dtype, device=input.device)
    total = torch.empty(input.shape if has_sum else (0,), dtype=input.dtype, device=input.device)
    lead = input.shape[: input.dim() - normalized_ndim]
    rstd = input.new_empty(lead, dtype=acc_dtype(input.dtype))
    mean = torch.empty_like(rstd) if options.centred else rstd.new_empty(0)
    x = rows(input, normalized_ndim)
    r = x if residual is None else rows(residual, normalized_ndim)
    n_rows, cols = x.shape
    if n_rows == 0:
        return output, total, mean, rstd
    weight_or_any = x if weight is None else weight.contiguous()
    bias_or_any = x if bias is None else bias.contiguous()

    def run(config: Config) -> None:
        _norm_forward_kernel[(n_rows,)](
            x, x.stride(0), x.stride(1), r, r.stride(0), r.stride(1),
            weight_or_any, bias_or_any, output, total, mean, rstd, cols, options.eps, options.weight_offset,
            *options.dropout(x),
            CENTRED=options.centred, L2=options.l2, HAS_RESIDUAL=residual is not None, HAS_WEIGHT=weight is not None,
            HAS_BIAS=bias is not None, DROPOUT=options.dropout_p > 0, ACC=tl_acc(input.dtype),
            INTERPRETED=interpreted(), **config,
        )  # fmt: skip

    FORWARD.launch(run, input, (n_rows, cols), (output, total, mean, rstd))
    return output, total, mean, rstd


def _backward(
    grad_output: Tensor,
    grad_sum: Tensor | None,
    sum: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    normalized_ndim: int,
    options: Options,
    need_input: bool,
    need_residual: bool = False,
    need_weight: bool = False,
    need_bias: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_input, grad_residual = (
        torch.empty(sum.shape if need else (0,), dtype=sum.dtype, device=sum.device)
        for need in (need_input, need_residual)
    )
    affine = sum.shape[sum.dim() - normalized_ndim :]
    grad_weight = sum.new_zeros(affine if need_weight else (0,))
    grad_bias = sum.new_zeros(affine if need_bias else (0,))
    h, dy = rows(sum, normalized_ndim), rows(grad_output, normalized_ndim)
    extra = h if grad_sum is None else rows(grad_sum, normalized_ndim)
    n_rows, cols = h.shape
    if n_rows == 0 or cols == 0:
        return grad_input, grad_residual, grad_weight, grad_bias
    rstd = rstd.contiguous()
    statistics = (rstd if mean is None else mean.contiguous(), rstd)
    if need_input or need_residual:
        weight_or_any = h if weight is None else weight.contiguous()

        def run_input(config: Config) -> None:
            _input_grad_kernel[(n_rows,)](
                dy, dy.stride(0), dy.stride(1), extra, extra.stride(0), extra.stride(1), h, h.stride(0), h.stride(1),
                weight_or_any, *statistics, grad_input, grad_residual, cols, options.eps, options.weight_offset,
                *options.dropout(h),
                CENTRED=mean is not None, L2=options.l2, HAS_EXTRA=grad_sum is not None, HAS_WEIGHT=weight is not None,
                NEED_INPUT=need_input, NEED_RESIDUAL=need_residual, DROPOUT=options.dropout_p > 0,
                ACC=tl_acc(sum.dtype), **config,
            )  # fmt: skip

        INPUT_GRAD.launch(run_input, h, (n_rows, cols), (grad_input, grad_residual))
    if need_weight or need_bias:
        groups = min(n_rows, MAX_PARTIALS)
        weight_partials = rstd.new_empty((groups, cols) if need_weight else (0, 0))
        bias_partials = rstd.new_empty((groups, cols) if need_bias else (0, 0))

        def run_weight(config: Config) -> None:
            _weight_grad_kernel[(groups, triton.cdiv(cols, config["BLOCK"]))](
                dy, dy.stride(0), dy.stride(1), h, h.stride(0), h.stride(1), *statistics,
                weight_partials, bias_partials, n_rows, cols,
                CENTRED=mean is not None, NEED_WEIGHT=need_weight, NEED_BIAS=need_bias, ACC=tl_acc(sum.dtype), **config,
            )  # fmt: skip

        WEIGHT_GRAD.launch(run_weight, h, (n_rows, cols), (weight_partials, bias_partials))
        if need_weight:
            sum_partials(weight_partials, grad_weight)
        if need_bias:
            sum_partials(bias_partials, grad_bias)
    return grad_input, grad_residual, grad_weight, grad_bias


def rms_norm(
    input: Tensor,
    residual: Tensor | None,
    normalized_ndim: int,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    dropout_p: float,
    seed: Tensor | None,
    offset: int,
) -> tuple[Tensor, Tensor, Tensor]:
    options = Options(eps, weight_offset, dropout_p, seed, offset)
    output, total, _, rstd = _forward(input, residual, normalized_ndim, weight, None, options)
    return output, total, rstd


def rms_norm_backward(
    grad_output: Tensor,
    grad_sum: Tensor | None,
    sum: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    normalized_ndim: int,
    weight_offset: float,
    dropout_p: float,
    seed: Tensor | None,
    offset: int,
    *needs: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    options = Options(0.0, weight_offset, dropout_p, seed, offset)
    return _backward(grad_output, grad_sum, sum, weight, None, rstd, normalized_ndim, options, *needs)[:3]


def layer_norm(
    input: Tensor,
    residual: Tensor | None,
    normalized_ndim: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    weight_offset: float,
    dropout_p: float,
    seed: Tensor | None,
    offset: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = Options(eps, weight_offset, dropout_p, seed, offset, centred=True)
    return _forward(input, residual, normalized_ndim, weight, bias, options)


def layer_norm_backward(
    grad_output: Tensor,
    grad_sum: Tensor | None,
    sum: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    normalized_ndim: int,
    weight_offset: float,
    dropout_p: float,
    seed: Tensor | None,
    offset: int,
    *needs: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = Options(0.0, weight_offset, dropout_p, seed, offset, centred=True)
    return _backward(grad_output, grad_sum, sum, weight, mean, rstd, normalized_ndim, options, *needs)


def l2_normalize(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    output, _, _, norm = _forward(input, None, 1, None, None, Options(eps, l2=True))
    return output, norm


def l2_normalize_backward(grad_output: Tensor, input: Tensor, norm: Tensor, eps: float) -> Tensor:
    return _backward(grad_output, None, input, None, None, norm, 1, Options(eps, l2=True), need_input=True)[0]
