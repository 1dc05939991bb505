// The moments of several processes' inputs become those of all.

#include "kernels/sync_batch_norm.h"

#include "cpu/channel_norm.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// In double: there are few.
template <class T>
void join_channel(const MomentsJoinParams& p, int64_t channel) {
  using A = acc_t<T>;
  const auto moment = [&](int64_t process, int64_t which) {
    return static_cast<double>(static_cast<const A*>(p.moments)[(process * 3 + which) * p.channels + channel]);
  };
  double elements = 0;
  for (int64_t i = 0; i < p.processes; ++i) elements += moment(i, 2);
  const auto average = [&](const auto& term) {
    double total = 0;
    for (int64_t i = 0; i < p.processes; ++i) {
      const double count = moment(i, 2);
      if (count > 0) total += count * term(i);
    }
    return total / elements;
  };
  const double mean = average([&](int64_t i) { return moment(i, 0); });
  const double var = average([&](int64_t i) {
    const double d = moment(i, 0) - mean;
    return moment(i, 1) + d * d;
  });
  static_cast<A*>(p.mean)[channel] = static_cast<A>(mean);
  static_cast<A*>(p.var)[channel] = static_cast<A>(var);
  static_cast<A*>(p.elements)[channel] = static_cast<A>(elements);
  const double share = elements > 0 ? p.momentum : 0;  // Nothing moves nothing.
  move_running<T>(p.running_mean, p.new_mean, channel, share, mean);
  move_running<T>(p.running_var, p.new_var, channel, share, var * (elements / (elements - 1)));
}

}  // namespace

void moments_join(const MomentsJoinParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    for (int64_t channel = 0; channel < p.channels; ++channel) join_channel<decltype(tag)>(p, channel);
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(moments_join, MomentsJoinParams)
