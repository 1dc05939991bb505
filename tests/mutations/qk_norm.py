"""Bugs in the qk_norm family."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cpu/qk_norm.cpp",
         ("qk_norm_rotary", "rotate backward as forward", "at.table<Table>(p, p.sin), A(-1)",
          "at.table<Table>(p, p.sin), A(1)"),
         ("qk_norm_rotary", "skip the offset", "if (weight != nullptr) y *= load(weight + i, n) + weight_offset;",
          "if (weight != nullptr) y *= load(weight + i, n);")),
    *planted_in("csrc/cuda/qk_norm/qk_norm.cu",
         ("qk_norm_rotary", "the sums of one team", "total += all_sums[k * kCount + i][team * lanes + lane];",
          "total += all_sums[k * kCount + i][lane];"),
         ("qk_norm_rotary", "mix the layouts", "neighbours(p.interleaved && kCount == 1)", "neighbours(false)")),
    *planted_in("triton_kernels/qk_norm.py",
         ("qk_norm_rotary", "forget the rest", "tl.sum(u * u + v * v, 0) + tl.sum(w * w, 0)",
          "tl.sum(u * u + v * v, 0)"),
         ("qk_norm_rotary", "lose a gradient of the weight", "second_sum += dv * v", "second_sum += dv * 0.0")),
    *planted_in("python/warpwright/reference/qk_norm.py",
         ("qk_norm_rotary", "rotate backward as forward", "rotated(grad.to(acc), cos, -sin, interleaved)",
          "rotated(grad.to(acc), cos, sin, interleaved)")),
]  # fmt: skip
