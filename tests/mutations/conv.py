"""Bugs in the conv family."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cuda/conv/conv.cu",
         ("conv2d", "read the padding", "if (i < 0 || i >= p.x_size[d]) return 0.0f;", "if (i < 0) return 0.0f;"),
         ("conv_transpose2d", "read past the gradient's edge", "if (i < 0 || i >= p.y_size[d]) return 0.0f;",
          "if (i < 0) return 0.0f;"),
         ("conv2d", "ignore the group", "store_element<T>(p, p.x, at, group * n + channel, value);",
          "store_element<T>(p, p.x, at, channel, value);")),
    *planted_in("csrc/cuda/conv/geometry.cuh",
         ("conv_transpose2d", "a phase's taps are neighbours", "phase.tap_step[d] = step;", "phase.tap_step[d] = 1;"),
         ("conv_transpose2d", "ignore the dilation in the step", "phase.y_step[d] = step * dilation / stride;",
          "phase.y_step[d] = 1;")),
    *planted_in("csrc/cuda/conv/epilogue.cuh",
         ("conv3d", "forget the residual", "if (p.residual.data != nullptr) {",
          "if (p.residual.data != nullptr && false) {")),
    *planted_in("csrc/bindings/conv.cpp",
         ("conv2d", "pad both sides as before", "std::vector<int64_t>(middle, geometry.padding.end())",
          "std::vector<int64_t>(geometry.padding.begin(), middle)")),
    *planted_in("triton_kernels/conv.py",
         ("conv2d", "read past the right edge", "(h >= 0) & (h < height) & (w >= 0) & (w < width)\n        pixel",
          "(h >= 0) & (h < height) & (w >= 0)\n        pixel"),
         ("conv_transpose2d", "a phase's taps are neighbours", "first_s + s * step_s", "first_s + s")),
    *planted_in("csrc/bindings/onednn/conv.cpp",
         ("conv2d", "the wrong activation", "onednn::post_op(activation)", "onednn::post_op(Activation::kRelu)"),
         ("conv1d", "unlike padding goes to the end", "before.push_back(call.padding[d] - both);",
          "before.push_back(0);")),
    *planted_in("python/warpwright/reference/conv.py",
         ("conv3d", "ignore the dilation", "first = t * dilation[d]", "first = t")),
]  # fmt: skip
