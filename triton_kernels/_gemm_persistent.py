"""Matrix product for GPUs with TMA: tensor descriptors, and programs that stay on their multiprocessor.

As many programs as there are multiprocessors walk the tiles; while one tile's epilogue runs, the next one's operands
arrive. Descriptors fill what lies outside a matrix with zeros, so the inner loop has no masks.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import interpreted
from warpwright.triton_kernels._gemm_tile import store_tile, tile_of


@triton.jit
def gemm_persistent_kernel(
    a_ptr, a_line, b_ptr, b_line, bias_ptr, residual_ptr, residual_row, residual_col, output_ptr, preact_ptr, m, n, k,
    alpha, beta, output_scale,
    A_ALONG_K: tl.constexpr, B_ALONG_K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    SAVE: tl.constexpr, ACTIVATION: tl.constexpr, LIMIT: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    if A_ALONG_K:
        a_desc = tl.make_tensor_descriptor(a_ptr, [m, k], [a_line, 1], [BLOCK_M, BLOCK_K])
    else:
        a_desc = tl.make_tensor_descriptor(a_ptr, [k, m], [a_line, 1], [BLOCK_K, BLOCK_M])
    if B_ALONG_K:
        b_desc = tl.make_tensor_descriptor(b_ptr, [n, k], [b_line, 1], [BLOCK_N, BLOCK_K])
    else:
        b_desc = tl.make_tensor_descriptor(b_ptr, [k, n], [b_line, 1], [BLOCK_K, BLOCK_N])
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        tile_m, tile_n = tile_of(tile, tiles_m, tiles_n, GROUP_M)
        m0, n0 = tile_m * BLOCK_M, tile_n * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        for k0 in range(0, k, BLOCK_K):
            a = a_desc.load([m0, k0]) if A_ALONG_K else a_desc.load([k0, m0]).T
            b = b_desc.load([n0, k0]).T if B_ALONG_K else b_desc.load([k0, n0])
            if UPCAST:
                a = a.to(ACC)
                b = b.to(ACC)
            acc = tl.dot(a, b, acc)
        row = m0.to(tl.int64) + tl.arange(0, BLOCK_M)
        col = n0.to(tl.int64) + tl.arange(0, BLOCK_N)
        store_tile(
            acc, row, col, m, n, bias_ptr, residual_ptr, residual_row, residual_col, output_ptr, preact_ptr,
            alpha, beta, output_scale, HAS_BIAS, HAS_RESIDUAL, SAVE, ACTIVATION, LIMIT, ACC, UPCAST,
        )  # fmt: skip


def takes(a: Tensor, b: Tensor) -> bool:
    """Whether descriptors can read both matrices: 16-bit, 16-byte aligned lines, no batch, on Hopper or later."""
    half = a.dtype in (torch.float16, torch.bfloat16) and a.dim() == 2
    return half and line(a) > 0 and line(b) > 0 and _has_tma(a.device)


@functools.cache
def _has_tma(device: torch.device) -> bool:
    return interpreted() or (device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9)


def line(matrix: Tensor) -> int:
    """The stride from line to line of a matrix that TMA can walk, 0 for others."""
    row, col = matrix.stride()
    stride = row if col == 1 else col if row == 1 else 0
    width = matrix.shape[1] if col == 1 else matrix.shape[0]
    return stride if stride >= width > 0 and stride % 8 == 0 and matrix.data_ptr() % 16 == 0 else 0


def programs(device: torch.device, tiles: int) -> int:
    """One for each multiprocessor, where there is a tile for each."""
    if device.type != "cuda":
        return min(tiles, 2)
    return min(tiles, torch.cuda.get_device_properties(device).multi_processor_count)


def allocate_descriptors() -> None:
    """Triton keeps a launch's descriptors in memory that it asks for here; PyTorch's is safe in CUDA graphs."""

    def allocate(size: int, alignment: int, stream: int | None) -> Tensor:
        return torch.empty(size, dtype=torch.int8, device="cuda")

    triton.set_allocator(allocate)
