// The choice of a product's kernel on the current device: what was measured, where there is a measurement, else the
// analytic model of kernels/gemm_plan.h. Host code alone.

#include <algorithm>
#include <mutex>
#include <vector>

#include "cuda/device.h"
#include "cuda/matmul/gemm_mma.cuh"
#include "cuda/matmul/gemm_wgmma.cuh"

namespace warpwright::cuda {
namespace {

// A measured winner, and the products that it is for: sizes of 0 stand for any.
struct Preference {
  int64_t matrices, m, n, k;
  int32_t dtype, precision, a_along_k, b_along_k;
  int32_t kernel, tile_m, tile_n, splits, pingpong, swapped, cluster;
};

struct Preferences {
  std::mutex mutex;
  std::vector<Preference> list;  // A later one goes before an earlier one.
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
  const auto fits = [](int64_t wanted, int64_t size) { return wanted == 0 || wanted == size; };
  const bool sizes = fits(p.matrices, bucket(q.matrices)) && fits(p.m, bucket(q.m)) && fits(p.n, q.n) && fits(p.k, q.k);
  if (p.matrices == 0 && p.m == 0 && p.n == 0 && p.k == 0) return true;
  return sizes && p.dtype == static_cast<int32_t>(q.dtype) && p.precision == static_cast<int32_t>(q.precision) &&
         p.a_along_k == q.a_along_k && p.b_along_k == q.b_along_k;
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

GemmPlan gemm_plan(const GemmParams& params) {
  const GemmQuestion question = gemm_question(params);
  const std::vector<GemmPlan> plans = gemm_plans(question);
  Preferences& all = preferences();
  const std::lock_guard lock(all.mutex);
  for (auto p = all.list.rbegin(); p != all.list.rend(); ++p) {
    if (!matches(*p, question)) continue;
    const auto found = std::find_if(plans.begin(), plans.end(), [&](const GemmPlan& plan) {
      return static_cast<int32_t>(plan.kernel) == p->kernel && plan.tile_m == p->tile_m && plan.tile_n == p->tile_n &&
             plan.splits == p->splits && plan.pingpong == p->pingpong && plan.swapped == p->swapped &&
             plan.cluster == p->cluster;
    });
    if (found != plans.end()) return *found;
  }
  return plans.front();
}

}  // namespace warpwright::cuda

// For Python: see python/warpwright/_gemm_plans.py.
extern "C" {
// Prefers a plan for the products that it names, where they can take it.
__attribute__((visibility("default"))) void warpwright_gemm_prefer(const warpwright::cuda::Preference* preference) {
  auto& all = warpwright::cuda::preferences();
  const std::lock_guard lock(all.mutex);
  all.list.push_back(*preference);
}

__attribute__((visibility("default"))) void warpwright_gemm_forget() {
  auto& all = warpwright::cuda::preferences();
  const std::lock_guard lock(all.mutex);
  all.list.clear();
}
}
