// oneDNN's names of the activations.

#pragma once

#include <utility>

#include "kernels/common.h"

namespace warpwright::onednn {

// oneDNN's name of an activation, and its algorithm where it has one.
inline std::pair<const char*, const char*> post_op(Activation activation) {
  switch (activation) {
    case Activation::kRelu: return {"relu", nullptr};
    case Activation::kGelu: return {"gelu", "none"};
    case Activation::kGeluTanh: return {"gelu", "tanh"};
    case Activation::kSilu: return {"swish", nullptr};
    default: return {"none", nullptr};
  }
}

}  // namespace warpwright::onednn
