"""Bugs in the scaled family."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cpu/scaled.cpp",
         ("scaled_matmul", "forget the second of two", "high = left > 1 ? static_cast<int8_t>(from[stride]) : 0;",
          "high = 0 * left * stride;"),
         ("scaled_matmul", "the scale of the first block", "p.other_scale.at(tile.col0 + col, block) : 1.0f;",
          "p.other_scale.at(tile.col0 + col, 0) : 1.0f;")),
    *planted_in("csrc/bindings/scaled.cpp",
         ("scaled_matmul", "a scale for each row of a block", "scale.size(0) == rows ? 0 : kScaleBlockShift", "0")),
    *planted_in("csrc/cuda/scaled/epilogue.cuh",
         ("scaled_matmul", "forget the channel's scale", "if (!p.other_scale.by_block) total *=",
          "if (false) total *=")),
    *planted_in("csrc/cuda/scaled/scaled_mma.cu",
         ("scaled_matmul", "lose NaN", "((magnitude + 0x01000100u) & decoding.nan) >> 1;", "0u;"),
         ("scaled_matmul", "promote a block late", "(step + 1) * kStepK % kScaleBlock == 0 || step", "step"),
         ("scaled_matmul", "odd bytes twice", "const int up = odd ? 0 : 8;", "const int up = odd ? 0 : 0;"),
         ("scaled_matmul", "copy past the row's end", "left < ptx::kCopyBytes ? static_cast<int>(left) : ptx", "ptx")),
    *planted_in("csrc/cuda/scaled/scaled_wgmma.cu",
         ("scaled_matmul", "add integers to the last tile's", "part > 0 || (!kFloat && k > 0)",
          "part + k > 0 || !kFloat"),
         ("scaled_matmul", "the first column's scale", "column[e] = scales.at[col * row_stride];",
          "column[e] = scales.at[0 * row_stride];"),
         ("scaled_matmul", "hand a stage back early", "ptx::wgmma_wait<0>();", "ptx::wgmma_wait<1>();")),
    *planted_in("csrc/cuda/tile/box_writer.cuh",
         ("scaled_matmul", "skip the proxy's fence", "    ptx::fence_proxy_async();\n", "")),
    *planted_in("triton_kernels/scaled.py",
         ("scaled_matmul", "the scale of the first block", "block * a_scale_block, row < m", "0 * block, row < m")),
    *planted_in("python/warpwright/reference/scaled.py",
         ("scaled_matmul", "skip the bias", "total = total + bias", "total = total + 0 * bias")),
]  # fmt: skip
