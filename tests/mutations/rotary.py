"""Bugs in the rotary family."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cpu/rotate.h",
         ("rotary_embedding", "skip what is not rotated", "y[i] = from_acc<Y>(to_acc(x[i]));", "y[i] = Y{};")),
    *planted_in("csrc/cpu/rotary.cpp",
         ("rotary_embedding", "rotate backwards", "p.inverse ? A(-1) : A(1)", "A(1)")),
    *planted_in("csrc/cuda/rotary/rotary.cu",
         ("rotary_embedding", "flip a sign", "(u * c - v * s)", "(u * c + v * s)"),
         ("rotary_embedding", "mix the layouts", "p.interleaved ? first + 1 : first + pairs", "first + pairs")),
    *planted_in("triton_kernels/rotary.py",
         ("rotary_embedding", "the table of another sequence",
          "table_batch = sequence * pairs if cos.dim() == 3 else 0",
          "table_batch = 0")),
    *planted_in("python/warpwright/reference/rotary.py",
         ("rotary_embedding", "rotate backwards", "rotary_embedding(grad_output, cos, -sin, interleaved)",
          "rotary_embedding(grad_output, cos, sin, interleaved)")),
]  # fmt: skip
