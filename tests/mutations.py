"""The bugs that tests/mutate.py plants: for every op and every room at least one, of the kinds that happen."""

from __future__ import annotations

from dataclasses import dataclass

#: Where the tests of a room run, by the start of its path: the matrix' name of the backend.
BACKENDS = {
    "csrc/cpu/": "native-cpu",
    "csrc/bindings/": "native-cpu",
    "csrc/cuda/": "emulated-cpu",
    "triton_kernels/": "triton-cpu",
    "python/warpwright/reference/": "reference-cpu",
    "python/warpwright/ops/": "native-cpu",
}


@dataclass(frozen=True)
class Mutation:
    """Replace `old`, which must occur exactly once, by `new` in `path`; the tests of `op` must fail."""

    op: str
    what: str
    path: str
    old: str
    new: str

    @property
    def name(self) -> str:
        return f"{self.op}: {self.what} ({self.path})"

    @property
    def backend(self) -> str:
        return next(backend for start, backend in BACKENDS.items() if self.path.startswith(start))


def _in(path: str, *bugs: tuple[str, str, str, str]) -> list[Mutation]:
    return [Mutation(op, what, path, old, new) for op, what, old, new in bugs]


MUTATIONS = [
    # ---- shared by families ----
    *_in("csrc/cpu/vec.h", ("rms_norm", "drop the tail", "if (i < n) body(i, n - i);", "")),
    *_in("csrc/bindings/common.cpp",
         ("rms_norm", "walk rows with the wrong stride", "rows.col_stride = row_dims == 0 ? 1 : row_stride;",
          "rows.col_stride = 1;")),
    *_in("csrc/cuda/tile/reduction.cuh",
         ("layer_norm", "drop the last warp", "for (int warp = 0; warp < kWarps; ++warp)",
          "for (int warp = 0; warp + 1 < kWarps; ++warp)"),
         ("layer_norm", "skip the first barrier", """] = value;
  __syncthreads();""", "] = value;")),
    # ---- norm ----
    *_in("csrc/cpu/norm.cpp",
         ("rms_norm", "skip the weight", "if (weight != nullptr) y *= load(weight + i, n);", ";"),
         ("layer_norm", "skip the bias", "if (bias != nullptr) y += load(bias + i, n);", ";"),
         ("layer_norm", "forget the mean's gradient", "(g - mean_grad - xhat * mean_dot)", "(g - xhat * mean_dot)"),
         ("rms_norm", "skip the residual's gradient", "if (extra != nullptr) dx += load(extra + i, n);", ";")),
    *_in("csrc/cuda/norm/norm.cu",
         ("rms_norm", "flip a sign", "xhat * mean_dot) * rstd", "-xhat * mean_dot) * rstd"),
         ("layer_norm", "skip the bias", "if (bias != nullptr) y += to_float(bias[col]);", ";"),
         ("layer_norm", "lose the bias' gradient", "bias_sums[col] += dy;", "bias_sums[col] += 0.0f;")),
    *_in("triton_kernels/norm.py",
         ("rms_norm", "flip a sign", "dx = (g - mean_grad - xhat * mean_dot) * rstd",
          "dx = (g - mean_grad + xhat * mean_dot) * rstd"),
         ("layer_norm", "count lanes past the end", "difference = tl.where(mask, x - mean, 0.0)",
          "difference = x - mean")),
    *_in("python/warpwright/reference/norm.py",
         ("layer_norm", "variance without the mean", "rstd = torch.rsqrt(((h - mean) ** 2)",
          "rstd = torch.rsqrt((h ** 2)")),
    # ---- activation ----
    *_in("csrc/cpu/activation.cpp",
         ("swiglu", "skip the gate", "store(out + i, x * vsigmoid(x) * load(up + i, n), n);",
          "store(out + i, x * load(up + i, n), n);"),
         ("swiglu", "flip a sign", "s * (1 + x * (1 - s)), n);", "s * (1 - x * (1 - s)), n);"),
         ("swiglu", "wrong piece of a long row", "first = index % per_row * kPiece;", "first = 0 * per_row;")),
    *_in("csrc/cuda/activation/swiglu.cu",
         ("swiglu", "flip a sign", "(1.0f + x * (1.0f - s))", "(1.0f - x * (1.0f - s))"),
         ("swiglu", "drop the tail", "forward_pack<T, 1>(p, place.row, place.col + i);", ";")),
    *_in("triton_kernels/activation.py",
         ("swiglu", "flip a sign", "(1.0 + x * (1.0 - s))", "(1.0 - x * (1.0 - s))")),
    *_in("python/warpwright/reference/activation.py",
         ("swiglu", "flip a sign", "s * (1 + x * (1 - s))", "s * (1 - x * (1 - s))")),
    # ---- rotary ----
    *_in("csrc/cpu/rotary.cpp",
         ("rotary_embedding", "skip what is not rotated",
          "for (int64_t i = p.rotary_dim; i < p.head_dim; ++i) y[i] = x[i];",
          "for (int64_t i = p.rotary_dim; i < p.head_dim; ++i) y[i] = T{};"),
         ("rotary_embedding", "rotate backwards", "p.inverse ? A(-1) : A(1)", "A(1)")),
    *_in("csrc/cuda/rotary/rotary.cu",
         ("rotary_embedding", "flip a sign", "(u * c - v * s)", "(u * c + v * s)"),
         ("rotary_embedding", "mix the layouts", "p.interleaved ? first + 1 : first + pairs", "first + pairs")),
    *_in("triton_kernels/rotary.py",
         ("rotary_embedding", "the table of another sequence",
          "table_batch = sequence * pairs if cos.dim() == 3 else 0",
          "table_batch = 0")),
    *_in("python/warpwright/reference/rotary.py",
         ("rotary_embedding", "rotate backwards", "rotary_embedding(grad_output, cos, -sin, interleaved)",
          "rotary_embedding(grad_output, cos, sin, interleaved)")),
    # ---- matmul ----
    *_in("csrc/cpu/epilogue.cpp",
         ("linear", "skip the residual", "if (residual != nullptr) x += load(residual + i, n);", ";"),
         ("linear", "forget the activation's gradient",
          "if (saved != nullptr) g *= activation_grad<A>(p.activation, load(saved + i, n));", ";")),
    *_in("csrc/bindings/onednn/matmul.cpp",
         ("linear", "skip the bias", "fused_unary(a, b, bias_row, activation)",
          "fused_unary(a, b, std::nullopt, activation)"),
         ("linear", "the wrong activation", "onednn::post_op(activation)", "onednn::post_op(Activation::kRelu)")),
    *_in("csrc/cuda/tile/gemm_tile.cuh",
         ("linear", "drop the last step of k", "for (int64_t k0 = 0; k0 < k; k0 += kBlockK)",
          "for (int64_t k0 = 0; k0 + kBlockK <= k; k0 += kBlockK)"),
         ("linear", "let the next step overwrite the tile",
          "    __syncthreads();  // The next step overwrites the tiles.",
          "    ;"),
         ("linear", "no promotion", "totals[i][j] += sums[i][j];", "totals[i][j] = sums[i][j];")),
    *_in("csrc/cuda/matmul/gemm_mma.cu",
         ("linear", "skip the wait", "    ptx::cp_async_wait<kStages - 2>();\n", ""),
         ("linear", "wait for one group less", "cp_async_wait<kStages - 2>", "cp_async_wait<kStages - 1>"),
         ("linear", "skip the barrier", "    __syncthreads();\n", ""),
         ("linear", "copy before the barrier", "    __syncthreads();\n    start_step(step + kStages - 1);\n",
          "    start_step(step + kStages - 1);\n    __syncthreads();\n"),
         ("linear", "forget the commit", "    ptx::cp_async_commit();", "    ;"),
         ("linear", "shared memory for a staged row too few", "kStagedBytes = kTileRows *",
          "kStagedBytes = (kTileRows - 1) *"),
         ("linear", "store past the last row", "if (tile.m0 + row < p.m && ", "if ("),
         ("linear", "store past the last column", "tile.m0 + row < p.m && tile.n0 + col < p.n", "tile.m0 + row < p.m"),
         ("linear", "stage over the tiles", "  __syncthreads();\n  auto* const staged", "  auto* const staged"),
         ("linear", "take any alignment", "ld % kChunk == 0 && ", "")),
    *_in("csrc/cuda/tile/scheduler.cuh",
         ("linear", "the wrong tile of a band", "first + within % width", "first + within / width")),
    *_in("csrc/cuda/matmul/gemm_wgmma.cu",
         ("linear", "the producer waits for the wrong phase", "stage.parity ^ 1", "stage.parity"),
         ("linear", "the consumers wait for the wrong phase", "&full[stage.index], stage.parity)",
          "&full[stage.index], stage.parity ^ 1)"),
         ("linear", "a phase that never turns", "    parity ^= 1;\n", ""),
         ("linear", "announce one operand only", "&full[stage.index], kStageBytes", "&full[stage.index], kATileBytes"),
         ("linear", "both consumers take the same rows", "kStageBytes + consumer * kBoxBytes;", "kStageBytes;"),
         ("linear", "boxes in the wrong order", "tile + i * kBoxBytes, map",
          "tile + (kRows / kSpan - 1 - i) * kBoxBytes, map"),
         ("linear", "the wrong step of k", "k * kSpan * 2", "k * kSpan"),
         ("linear", "a wait too weak", "ptx::wgmma_wait<1>", "ptx::wgmma_wait<2>"),
         ("linear", "release the stage in use", "ptx::mbarrier_arrive(&empty[previous]);\n      previous",
          "ptx::mbarrier_arrive(&empty[stage.index]);\n      previous"),
         ("linear", "never start a sum", "k + part > 0)", "true)"),
         ("linear", "always start a sum", "k + part > 0)", "false)"),
         ("linear", "one buffer", "stores++ % kBuffers * kBoxBytes", "stores++ % 1 * kBoxBytes"),
         ("linear", "store unswizzled", "ptx::swizzled(row * kSpan * 2 + col * 2, kSwizzle)",
          "row * kSpan * 2 + col * 2"),
         ("linear", "swap two rows of a fragment", "r / 2 % 2 * 8", "(1 - r / 2 % 2) * 8"),
         ("linear", "skip the activation", "value = activate(gemm.activation, value);", "value += 0.0f;")),
    *_in("csrc/cuda/tile/mma_operand.cuh",
         ("linear", "copy past the edges", "!inside ? 0 : left", "left"),
         ("linear", "copy past the end of a line", "left < kChunk ? static_cast<int>(left) * 2 : ptx::kCopyBytes",
          "ptx::kCopyBytes"),
         ("linear", "the wrong half of b", "row + matrix / 2 * 8", "row + matrix % 2 * 8")),
    *_in("csrc/cuda/epilogue/epilogue_backward.cu",
         ("linear", "lose a row of the bias' gradient", "for (int64_t row = first; row < last; ++row) {",
          "for (int64_t row = first + 1; row < last; ++row) {")),
    *_in("triton_kernels/_gemm.py",
         ("linear", "skip the bias", "acc += tl.load(bias_ptr + col, col < n, 0.0).to(ACC)[None, :]", "acc += 0.0"),
         ("linear", "wrong columns", "b_row + inner[:, None] * b_col, b_mask",
          "b_row + inner[:, None] * b_row, b_mask")),
    *_in("triton_kernels/_epilogue.py",
         ("linear", "forget the activation's gradient", "g *= activation_grad(saved, ACTIVATION)", "g *= 1.0")),
    *_in("python/warpwright/reference/matmul.py",
         ("linear", "skip the residual", "preact = preact + residual", "preact = preact + 0")),
    # ---- conv ----
    *_in("csrc/cuda/conv/conv2d.cu",
         ("conv2d", "read the padding", "if (h < 0 || h >= p.height || w < 0 || w >= p.width) return 0.0f;",
          "if (h < 0 || h >= p.height) return 0.0f;"),
         ("conv2d", "ignore the group", "const int64_t to = p.input.offset(at.i, group * group_channels + channel,",
          "const int64_t to = p.input.offset(at.i, channel,"),
         ("conv2d", "ignore the stride in the gradient", "h % p.stride_h != 0 || ", "")),
    *_in("triton_kernels/conv.py",
         ("conv2d", "read past the right edge", "inside = in_m & (h >= 0) & (h < height) & (w >= 0) & (w < width)",
          "inside = in_m & (h >= 0) & (h < height) & (w >= 0)"),
         ("conv2d", "ignore the stride in the gradient", "divides = (p * stride_h == ph) & (q * stride_w == qw) &",
          "divides =")),
    *_in("csrc/bindings/onednn/conv.cpp",
         ("conv2d", "the wrong activation", "onednn::post_op(activation)", "onednn::post_op(Activation::kRelu)")),
    # ---- loss ----
    *_in("csrc/cpu/loss.cpp",
         ("cross_entropy", "count ignored rows", "valid += target_of(p.target, row) != p.ignore_index;", "valid += 1;"),
         ("cross_entropy", "skip the smoothing", "if (p.label_smoothing > 0) {", "if (p.label_smoothing > 2) {"),
         ("cross_entropy", "forget the target's gradient", "out[target] = from_acc<T>(scale * at_target);", ";"),
         ("cross_entropy", "lose a strided row", "grad_input.write();", ";")),
    *_in("csrc/cuda/loss/cross_entropy.cu",
         ("cross_entropy", "rescale by the wrong maximum", "sum * expf(max - new_max)", "sum"),
         ("cross_entropy", "count ignored rows", "valid += target_of(p.target, row) != p.ignore_index;", "valid += 1;"),
         ("cross_entropy", "use a bad target", "if (!known) scale = NAN;", ";"),
         ("cross_entropy", "skip a barrier", """    }
    __syncthreads();
  }
  loss = losses[0];""", """    }
  }
  loss = losses[0];""")),
    *_in("triton_kernels/loss.py",
         ("cross_entropy", "skip the smoothing", "hard = tl.where(col == target, 1.0 - smoothing, 0.0)",
          "hard = tl.where(col == target, 1.0, 0.0)"),
         ("cross_entropy", "the inner stride", "x_ptr += row // inner * x_outer + row % inner * x_inner\n    target",
          "x_ptr += row // inner * x_outer + row % inner\n    target")),
    *_in("python/warpwright/reference/loss.py",
         ("cross_entropy", "use a bad target", "torch.where(known, loss, torch.nan)", "loss")),
    # ---- quantize ----
    *_in("csrc/cpu/float8.h",
         ("quantize_fp8", "round up, not to even", "const U32s odd = (magnitude >> kDropped) & 1u;",
          "const U32s odd = (magnitude & 0u) + 1u;"),
         ("dequantize_fp8", "lose subnormals", "select((U32s)(magnitude < (1u << F::kMantissa)), subnormal, normal)",
          "normal")),
    *_in("csrc/cpu/quantize.cpp",
         ("quantize_fp8", "no least scale", "return scale < kMinScale ? kMinScale : scale;", "return scale;")),
    *_in("csrc/cuda/tile/float8.cuh",
         ("quantize_fp8", "cut, not round", "((magnitude + ((1u << (kDropped - 1)) - 1u) + odd) >> kDropped)",
          "((magnitude + 0u * odd) >> kDropped)")),
    *_in("csrc/cuda/quantize/quantize_fp8.cu",
         ("quantize_fp8", "lose NaN", "return a > b || a != a ? a : b;", "return fmaxf(a, b);"),
         ("dequantize_fp8", "the scale of the first block",
          "p.scale.offset(group.row) + (group.index - group.row * p.groups) * p.scale.col_stride",
          "p.scale.offset(group.row)")),
    *_in("triton_kernels/quantize.py",
         ("quantize_fp8", "lose the sign", "| ((bits >> 24) & 0x80)", "| 0"),
         ("dequantize_fp8", "the scale of the first block", "row * scale_row + group * scale_col", "row * scale_row")),
    *_in("python/warpwright/reference/quantize.py",
         ("quantize_fp8", "no least scale", "(amax / largest).clamp(min=MIN_SCALE)", "(amax / largest)")),
    # ---- optim ----
    *_in("csrc/cpu/optim.cpp",
         ("adamw_", "skip the decay", "x = x * decay - step_size", "x = x - step_size"),
         ("adamw_", "forget the master", "if (master != nullptr) store(master + i, x, n);", ";"),
         ("adamw_", "ignore found_inf", "if (p.found_inf != nullptr && *p.found_inf != 0) return;", "")),
    *_in("csrc/bindings/optim.cpp",
         ("adamw_", "lose what was moved", "  arranged.write_back();\n", ""),
         ("adamw_", "lose the second launch", "      table.count = 0;\n", "      break;\n")),
    *_in("csrc/cuda/optim/adamw.cu",
         ("adamw_", "flip a sign", "x * decay - step_size * m", "x * decay + step_size * m"),
         ("adamw_", "the wrong chunk", "first + kAdamwChunk;", "first + kAdamwChunk - 1;"),
         ("adamw_", "skip the barrier", "  __syncthreads();\n", "")),
    *_in("triton_kernels/optim.py",
         ("adamw_", "ignore the scale", "g = g / tl.load(grad_scale_ptr).to(ACC)", "g = g / 1.0")),
    *_in("python/warpwright/reference/optim.py",
         ("adamw_", "no bias correction", "(v.sqrt() / correction + eps)", "(v.sqrt() + eps)")),
]  # fmt: skip
