// Softmax and its logarithm. A row that a team of threads can hold is read once, and its logits stay in registers in
// between; a wider one is read twice, once for its maximum and its sum together (Milakov and Gimelshein, "Online
// normalizer calculation for softmax", 2018), once more to be written. Along another dimension than the last, a lane
// takes a row of its own: neighbouring lanes then read neighbouring elements.

#include "cuda/launch.h"
#include "cuda/softmax/bounds.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// Packs are for rows without a mask and a causal bound: with them a thread would need more registers than it has.
template <int kCount>
inline constexpr bool kBounded = kCount == 1;

// A row of a fresh tensor: where it fits packs, rows follow each other, and its place takes no division.
template <class T, int kCount>
__device__ __forceinline__ RowPointer<T> written_row(const Rows& rows, int64_t row, int64_t cols) {
  T* data = static_cast<T*>(rows.data);
  if constexpr (kCount > 1) return {data + row * cols};
  return {data + rows.offset(row), rows.col_stride};
}

// A maximum, and the sum of exponentials less it. Nothing yet is minus infinity and 0.
struct Online {
  float max = -INFINITY, sum = 0.0f;

  // What is subtracted: not minus infinity, where the difference to it would be NaN.
  static __device__ __forceinline__ float origin(float max) { return max == -INFINITY ? 0.0f : max; }

  // Before terms of at most `highest` are added: the sum is brought to the new maximum.
  __device__ __forceinline__ void raise(float highest) {
    const float higher = fmaxf(max, highest);
    sum *= expf(max - origin(higher));
    max = higher;
  }
  __device__ __forceinline__ void add(float x) { sum += expf(x - origin(max)); }
};

// machine code: 1, 8>: SHFL; else: SHFL, 16-byte
template <class T, bool kWarp, int kCount, int kPacks>
__global__ void __launch_bounds__(kWarp ? kNarrowBlockThreads : kMaxTeamThreads) softmax_kernel(const SoftmaxParams p) {
  using Tile = RowTile<T, kCount, kPacks>;
  using Place = RowPlace<kCount>;
  RowTeam<kWarp> team;
  const RowWalk<kCount, kPacks> walk(team, p.cols);
  // A warp's row is one tile: see visit_row_plan.
  const bool resident = kWarp || walk.resident();
  const int tiles = kWarp ? 1 : walk.tiles;
  const float scale = static_cast<float>(p.scale);
  for (int64_t row = team.first_row(); row < p.rows; row += team.row_step()) {
    const auto input = row_pointer<T>(p.input, row);
    const auto output = written_row<T, kCount>(p.output, row, p.cols);
    const BoundedRow<T> bounds(p.bounds, row);
    Tile x;
    float logits[kPacks][kCount];
    const auto load = [&](const Place& at) {
      x.load(input, at);
      Tile::for_each([&](int k, int i) {
        float z = x.get(k, i) * scale;
        if constexpr (kBounded<kCount>) z = bounds.bounded(z, at.col(k) + i);
        logits[k][i] = at.holds(k) ? z : -INFINITY;
      });
    };
    const auto highest = [&] {
      float max = -INFINITY;
      Tile::for_each([&](int k, int i) { max = fmaxf(max, logits[k][i]); });
      return max;
    };

    Online local;
    if (resident) {
      load(walk.place(0));
      local.max = team.template reduce<Max>(highest());
      Tile::for_each([&](int k, int i) { local.add(logits[k][i]); });
    } else {
      for (int tile = 0; tile < tiles; ++tile) {
        load(walk.place(tile));
        local.raise(highest());
        Tile::for_each([&](int k, int i) { local.add(logits[k][i]); });
      }
      local.raise(team.template reduce<Max>(local.max));
    }
    // A row of minus infinities alone is NaN, as are all whose sum is.
    const float max = local.max, sum = team.template reduce<Sum>(local.sum);
    const float factor = 1.0f / sum, log_sum = logf(sum);
    for (int tile = 0; tile < tiles; ++tile) {
      const Place at = walk.place(tile);
      if (!resident) load(at);
      Tile::for_each([&](int k, int i) {
        const float z = logits[k][i] - max;
        x.set(k, i, p.log ? z - log_sum : expf(z) * factor);
      });
      x.store(output, at);
    }
  }
}

// machine code: 1, 8>: SHFL; else: SHFL, 16-byte
template <class T, bool kWarp, int kCount, int kPacks>
__global__ void __launch_bounds__(kWarp ? kNarrowBlockThreads : kMaxTeamThreads)
    softmax_backward_kernel(const SoftmaxBackwardParams p) {
  using Tile = RowTile<T, kCount, kPacks>;
  using Place = RowPlace<kCount>;
  RowTeam<kWarp> team;
  const RowWalk<kCount, kPacks> walk(team, p.cols);
  // A warp's row is one tile: see visit_row_plan.
  const bool resident = kWarp || walk.resident();
  const int tiles = kWarp ? 1 : walk.tiles;
  const float scale = static_cast<float>(p.scale);
  for (int64_t row = team.first_row(); row < p.rows; row += team.row_step()) {
    const auto grad_row = row_pointer<T>(p.grad_output, row), output_row = row_pointer<T>(p.output, row);
    const auto result = written_row<T, kCount>(p.grad_input, row, p.cols);
    const BoundedRow<T> bounds(p.bounds, row);
    Tile grad, output;
    const auto load = [&](const Place& at) {
      grad.load(grad_row, at);
      output.load(output_row, at);
    };
    float local = 0.0f;
    for (int tile = 0; tile < tiles; ++tile) {
      load(walk.place(tile));
      Tile::for_each([&](int k, int i) { local += p.log ? grad.get(k, i) : grad.get(k, i) * output.get(k, i); });
    }
    const float dot = team.template reduce<Sum>(local);
    for (int tile = 0; tile < tiles; ++tile) {
      const Place at = walk.place(tile);
      if (!resident) load(at);
      Tile::for_each([&](int k, int i) {
        const float g = grad.get(k, i), y = output.get(k, i);
        const float dx = p.log ? g - expf(y) * dot : y * (g - dot);
        bool kept = true;
        if constexpr (kBounded<kCount>) kept = at.holds(k) && bounds.keeps(at.col(k) + i);
        grad.set(k, i, kept ? dx * scale : 0.0f);
      });
      grad.store(result, at);
    }
  }
}

// A panel: 32 rows, one a lane, whose columns the warps of a block share.
constexpr int kPanelWarps = 8;

template <class T>
struct PanelRow {
  int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpSize + threadIdx.x % kWarpSize;
  int64_t cols;  // To walk: none past the last row.
  int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;

  __device__ __forceinline__ PanelRow(int64_t rows, int64_t cols) : cols(row < rows ? cols : 0) {
    if (row >= rows) row = rows - 1;
  }
  template <class Body>
  __device__ __forceinline__ void for_each(const Body& body) const {
    for (int64_t col = warp; col < cols; col += kPanelWarps) body(col);
  }
};

// machine code: plain
template <class T>
__global__ void __launch_bounds__(kPanelWarps* kWarpSize) softmax_panel_kernel(const SoftmaxParams p) {
  __shared__ float maxima[kPanelWarps][kWarpSize], sums[kPanelWarps][kWarpSize];
  const PanelRow<T> panel(p.rows, p.cols);
  const auto input = row_pointer<T>(p.input, panel.row);
  T* output = static_cast<T*>(p.output.data) + p.output.offset(panel.row);
  const BoundedRow<T> bounds(p.bounds, panel.row);
  const auto logit = [&](int64_t col) {
    return bounds.bounded(to_float(input.data[col * input.stride]) * static_cast<float>(p.scale), col);
  };
  Online own, total;
  panel.for_each([&](int64_t col) {
    const float x = logit(col);
    own.raise(x);
    own.add(x);
  });
  maxima[panel.warp][panel.lane] = own.max;
  sums[panel.warp][panel.lane] = own.sum;
  __syncthreads();
  for (int warp = 0; warp < kPanelWarps; ++warp) total.max = fmaxf(total.max, maxima[warp][panel.lane]);
  for (int warp = 0; warp < kPanelWarps; ++warp) {
    total.sum += sums[warp][panel.lane] * expf(maxima[warp][panel.lane] - Online::origin(total.max));
  }
  const float factor = 1.0f / total.sum, log_sum = logf(total.sum);
  panel.for_each([&](int64_t col) {
    const float z = logit(col) - total.max;
    output[col * p.output.col_stride] = from_float<T>(p.log ? z - log_sum : expf(z) * factor);
  });
}

// machine code: plain
template <class T>
__global__ void __launch_bounds__(kPanelWarps* kWarpSize) softmax_panel_backward_kernel(const SoftmaxBackwardParams p) {
  __shared__ float sums[kPanelWarps][kWarpSize];
  const PanelRow<T> panel(p.rows, p.cols);
  const auto grad = row_pointer<T>(p.grad_output, panel.row), output = row_pointer<T>(p.output, panel.row);
  T* result = static_cast<T*>(p.grad_input.data) + p.grad_input.offset(panel.row);
  const BoundedRow<T> bounds(p.bounds, panel.row);
  float own = 0.0f, dot = 0.0f;
  panel.for_each([&](int64_t col) {
    const float g = to_float(grad.data[col * grad.stride]);
    own += p.log ? g : g * to_float(output.data[col * output.stride]);
  });
  sums[panel.warp][panel.lane] = own;
  __syncthreads();
  for (int warp = 0; warp < kPanelWarps; ++warp) dot += sums[warp][panel.lane];
  panel.for_each([&](int64_t col) {
    const float g = to_float(grad.data[col * grad.stride]), y = to_float(output.data[col * output.stride]);
    const float dx = (p.log ? g - expf(y) * dot : y * (g - dot)) * static_cast<float>(p.scale);
    result[col * p.grad_input.col_stride] = from_float<T>(bounds.keeps(col) ? dx : 0.0f);
  });
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

namespace {

bool plain(const SoftmaxBounds& bounds) { return bounds.kind == SoftmaxMask::kNone && bounds.causal_rows == 0; }

// Whether a warp's lanes read neighbours where they take a row each.
bool takes_panels(const Rows& written) { return panel_columns(written) >= kWarpSize; }

LaunchConfig panel_config(int64_t rows, Stream stream) {
  return {dim3(static_cast<unsigned>((rows + kWarpSize - 1) / kWarpSize)), dim3(kPanelWarps * kWarpSize), stream};
}

}  // namespace

void softmax(const SoftmaxParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    if (takes_panels(params.output)) {
      return launch("softmax_panel", softmax_panel_kernel<T>, panel_config(params.rows, stream), params);
    }
    const bool packs = plain(params.bounds) && rows_fit_packs<T>(params.input) && rows_fit_packs<T>(params.output);
    visit_row_plan<T>(params.cols, packs, [&](const RowPlan& plan, auto v) {
      launch("softmax", softmax_kernel<T, v.kWarp, v.kCount, v.kPacks>, plan.config(params.rows, stream), params);
    });
  });
}

void softmax_backward(const SoftmaxBackwardParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    if (takes_panels(params.grad_input)) {
      return launch("softmax_panel_backward", softmax_panel_backward_kernel<T>, panel_config(params.rows, stream),
                    params);
    }
    const bool packs = plain(params.bounds) && rows_fit_packs<T>(params.grad_output) &&
                       rows_fit_packs<T>(params.output) && rows_fit_packs<T>(params.grad_input);
    visit_row_plan<T>(params.cols, packs, [&](const RowPlan& plan, auto v) {
      launch("softmax_backward", softmax_backward_kernel<T, v.kWarp, v.kCount, v.kPacks>,
             plan.config(params.rows, stream), params);
    });
  });
}

}  // namespace warpwright::cuda
