"""Bugs in the optim family."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cpu/optim.cpp",
         ("adamw_", "skip the decay", "x = x * decay - step_size", "x = x - step_size"),
         ("adamw_", "forget the master", "if (master != nullptr) store(master + i, x, n);", ";"),
         ("adamw_", "ignore found_inf", "if (p.found_inf != nullptr && *p.found_inf != 0) return;", "")),
    *planted_in("csrc/bindings/optim.cpp",
         ("adamw_", "lose what was moved", "  arranged.write_back();\n", ""),
         ("adamw_", "lose the second launch", "      table.count = 0;\n", "      break;\n")),
    *planted_in("csrc/cuda/optim/adamw.cu",
         ("adamw_", "flip a sign", "x * decay - step_size * m", "x * decay + step_size * m"),
         ("adamw_", "the wrong chunk", "first + kAdamwChunk;", "first + kAdamwChunk - 1;"),
         ("adamw_", "skip the barrier", "  __syncthreads();\n", "")),
    *planted_in("triton_kernels/optim.py",
         ("adamw_", "ignore the scale", "g = g / tl.load(grad_scale_ptr).to(ACC)", "g = g / 1.0")),
    *planted_in("python/warpwright/reference/optim.py",
         ("adamw_", "no bias correction", "(v.sqrt() / correction + eps)", "(v.sqrt() + eps)")),
]  # fmt: skip
