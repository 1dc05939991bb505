"""Bugs in the softmax family."""

from mutations._mutation import planted_in

BOTH = ("softmax", "log_softmax")

MUTATIONS = [
    *planted_in("csrc/cpu/softmax.cpp",
         *((op, "skip the scale", "z = z * scale;", ";") for op in BOTH),
         *((op, "let gradients pass a mask", "dx = mask.select(i, lanes<A>(n), dx, A(0));", ";") for op in BOTH),
         ("softmax", "piece by piece maxima that are one", "maxima[first / kPiece] = max;",
          "maxima[first / kPiece] = row.max;"),
         ("log_softmax", "another sign", "kLog ? g - exponential<T>(value, A(0)) * dot",
          "kLog ? g + exponential<T>(value, A(0)) * dot")),
    *planted_in("csrc/kernels/softmax.h",
         *((op, "one column too few", "place + 1 + cols - causal_rows", "place + cols - causal_rows")
           for op in BOTH)),
    *planted_in("csrc/cuda/softmax/softmax.cu",
         ("softmax", "forget the sum", "p.log ? z - log_sum : expf(z) * factor);\n      });",
          "p.log ? z - log_sum : expf(z));\n      });"),
         ("log_softmax", "forget the sum", "p.log ? z - log_sum : expf(z) * factor);\n      });",
          "p.log ? z : expf(z) * factor);\n      });"),
         *((op, "let gradients pass a mask", "kept = at.holds(k) && bounds.keeps(at.col(k) + i);",
            ";") for op in BOTH)),
    *planted_in("csrc/cuda/softmax/bounds.cuh",
         *((op, "skip an added mask", "? x + to_float(static_cast<const T*>(data_)[start_ + col * stride_]) : x;",
            "? x : x;") for op in BOTH)),
    *planted_in("triton_kernels/softmax.py",
         ("softmax", "forget the sum", "else tl.exp(x - row_max) / row_sum", "else tl.exp(x - row_max)"),
         ("log_softmax", "forget the sum", "y = x - row_max - tl.log(row_sum) if", "y = x - row_max if"),
         *((op, "skip the scale of the gradient", "dx = tl.where(keep, dx * scale, 0.0)",
            "dx = tl.where(keep, dx, 0.0)") for op in BOTH)),
    *planted_in("python/warpwright/reference/softmax.py",
         *((op, "let gradients pass a mask", "grad_input = grad_input.masked_fill(drop, 0)", "pass") for op in BOTH)),
]  # fmt: skip
