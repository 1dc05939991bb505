// Which kernel a matrix product takes on a GPU, with which tile, and into how many parts its sum is split: an analytic
// model of how long each would take. Plain C++, so that `warpwright.explain` asks it on any machine. A convolution, or
// a gradient of one, is such a product too, whose operand is gathered: see cuda/conv/conv.cu.
//
// All is counted in clock cycles of one multiprocessor. A tile takes as long as the slowest of four: its products on
// the tensor cores, its fragments out of shared memory, its operands out of the second-level cache, and the latency of
// memory, which as many steps of K share as are under way at a time. Tiles are dealt out
// in rounds, the last of which may leave multiprocessors idle; filling the pipeline and the epilogue come on top, and
// nothing is faster than memory. The rates are those of datasheets; only comparisons between plans depend on them.

#pragma once

#include <algorithm>
#include <iterator>
#include <tuple>
#include <vector>

#include "kernels/common.h"

namespace warpwright {

// kDepthwise is a convolution's that is no product: nothing chooses it by time.
enum class GemmKernel : int32_t { kSimple, kGemv, kMma, kTf32, kWgmma, kDepthwise };

// What a product is of: matrices, or a convolution's forward product (m = pixels, n = filters of a group, k = taps and
// channels), its input's gradient (m = pixels of a phase, n = channels, k = a phase's taps, on average, and filters) or
// its weight's (m = filters, n = taps and channels, k = pixels). Matrices are groups, or groups and phases.
enum class GemmRole : int32_t { kMatrices, kForward, kInputGradient, kWeightGradient };

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

  // Of a convolution; `lines` says there whether it is one for the tensor cores at all, `aligned` whether channels are
  // read in vectors, and operands lie along K as if the product was one of matrices.
  bool measured;  // Statistics of the output are wanted, which not all tiles leave.
  GemmRole role;
  int64_t channels;  // Of a group, that each tap has in k, or in n of a weight's gradient.
  int64_t gathered;  // Elements of the tensor that pixels are gathered from.
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
  // Of a convolution: whether the tile's statistics are those of one consumer's rows.
  constexpr bool measures() const { return pingpong; }
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
// Of a convolution: wide tiles read the fewest bytes for a product; pingpong ones hide their epilogue. Of two that take
// as long the one that comes first, and wastes less, is taken.
inline constexpr WgmmaShape kConvShapes[] = {{128, 64, true, false}, {128, 128, true, false}, {128, 256, false, false}};
// Of a weight's gradient, whose sums are long, so that epilogues are few; of 64 filters each consumer takes all, for
// columns of its own.
inline constexpr WgmmaShape kWeightShapes[] = {{64, 256, true, false}, {128, 256, false, false}};

namespace gemm_plan {

// Cycles of a read from memory, until the first operands have come, of a launch, and of an epilogue that nothing hides.
inline constexpr double kLatency = 1000, kFill = 1200, kLaunch = 5000, kEpilogue = 1000;
// Of what hides behind something longer, this part shows.
inline constexpr double kInTheWay = 0.1;
// What waiting for one another costs the blocks of a cluster.
inline constexpr double kClusterCost = 1.02;
inline constexpr int kStepK = 32, kLeastSteps = 8;  // Of a split.
inline constexpr int kSplits[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32};
// Of a weight's gradient: its tiles may be few, and its sum is over all pixels. A part has at least so many steps, or
// the partial results, which are at most so many bytes, cost what the parts save.
inline constexpr int kWeightSplits[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256};
inline constexpr int64_t kLeastPartSteps = 16, kMostPartBytes = int64_t{64} << 20;

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
  int64_t cols(const GemmQuestion& q) const;
  int64_t sum(const GemmQuestion& q) const;  // Its length.
};

inline int64_t up(int64_t size, int64_t unit) { return (size + unit - 1) / unit; }

// Hopper's convolutions round each tap's channels up to whole spans.
inline int64_t in_spans(const GemmQuestion& q, int64_t size) {
  constexpr int64_t kSpan = 64;
  return q.channels == 0 ? size : size * up(q.channels, kSpan) * kSpan / q.channels;
}
inline int64_t Tile::cols(const GemmQuestion& q) const {
  if (persistent() && q.role == GemmRole::kWeightGradient) return in_spans(q, q.n);
  return swapped ? q.m : q.n;
}
inline int64_t Tile::sum(const GemmQuestion& q) const {
  const bool spans = q.role == GemmRole::kForward || q.role == GemmRole::kInputGradient;
  return persistent() && spans ? in_spans(q, q.k) : q.k;
}

// The most parts, but no more than `wanted`, of as many steps each but for the last one that none is empty.
inline int64_t whole_parts(int64_t steps, int64_t wanted) {
  if (steps == 0 || wanted <= 1) return 1;
  return up(steps, up(steps, wanted));
}

inline int64_t tiles_of(const GemmQuestion& q, const Tile& tile) {
  return q.matrices * up(tile.rows(q), int64_t{tile.m} * tile.cluster) * tile.cluster * up(tile.cols(q), tile.n);
}

inline double element_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// Cycles below which memory does not let any kernel finish.
inline double memory_floor(const GemmQuestion& q, const GpuModel& gpu) {
  const double m = static_cast<double>(q.m), n = static_cast<double>(q.n), k = static_cast<double>(q.k);
  const double a = q.role == GemmRole::kForward || q.role == GemmRole::kInputGradient ? 0 : m * k;
  const double b = q.role == GemmRole::kWeightGradient ? 0 : n * k;
  const double elements = static_cast<double>(q.matrices) * (a + b + m * n) + static_cast<double>(q.gathered);
  return elements * element_bytes(q.dtype) / (gpu.memory * q.multiprocessors);
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
  return static_cast<double>(tile.sum(q)) / splits * step * (tile.cluster > 1 ? kClusterCost : 1.0) + epilogue;
}

inline double cycles(const GemmQuestion& q, const GpuModel& gpu, const Tile& tile, int splits) {
  const auto rounds = static_cast<double>(std::max<int64_t>(1, up(tiles_of(q, tile) * splits, q.multiprocessors)));
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

inline Tile wgmma_tile(const GemmQuestion& q, const WgmmaShape& shape) {
  constexpr int kShared = 190 * 1024, kSpanBytes = 128;
  const int stages = kShared / ((shape.tile_m + shape.tile_n) * kSpanBytes);
  const int depth = (stages - 1) * static_cast<int>(kSpanBytes / element_bytes(q.dtype));
  return {GemmKernel::kWgmma, shape.tile_m, shape.tile_n, 64, shape.tile_n, depth, shape.pingpong, shape.swapped};
}

inline void add_wgmma(const GemmQuestion& q, std::vector<Tile>& tiles) {
  constexpr int kLargest = 128 * 256;
  for (const WgmmaShape& shape : kWgmmaShapes) {
    const bool columns_along_k = shape.swapped ? q.a_along_k : q.b_along_k;
    if (!columns_along_k && shape.tile_n % 64 != 0) continue;
    if (shape.swapped && q.m > shape.tile_n) continue;
    if (!leaves_any_way(shape.sums()) && !q.by_tma) continue;
    Tile tile = wgmma_tile(q, shape);
    tiles.push_back(tile);
    tile.cluster = 2;
    if (shape.tile_m * shape.tile_n == kLargest && tile.rows(q) > shape.tile_m) tiles.push_back(tile);
  }
}

// Parts of a weight's gradient unless others were measured to be faster: by its sizes alone, so that it has the same
// bits on every device. Some 256 blocks, or of Hopper's kernel, which is one block a multiprocessor, those of an H100.
inline int weight_parts(const GemmQuestion& q, GemmKernel kernel) {
  constexpr int64_t kBlocks = 256, kHopperBlocks = 132;
  Tile tile{kernel, 64, 64, 0, 0, 0};
  int64_t blocks = kBlocks, step = kStepK;
  switch (kernel) {
    case GemmKernel::kMma:
      if (q.m > 64 && q.n > 64) tile.m = tile.n = 128;
      break;
    case GemmKernel::kTf32: tile.m = 128; break;
    case GemmKernel::kWgmma:
      tile.m = q.m > 64 ? 128 : 64;
      tile.n = 256;
      blocks = kHopperBlocks;
      step = 64;
      break;
    default: return 1;
  }
  const int64_t tiles = tiles_of(q, tile), steps = up(q.k, step), each = 4 * q.matrices * q.m * q.n;
  if (tiles == 0) return 1;
  const int64_t wanted = std::min({blocks / tiles, steps / kLeastPartSteps, kMostPartBytes / each});
  return static_cast<int>(std::max<int64_t>(1, kernel == GemmKernel::kWgmma ? whole_parts(steps, wanted) : wanted));
}

// Those of Hopper's tiles that give half of the multiprocessors a block.
inline void add_conv_wgmma(const GemmQuestion& q, std::vector<Tile>& tiles) {
  const bool weight = q.role == GemmRole::kWeightGradient;
  const int64_t parts = weight ? weight_parts(q, GemmKernel::kWgmma) : 1;
  const auto add = [&](const WgmmaShape& shape) {
    const Tile tile = wgmma_tile(q, shape);
    if (q.measured && !shape.measures()) return;
    if (2 * tiles_of(q, tile) * parts >= q.multiprocessors) tiles.push_back(tile);
  };
  weight ? std::for_each(std::begin(kWeightShapes), std::end(kWeightShapes), add)
         : std::for_each(std::begin(kConvShapes), std::end(kConvShapes), add);
}

inline std::vector<Tile> tiles_for(const GemmQuestion& q) {
  const bool conv = q.role != GemmRole::kMatrices;
  const bool half = q.dtype == DType::kFloat16 || q.dtype == DType::kBFloat16;
  const bool tf32 = q.dtype == DType::kFloat32 && q.precision != Precision::kIeee;
  std::vector<Tile> tiles;
  if (half && q.lines && (q.aligned || conv)) {
    tiles = {{GemmKernel::kMma, 128, 128, 64, 32, 96}, {GemmKernel::kMma, 64, 64, 32, 32, 96}};
    if (q.a_along_k && !conv) tiles.push_back({GemmKernel::kMma, 16, 128, 16, 32, 224});
  } else if (tf32 && q.lines) {
    tiles = {{GemmKernel::kTf32, 128, 64, 32, 32, 64}};
  }
  if (q.tma) {
    // Tensor cores of two kinds may add up differently: where rows must not notice, one kind serves all.
    if (q.batch_invariant) tiles.clear();
    conv ? add_conv_wgmma(q, tiles) : add_wgmma(q, tiles);
  }
  if (tiles.empty()) tiles = {{GemmKernel::kSimple, 64, 64, 8, 16, 16}};
  return tiles;
}

}  // namespace gemm_plan

namespace gemm_plan {

inline GemmPlan plan_of(const GemmQuestion& q, const GpuModel& gpu, const Tile& tile, int splits) {
  return {tile.kernel,   tile.m,       tile.n,       splits,
          tile.pingpong, tile.swapped, tile.cluster, cycles(q, gpu, tile, splits) / gpu.clock};
}

inline void add_splits(const GemmQuestion& q, const GpuModel& gpu, const Tile& tile, std::vector<GemmPlan>& plans) {
  const bool whole = q.batch_invariant || tile.kernel == GemmKernel::kSimple || q.role == GemmRole::kForward ||
                     q.role == GemmRole::kInputGradient;
  // Partial sums leave another way than by TMA.
  const bool by_tma_alone = tile.kernel == GemmKernel::kWgmma &&
                            !leaves_any_way(WgmmaShape{tile.m, tile.n, tile.pingpong, tile.swapped}.sums());
  const int64_t most = whole || by_tma_alone ? 1 : up(q.k, kStepK) / kLeastSteps;
  for (const int splits : kSplits) {
    if (splits > 1 && (splits > most || tiles_of(q, tile) * splits > 4 * q.multiprocessors)) break;
    plans.push_back(plan_of(q, gpu, tile, splits));
  }
}

// Whether half of a convolution's tile would do, which is compiled too.
inline bool too_large(const GemmQuestion& q, const Tile& tile) {
  const int least_m = tile.kernel == GemmKernel::kWgmma && q.role != GemmRole::kWeightGradient ? 128 : 64;
  const int least_n = tile.kernel == GemmKernel::kWgmma && q.role == GemmRole::kWeightGradient ? 256 : 64;
  if (tile.kernel != GemmKernel::kWgmma && tile.kernel != GemmKernel::kMma) return false;
  return (tile.m > least_m && 2 * q.m <= tile.m) || (tile.n > least_n && 2 * q.n <= tile.n);
}

// The first one of a tile has the parts that follow from the sizes.
inline void add_parts(const GemmQuestion& q, const GpuModel& gpu, const Tile& tile, std::vector<GemmPlan>& plans) {
  const int parts = weight_parts(q, tile.kernel);
  plans.push_back(plan_of(q, gpu, tile, parts));
  if (tile.kernel == GemmKernel::kSimple) return;
  const int64_t steps = up(q.k, tile.persistent() ? 64 : kStepK), each = 4 * q.matrices * q.m * q.n;
  for (const int splits : kWeightSplits) {
    if (splits > 1 && (splits > steps / kLeastPartSteps || splits * each > kMostPartBytes)) break;
    if (splits > 1 && tiles_of(q, tile) * splits > 4 * q.multiprocessors) break;
    if (splits == parts || (tile.persistent() && whole_parts(steps, splits) != splits)) continue;
    plans.push_back(plan_of(q, gpu, tile, splits));
  }
}

}  // namespace gemm_plan

// Every way to compute the product, the one that should be fastest first. Of a convolution Hopper's kernel goes before
// others, whose threads find every pixel's address themselves, which the model does not count; then a tile that is
// filled; then what gives half of the multiprocessors a block; and of a weight's gradient before all else the parts
// that follow from the sizes alone.
inline std::vector<GemmPlan> gemm_plans(const GemmQuestion& q) {
  using namespace gemm_plan;
  const GpuModel gpu = gpu_model(q.capability);
  const bool conv = q.role != GemmRole::kMatrices, weight = q.role == GemmRole::kWeightGradient;
  std::vector<GemmPlan> plans;
  for (const Tile& tile : tiles_for(q)) weight ? add_parts(q, gpu, tile, plans) : add_splits(q, gpu, tile, plans);
  if (!conv && (q.m == 1 || q.n == 1) && q.lines && !q.batch_invariant) {
    const bool along_k = q.m == 1 ? q.b_along_k : q.a_along_k;
    for (const int splits : kSplits) {
      if (splits > 1 && (along_k || q.k / splits < 64)) break;
      plans.push_back({GemmKernel::kGemv, 1, 1, splits, 0, 0, 1, gemv_cycles(q, gpu, along_k, splits) / gpu.clock});
    }
  }
  const auto rank = [&](const GemmPlan& plan) {
    const Tile tile{plan.kernel, plan.tile_m, plan.tile_n, 0, 0, 0};
    const bool idle = conv && 2 * tiles_of(q, tile) * plan.splits < q.multiprocessors;
    const bool other_parts = weight && plan.splits != weight_parts(q, plan.kernel);
    return std::tuple(other_parts, conv && plan.kernel != GemmKernel::kWgmma, conv && too_large(q, tile), idle,
                      plan.seconds);
  };
  std::stable_sort(plans.begin(), plans.end(), [&](const auto& x, const auto& y) { return rank(x) < rank(y); });
  return plans;
}

}  // namespace warpwright
