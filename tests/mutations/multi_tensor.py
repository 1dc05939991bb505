"""Bugs in the multi_tensor family."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cpu/multi_tensor.cpp",
         ("multi_tensor_norm", "no root", "p.largest ? total : ::sqrt(total)", "total"),
         ("multi_tensor_norm", "drop a NaN", "return (b > a) | (b != b) ? b : a;", "return b > a ? b : a;"),
         ("multi_tensor_scale_", "flag what is finite", "*p.found_inf = found ? 1.0f : 0.0f;", "*p.found_inf = 0.0f;")),
    *planted_in("csrc/bindings/multi_tensor.cpp",
         ("multi_tensor_norm", "every launch's partials in one place", "      table.flags += chunks;\n", ""),
         ("multi_tensor_scale_", "lose what was moved", "  arranged.write_back();\n", "")),
    *planted_in("csrc/cuda/multi_tensor/multi_tensor.cu",
         ("multi_tensor_norm", "the last elements twice", "int i = whole + static_cast<int>(threadIdx.x)",
          "int i = static_cast<int>(threadIdx.x)"),
         ("multi_tensor_scale_", "leave the last ones",
          "if (kKind == Pass::kScale) data[i] = from_float<T>(scaled);", "")),
    *planted_in("triton_kernels/multi_tensor.py",
         ("multi_tensor_norm", "drop a NaN", "tl.where(odd > 0, float(\"nan\"), ",
          "tl.where(odd > 1, float(\"nan\"), "),
         ("multi_tensor_scale_", "no multiplier", "scaled = x * tl.load(multiplier_ptr)", "scaled = x")),
    *planted_in("python/warpwright/reference/multi_tensor.py",
         ("multi_tensor_norm", "one norm for all orders", "vector_norm(t.to(acc).contiguous(), order)",
          "vector_norm(t.to(acc).contiguous())"),
         ("multi_tensor_scale_", "forget what was found", "torch.maximum(found_inf, ", "torch.minimum(found_inf, ")),
]  # fmt: skip
