// The moments of several processes' inputs become those of all. A thread takes a channel: there are few of both.

#include "cuda/channel_norm/per_channel.cuh"
#include "cuda/launch.h"
#include "kernels/sync_batch_norm.h"

namespace warpwright::cuda {
namespace {

constexpr int kJoinThreads = 128;

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// machine code: plain
template <class T>
__global__ void __launch_bounds__(kJoinThreads) moments_join_kernel(const MomentsJoinParams p) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kJoinThreads + threadIdx.x;
  if (channel >= p.channels) return;
  const float* moments = static_cast<const float*>(p.moments) + channel;
  const auto moment = [&](int64_t process, int which) { return moments[(process * 3 + which) * p.channels]; };
  float elements = 0.0f, origin = 0.0f;
  for (int64_t i = p.processes - 1; i >= 0; --i) {
    const float count = moment(i, 2);
    elements += count;
    if (count > 0.0f) origin = moment(i, 0);
  }
  const auto average = [&](const auto& term) {
    float total = 0.0f;
    for (int64_t i = 0; i < p.processes; ++i) {
      const float count = moment(i, 2);
      if (count > 0.0f) total += count * term(i);
    }
    return total / elements;
  };
  // Sums of differences, as large numbers would cost the mean some digits.
  const float mean = origin + average([&](int64_t i) { return moment(i, 0) - origin; });
  const float var = average([&](int64_t i) {
    const float d = moment(i, 0) - mean;
    return moment(i, 1) + d * d;
  });
  static_cast<float*>(p.mean)[channel] = mean;
  static_cast<float*>(p.var)[channel] = var;
  static_cast<float*>(p.elements)[channel] = elements;
  const double share = elements > 0.0f ? p.momentum : 0.0;  // Nothing moves nothing.
  move_running<T>(p.running_mean, p.new_mean, channel, share, mean);
  move_running<T>(p.running_var, p.new_var, channel, share, var * (elements / (elements - 1.0f)));
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void moments_join(const MomentsJoinParams& params, Stream stream) {
  const auto blocks = static_cast<unsigned>((params.channels + kJoinThreads - 1) / kJoinThreads);
  visit_float(params.dtype, [&](auto tag) {
    const LaunchConfig config{dim3(blocks), dim3(kJoinThreads), stream};
    launch("moments_join", moments_join_kernel<decltype(tag)>, config, params);
  });
}

}  // namespace warpwright::cuda
