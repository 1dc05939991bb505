// Params and launcher of what a batch norm over several processes has beside channel_norm's kernels.

#pragma once

#include "kernels/channel_norm.h"

namespace warpwright {

// The moments of all processes' inputs together. A process without values has a count of 0, and no say.
struct MomentsJoinParams {
  const void* moments;                   // (processes, 3, channels) mean, var, count: float, double for double
  PerChannel running_mean, running_var;  // (channels)
  PerChannel new_mean, new_var;          // What becomes of them; null where that is not wanted.
  void *mean, *var, *elements;           // (channels), of the moments' dtype
  int64_t processes, channels;
  double momentum;
  DType dtype;  // Of the running statistics; the moments' where there are none.
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(moments_join, MomentsJoinParams)
