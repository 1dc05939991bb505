"""Bugs in the losses of single elements."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cpu/pointwise_loss.cpp",
         ("binary_cross_entropy_with_logits", "lose small exponentials",
          "return seen == 0 ? e : vlog(sum) * (e / seen);",
          "return vlog(sum) * (e * 0 + 2);"),
         ("kl_div", "the logarithm of zero", "(t == 0 ? Vec<A>{} : t * vlog(t)) - t * x", "t * vlog(t) - t * x")),
    *planted_in("csrc/cuda/pointwise_loss/pointwise_loss.cu",
         ("binary_cross_entropy_with_logits", "the gradient without its positive weight", "+ expf(-x)) - v * t",
          "+ expf(-x)) - t"),
         ("kl_div", "count past the last column",
          "if (col + i < last) total += x.values[i];", "total += x.values[i] + 1;")),
    *planted_in("triton_kernels/pointwise_loss.py",
         ("binary_cross_entropy_with_logits", "a row's weight",
          "w_ptr + row * w_row + col * w_col, mask, 0.0).to(ACC)\n    if SUM",
          "w_ptr + col * w_col, mask, 0.0).to(ACC)\n    if SUM"),
         ("kl_div", "forget the factor", "scale = factor * tl.load", "scale = tl.load")),
    *planted_in("python/warpwright/reference/pointwise_loss.py",
         ("binary_cross_entropy_with_logits", "the gradient without its weight", "(w * of_input, w * of_target)",
          "(of_input, of_target)"),
         ("kl_div", "the sign", "factors = -t, torch", "factors = t, torch")),
]  # fmt: skip
