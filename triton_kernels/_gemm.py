"""Matrix product with a fused epilogue, for any strides and sizes; linear's forward and both its gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright._check import needs_preact
from warpwright.triton_kernels import _gemm_persistent as persistent
from warpwright.triton_kernels._common import interpreted, tl_acc
from warpwright.triton_kernels._gemm_tile import store_tile, tile_of
from warpwright.tuning import Config, Limits, Tunable, exact, power_of_two


@triton.jit
def _batch_offset(index, sizes, strides):
    last, rest = index % sizes[2], index // sizes[2]
    return last * strides[2] + rest % sizes[1] * strides[1] + rest // sizes[1] * strides[0]


@triton.jit
def _gemm_kernel(
    a_ptr, a_batch, a_row, a_col, b_ptr, b_batch, b_row, b_col, bias_ptr,
    residual_ptr, residual_batch, residual_row, residual_col, output_ptr, preact_ptr, sizes, m, n, k,
    alpha, beta, output_scale,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE: tl.constexpr, ACTIVATION: tl.constexpr,
    BATCHED: tl.constexpr, PRECISION: tl.constexpr, LIMIT: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    tile = tl.program_id(0)
    if BATCHED:
        index = (tile // (tiles_m * tiles_n)).to(tl.int64)
        tile = tile % (tiles_m * tiles_n)
        a_ptr += _batch_offset(index, sizes, a_batch)
        b_ptr += _batch_offset(index, sizes, b_batch)
        residual_ptr += _batch_offset(index, sizes, residual_batch)
        output_ptr += index * m * n
        preact_ptr += index * m * n
    tile_m, tile_n = tile_of(tile, tiles_m, tiles_n, GROUP_M)
    row = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for start in range(0, k, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K).to(tl.int64)
        a_mask = (row[:, None] < m) & (inner[None, :] < k)
        b_mask = (col[None, :] < n) & (inner[:, None] < k)
        a = tl.load(a_ptr + row[:, None] * a_row + inner[None, :] * a_col, a_mask, 0.0)  # (BLOCK_M, BLOCK_K)
        b = tl.load(b_ptr + col[None, :] * b_row + inner[:, None] * b_col, b_mask, 0.0)  # (BLOCK_K, BLOCK_N)
        if UPCAST:
            a = a.to(ACC)
            b = b.to(ACC)
        acc += tl.dot(a, b, input_precision=PRECISION, out_dtype=ACC)
    store_tile(
        acc, row, col, m, n, bias_ptr, residual_ptr, residual_row, residual_col, output_ptr, preact_ptr,
        alpha, beta, output_scale, HAS_BIAS, HAS_RESIDUAL, SAVE, ACTIVATION, LIMIT, ACC, UPCAST,
    )  # fmt: skip


# ---- configurations ----


def tile_fits(config: Config, sizes: Mapping[str, int], dtype: torch.dtype, limits: Limits) -> bool:
    """Whether a product's tile can run and is worth trying: for `Tunable.fits`, here and in conv.py."""
    block_m, block_n, block_k = (config[f"BLOCK_{name}"] for name in "MNK")
    # Larger than the matrix: padding. A 128th of it and less: there are more small tiles than any GPU runs at once.
    rounded = {name: power_of_two(sizes[name]) for name in "mnk"}
    within = all(config[f"BLOCK_{name.upper()}"] <= max(32, rounded[name]) for name in "mnk")
    within = within and block_m >= min(64, rounded["m"] // 128) and block_n >= min(64, rounded["n"] // 128)
    if not limits.warps:
        return within
    # Above 128 sums a thread its registers are full; below 4 the loads' addresses outweigh the product.
    sums = block_m * block_n // (32 * config["num_warps"])
    stages = config["num_stages"] * (block_m + block_n) * block_k * dtype.itemsize
    return within and 4 <= sums <= 128 and (limits.shared_memory is None or stages <= limits.shared_memory)


def _fits(config: Config, sizes: Mapping[str, int], dtype: torch.dtype, limits: Limits) -> bool:
    bands = config["GROUP_M"] == 1 or sizes["m"] > config["GROUP_M"] * config["BLOCK_M"]
    return bands and tile_fits(config, sizes, dtype, limits)


def _default(m: int, n: int, k: int) -> Config:
    block_m, block_n, block_k = (32, 32, 64) if interpreted() else (64, 64, 32)
    tile = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 1}
    return tile | {"num_warps": 4, "num_stages": 3}


def _tunable(name: str, grows: str) -> Tunable:
    """`grows` is the dimension of the product that grows with the batch."""
    return Tunable(
        name,
        files=("_gemm.py", "_gemm_persistent.py", "_gemm_tile.py", "_activation.py", "_common.py"),
        buckets={size: power_of_two if size == grows else exact for size in "mnk"},
        summed=("k",),
        space={
            "BLOCK_M": (16, 32, 64, 128, 256),
            "BLOCK_N": (16, 32, 64, 128, 256),
            "BLOCK_K": (32, 64, 128),
            "GROUP_M": (1, 8),
            "num_warps": (4, 8),
            "num_stages": (3, 4),
        },
        default=_default,
        fits=_fits,
    )


GEMM = _tunable("gemm", grows="m")
# linear's weight gradient: the batch is what is summed over.
GEMM_WEIGHT_GRAD = _tunable("gemm_weight_grad", grows="k")


#: Batch dimensions that the kernel walks by strides; those that share one are merged.
_BATCH_DIMS = 3


def _batch(*tensors: Tensor) -> tuple[list[int], list[list[int]]]:
    """The batch dimensions of operands of one batch: sizes, and each operand's strides, merged where all allow it."""
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in tensors]
    for d in reversed(range(tensors[0].dim() - 2)):
        size = tensors[0].shape[d]
        if size == 1:
            continue
        if sizes and all(t.stride(d) == s[0] * sizes[0] for t, s in zip(tensors, strides, strict=True)):
            sizes[0] *= size
            continue
        sizes.insert(0, size)
        for t, s in zip(tensors, strides, strict=True):
            s.insert(0, t.stride(d))
    missing = _BATCH_DIMS - len(sizes)
    return [1] * missing + sizes, [[0] * missing + s for s in strides]


def gemm(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    save: bool = False,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    output_scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
    precision: str = "ieee",
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]:
    """output_scale * activation(alpha * a @ b.mT + bias + beta * residual), and what its gradient needs.

    a is (*batch, m, k), b (*batch, n, k). `save`: the pre-activation where the gradient is taken from that, else the
    activation's value; no elements without it.
    """
    (m, k), n = a.shape[-2:], b.shape[-2]
    sizes = (*a.shape[:-1], n)
    output = torch.empty(sizes, dtype=out_dtype or a.dtype, device=a.device)
    preact = torch.empty(sizes if save else (0,), dtype=a.dtype, device=a.device)
    if output.numel() == 0:
        return output, preact
    addend = output if residual is None else residual
    batch, strides = _batch(a, b, addend)
    if len(batch) > _BATCH_DIMS:
        a, b, addend = a.contiguous(), b.contiguous(), addend.contiguous()
        batch, strides = _batch(a, b, addend)
    matrices = math.prod(batch)
    bias_or_any = output if bias is None else bias.contiguous()

    epilogue = {
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "SAVE": "none" if not save else "preact" if needs_preact(activation) else "value",
        "ACTIVATION": activation,
        "LIMIT": torch.finfo(output.dtype).max if output.dtype.itemsize == 1 else 0.0,
        "ACC": tl_acc(a.dtype),
        "UPCAST": interpreted(),
    }

    def run(config: Config) -> None:
        tiles = triton.cdiv(m, config["BLOCK_M"]) * triton.cdiv(n, config["BLOCK_N"])
        _gemm_kernel[(tiles * matrices,)](
            a, tuple(strides[0]), a.stride(-2), a.stride(-1), b, tuple(strides[1]), b.stride(-2), b.stride(-1),
            bias_or_any, addend, tuple(strides[2]), addend.stride(-2), addend.stride(-1), output, preact,
            tuple(batch), m, n, k, alpha, beta, output_scale,
            BATCHED=matrices > 1, PRECISION=precision, **epilogue, **config,
        )  # fmt: skip

    def run_persistent(config: Config) -> None:
        tiles = triton.cdiv(m, config["BLOCK_M"]) * triton.cdiv(n, config["BLOCK_N"])
        persistent.allocate_descriptors()
        a_line, b_line = persistent.line(a), persistent.line(b)
        persistent.gemm_persistent_kernel[(persistent.programs(a.device, tiles),)](
            a, a_line, b, b_line, bias_or_any, addend, addend.stride(-2), addend.stride(-1), output, preact, m, n, k,
            alpha, beta, output_scale, A_ALONG_K=a.stride(1) == 1, B_ALONG_K=b.stride(1) == 1, **epilogue, **config,
        )  # fmt: skip

    chosen = run_persistent if persistent.takes(a, b) else run
    if batch_invariant:
        # Of the sizes, the weight's alone may choose: how a sum is split up must not depend on the number of rows.
        chosen(GEMM.default(m, n, k))
        return output, preact
    # The dimension along which each operand is contiguous: "kk" forward, "kn" for the input's gradient, "mn" for the
    # weight's, where the batch is the dimension that a's rows do not run along.
    along_k = a.stride(-1) == 1
    layout = ("k" if along_k else "m") + ("k" if b.stride(-1) == 1 else "n")
    (GEMM if along_k else GEMM_WEIGHT_GRAD).launch(chosen, a, (m, n, k), (output, preact), layout)
    return output, preact
