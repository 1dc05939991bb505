"""Bugs in the activation family."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cpu/activation.cpp",
         ("swiglu", "skip the gate", "store(out + i, x * vsigmoid(x) * load(up + i, n), n);",
          "store(out + i, x * load(up + i, n), n);"),
         ("swiglu", "flip a sign", "s * (1 + x * (1 - s)), n);", "s * (1 - x * (1 - s)), n);"),
         ("swiglu", "wrong piece of a long row", "first = index % per_row * kPiece;", "first = 0 * per_row;")),
    *planted_in("csrc/cuda/activation/swiglu.cu",
         ("swiglu", "flip a sign", "(1.0f + x * (1.0f - s))", "(1.0f - x * (1.0f - s))"),
         ("swiglu", "drop the tail", "forward_pack<T, 1>(p, place.row, place.col + i);", ";")),
    *planted_in("triton_kernels/activation.py",
         ("swiglu", "flip a sign", "(1.0 + x * (1.0 - s))", "(1.0 - x * (1.0 - s))")),
    *planted_in("python/warpwright/reference/activation.py",
         ("swiglu", "flip a sign", "s * (1 + x * (1 - s))", "s * (1 - x * (1 - s))")),
]  # fmt: skip
