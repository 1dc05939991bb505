// Hopper's product for float16 and bfloat16 matrices, and float32 ones as TF32, that TMA can read; gemm.cu sends the
// others elsewhere. Three products of TF32 halves (Precision::kTf32x3) are not among these: wgmma reads operands
// from shared memory, and would need both halves written there; mma.sync has them in registers anyhow.

#pragma once

#include <vector>

#include "kernels/matmul.h"

namespace warpwright::cuda {

// How a product is computed. Every configuration adds an element's products up in the same order, and so gives the same
// bits, but for those that split K.
struct WgmmaConfig {
  int tile_m, tile_n;     // Of the output that a block computes at a time.
  bool pingpong = false;  // Two warpgroups take turns at tiles, else they share each tile's rows.
  bool swapped = false;   // Tiles of the transposed output: tile_m rows of b by tile_n rows of a, for a small m.
  int cluster = 1;        // Blocks (1 or 2) below each other that load the columns' operand for one another.
  int splits = 1;         // Parts of K that are added up by themselves, 1 to wgmma_steps(params).
  int band = 8;           // Columns of tiles that blocks keep to while they walk down the rows, at least 1.
};

// Whether the current device has wgmma, both operands are 16-bit, have one dimension of stride 1, and every other
// stride and their addresses are multiples of 16 bytes. The output may lie anyhow.
bool gemm_wgmma_takes(const GemmParams& params);

// Whether a product that is taken can be computed so. Not every tile serves every layout and epilogue, and splits are
// for products that need not be batch-invariant: a good number of them depends on m.
bool wgmma_allows(const GemmParams& params, const WgmmaConfig& config);

// The tiles and schedules that can, each without a cluster and splits; those and the band are the caller's to change.
std::vector<WgmmaConfig> wgmma_configs(const GemmParams& params);

// Whether results can leave by TMA: see gemm_wgmma_epilogue.cuh. Tiles of many sums ask for it.
bool wgmma_leaves_by_tma(const GemmParams& params);

// Steps along K.
int64_t wgmma_steps(const GemmParams& params);

// Bytes of device memory, aligned to 16, that gemm_wgmma needs as `workspace`.
int64_t wgmma_workspace_bytes(const GemmParams& params, const WgmmaConfig& config);

void gemm_wgmma(const GemmParams& params, const WgmmaConfig& config, void* workspace, Stream stream);

}  // namespace warpwright::cuda
