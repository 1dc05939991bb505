"""Bugs in the losses that teach one model by another."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/bindings/distillation.cpp",
         ("linear_kl_div", "the first chunk's gradient of the loss", "by_row ? first : 0", "0")),
    *planted_in("csrc/cpu/distillation.cpp",
         ("linear_kl_div", "the gradient of the logits before their temperature",
          "static_cast<A>(p.factor) * scale", "static_cast<A>(p.factor)"),
         ("linear_kl_div", "count past the last class", "v[lane] = 0;", "v[lane] = 1;")),
    *planted_in("csrc/cuda/distillation/softmax_kl_div.cu",
         ("linear_kl_div", "the divergence of the teacher from the student",
          "loss += probability * (log_p - log_q)", "loss += expf(log_q) * (log_q - log_p) - 2 * gap"),
         ("linear_kl_div", "the student's row is the teacher's", "static_cast<const T*>(p.teacher.data)",
          "static_cast<const T*>(p.student.data)")),
    *planted_in("triton_kernels/distillation.py",
         ("linear_kl_div", "the gradient of the logits before their temperature", "of_grad = factor * scale",
          "of_grad = factor")),
    *planted_in("python/warpwright/reference/distillation.py",
         ("linear_kl_div", "the mean over elements", '"batchmean": log_q.shape[0]', '"batchmean": log_q.numel()')),
]  # fmt: skip
