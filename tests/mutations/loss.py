"""Bugs in the losses over classes."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cpu/nll_loss.cpp",
         ("nll_loss", "ignore nothing", "if (target == p.ignore_index) continue;", ";")),
    *planted_in("csrc/cuda/loss/nll_loss.cu",
         ("nll_loss", "the loss without its weight", "known ? -weight_of(p.weight, target) *", "known ? -"),
         ("nll_loss", "the gradient of a sum", "scale /= *static_cast<const float*>(p.total);", ";")),
    *planted_in("csrc/cpu/loss.cpp",
         ("cross_entropy", "skip the smoothing", "if (masses.spreads()) {", "if (masses.spreads() && false) {"),
         ("cross_entropy", "forget the target's gradient",
          "if (std::is_void_v<P>) out[target] = from_acc<T>(at_target);", ";"),
         ("cross_entropy", "lose a strided row", "    grad_input.write();", "    ;"),
         ("cross_entropy", "forget the cap's derivative", "return cap > 0 ? grad * (1 - (y / cap) * (y / cap)) : grad;",
          "return grad;")),
    *planted_in("csrc/cpu/loss_sums.cpp",
         ("cross_entropy", "count ignored rows", "if (target == p.ignore_index) return 0;",
          "if (target < -200) return 0;")),
    *planted_in("csrc/cuda/loss/loss_sums.cu",
         ("cross_entropy", "count ignored rows", "if (target == p.ignore_index) return 0.0f;", ";"),
         ("cross_entropy", "skip a barrier", """    }
    __syncthreads();
  }
  loss = losses[0];""", """    }
  }
  loss = losses[0];""")),
    *planted_in("csrc/cuda/loss/online_sum.cuh",
         ("cross_entropy", "rescale by the wrong maximum", "sum * expf((max - new_max) * scale)", "sum")),
    *planted_in("csrc/cuda/loss/cross_entropy.cu",
         ("cross_entropy", "use a bad target", "if (!known) scale = NAN;", ";"),
         ("cross_entropy", "the probabilities' gradient without its weight",
          "scale * masses.rest * weight * (log_sum", "scale * masses.rest * (log_sum")),
    *planted_in("triton_kernels/loss.py",
         ("nll_loss", "the class stride", "+ tl.where(known, target, 0) * out_class", "+ tl.where(known, target, 0)"),
         ("cross_entropy", "skip the smoothing", "            if SOFT or SMOOTH:", "            if SOFT:"),
         ("cross_entropy", "the inner stride", "    out_ptr += row // inner * out_outer + row % inner * out_inner",
          "    out_ptr += row // inner * out_outer + row % inner")),
    *planted_in("python/warpwright/reference/loss.py",
         ("nll_loss", "the sign", "row_loss = -x.gather", "row_loss = x.gather"),
         ("cross_entropy", "use a bad target", "(weights * gaps).gather(-1, index), torch.nan)",
          "(weights * gaps).gather(-1, index), 0.0)")),
]  # fmt: skip
