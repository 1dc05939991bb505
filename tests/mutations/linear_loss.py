"""Bugs in the losses behind a linear layer."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/bindings/linear_loss.cpp",
         ("linear_cross_entropy", "keep the last chunk's weight gradient",
          "if (first != 0) add_to(grad_weight_, part);", "if (first != 0) grad_weight_ = part;"),
         ("linear_cross_entropy", "the first chunk's targets",
          "params.target = layer.targets(first);\n  params.row_loss",
          "params.target = layer.targets(0);\n  params.row_loss")),
    *planted_in("csrc/cuda/linear_loss/linear_loss.cu",
         ("linear_cross_entropy", "scale by nothing", "piece.values[i] *= by;", "piece.values[i] *= 1.0f;")),
    *planted_in("triton_kernels/linear_loss.py",
         ("linear_cross_entropy", "the last chunk's weight gradient", "self.of_weight.add_(part)", "part")),
    *planted_in("python/warpwright/reference/linear_loss.py",
         ("linear_cross_entropy", "scale by nothing", "(grad_loss.to(acc) * grad.to(acc))", "grad.to(acc)")),
]  # fmt: skip
