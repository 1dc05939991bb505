"""Bugs in the norm_quantize family."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cpu/norm_quantize.cpp",
         ("rms_norm_quantize", "the scale of the first block", "row * p.groups + group] = scale;",
          "row * p.groups] = scale;"),
         ("layer_norm_quantize", "skip the bias", "if (bias != nullptr) v += load(bias + i, n);", ";")),
    *planted_in("csrc/cuda/norm_quantize/norm_quantize.cu",
         ("rms_norm_quantize", "blocks of one pack", "if (block < 2 * packs * kWarpSize) break;", "break;"),
         ("layer_norm_quantize", "skip the bias", "if (p.bias != nullptr) value += term.get(k, i);", ";")),
    *planted_in("triton_kernels/norm_quantize.py",
         ("rms_norm_quantize", "one scale too few", "group < groups)", "group < groups - 1)"),
         ("layer_norm_quantize", "count lanes past the end", "difference = tl.where(mask, h - mean, 0.0)",
          "difference = h - mean")),
    *planted_in("python/warpwright/reference/norm_quantize.py",
         ("rms_norm_quantize", "cut, not round", ".clamp(-INT8_MAX, INT8_MAX).round()", ".clamp(-INT8_MAX, INT8_MAX)"),
         ("layer_norm_quantize", "no mean", "*options) if centred else", "*options) if not h.numel() else")),
]  # fmt: skip
