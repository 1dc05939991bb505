// oneDNN's names of the activations.

#pragma once

#include "kernels/common.h"

namespace warpwright::onednn {

// An activation as torch names it to oneDNN: its name, and where it has them an algorithm and one parameter.
struct PostOp {
  const char* name;
  const char* algorithm = nullptr;
  const double* parameter = nullptr;
};

inline PostOp post_op(Activation activation) {
  static constexpr double kSlope = kLeakySlope;
  switch (activation) {
    case Activation::kRelu: return {"relu"};
    case Activation::kGelu: return {"gelu", "none"};
    case Activation::kGeluTanh: return {"gelu", "tanh"};
    case Activation::kSilu: return {"swish"};
    case Activation::kSigmoid: return {"sigmoid"};
    case Activation::kTanh: return {"tanh"};
    case Activation::kLeakyRelu: return {"leaky_relu", nullptr, &kSlope};
    case Activation::kHardswish: return {"hardswish"};
    default: return {"none"};
  }
}

}  // namespace warpwright::onednn
