// A filter times what its batch norm multiplies by: a pass over the weight, in the place of one over the output.

#include "kernels/conv_fold.h"

#include "cpu/channel_norm.h"

WARPWRIGHT_ISA_BEGIN

void conv_fold(const ConvFoldParams& p) {
  parallel_for(0, p.filters, row_grain(p.size), [&](int64_t begin, int64_t end) {
    for (int64_t filter = begin; filter < end; ++filter) {
      const auto value = [&](const PerChannel& values, float otherwise) {
        return static_cast<double>(channel_value<float>(values, filter, otherwise));
      };
      const double scale = value(p.weight, 1) / ::sqrt(value(p.var, 1) + p.eps);
      const double mean = value(p.mean, 0) - (p.conv_bias == nullptr ? 0.0 : p.conv_bias[filter]);
      p.shift[filter] = static_cast<float>(value(p.bias, 0) - mean * scale);
      const float factor = static_cast<float>(scale);
      const float* w = p.w + filter * p.size;
      float* scaled = p.scaled + filter * p.size;
      for_each_vector<float>(p.size, [&](int64_t i, auto n) { store(scaled + i, load(w + i, n) * factor, n); });
    }
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(conv_fold, ConvFoldParams)
