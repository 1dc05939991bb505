"""Bugs in the losses behind a linear layer."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/bindings/linear_loss.cpp",
         ("linear_cross_entropy", "the first chunk's weight gradient alone", "add_to(to, addend);", ""),
         ("linear_cross_entropy", "every part of the classes to the first one's place",
          "rows_from(grad_weight_, from, count)", "rows_from(grad_weight_, 0, count)")),
    *planted_in("csrc/bindings/linear_cross_entropy.cpp",
         ("linear_cross_entropy", "the first chunk's targets",
          "params.input = rows_of(logits, 1, holder);\n  params.target = targets.from(first);",
          "params.input = rows_of(logits, 1, holder);\n  params.target = targets.from(0);"),
         ("linear_cross_entropy", "a mean over rows, not over weights",
          "sum_losses(losses, targets.from(0), targets.class_weight,", "sum_losses(losses, targets.from(0), {},")),
    *planted_in("csrc/cuda/linear_loss/linear_loss.cu",
         ("linear_cross_entropy", "scale by nothing", "piece.values[i] *= by;", "piece.values[i] *= 1.0f;")),
    *planted_in("triton_kernels/_linear_loss.py",
         ("linear_cross_entropy", "the first chunk's weight gradient alone",
          "part.add_(gemm(of_classes.t(), columns, **settings)[0])", "del part")),
    *planted_in("python/warpwright/reference/linear_loss.py",
         ("linear_cross_entropy", "scale by nothing", "(grad_loss.to(acc) * grad.to(acc))", "grad.to(acc)")),
]  # fmt: skip
