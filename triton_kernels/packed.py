"""Products with packed weights: a tile of words is loaded once and becomes eight (or four) times as many floats."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright._check import needs_preact
from warpwright.ops.packed import PIECE, group_count
from warpwright.triton_kernels._activation import activate
from warpwright.triton_kernels._common import interpreted, num_warps, round_even, rounded, row_block, tl_acc
from warpwright.triton_kernels._epilogue import epilogue_grads, residual_grad
from warpwright.triton_kernels._gemm import gemm

#: Rows of the input above which the weight is dequantized first: kMaxFusedRows of csrc/kernels/packed.h. So it is for
#: float32, which the tensor cores do not multiply.
MAX_FUSED_ROWS = 512
#: A group of any length: every element shifted by this is in group 0.
_WHOLE_ROW = 62


@triton.jit
def _shifts(BITS: tl.constexpr):
    """Where the elements of a word start: packed_shift of csrc/kernels/packed.h."""
    element = tl.arange(0, 32 // BITS)
    shift = element * 8
    if BITS == 4:
        shift = element // 2 * 4 + element % 2 * 16
    return shift


@triton.jit
def _elements(
    data_ptr, data_row, data_col, scale_ptr, scale_row, scale_col, zero_ptr, zero_row, zero_col, row, start, n, k,
    group_shift, BITS: tl.constexpr, WORDS: tl.constexpr, HAS_ZERO: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Elements [start, start + BLOCK_K) of the rows `row`: (BLOCK_N, BLOCK_K), finite past the edges."""
    per_word: tl.constexpr = 32 // BITS
    word = start // per_word + tl.arange(0, BLOCK_K // per_word).to(tl.int64)
    # Rows are padded: the word of any element inside is whole.
    inside = (row[:, None] < n) & (word[None, :] * per_word < k)
    if WORDS:
        words = tl.load(data_ptr + row[:, None] * data_row + word[None, :] * data_col, inside, 0)
    else:  # Bytes that lie anywhere.
        at = data_ptr + row[:, None] * data_row + word[None, :] * 4 * data_col
        words = tl.load(at, inside, 0).to(tl.int32)
        for byte in tl.static_range(1, 4):
            words |= tl.load(at + byte * data_col, inside, 0).to(tl.int32) << (8 * byte)
    # A word lies in one group.
    group = word * per_word >> group_shift
    scale = tl.load(scale_ptr + row[:, None] * scale_row + group[None, :] * scale_col, inside, 0.0).to(ACC)
    shift = _shifts(BITS)
    q = (words[:, :, None] >> shift[None, None, :]) & (2**BITS - 1)
    if HAS_ZERO:
        zero = tl.load(zero_ptr + row[:, None] * zero_row + group[None, :] * zero_col, inside, 0).to(tl.int32)
        q -= zero[:, :, None]
    else:
        q -= 2 ** (BITS - 1)
    return tl.reshape(q.to(ACC) * scale[:, :, None], (BLOCK_N, BLOCK_K))


@triton.jit
def _linear_kernel(
    x_ptr, x_row, x_col, data_ptr, data_row, data_col, scale_ptr, scale_row, scale_col, zero_ptr, zero_row, zero_col,
    bias_ptr, residual_ptr, residual_row, residual_col, output_ptr, preact_ptr, m, n, k, group_shift,
    BITS: tl.constexpr, WORDS: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, SAVE: tl.constexpr, ACTIVATION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs take the same rows of the weight.
    tiles_m = tl.cdiv(m, BLOCK_M)
    row = (tl.program_id(0) % tiles_m).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = (tl.program_id(0) // tiles_m).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    # The weight is the operand of 64 rows, so that few rows of the input leave little of the tensor cores idle.
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for start in range(0, k, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K).to(tl.int64)
        x_mask = (row[None, :] < m) & (inner[:, None] < k)
        x = tl.load(x_ptr + row[None, :] * x_row + inner[:, None] * x_col, x_mask, 0.0)  # (BLOCK_K, BLOCK_M)
        w = _elements(
            data_ptr, data_row, data_col, scale_ptr, scale_row, scale_col, zero_ptr, zero_row, zero_col, col, start, n,
            k, group_shift, BITS, WORDS, HAS_ZERO, tl.float32, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        if UPCAST:
            x = x.to(tl.float32)
        else:
            w = w.to(x.dtype)
        acc += tl.dot(w, x, out_dtype=tl.float32)
    inside = (row[None, :] < m) & (col[:, None] < n)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + col, col < n, 0.0).to(tl.float32)[:, None]
    if HAS_RESIDUAL:
        at = row[None, :] * residual_row + col[:, None] * residual_col
        acc += tl.load(residual_ptr + at, inside, 0.0).to(tl.float32)
    at = row[None, :] * n + col[:, None]
    if SAVE:
        tl.store(preact_ptr + at, acc.to(preact_ptr.dtype.element_ty), inside)
    tl.store(output_ptr + at, activate(acc, ACTIVATION).to(output_ptr.dtype.element_ty), inside)


@triton.jit
def _dequantize_kernel(
    data_ptr, data_row, data_col, scale_ptr, scale_row, scale_col, zero_ptr, zero_row, zero_col, output_ptr, n, k,
    group_shift, BITS: tl.constexpr, WORDS: tl.constexpr, HAS_ZERO: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_k = tl.cdiv(k, BLOCK_K)
    row = (tl.program_id(0) // tiles_k).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    start = (tl.program_id(0) % tiles_k).to(tl.int64) * BLOCK_K
    w = _elements(
        data_ptr, data_row, data_col, scale_ptr, scale_row, scale_col, zero_ptr, zero_row, zero_col, row, start, n, k,
        group_shift, BITS, WORDS, HAS_ZERO, ACC, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    inner = start + tl.arange(0, BLOCK_K).to(tl.int64)
    mask = (row[:, None] < n) & (inner[None, :] < k)
    tl.store(output_ptr + row[:, None] * k + inner[None, :], w.to(output_ptr.dtype.element_ty), mask)


@triton.jit
def _quotient(x, by, ACC: tl.constexpr):
    """Rounded to nearest, which a compiled division of float32 is not."""
    return x / by if tl.float64 == ACC else tl.div_rn(x, by)


@triton.jit
def _quantize_kernel(
    x_ptr, x_row, x_col, data_ptr, scale_ptr, zero_ptr, k, groups, group_size, row_words, BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr, ACC: tl.constexpr, INTERPRETED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    per_word: tl.constexpr = 32 // BITS
    largest: tl.constexpr = 2**BITS - 1
    steps: tl.constexpr = largest // 2 if SYMMETRIC else largest
    group = tl.program_id(0).to(tl.int64)
    row, first = group // groups, group % groups * group_size
    last = tl.minimum(first + group_size, k)
    x_ptr += row * x_row
    high = tl.zeros((BLOCK,), ACC)
    low = tl.zeros((BLOCK,), ACC)
    spoiled = tl.zeros((BLOCK,), tl.int32)
    for start in range(first, last, BLOCK):
        col = start + tl.arange(0, BLOCK).to(tl.int64)
        x = tl.load(x_ptr + col * x_col, col < last, 0.0).to(ACC)
        high, low = tl.maximum(high, x), tl.minimum(low, x)
        spoiled |= (x != x).to(tl.int32)
    top, bottom = tl.max(high, 0), tl.min(low, 0)
    span = tl.maximum(top, -bottom) if SYMMETRIC else top - bottom
    span = tl.where(tl.max(spoiled, 0) > 0, float("nan"), span)
    exact = tl.where(span == 0.0, 1.0, _quotient(span.to(ACC), tl.full((), steps, ACC), ACC))
    scale = rounded(exact, scale_ptr.dtype.element_ty, INTERPRETED)
    if scale_ptr.dtype.element_ty.primitive_bitwidth == 16:
        # Never below what it was: the next pattern of a positive number is the next number.
        pattern = scale.to(tl.int16, bitcast=True) + (scale.to(ACC) < exact).to(tl.int16)
        scale = pattern.to(scale_ptr.dtype.element_ty, bitcast=True)
    tl.store(scale_ptr + group, scale)
    step = scale.to(ACC)
    zero = tl.full((), 2 ** (BITS - 1), ACC)
    if not SYMMETRIC:
        zero = round_even(_quotient(-bottom, step, ACC))
        zero = tl.where(zero == zero, zero, 0.0).to(ACC)
        tl.store(zero_ptr + group, zero.to(tl.int32).to(tl.uint8))
    word = tl.arange(0, BLOCK // per_word).to(tl.int64)
    element = tl.arange(0, per_word)
    shift = _shifts(BITS)
    # Words past the end of a row, up to its padding, are zeros.
    end = tl.minimum(first + group_size, row_words * per_word)
    for start in range(first, end, BLOCK):
        col = start + word[:, None] * per_word + element[None, :]
        x = tl.load(x_ptr + col * x_col, col < last, 0.0).to(ACC)
        y = _quotient(x, tl.zeros_like(x) + step, ACC)
        y = tl.where(y == y, tl.minimum(tl.maximum(y, -2.0 * largest), 2.0 * largest), -2.0 * largest)
        q = tl.minimum(tl.maximum(round_even(y) + zero, 0.0), largest).to(tl.int32)
        words = tl.sum(tl.where(col < last, q, 0) << shift[None, :], 1)
        at = start // per_word + word
        tl.store(data_ptr + row * row_words + at, words, at * per_word < end)


def _weight_arguments(data: Tensor, scale: Tensor, zero: Tensor | None) -> tuple[tuple[object, ...], bool]:
    """The pointers and strides that a kernel takes, and whether the bytes are read as words."""
    words = data.stride(1) == 1 and data.stride(0) % 4 == 0 and data.data_ptr() % 4 == 0
    words = words and data.storage_offset() % 4 == 0
    data = data.view(torch.int32) if words else data
    zeros = data if zero is None else zero
    arguments = (t for tensor in (data, scale, zeros) for t in (tensor, tensor.stride(0), tensor.stride(1)))
    return tuple(arguments), words


def _group_shift(group_size: int | None) -> int:
    return _WHOLE_ROW if group_size is None else group_size.bit_length() - 1


def dequantize_packed(
    packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group_size: int | None, in_features: int
) -> Tensor:
    n, k = packed.shape[0], in_features
    output = torch.empty((n, k), dtype=scale.dtype, device=packed.device)
    if output.numel() == 0:
        return output
    block_n, block_k = 16, 128
    weight, words = _weight_arguments(packed, scale, zero)
    _dequantize_kernel[(triton.cdiv(n, block_n) * triton.cdiv(k, block_k),)](
        *weight, output, n, k, _group_shift(group_size), BITS=bits, WORDS=words, HAS_ZERO=zero is not None,
        ACC=tl_acc(scale.dtype), BLOCK_N=block_n, BLOCK_K=block_k,
    )  # fmt: skip
    return output


def quantize_packed(
    weight: Tensor, bits: int, group_size: int | None, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n, k = weight.shape
    groups, padded = group_count(k, group_size), triton.cdiv(k, PIECE) * PIECE
    words = torch.empty((n, padded * bits // 32), dtype=torch.int32, device=weight.device)
    data = words.view(torch.uint8)
    scale = torch.empty((n, groups), dtype=weight.dtype, device=weight.device)
    zero = data.new_empty((0,) if symmetric else (n, groups))
    if n * groups > 0:
        size = padded if group_size is None else group_size
        block = max(row_block(size, 2048), PIECE)
        _quantize_kernel[(n * groups,)](
            weight, weight.stride(0), weight.stride(1), words, scale, zero, k, groups, size,
            words.shape[1], BITS=bits, SYMMETRIC=symmetric, ACC=tl_acc(weight.dtype), INTERPRETED=interpreted(),
            BLOCK=block, num_warps=num_warps(block),
        )  # fmt: skip
    return data, scale, zero


def linear_packed(
    input: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    n, k = packed.shape[0], input.shape[-1]
    sizes = (*input.shape[:-1], n)
    m = input.shape[:-1].numel()
    x = input.reshape(m, k)
    addend = None if residual is None else residual.reshape(m, n)
    keep = save_preact and needs_preact(activation)
    fused = (m <= MAX_FUSED_ROWS or batch_invariant) and input.dtype in (torch.float16, torch.bfloat16)
    if not fused:
        weight = dequantize_packed(packed, scale, zero, bits, group_size, k)
        arithmetic = {"precision": precision, "batch_invariant": batch_invariant}
        output, preact = gemm(x, weight, bias, addend, activation, keep, **arithmetic)
        return output.view(sizes), preact.view(sizes) if keep else preact
    output = torch.empty(sizes, dtype=input.dtype, device=input.device)
    preact = torch.empty(sizes if keep else (0,), dtype=input.dtype, device=input.device)
    if output.numel() == 0:
        return output, preact
    block_m = 16 if m <= 16 and not batch_invariant else 64
    block_n, block_k = 64, 64
    arguments, words = _weight_arguments(packed, scale, zero)
    bias_or_any = output if bias is None else bias.contiguous()
    residual_or_any = output.view(m, n) if addend is None else addend
    _linear_kernel[(triton.cdiv(m, block_m) * triton.cdiv(n, block_n),)](
        x, x.stride(0), x.stride(1), *arguments, bias_or_any, residual_or_any, residual_or_any.stride(0),
        residual_or_any.stride(1), output, preact, m, n, k, _group_shift(group_size),
        BITS=bits, WORDS=words, HAS_ZERO=zero is not None, HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None, SAVE=keep, ACTIVATION=activation, UPCAST=interpreted(),
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=4 if block_m == 16 else 8, num_stages=3,
    )  # fmt: skip
    return output, preact


def linear_packed_backward(
    grad_output: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    saved: Tensor | None,
    bits: int,
    group_size: int | None,
    in_features: int,
    activation: str,
    precision: str,
    batch_invariant: bool,
    need_input: bool,
    need_bias: bool,
    need_residual: bool,
) -> tuple[Tensor, ...]:
    shape = grad_output.shape
    rows = grad_output.reshape(shape[:-1].numel(), shape[-1])
    saved = None if saved is None else saved.reshape(rows.shape)
    grad, grad_bias = epilogue_grads(rows, saved, activation, need_input or need_residual, need_bias)
    grad_input = grad_residual = None
    if need_input:
        weight = dequantize_packed(packed, scale, zero, bits, group_size, in_features)
        grad_input = gemm(grad, weight.t(), precision=precision, batch_invariant=batch_invariant)[0].view(
            *shape[:-1], in_features
        )
    if need_residual:
        grad_residual = residual_grad(grad, rows, shape)
    outputs = (grad_input, grad_bias if need_bias else None, grad_residual)
    return tuple(grad_output.new_empty(0) if t is None else t for t in outputs)
