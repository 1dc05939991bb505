"""Matrix product with a fused epilogue, for any strides and sizes; linear's forward and both its gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._activation import activate
from warpwright.triton_kernels._common import interpreted, tl_acc
from warpwright.tuning import Config, Limits, Tunable, exact, power_of_two


@triton.jit
def _tile(pid, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    # Row by row, or down a band of GROUP_M rows first: the tiles that run at once then share more of what L2 holds.
    if GROUP_M == 1:
        tile_m, tile_n = pid // tiles_n, pid % tiles_n
    else:
        first = pid // (GROUP_M * tiles_n) * GROUP_M
        height = tl.minimum(tiles_m - first, GROUP_M)
        within = pid % (GROUP_M * tiles_n)
        tile_m, tile_n = first + within % height, within // height
    return tile_m, tile_n


@triton.jit
def _gemm_kernel(
    a_ptr, a_row, a_col, b_ptr, b_row, b_col, bias_ptr, residual_ptr, residual_row, residual_col,
    output_ptr, preact_ptr, m, n, k,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE_PREACT: tl.constexpr, ACTIVATION: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    tile_m, tile_n = _tile(tl.program_id(0), tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N), GROUP_M)
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
        acc += tl.dot(a, b, input_precision="ieee", out_dtype=ACC)
    inside = (row[:, None] < m) & (col[None, :] < n)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + col, col < n, 0.0).to(ACC)[None, :]
    if HAS_RESIDUAL:
        at = row[:, None] * residual_row + col[None, :] * residual_col
        acc += tl.load(residual_ptr + at, inside, 0.0).to(ACC)
    at = row[:, None] * n + col[None, :]
    if SAVE_PREACT:
        tl.store(preact_ptr + at, acc.to(preact_ptr.dtype.element_ty), inside)
    tl.store(output_ptr + at, activate(acc, ACTIVATION).to(output_ptr.dtype.element_ty), inside)


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
        files=("_gemm.py", "_activation.py", "_common.py"),
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


def gemm(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    save_preact: bool = False,
) -> tuple[Tensor, Tensor]:
    """activation(a @ b.T + bias + residual) for a (m, k), b (n, k), and the pre-activation where it is asked for."""
    (m, k), n = a.shape, b.shape[0]
    output = torch.empty((m, n), dtype=a.dtype, device=a.device)
    preact = torch.empty((m, n) if save_preact else (0,), dtype=a.dtype, device=a.device)
    if output.numel() == 0:
        return output, preact
    addend = output if residual is None else residual
    bias_or_any = output if bias is None else bias.contiguous()

    def run(config: Config) -> None:
        tiles = triton.cdiv(m, config["BLOCK_M"]) * triton.cdiv(n, config["BLOCK_N"])
        _gemm_kernel[(tiles,)](
            a, a.stride(0), a.stride(1), b, b.stride(0), b.stride(1),
            bias_or_any, addend, addend.stride(0), addend.stride(1), output, preact, m, n, k,
            HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, SAVE_PREACT=save_preact,
            ACTIVATION=activation, ACC=tl_acc(a.dtype), UPCAST=interpreted(), **config,
        )  # fmt: skip

    # The dimension along which each operand is contiguous: "kk" forward, "kn" for the input's gradient, "mn" for the
    # weight's, where the batch is the dimension that a's rows do not run along.
    along_k = a.stride(1) == 1
    layout = ("k" if along_k else "m") + ("k" if b.stride(1) == 1 else "n")
    (GEMM if along_k else GEMM_WEIGHT_GRAD).launch(run, a, (m, n, k), (output, preact), layout)
    return output, preact
