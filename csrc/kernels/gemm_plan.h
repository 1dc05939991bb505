// Which kernel a matrix product takes on a GPU, with which tile, and into how many parts its sum is split: an analytic
// model of how long each would take. Plain C++, so that `warpwright.explain` asks it on any machine.
//
// All is counted in clock cycles of one multiprocessor. A tile takes as long as the slowest of four: its products on
// the tensor cores, its fragments out of shared memory, its operands out of the second-level cache, and the latency of
// memory, which as many steps of K share as are under way at a time. Tiles are dealt out
// in rounds, the last of which may leave multiprocessors idle; filling the pipeline and the epilogue come on top, and
// nothing is faster than memory. The rates are those of datasheets; only comparisons between plans depend on them.

#pragma once

#include <algorithm>
#include <vector>

#include "kernels/common.h"

namespace warpwright {

enum class GemmKernel : int32_t { kSimple, kGemv, kMma, kTf32, kWgmma };

struct GemmPlan {
  GemmKernel kernel;
  int32_t tile_m, tile_n;
  int32_t splits;                      // Blocks that share a tile's sum.
  int32_t pingpong, swapped, cluster;  // Of kWgmma: see WgmmaConfig of cuda/matmul/gemm_wgmma.cuh.
  double seconds;                      // Predicted.
};

// What a choice depends on.
struct GemmQuestion {
  int64_t matrices, m, n, k;
  DType dtype;
  Precision precision;
  int32_t capability, multiprocessors;
  bool batch_invariant;
  bool lines;                 // Both operands have a dimension of stride 1, and
  bool a_along_k, b_along_k;  // whether it is K.
  bool aligned;               // Every line starts at a multiple of 16 bytes.
  bool tma;                   // Hopper's kernel can read both operands.
  bool by_tma;                // It can store results by TMA: see cuda/matmul/gemm_wgmma_epilogue.cuh.
};

// Rates of one multiprocessor in a clock cycle.
struct GpuModel {
  double clock;                     // Hz.
  double wgmma, mma, simple;        // Operations on 16-bit elements, and on float32 without tensor cores.
  double shared = 128, l2, memory;  // Bytes.
};

inline GpuModel gpu_model(int capability) {
  if (capability >= 100) return {1.85e9, 0, 2600, 256, 128, 40, 28};
  if (capability == 90) return {1.755e9, 4096, 2600, 256, 128, 48, 14.5};  // H100 SXM.
  if (capability == 89) return {2.52e9, 0, 512, 256, 128, 20, 3.1};        // RTX 4090.
  if (capability == 86) return {1.7e9, 0, 512, 256, 128, 24, 6.7};         // RTX 3090.
  return {1.41e9, 0, 2048, 128, 128, 47, 13.4};                            // A100 80 GB.
}

// A tile of Hopper's kernel, and how its consumers share the work.
struct WgmmaShape {
  int tile_m, tile_n;
  bool pingpong, swapped;

  // Sums that a thread of one of the two consumers holds.
  constexpr int sums() const { return tile_m * tile_n / 128 / (pingpong ? 1 : 2); }
};
// Whether there are registers left for any epilogue; else results can only leave by TMA.
constexpr bool leaves_any_way(int sums) { return sums <= 160; }

// What is compiled. Wide tiles of many sums read the fewest bytes for a product; of the others, one fits a problem with
// few idle multiprocessors in the last round. Narrow ones that hold all rows of a small m come swapped, so that the
// weights, which are nearly all bytes then, are read once, by instructions whose 64 rows are all used.
inline constexpr WgmmaShape kWgmmaShapes[] = {
    {256, 192, false, false}, {256, 128, false, false}, {128, 256, false, false}, {128, 224, false, false},
    {128, 192, false, false}, {128, 192, true, false},  {128, 160, true, false},  {128, 128, true, false},
    {128, 96, true, false},   {128, 64, true, false},   {128, 64, false, true},   {128, 32, false, true},
    {128, 16, false, true},
};

namespace gemm_plan {

// Cycles of a read from memory, until the first operands have come, of a launch, and of an epilogue that nothing hides.
inline constexpr double kLatency = 1000, kFill = 1200, kLaunch = 5000, kEpilogue = 1000;
// Of what hides behind something longer, this part shows.
inline constexpr double kInTheWay = 0.1;
// What waiting for one another costs the blocks of a cluster.
inline constexpr double kClusterCost = 1.02;
inline constexpr int kStepK = 32, kLeastSteps = 8;  // Of a split.
inline constexpr int kSplits[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32};

// A tile as a kernel computes it.
struct Tile {
  GemmKernel kernel;
  int m, n;  // Of the output, or swapped of its transpose.
  int warp_m, warp_n;
  int depth;  // Steps of K, in elements, whose operands are under way.
  bool pingpong = false, swapped = false;
  int cluster = 1;

  bool persistent() const { return kernel == GemmKernel::kWgmma; }
  int64_t rows(const GemmQuestion& q) const { return swapped ? q.n : q.m; }
  int64_t cols(const GemmQuestion& q) const { return swapped ? q.m : q.n; }
};

inline int64_t up(int64_t size, int64_t unit) { return (size + unit - 1) / unit; }

inline int64_t tiles_of(const GemmQuestion& q, const Tile& tile) {
  return q.matrices * up(tile.rows(q), int64_t{tile.m} * tile.cluster) * tile.cluster * up(tile.cols(q), tile.n);
}

inline double element_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// Cycles below which memory does not let any kernel finish.
inline double memory_floor(const GemmQuestion& q, const GpuModel& gpu) {
  const double m = static_cast<double>(q.m), n = static_cast<double>(q.n), k = static_cast<double>(q.k);
  const double bytes = static_cast<double>(q.matrices) * (m * k + n * k + m * n) * element_bytes(q.dtype);
  return bytes / (gpu.memory * q.multiprocessors);
}

// Operations in a cycle.
inline double rate_of(const GemmQuestion& q, const GpuModel& gpu, GemmKernel kernel) {
  const double by_precision = q.dtype != DType::kFloat32 ? 1 : q.precision == Precision::kTf32x3 ? 6 : 2;
  switch (kernel) {
    case GemmKernel::kWgmma: return gpu.wgmma / by_precision;
    case GemmKernel::kSimple: return gpu.simple;
    default: return gpu.mma / by_precision;
  }
}

// Of one of `rounds` tiles that follow each other on a multiprocessor.
inline double tile_cycles(const GemmQuestion& q, const GpuModel& gpu, const Tile& tile, int splits, double rounds) {
  const double bytes = element_bytes(q.dtype), products = 2.0 * tile.m * tile.n / rate_of(q, gpu, tile.kernel);
  // wgmma reads B once for the four warps of a warpgroup; every other warp reads its own fragments.
  const double warps = static_cast<double>(tile.m / tile.warp_m) * (tile.n / tile.warp_n);
  const double read = tile.persistent() ? tile.m + tile.n * (tile.m / 64.0) : warps * (tile.warp_m + tile.warp_n);
  // Past the matrix' edges nothing is fetched; the blocks of a cluster share the columns' operand.
  const double lines = static_cast<double>(std::min<int64_t>(tile.m, tile.rows(q))) +
                       static_cast<double>(std::min<int64_t>(tile.n, tile.cols(q))) / tile.cluster;
  // The blocks of two rounds run side by side, and share the waiting; a persistent one waits once.
  const double waiting = tile.persistent() ? kLatency / tile.depth : kLatency / tile.depth / std::min(rounds, 2.0);
  const double step = std::max({products, read * bytes / gpu.shared, lines * bytes / gpu.l2, waiting});
  const double epilogue = tile.persistent() ? (tile.pingpong ? 0 : kEpilogue) : kFill + kEpilogue;
  return static_cast<double>(q.k) / splits * step * (tile.cluster > 1 ? kClusterCost : 1.0) + epilogue;
}

inline double cycles(const GemmQuestion& q, const GpuModel& gpu, const Tile& tile, int splits) {
  const auto rounds = static_cast<double>(up(tiles_of(q, tile) * splits, q.multiprocessors));
  const double work = rounds * tile_cycles(q, gpu, tile, splits, rounds), floor = memory_floor(q, gpu);
  double time = kLaunch + std::max(work, floor) + kInTheWay * std::min(work, floor);
  if (tile.persistent()) time += kFill + kEpilogue;
  if (splits > 1) {
    const double partials = static_cast<double>(splits) * static_cast<double>(q.matrices * q.m * q.n) * 4;
    time += kLaunch + 2 * partials / (gpu.l2 * q.multiprocessors);
  }
  return time;
}

// Matrix times vector: memory's time, if there are lines or splits enough to keep it busy.
inline double gemv_cycles(const GemmQuestion& q, const GpuModel& gpu, bool along_k, int splits) {
  const auto lines = static_cast<double>(q.matrices * (q.m == 1 ? q.n : q.m));
  // Along K a warp, or eight, for a line; across it 256 threads for 512 bytes of lines.
  const double blocks =
      along_k ? lines / (lines < 2048 ? 1.0 : 8.0) : std::max(1.0, lines * element_bytes(q.dtype) / 512) * splits;
  const double busy = std::min(1.0, blocks / (2.0 * q.multiprocessors));
  return kLaunch + kFill + memory_floor(q, gpu) / std::max(busy, 1e-3) + (splits > 1 ? kLaunch : 0);
}

inline void add_wgmma(const GemmQuestion& q, std::vector<Tile>& tiles) {
  constexpr int kShared = 190 * 1024, kSpanBytes = 128, kLargest = 128 * 256;
  for (const WgmmaShape& shape : kWgmmaShapes) {
    const bool columns_along_k = shape.swapped ? q.a_along_k : q.b_along_k;
    if (!columns_along_k && shape.tile_n % 64 != 0) continue;
    if (shape.swapped && q.m > shape.tile_n) continue;
    if (!leaves_any_way(shape.sums()) && !q.by_tma) continue;
    const int stages = kShared / ((shape.tile_m + shape.tile_n) * kSpanBytes);
    const int depth = (stages - 1) * static_cast<int>(kSpanBytes / element_bytes(q.dtype));
    Tile tile{GemmKernel::kWgmma, shape.tile_m, shape.tile_n, 64, shape.tile_n, depth, shape.pingpong, shape.swapped};
    tiles.push_back(tile);
    tile.cluster = 2;
    if (shape.tile_m * shape.tile_n == kLargest && tile.rows(q) > shape.tile_m) tiles.push_back(tile);
  }
}

inline std::vector<Tile> tiles_for(const GemmQuestion& q) {
  const bool half = q.dtype == DType::kFloat16 || q.dtype == DType::kBFloat16;
  const bool tf32 = q.dtype == DType::kFloat32 && q.precision != Precision::kIeee;
  std::vector<Tile> tiles;
  if (half && q.lines && q.aligned) {
    tiles = {{GemmKernel::kMma, 128, 128, 64, 32, 96}, {GemmKernel::kMma, 64, 64, 32, 32, 96}};
    if (q.a_along_k) tiles.push_back({GemmKernel::kMma, 16, 128, 16, 32, 224});
  } else if (tf32 && q.lines) {
    tiles = {{GemmKernel::kTf32, 128, 64, 32, 32, 64}};
  }
  if (q.tma) {
    // Tensor cores of two kinds may add up differently: where rows must not notice, one kind serves all.
    if (q.batch_invariant) tiles.clear();
    add_wgmma(q, tiles);
  }
  if (tiles.empty()) tiles = {{GemmKernel::kSimple, 64, 64, 8, 16, 16}};
  return tiles;
}

}  // namespace gemm_plan

// Every way to compute the product, the one that should be fastest first.
inline std::vector<GemmPlan> gemm_plans(const GemmQuestion& q) {
  using namespace gemm_plan;
  const GpuModel gpu = gpu_model(q.capability);
  std::vector<GemmPlan> plans;
  for (const Tile& tile : tiles_for(q)) {
    const bool whole = q.batch_invariant || tile.kernel == GemmKernel::kSimple;
    // Partial sums leave another way than by TMA.
    const bool by_tma_alone = tile.kernel == GemmKernel::kWgmma &&
                              !leaves_any_way(WgmmaShape{tile.m, tile.n, tile.pingpong, tile.swapped}.sums());
    const int64_t most = whole || by_tma_alone ? 1 : up(q.k, kStepK) / kLeastSteps;
    for (const int splits : kSplits) {
      if (splits > 1 && (splits > most || tiles_of(q, tile) * splits > 4 * q.multiprocessors)) break;
      plans.push_back({tile.kernel, tile.m, tile.n, splits, tile.pingpong, tile.swapped, tile.cluster,
                       cycles(q, gpu, tile, splits) / gpu.clock});
    }
  }
  if ((q.m == 1 || q.n == 1) && q.lines && !q.batch_invariant) {
    const bool along_k = q.m == 1 ? q.b_along_k : q.a_along_k;
    for (const int splits : kSplits) {
      if (splits > 1 && (along_k || q.k / splits < 64)) break;
      plans.push_back({GemmKernel::kGemv, 1, 1, splits, 0, 0, 1, gemv_cycles(q, gpu, along_k, splits) / gpu.clock});
    }
  }
  std::stable_sort(plans.begin(), plans.end(), [](const auto& x, const auto& y) { return x.seconds < y.seconds; });
  return plans;
}

}  // namespace warpwright
