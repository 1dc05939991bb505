// The choice of a product's kernel, a matrix product's or a convolution's, on the current device: what was measured,
// where there is a measurement, else the analytic model of kernels/gemm_plan.h. Host code alone.

#include <algorithm>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/device.h"
#include "cuda/matmul/gemm_mma.cuh"
#include "cuda/matmul/gemm_wgmma.cuh"
#include "cuda/matmul/plan.h"

namespace warpwright::cuda {
namespace {

// A measured winner, and the products that it is for. Sizes that are all 0 stand for any product, on any device.
struct Preference {
  int64_t matrices, m, n, k, channels;  // Bucketed, see `matches`.
  int32_t role, dtype, precision, a_along_k, b_along_k, capability, multiprocessors;
  int32_t kernel, tile_m, tile_n, splits, pingpong, swapped, cluster;
  double seconds;  // Measured; 0 where it was not.

  bool for_all() const { return matrices == 0 && m == 0 && n == 0 && k == 0; }
  auto products() const {
    return std::tuple(matrices, m, n, k, channels, role, dtype, precision, a_along_k, b_along_k, capability,
                      multiprocessors);
  }
};

// Called before the first choice on a device of this kind; it may hand over preferences.
using OnDevice = void (*)(int32_t capability, int32_t multiprocessors);

struct Preferences {
  std::mutex mutex;
  std::vector<Preference> list;  // A later one goes before an earlier one.
  OnDevice on_device = nullptr;
  std::vector<std::pair<int, int>> met;  // Capability and multiprocessors.
};
Preferences& preferences() {
  static Preferences all;
  return all;
}

// What grows with the batch is looked up by its next power of two; the weight's sizes exactly.
int64_t bucket(int64_t size) {
  int64_t power = 1;
  while (power < size) power *= 2;
  return power;
}

bool matches(const Preference& p, const GemmQuestion& q) {
  if (p.for_all()) return true;
  if (q.batch_invariant) return false;  // What was measured was measured for a number of rows.
  // A weight's gradient is a sum over the batch, and neither of its operands lies along K.
  const bool sums_batch = !q.a_along_k && !q.b_along_k;
  const int64_t m = sums_batch ? q.m : bucket(q.m), k = sums_batch ? bucket(q.k) : q.k;
  return p.matrices == bucket(q.matrices) && p.m == m && p.n == q.n && p.k == k && p.channels == q.channels &&
         p.role == static_cast<int32_t>(q.role) && p.dtype == static_cast<int32_t>(q.dtype) &&
         p.precision == static_cast<int32_t>(q.precision) && p.a_along_k == q.a_along_k && p.b_along_k == q.b_along_k &&
         p.capability == q.capability && p.multiprocessors == q.multiprocessors;
}

bool is(const Preference& p, const GemmPlan& plan) {
  return static_cast<int32_t>(plan.kernel) == p.kernel && plan.tile_m == p.tile_m && plan.tile_n == p.tile_n &&
         plan.splits == p.splits && plan.pingpong == p.pingpong && plan.swapped == p.swapped &&
         plan.cluster == p.cluster;
}

// Another thread that comes meanwhile goes on without the preferences: waiting could wait for Python's lock.
void meet_device(const GemmQuestion& q) {
  Preferences& all = preferences();
  OnDevice on_device = nullptr;
  {
    const std::lock_guard lock(all.mutex);
    const std::pair device(q.capability, q.multiprocessors);
    if (all.on_device == nullptr || std::find(all.met.begin(), all.met.end(), device) != all.met.end()) return;
    all.met.push_back(device);
    on_device = all.on_device;
  }
  on_device(q.capability, q.multiprocessors);
}

// The plan for a product, and the seconds that were measured of it; 0 where the model chose.
std::pair<GemmPlan, double> choose(const GemmQuestion& question) {
  meet_device(question);
  const std::vector<GemmPlan> plans = gemm_plans(question);
  Preferences& all = preferences();
  const std::lock_guard lock(all.mutex);
  for (auto p = all.list.rbegin(); p != all.list.rend(); ++p) {
    if (!matches(*p, question)) continue;
    const auto found = std::find_if(plans.begin(), plans.end(), [&](const GemmPlan& plan) { return is(*p, plan); });
    if (found != plans.end()) return {*found, p->seconds};
  }
  return {plans.front(), 0.0};
}

}  // namespace

GemmQuestion gemm_question(const GemmParams& params) {
  const Device device = current_device();
  GemmQuestion q{};
  q.matrices = params.matrices();
  q.m = params.m;
  q.n = params.n;
  q.k = params.k;
  q.dtype = params.dtype;
  q.precision = params.precision;
  q.capability = device.capability;
  q.multiprocessors = device.multiprocessors;
  q.batch_invariant = params.batch_invariant;
  q.a_along_k = params.a_col == 1;
  q.b_along_k = params.b_col == 1;
  q.lines = (q.a_along_k || params.a_row == 1) && (q.b_along_k || params.b_row == 1);
  q.aligned = gemm_mma_takes(params);
  q.tma = gemm_wgmma_takes(params);
  q.by_tma = wgmma_leaves_by_tma(params);
  return q;
}

GemmPlan gemm_plan(const GemmParams& params) { return chosen_plan(gemm_question(params)); }

GemmPlan chosen_plan(const GemmQuestion& question) { return choose(question).first; }

}  // namespace warpwright::cuda

// For Python: see python/warpwright/_gemm_plans.py.
extern "C" {
// Prefers a plan for the products that it names, where they can take it, to what was preferred for them before.
__attribute__((visibility("default"))) void warpwright_gemm_prefer(const warpwright::cuda::Preference* preference) {
  auto& all = warpwright::cuda::preferences();
  const std::lock_guard lock(all.mutex);
  std::erase_if(all.list, [&](const auto& other) { return other.products() == preference->products(); });
  all.list.push_back(*preference);
}

__attribute__((visibility("default"))) void warpwright_gemm_forget() {
  auto& all = warpwright::cuda::preferences();
  const std::lock_guard lock(all.mutex);
  all.list.clear();
}

// `on_device`, which may be null, is called once for each kind of device from now on.
__attribute__((visibility("default"))) void warpwright_gemm_on_device(warpwright::cuda::OnDevice on_device) {
  auto& all = warpwright::cuda::preferences();
  const std::lock_guard lock(all.mutex);
  all.on_device = on_device;
  all.met.clear();
}

// The plan that a product would take now; returns the seconds that were measured of it, or 0.
__attribute__((visibility("default"))) double warpwright_gemm_choose(const warpwright::GemmQuestion* question,
                                                                     warpwright::GemmPlan* plan) {
  const auto [chosen, seconds] = warpwright::cuda::choose(*question);
  *plan = chosen;
  return seconds;
}
}
