"""Bugs in the loss family."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cpu/loss.cpp",
         ("cross_entropy", "count ignored rows", "valid += target_of(p.target, row) != p.ignore_index;", "valid += 1;"),
         ("cross_entropy", "skip the smoothing", "if (p.label_smoothing > 0) {", "if (p.label_smoothing > 2) {"),
         ("cross_entropy", "forget the target's gradient", "out[target] = from_acc<T>(scale * at_target);", ";"),
         ("cross_entropy", "lose a strided row", "grad_input.write();", ";")),
    *planted_in("csrc/cuda/loss/cross_entropy.cu",
         ("cross_entropy", "rescale by the wrong maximum", "sum * expf(max - new_max)", "sum"),
         ("cross_entropy", "count ignored rows", "valid += target_of(p.target, row) != p.ignore_index;", "valid += 1;"),
         ("cross_entropy", "use a bad target", "if (!known) scale = NAN;", ";"),
         ("cross_entropy", "skip a barrier", """    }
    __syncthreads();
  }
  loss = losses[0];""", """    }
  }
  loss = losses[0];""")),
    *planted_in("triton_kernels/loss.py",
         ("cross_entropy", "skip the smoothing", "hard = tl.where(col == target, 1.0 - smoothing, 0.0)",
          "hard = tl.where(col == target, 1.0, 0.0)"),
         ("cross_entropy", "the inner stride", "x_ptr += row // inner * x_outer + row % inner * x_inner\n    target",
          "x_ptr += row // inner * x_outer + row % inner\n    target")),
    *planted_in("python/warpwright/reference/loss.py",
         ("cross_entropy", "use a bad target", "torch.where(known, loss, torch.nan)", "loss")),
]  # fmt: skip
