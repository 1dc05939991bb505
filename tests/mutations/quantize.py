"""Bugs in the quantize family."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cpu/float8.h",
         ("quantize_fp8", "round up, not to even", "const U32s odd = (magnitude >> kDropped) & 1u;",
          "const U32s odd = (magnitude & 0u) + 1u;"),
         ("dequantize_fp8", "lose subnormals", "select((U32s)(magnitude < (1u << F::kMantissa)), subnormal, normal)",
          "normal")),
    *planted_in("csrc/cpu/quantize.cpp",
         ("quantize_fp8", "no least scale", "return scale < kMinScale ? kMinScale : scale;", "return scale;")),
    *planted_in("csrc/cuda/tile/float8.cuh",
         ("quantize_fp8", "cut, not round", "((magnitude + ((1u << (kDropped - 1)) - 1u) + odd) >> kDropped)",
          "((magnitude + 0u * odd) >> kDropped)")),
    *planted_in("csrc/cuda/quantize/quantize_fp8.cu",
         ("quantize_fp8", "lose NaN", "return a > b || a != a ? a : b;", "return fmaxf(a, b);"),
         ("dequantize_fp8", "the scale of the first block",
          "p.scale.offset(group.row) + (group.index - group.row * p.groups) * p.scale.col_stride",
          "p.scale.offset(group.row)")),
    *planted_in("triton_kernels/quantize.py",
         ("quantize_fp8", "lose the sign", "| ((bits >> 24) & 0x80)", "| 0"),
         ("dequantize_fp8", "the scale of the first block", "row * scale_row + group * scale_col", "row * scale_row")),
    *planted_in("python/warpwright/reference/quantize.py",
         ("quantize_fp8", "no least scale", "(amax / largest).clamp(min=MIN_SCALE)", "(amax / largest)")),
]  # fmt: skip
