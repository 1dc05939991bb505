"""Bugs in what families share."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cpu/vec.h", ("rms_norm", "drop the tail", "if (i < n) body(i, n - i);", "")),
    *planted_in("csrc/bindings/common.cpp",
         ("rms_norm", "walk rows with the wrong stride", "rows.col_stride = row_dims == 0 ? 1 : row_stride;",
          "rows.col_stride = 1;")),
    *planted_in("csrc/cuda/tile/reduction.cuh",
         ("layer_norm", "drop the last warp", "for (int warp = 0; warp < kWarps; ++warp)",
          "for (int warp = 0; warp + 1 < kWarps; ++warp)"),
         ("layer_norm", "skip the first barrier", """] = value;
  __syncthreads();""", "] = value;")),
]  # fmt: skip
