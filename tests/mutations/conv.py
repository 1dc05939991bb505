"""Bugs in the conv family."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cuda/conv/conv2d.cu",
         ("conv2d", "read the padding", "if (h < 0 || h >= p.height || w < 0 || w >= p.width) return 0.0f;",
          "if (h < 0 || h >= p.height) return 0.0f;"),
         ("conv2d", "ignore the group", "const int64_t to = p.input.offset(at.i, group * group_channels + channel,",
          "const int64_t to = p.input.offset(at.i, channel,"),
         ("conv2d", "ignore the stride in the gradient", "h % p.stride_h != 0 || ", "")),
    *planted_in("triton_kernels/conv.py",
         ("conv2d", "read past the right edge", "inside = in_m & (h >= 0) & (h < height) & (w >= 0) & (w < width)",
          "inside = in_m & (h >= 0) & (h < height) & (w >= 0)"),
         ("conv2d", "ignore the stride in the gradient", "divides = (p * stride_h == ph) & (q * stride_w == qw) &",
          "divides =")),
    *planted_in("csrc/bindings/onednn/conv.cpp",
         ("conv2d", "the wrong activation", "onednn::post_op(activation)", "onednn::post_op(Activation::kRelu)")),
]  # fmt: skip
