"""Bugs in the norm family."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cpu/norm.cpp",
         ("rms_norm", "skip the weight", "if (weight != nullptr) y *= load(weight + i, n);", ";"),
         ("layer_norm", "skip the bias", "if (bias != nullptr) y += load(bias + i, n);", ";"),
         ("layer_norm", "forget the mean's gradient", "(g - mean_grad - xhat * mean_dot)", "(g - xhat * mean_dot)"),
         ("rms_norm", "skip the residual's gradient", "if (extra != nullptr) dx += load(extra + i, n);", ";")),
    *planted_in("csrc/cuda/norm/norm.cu",
         ("rms_norm", "flip a sign", "xhat * mean_dot) * rstd", "-xhat * mean_dot) * rstd"),
         ("layer_norm", "skip the bias", "if (bias != nullptr) y += to_float(bias[col]);", ";"),
         ("layer_norm", "lose the bias' gradient", "bias_sums[col] += dy;", "bias_sums[col] += 0.0f;")),
    *planted_in("triton_kernels/norm.py",
         ("rms_norm", "flip a sign", "dx = (g - mean_grad - xhat * mean_dot) * rstd",
          "dx = (g - mean_grad + xhat * mean_dot) * rstd"),
         ("layer_norm", "count lanes past the end", "difference = tl.where(mask, x - mean, 0.0)",
          "difference = x - mean"),
         ("rms_norm", "find a row in 32 bits", "sum_ptr + wide_row * sum_row", "sum_ptr + row * sum_row")),
    *planted_in("python/warpwright/reference/norm.py",
         ("layer_norm", "variance without the mean", "rstd = torch.rsqrt(((h - mean) ** 2)",
          "rstd = torch.rsqrt((h ** 2)")),
]  # fmt: skip
