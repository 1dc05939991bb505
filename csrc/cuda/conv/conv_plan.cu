// Which kernel computes a convolution or a gradient of one, with which tile: the choice of matrix products, see
// kernels/gemm_plan.h. What a kernel can take at all it knows itself. Host code alone.

#include <algorithm>

#include "cuda/conv/conv_mma.cuh"
#include "cuda/conv/conv_wgmma.cuh"
#include "cuda/conv/depthwise.h"
#include "cuda/conv/geometry.cuh"
#include "cuda/device.h"
#include "cuda/matmul/plan.h"

namespace warpwright::cuda {
namespace {

bool wgmma_takes(const ConvParams& p, GemmRole role) {
  switch (role) {
    case GemmRole::kForward: return conv_fprop_wgmma_takes(p);
    case GemmRole::kInputGradient: return conv_dgrad_wgmma_takes(p);
    default: return conv_wgrad_wgmma_takes(p);
  }
}

int64_t pixels_of(const ConvParams& p, const int64_t (&size)[kConvDims]) {
  return p.batch * size[0] * size[1] * size[2];
}

// Of what is a product.
GemmQuestion conv_question(const ConvParams& p, GemmRole role, bool measured) {
  const Device device = current_device();
  const int64_t channels = p.group_channels(), filters = p.group_filters(), phases = conv_phases(p);
  GemmQuestion q{};
  q.role = role;
  q.dtype = p.dtype;
  q.precision = p.precision;
  q.capability = device.capability;
  q.multiprocessors = device.multiprocessors;
  q.measured = measured;
  q.matrices = p.groups;
  q.channels = channels;
  q.gathered = p.channels * pixels_of(p, p.x_size);
  switch (role) {
    case GemmRole::kForward:
      q.m = p.y_pixels();
      q.n = filters;
      q.k = p.taps() * channels;
      q.a_along_k = q.b_along_k = true;
      break;
    case GemmRole::kInputGradient:
      q.matrices = p.groups * phases;
      q.m = most_phase_pixels(p);
      q.n = channels;
      q.k = (p.taps() * filters + phases - 1) / phases;
      q.channels = filters;
      q.gathered = p.filters * p.y_pixels();
      q.a_along_k = true;
      break;
    default:
      q.m = filters;
      q.n = p.taps() * channels;
      q.k = p.y_pixels();
  }
  q.lines = conv_mma_takes(p);
  q.aligned = conv_in_vectors(p, role);
  q.tma = wgmma_takes(p, role);
  return q;
}

}  // namespace

GemmPlan conv_plan(const ConvParams& p, GemmRole role, bool measured) {
  if (!conv_mma_takes(p) && depthwise_takes(p)) {
    const int splits = role == GemmRole::kWeightGradient ? depthwise_wgrad_splits(p) : 1;
    return {GemmKernel::kDepthwise, 0, 0, splits, 0, 0, 1, 0.0};
  }
  return chosen_plan(conv_question(p, role, measured));
}

}  // namespace warpwright::cuda

// For Python: see python/warpwright/_conv_plans.py. Whether the convolution is a product, and then which.
extern "C" __attribute__((visibility("default"))) bool warpwright_conv_question(const warpwright::ConvParams* params,
                                                                                warpwright::GemmRole role,
                                                                                bool measured,
                                                                                warpwright::GemmQuestion* question) {
  using namespace warpwright::cuda;
  if (!conv_mma_takes(*params) && depthwise_takes(*params)) return false;
  *question = conv_question(*params, role, measured);
  return true;
}
