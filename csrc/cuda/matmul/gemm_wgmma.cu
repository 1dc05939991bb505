// gemm_wgmma's launchers: which products and configurations it takes, and the tensor maps.
// The kernel itself is in gemm_wgmma_kernel.cuh.

#include <algorithm>

#include "cuda/device.h"
#include "cuda/matmul/gemm_wgmma.cuh"
#include "cuda/matmul/gemm_wgmma_kernel.cuh"
#include "cuda/matmul/split_k.cuh"

namespace warpwright::cuda {
namespace {

bool is_half(DType dtype) { return dtype == DType::kFloat16 || dtype == DType::kBFloat16; }

// An operand of a product as a tensor of rank 2, or 5 for a batch.
struct Operand {
  ptx::TensorLayout layout;
  bool along_k;
  bool batch[kMaxBatchDims];
  bool fits;  // k lies together, or, of 16-bit elements, the rows do.
};

Operand operand_of(const GemmParams& p, const void* data, int64_t rows, const int64_t (&batch)[kMaxBatchDims],
                   int64_t row_stride, int64_t col_stride) {
  Operand operand{};
  // The stride of a dimension of one element is anything.
  const bool rows_together = row_stride == 1 || rows == 1, k_together = col_stride == 1 || p.k == 1;
  operand.along_k = k_together && !(rows_together && p.k == 1);
  operand.fits = operand.along_k || (rows_together && is_half(p.dtype));
  ptx::TensorLayout& layout = operand.layout;
  layout = {data, p.dtype, p.matrices() > 1 ? 2 + kMaxBatchDims : 2, {}, {}};
  layout.to_tf32 = p.dtype == DType::kFloat32;
  int64_t natural = 1;  // The stride without gaps, for a dimension that has none of its own.
  const auto add = [&](int d, int64_t size, int64_t stride) {
    layout.size[d] = size;
    layout.stride[d] = d == 0 ? 1 : size == 1 ? natural : stride;
    natural = (layout.stride[d] * size + kPack - 1) / kPack * kPack;
  };
  add(0, operand.along_k ? p.k : rows, 1);
  add(1, operand.along_k ? rows : p.k, operand.along_k ? row_stride : col_stride);
  for (int d = kMaxBatchDims - 1; d >= 0; --d) {
    operand.batch[d] = batch[d] != 0 && p.batch[d] > 1;
    add(1 + kMaxBatchDims - d, operand.batch[d] ? p.batch[d] : 1, batch[d]);
  }
  return operand;
}

Operand a_of(const GemmParams& p) { return operand_of(p, p.a, p.m, p.a_batch, p.a_row, p.a_col); }
Operand b_of(const GemmParams& p) { return operand_of(p, p.b, p.n, p.b_batch, p.b_row, p.b_col); }

bool can_read(const Operand& operand) { return operand.fits && ptx::tensor_map_takes(operand.layout); }

WgmmaOperand batched_operand(const Operand& operand, int tile_rows, int sharers) {
  WgmmaOperand result = wgmma_operand(operand.layout, operand.along_k, tile_rows, sharers);
  std::copy_n(operand.batch, kMaxBatchDims, result.batch);
  return result;
}

int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

int64_t steps_of_a_split(const GemmParams& p, const WgmmaConfig& c) { return tiles(wgmma_steps(p), c.splits); }

WgmmaWalk walk_of(const GemmParams& p, const WgmmaConfig& c) {
  WgmmaWalk walk{};
  walk.rows = static_cast<unsigned>(tiles(c.swapped ? p.n : p.m, int64_t{c.tile_m} * c.cluster));
  walk.cols = static_cast<unsigned>(tiles(c.swapped ? p.m : p.n, c.tile_n));
  walk.matrices = static_cast<unsigned>(p.matrices());
  walk.band = static_cast<unsigned>(c.band);
  walk.cluster = static_cast<unsigned>(c.cluster);
  walk.steps = static_cast<int>(wgmma_steps(p));
  walk.split_steps = static_cast<int>(steps_of_a_split(p, c));
  walk.splits = static_cast<unsigned>(tiles(walk.steps, walk.split_steps));  // None is empty.
  return walk;
}

}  // namespace

bool wgmma_leaves_by_tma(const GemmParams& p) {
  return is_half(p.dtype) && is_half(p.output_dtype) && p.residual == nullptr && p.preact == nullptr &&
         (p.activation == Activation::kNone || p.activation == Activation::kRelu) &&
         ptx::tensor_map_takes(output_layout(p));
}

int64_t wgmma_steps(const GemmParams& params) { return tiles(params.k, span_of(params.dtype)); }

bool gemm_wgmma_takes(const GemmParams& p) {
  constexpr int64_t kMostCoordinate = INT32_MAX - 1024;  // A tile may reach past it.
  const bool tensor_cores = is_half(p.dtype) || (p.dtype == DType::kFloat32 && p.precision == Precision::kTf32);
  if (current_device().capability != 90 || !tensor_cores) return false;
  if (std::min({p.m, p.n, p.k, p.matrices()}) < 1 || std::max({p.m, p.n, p.k, p.matrices()}) > kMostCoordinate) {
    return false;
  }
  // Of the smallest tiles, so that they can be counted.
  if (tiles(p.m, 64) * tiles(p.n, 64) > kMostCoordinate / p.matrices()) return false;
  return can_read(a_of(p)) && can_read(b_of(p));
}

bool wgmma_allows(const GemmParams& params, const WgmmaConfig& c) {
  const auto same = [&](const WgmmaShape& s) {
    return s.tile_m == c.tile_m && s.tile_n == c.tile_n && s.pingpong == c.pingpong && s.swapped == c.swapped;
  };
  const auto* const shape = std::find_if(std::begin(kWgmmaShapes), std::end(kWgmmaShapes), same);
  if (shape == std::end(kWgmmaShapes) || c.cluster < 1 || c.cluster > 2 || c.band < 1) return false;
  if (c.splits < 1 || c.splits > (params.batch_invariant ? 1 : wgmma_steps(params))) return false;
  if (!leaves_any_way(shape->sums()) && (c.splits > 1 || !wgmma_leaves_by_tma(params))) return false;
  if (c.swapped && params.m > c.tile_n) return false;
  // Tiles of the columns' operand are boxes of 64 rows where those lie together.
  const Operand columns = c.swapped ? a_of(params) : b_of(params);
  return columns.along_k || c.tile_n % kBoxRows == 0;
}

std::vector<WgmmaConfig> wgmma_configs(const GemmParams& params) {
  std::vector<WgmmaConfig> found;
  for (const WgmmaShape& shape : kWgmmaShapes) {
    const WgmmaConfig config{shape.tile_m, shape.tile_n, shape.pingpong, shape.swapped};
    if (wgmma_allows(params, config)) found.push_back(config);
  }
  return found;
}

int64_t wgmma_workspace_bytes(const GemmParams& p, const WgmmaConfig& config) {
  const unsigned splits = walk_of(p, config).splits;
  return splits == 1 ? 0 : splits * p.matrices() * p.m * p.n * static_cast<int64_t>(sizeof(float));
}

void gemm_wgmma(const GemmParams& params, const WgmmaConfig& config, void* workspace, Stream stream) {
  if (!wgmma_allows(params, config)) throw std::logic_error("warpwright: this product cannot be configured so");
  GemmWgmmaParams p{};
  const Operand a = a_of(params), b = b_of(params);
  p.a = batched_operand(config.swapped ? b : a, config.tile_m, 1);
  p.b = batched_operand(config.swapped ? a : b, config.tile_n, config.cluster);
  p.gemm = params;
  p.walk = walk_of(params, config);
  p.batched = params.matrices() > 1;
  const bool split = p.walk.splits > 1;
  p.partials = split ? static_cast<float*>(workspace) : nullptr;
  set_epilogue(p, config.tile_n, !split && !config.swapped && wgmma_leaves_by_tma(params));

  const unsigned clusters = static_cast<unsigned>(current_device().multiprocessors) / p.walk.cluster;
  const dim3 grid(std::min(p.walk.places(), clusters) * p.walk.cluster);
  const auto [kernel, shared_bytes] = config.pingpong ? pingpong_kernel(config) : cooperative_kernel(config);
  launch("gemm_wgmma", kernel, {grid, dim3(kWgmmaThreads), stream, shared_bytes, config.cluster}, p);
  if (split) reduce_splits(params, p.partials, static_cast<int>(p.walk.splits), stream);
}

}  // namespace warpwright::cuda
