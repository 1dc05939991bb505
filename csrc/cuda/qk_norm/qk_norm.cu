// QK norm with rotary embedding: a few lanes of a warp take a head, hold it in registers, and read and write it once.
//
// A head is cut in the two halves of what is rotated and the rest. A lane holds kPacks packs of each half, at the same
// places, and 2 kPacks packs of the rest, so that both elements of a pair are in one lane: where pairs are the two
// halves they face each other, and neighbours lie in one pack, or are taken as a pair where a pack is one element.

#include <bit>

#include "cuda/device.h"
#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/partials.cuh"
#include "cuda/tile/reduction.cuh"
#include "kernels/qk_norm.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 128;
constexpr int kSingles = 8;  // Packs of one element that a lane holds of a half.
constexpr int kBlocksPerMultiprocessor = 16;

struct QkNormLaunch {
  QkNormParams params;
  int lanes;  // That share a head: a power of two, at most a warp.
};

// Where a lane's packs lie in a head.
template <int kCount, int kPacks>
struct HeadPlace {
  static constexpr int kParts = 4 * kPacks;  // Packs of the first half, the second half, the rest.
  int pairs, rest, first, step;
  bool neighbours;  // A pack is one element, and pairs lie side by side.

  __device__ __forceinline__ HeadPlace(const QkNormParams& p, int lane, int lanes)
      : pairs(static_cast<int>(p.rotary_dim / 2)),
        rest(static_cast<int>(p.head_dim - p.rotary_dim)),
        first(lane * kCount),
        step(lanes * kCount),
        neighbours(p.interleaved && kCount == 1) {}

  // Of a pack in its half, or in the rest.
  __device__ __forceinline__ int within(int part) const {
    return first + (part < kPacks ? part : part < 2 * kPacks ? part - kPacks : part - 2 * kPacks) * step;
  }
  __device__ __forceinline__ bool holds(int part) const { return within(part) < (part < 2 * kPacks ? pairs : rest); }
  __device__ __forceinline__ int col(int part) const {
    if (part >= 2 * kPacks) return 2 * pairs + within(part);
    if (neighbours) return 2 * within(part) + (part < kPacks ? 0 : 1);
    return within(part) + (part < kPacks ? 0 : pairs);
  }
};

// What a lane holds of a head, in float32.
template <class T, int kCount, int kPacks>
struct HeadTile {
  using Place = HeadPlace<kCount, kPacks>;
  float values[Place::kParts][kCount];

  // body(part, i) for every element.
  template <class Body>
  static __device__ __forceinline__ void for_each(const Body& body) {
#pragma unroll
    for (int k = 0; k < Place::kParts; ++k) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) body(k, i);
    }
  }

  // Zeros past the head's end.
  __device__ __forceinline__ void load(const T* head, int64_t stride, const Place& place, bool active = true) {
#pragma unroll
    for (int k = 0; k < Place::kParts; ++k) {
      Pack<T, kCount> pack{};
      if (active && place.holds(k)) {
        if constexpr (kCount == 1) {
          pack.values[0] = head[place.col(k) * stride];
        } else {
          pack = *reinterpret_cast<const Pack<T, kCount>*>(head + place.col(k));
        }
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[k][i] = to_float(pack.values[i]);
    }
  }

  __device__ __forceinline__ void store(T* head, const Place& place) const {
#pragma unroll
    for (int k = 0; k < Place::kParts; ++k) {
      if (!place.holds(k)) continue;
      Pack<T, kCount> pack;
#pragma unroll
      for (int i = 0; i < kCount; ++i) pack.values[i] = from_float<T>(values[k][i]);
      store_whole(head + place.col(k), pack);
    }
  }

  // By the angles of a position. sign: 1, or -1 to rotate back.
  template <class Table>
  __device__ __forceinline__ void rotate(const Table* cos, const Table* sin, float sign, bool interleaved,
                                         const Place& place) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (!place.holds(k)) continue;
      if (kCount == 1 || !interleaved) {
        turn<kCount>(cos + place.within(k), sin + place.within(k), sign,
                     [&](int i, bool second) -> float& { return values[second ? kPacks + k : k][i]; });
      } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int angle = place.col(half * kPacks + k) / 2;
          turn<kCount / 2>(cos + angle, sin + angle, sign, [&](int i, bool second) -> float& {
            return values[half * kPacks + k][2 * i + (second ? 1 : 0)];
          });
        }
      }
    }
  }

 private:
  // kPairs pairs by neighbouring angles.
  template <int kPairs, class Table, class Element>
  static __device__ __forceinline__ void turn(const Table* cos, const Table* sin, float sign, const Element& element) {
    if constexpr (kPairs > 0) {
      using Angles = Pack<Table, kPairs>;
      const Angles c = *reinterpret_cast<const Angles*>(cos), s = *reinterpret_cast<const Angles*>(sin);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const float u = element(i, false), v = element(i, true);
        element(i, false) = u * to_float(c.values[i]) - v * (to_float(s.values[i]) * sign);
        element(i, true) = v * to_float(c.values[i]) + u * (to_float(s.values[i]) * sign);
      }
    }
  }
};

// One head: row = (batch, sequence, head). 32 bits hold the rows, and divide faster.
struct Head {
  int64_t batch, position, head;

  __device__ __forceinline__ Head(const QkNormParams& p, const QkNormSide& side, uint32_t row) {
    const uint32_t token = row / static_cast<uint32_t>(side.heads);
    head = row - token * static_cast<uint32_t>(side.heads);
    batch = token / static_cast<uint32_t>(p.sequence);
    position = token - static_cast<uint32_t>(batch) * static_cast<uint32_t>(p.sequence);
  }
  __device__ __forceinline__ int64_t at(const int64_t* stride) const {
    return batch * stride[0] + position * stride[1] + head * stride[2];
  }
  __device__ __forceinline__ int64_t table(const QkNormParams& p) const {
    return batch * p.table_batch + position * p.table_row;
  }
};

// Over the lanes that share a head.
__device__ __forceinline__ float sum_lanes(float value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullMask, value, offset);
  return value;
}

__device__ __forceinline__ uint32_t rows_of_side(const QkNormParams& p, const QkNormSide& side) {
  return static_cast<uint32_t>(p.batch * p.sequence * side.heads);
}

// machine code: 1, 8>: SHFL; else: SHFL, 16-byte
template <class T, class Table, int kCount, int kPacks>
__global__ void __launch_bounds__(kThreads) qk_norm_forward_kernel(const QkNormLaunch launch) {
  using Tile = HeadTile<T, kCount, kPacks>;
  const QkNormParams& p = launch.params;
  const QkNormSide& side = p.sides[blockIdx.y];
  const int lanes = launch.lanes, lane = static_cast<int>(threadIdx.x) % lanes;
  const HeadPlace<kCount, kPacks> place(p, lane, lanes);
  const uint32_t rows = rows_of_side(p, side), teams = kThreads / lanes;
  const float weight_offset = static_cast<float>(p.weight_offset);
  // All lanes of a warp go round alike: they reduce together.
  for (uint32_t first = blockIdx.x * teams; first < rows; first += gridDim.x * teams) {
    const uint32_t row = first + threadIdx.x / lanes;
    const bool active = row < rows;
    const Head at(p, side, active ? row : 0);
    Tile x;
    x.load(static_cast<const T*>(side.x) + at.at(side.x_stride), side.x_stride[3], place, active);
    float squares = 0.0f;
    Tile::for_each([&](int k, int i) { squares += x.values[k][i] * x.values[k][i]; });
    const float mean_square = sum_lanes(squares, lanes) / static_cast<float>(p.head_dim);
    const float rstd = 1.0f / sqrtf(mean_square + static_cast<float>(p.eps));
    if (!active) continue;
    if (lane == 0) static_cast<float*>(side.rstd)[row] = rstd;
    Tile weight;
    if (side.weight != nullptr) weight.load(static_cast<const T*>(side.weight), 1, place);
    Tile::for_each([&](int k, int i) {
      x.values[k][i] *= rstd;
      if (side.weight != nullptr) x.values[k][i] *= weight_offset + weight.values[k][i];
    });
    const int64_t table = at.table(p);
    x.rotate(static_cast<const Table*>(p.cos) + table, static_cast<const Table*>(p.sin) + table, 1.0f, p.interleaved,
             place);
    x.store(static_cast<T*>(side.output) + row * p.head_dim, place);
  }
}

// With dz the gradient rotated back, xhat = x * rstd and g = dz * (weight_offset + weight):
//   grad_x = rstd * (g - xhat * mean(g * xhat)),   grad_weight = sum over heads of dz * xhat.
// machine code: 1, 8>: SHFL; else: SHFL, 16-byte
template <class T, class Table, int kCount, int kPacks>
__global__ void __launch_bounds__(kThreads) qk_norm_backward_kernel(const QkNormLaunch launch) {
  using Tile = HeadTile<T, kCount, kPacks>;
  constexpr int kElements = HeadPlace<kCount, kPacks>::kParts * kCount;
  __shared__ float all_sums[kElements][kThreads];
  const QkNormParams& p = launch.params;
  const QkNormSide& side = p.sides[blockIdx.y];
  const int lanes = launch.lanes, lane = static_cast<int>(threadIdx.x) % lanes;
  const HeadPlace<kCount, kPacks> place(p, lane, lanes);
  const uint32_t rows = rows_of_side(p, side), teams = kThreads / lanes;
  const uint32_t wanted = (rows + teams - 1) / teams, groups = wanted < gridDim.x ? wanted : gridDim.x;
  if (blockIdx.x >= groups) return;  // The other side has more rows.
  const float weight_offset = static_cast<float>(p.weight_offset);
  Tile weight, sums{};
  if (side.weight != nullptr) weight.load(static_cast<const T*>(side.weight), 1, place);
  for (uint32_t first = blockIdx.x * teams; first < rows; first += groups * teams) {
    const uint32_t row = first + threadIdx.x / lanes;
    const bool active = row < rows;
    const Head at(p, side, active ? row : 0);
    Tile x, g;
    x.load(static_cast<const T*>(side.x) + at.at(side.x_stride), side.x_stride[3], place, active);
    g.load(static_cast<const T*>(side.grad) + at.at(side.grad_stride), side.grad_stride[3], place, active);
    const int64_t table = at.table(p);
    g.rotate(static_cast<const Table*>(p.cos) + table, static_cast<const Table*>(p.sin) + table, -1.0f, p.interleaved,
             place);
    const float rstd = active ? static_cast<const float*>(side.rstd)[row] : 0.0f;
    float dot = 0.0f;
    Tile::for_each([&](int k, int i) {
      const float xhat = x.values[k][i] * rstd;
      sums.values[k][i] += g.values[k][i] * xhat;
      if (side.weight != nullptr) g.values[k][i] *= weight_offset + weight.values[k][i];
      dot += g.values[k][i] * xhat;
    });
    const float mean_dot = sum_lanes(dot, lanes) / static_cast<float>(p.head_dim);
    if (!active || side.output == nullptr) continue;
    Tile::for_each([&](int k, int i) { g.values[k][i] = (g.values[k][i] - x.values[k][i] * rstd * mean_dot) * rstd; });
    g.store(static_cast<T*>(side.output) + row * p.head_dim, place);
  }

  if (side.partials == nullptr) return;
  Tile::for_each([&](int k, int i) { all_sums[k * kCount + i][threadIdx.x] = sums.values[k][i]; });
  __syncthreads();
  if (threadIdx.x >= static_cast<unsigned>(lanes)) return;
  float* partials = static_cast<float*>(side.partials) + blockIdx.x * p.head_dim;
  Tile::for_each([&](int k, int i) {
    float total = 0.0f;
    for (uint32_t team = 0; team < teams; ++team) total += all_sums[k * kCount + i][team * lanes + lane];
    if (place.holds(k)) partials[place.col(k) + i] = total;
  });
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

namespace {

bool fits_packs(const void* data, const int64_t* stride, int count, int bytes) {
  return stride[3] == 1 && reinterpret_cast<uintptr_t>(data) % bytes == 0 && stride[0] % count == 0 &&
         stride[1] % count == 0 && stride[2] % count == 0;
}

// Whether every tensor can be read in packs of kCount, and a warp holds a head of such packs.
template <class T, class Table, int kCount>
bool takes_packs(const QkNormParams& p) {
  const int64_t pairs = p.rotary_dim / 2, rest = p.head_dim - p.rotary_dim;
  bool fits =
      pairs % kCount == 0 && rest % kCount == 0 && pairs <= kWarpSize * kCount && rest <= 2 * kWarpSize * kCount;
  for (const void* table : {p.cos, p.sin}) fits &= reinterpret_cast<uintptr_t>(table) % (kCount * sizeof(Table)) == 0;
  for (const QkNormSide& side : p.sides) {
    fits &= fits_packs(side.x, side.x_stride, kCount, kPackBytes) && row_fits_packs(side.weight);
    if (side.grad != nullptr) fits &= fits_packs(side.grad, side.grad_stride, kCount, kPackBytes);
  }
  return fits;
}

// Calls f(T, Table, pack's elements, packs of a half, lanes of a head).
template <class F>
void visit_plan(const QkNormParams& p, const F& f) {
  const auto visit_table = [&](auto tag, auto table) {
    constexpr int kCount = kPackSize<decltype(tag)>;
    const int64_t pairs = p.rotary_dim / 2, rest = p.head_dim - p.rotary_dim;
    if (!takes_packs<decltype(tag), decltype(table), kCount>(p)) {
      using One = std::integral_constant<int, 1>;
      return f(tag, table, One{}, std::integral_constant<int, kSingles>{}, kWarpSize);
    }
    const auto packs = static_cast<unsigned>((pairs > rest / 2 ? pairs : (rest + 1) / 2) + kCount - 1) / kCount;
    const int lanes = static_cast<int>(std::bit_ceil(packs < 1 ? 1u : packs));
    f(tag, table, std::integral_constant<int, kCount>{}, std::integral_constant<int, 1>{}, lanes);
  };
  visit_float(p.dtype, [&](auto tag) {
    if (p.table_dtype == DType::kFloat32) return visit_table(tag, float{});
    visit_table(tag, tag);
  });
}

int64_t most_rows(const QkNormParams& p) {
  const int64_t heads = p.sides[0].heads > p.sides[1].heads ? p.sides[0].heads : p.sides[1].heads;
  return p.batch * p.sequence * heads;
}

}  // namespace

void qk_norm_forward(const QkNormParams& params, Stream stream) {
  if (most_rows(params) == 0) return;
  visit_plan(params, [&](auto tag, auto table, auto count, auto packs, int lanes) {
    const int64_t teams = kThreads / lanes, wanted = (most_rows(params) + teams - 1) / teams;
    const int64_t most = int64_t{current_device().multiprocessors} * kBlocksPerMultiprocessor;
    const auto blocks = static_cast<unsigned>(wanted < most ? wanted : most);
    launch("qk_norm", qk_norm_forward_kernel<decltype(tag), decltype(table), count(), packs()>,
           {dim3(blocks, 2), dim3(kThreads), stream}, QkNormLaunch{params, lanes});
  });
}

void qk_norm_backward(const QkNormParams& params, Stream stream) {
  visit_plan(params, [&](auto tag, auto table, auto count, auto packs, int lanes) {
    const int64_t teams = kThreads / lanes;
    const auto groups_of = [&](int64_t rows) { return qk_norm_partials((rows + teams - 1) / teams); };
    if (most_rows(params) > 0) {
      const LaunchConfig config{dim3(static_cast<unsigned>(groups_of(most_rows(params))), 2), dim3(kThreads), stream};
      launch("qk_norm_backward", qk_norm_backward_kernel<decltype(tag), decltype(table), count(), packs()>, config,
             QkNormLaunch{params, lanes});
    }
    for (const QkNormSide& side : params.sides) {
      if (side.grad_weight == nullptr) continue;
      const int64_t groups = groups_of(params.batch * params.sequence * side.heads);
      sum_partials<decltype(tag)>(side.partials, side.grad_weight, groups, params.head_dim, stream);
    }
  });
}

}  // namespace warpwright::cuda
