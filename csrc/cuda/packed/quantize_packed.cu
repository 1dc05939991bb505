// Weights to packed integers. A thread takes eight neighbours, which are one word of 4 bits; as many threads as a group
// has such eights share it, up to a warp, whose threads walk a longer group. A group that they hold at once is read
// once; of a longer one the second read finds it in a cache.

#include "cuda/launch.h"
#include "cuda/loss/loss.cuh"
#include "cuda/packed/packed.cuh"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/reduction.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 128;

struct QuantizeLaunch : QuantizePackedParams {
  int team;    // Threads of a group: a power of two, at most a warp.
  bool packs;  // Whether rows can be moved by 16-byte instructions.
};

// The largest over a team; NaN stays.
__device__ __forceinline__ float team_max(float value, int team) {
  for (int offset = team / 2; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kFullMask, value, offset);
    value = other > value || other != other ? other : value;
  }
  return value;
}

// `scale` in T, never below what it was: else the largest element might be cut off. The next pattern of a positive
// number is the next number.
template <class T>
__device__ __forceinline__ T rounded_up(float scale) {
  T rounded = from_float<T>(scale);
  if constexpr (sizeof(T) == 2) {
    uint16_t bits;
    std::memcpy(&bits, &rounded, sizeof(bits));
    if (to_float(rounded) < scale) ++bits;
    std::memcpy(static_cast<void*>(&rounded), &bits, sizeof(bits));
  }
  return rounded;
}

// What a group's elements are quantized with.
struct Steps {
  float scale, zero;
  int largest;

  __device__ __forceinline__ uint32_t of(float x) const {
    const float q = rintf(x / scale) + zero;
    return q >= static_cast<float>(largest) ? static_cast<uint32_t>(largest)
                                            : (q > 0.0f ? static_cast<uint32_t>(static_cast<int>(q)) : 0u);  // NaN: 0.
  }
};

// From the largest element, the largest negated element and zero; the team's first thread writes them down.
template <class T>
__device__ __forceinline__ Steps steps_of(const QuantizeLaunch& p, int64_t group, float high, float negated_low,
                                          bool writes) {
  Steps steps{};
  steps.largest = (1 << p.bits) - 1;
  const bool symmetric = p.zero == nullptr;
  const float span = symmetric ? (high > negated_low || high != high ? high : negated_low) : high + negated_low;
  const float count = static_cast<float>(symmetric ? steps.largest / 2 : steps.largest);
  const T scale = rounded_up<T>(span == 0.0f ? 1.0f : span / count);
  steps.scale = to_float(scale);
  steps.zero = symmetric ? static_cast<float>(packed_center(p.bits)) : rintf(negated_low / steps.scale);
  if (writes) {
    static_cast<T*>(p.scale)[group] = scale;
    if (!symmetric) p.zero[group] = static_cast<uint8_t>(steps.zero == steps.zero ? static_cast<int>(steps.zero) : 0);
  }
  return steps;
}

// machine code: SHFL, LDG.128
template <class T>
__global__ void __launch_bounds__(kThreads) quantize_packed_kernel(const QuantizeLaunch p) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t index = thread / p.team;
  // Threads without a group still take part in the shuffles of their warp.
  const bool works = index < p.n * p.groups;
  const int64_t group = works ? index : 0, row = group / p.groups;
  const int64_t start = group % p.groups * p.group_size;
  const int64_t padded = packed_bytes(p.k, 8), bytes = packed_bytes(p.k, p.bits);
  const int64_t end = start + p.group_size < padded ? start + p.group_size : padded;
  const int rank = static_cast<int>(thread % p.team), span = p.team * kUnpacked;
  const T* weight = static_cast<const T*>(p.weight.data) + p.weight.offset(row);
  const int64_t step = p.weight.col_stride;
  Piece<T, kUnpacked> x;
  float high = 0.0f, negated_low = 0.0f;
  for (int64_t col = start + rank * kUnpacked; col < end; col += span) {
    x.load(weight + col * step, step, p.packs, p.k - col);
#pragma unroll
    for (int i = 0; i < kUnpacked; ++i) {
      const float value = x.values[i];
      high = value > high || value != value ? value : high;
      negated_low = -value > negated_low || value != value ? -value : negated_low;
    }
  }
  high = team_max(high, p.team);
  negated_low = team_max(negated_low, p.team);
  if (!works) return;
  const Steps steps = steps_of<T>(p, group, high, negated_low, rank == 0);
  for (int64_t col = start + rank * kUnpacked; col < end; col += span) {
    if (end - start > span) x.load(weight + col * step, step, p.packs, p.k - col);
    Pack<uint32_t, 2> words{{0, 0}};
#pragma unroll
    for (int i = 0; i < kUnpacked; ++i) {
      const uint32_t q = col + i < p.k ? steps.of(x.values[i]) : 0u;
      if (p.bits == 4) words.values[0] |= q << packed_shift(4, i);
      if (p.bits == 8) words.values[i / 4] |= q << packed_shift(8, i % 4);
    }
    uint8_t* const out = p.data + row * bytes + col * p.bits / 8;
    if (p.bits == 4) *reinterpret_cast<uint32_t*>(out) = words.values[0];
    if (p.bits == 8) *reinterpret_cast<Pack<uint32_t, 2>*>(out) = words;
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launcher

void quantize_packed(const QuantizePackedParams& params, Stream stream) {
  const int64_t eights = params.group_size / kUnpacked;
  int team = 1;
  while (team < eights && team < kWarpSize) team *= 2;
  const int64_t blocks = (params.n * params.groups * team + kThreads - 1) / kThreads;
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream};
    launch("quantize_packed", quantize_packed_kernel<T>, config,
           QuantizeLaunch{params, team, rows_fit_packs<T>(params.weight)});
  });
}

}  // namespace warpwright::cuda
