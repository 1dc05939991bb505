// The losses of single elements: one pass, a block a piece of a row. The sums of the pieces are added by loss_sums.

#include "cuda/loss/loss.cuh"
#include "cuda/tile/reduction.cuh"
#include "kernels/pointwise_loss.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

// log(1 + exp(-x)); NaN passes through.
__device__ __forceinline__ float softplus_of_minus(float x) { return log1pf(expf(-fabsf(x))) + (x > 0.0f ? 0.0f : -x); }

__device__ __forceinline__ float loss_of(PointwiseLoss kind, float x, float t, float v) {
  switch (kind) {
    case PointwiseLoss::kBinaryCrossEntropy: return (1.0f - t) * x + (1.0f + (v - 1.0f) * t) * softplus_of_minus(x);
    case PointwiseLoss::kKlDiv: return (t == 0.0f ? 0.0f : t * logf(t)) - t * x;
    default: return expf(t) * (t - x);
  }
}

__device__ __forceinline__ float grad_input_of(PointwiseLoss kind, float x, float t, float v) {
  switch (kind) {
    case PointwiseLoss::kBinaryCrossEntropy: return (1.0f + (v - 1.0f) * t) / (1.0f + expf(-x)) - v * t;
    case PointwiseLoss::kKlDiv: return -t;
    default: return -expf(t);
  }
}

__device__ __forceinline__ float grad_target_of(PointwiseLoss kind, float x, float t, float v) {
  switch (kind) {
    case PointwiseLoss::kBinaryCrossEntropy: return (v - 1.0f) * softplus_of_minus(x) - x;
    case PointwiseLoss::kKlDiv: return (t == 0.0f ? 0.0f : logf(t)) + t / t - x;
    default: return expf(t) * (t - x) + expf(t);
  }
}

// Whether a call's rows can be moved by 16-byte instructions.
struct ForwardParams : PointwiseLossParams {
  bool packs;
};
struct BackwardParams : PointwiseLossBackwardParams {
  bool packs;
};

// The elements of one tensor from a column on; ones without a tensor.
template <class T, int kCount>
__device__ __forceinline__ void load_or_one(Piece<T, kCount>& piece, const Rows& rows, int64_t row, int64_t col,
                                            bool packs, int64_t left) {
  if (rows.data == nullptr) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) piece.values[i] = 1.0f;
    return;
  }
  piece.load(static_cast<const T*>(rows.data) + rows.offset(row) + col * rows.col_stride, rows.col_stride, packs, left);
}

// machine code: MUFU.EX2, 16-byte
template <class T>
__global__ void __launch_bounds__(kThreads) pointwise_loss_kernel(const ForwardParams p) {
  constexpr int kCount = kPackSize<T>;
  const int64_t per_row = loss_pieces(p.cols);
  for (int64_t index = blockIdx.x; index < p.rows * per_row; index += gridDim.x) {
    const int64_t row = index / per_row, first = index % per_row * kLossPiece;
    const int64_t last = first + kLossPiece < p.cols ? first + kLossPiece : p.cols;
    float total = 0.0f;
    for (int64_t col = first + threadIdx.x * kCount; col < last; col += kThreads * kCount) {
      Piece<T, kCount> x, t, w, v;
      load_or_one(x, p.input, row, col, p.packs, last - col);
      load_or_one(t, p.target, row, col, p.packs, last - col);
      load_or_one(w, p.weight, row, col, p.packs, last - col);
      load_or_one(v, p.pos_weight, row, col, p.packs, last - col);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        x.values[i] = w.values[i] * loss_of(p.kind, x.values[i], t.values[i], v.values[i]);
        if (col + i < last) total += x.values[i];
      }
      if (p.output == nullptr) continue;
      if (p.output_dtype == p.dtype) {
        x.store(static_cast<T*>(p.output) + row * p.cols + col, 1, p.packs, last - col);
      } else {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          if (col + i < last) static_cast<float*>(p.output)[row * p.cols + col + i] = x.values[i];
        }
      }
    }
    if (p.sums == nullptr) continue;
    total = block_reduce<Sum, kThreads>(total);
    if (threadIdx.x == 0) static_cast<float*>(p.sums)[index] = total;
  }
}

// machine code: MUFU.EX2, 16-byte
template <class T>
__global__ void __launch_bounds__(kThreads) pointwise_loss_backward_kernel(const BackwardParams p) {
  constexpr int kCount = kPackSize<T>;
  const int64_t per_row = loss_pieces(p.cols);
  for (int64_t index = blockIdx.x; index < p.rows * per_row; index += gridDim.x) {
    const int64_t row = index / per_row, first = index % per_row * kLossPiece;
    const int64_t last = first + kLossPiece < p.cols ? first + kLossPiece : p.cols;
    for (int64_t col = first + threadIdx.x * kCount; col < last; col += kThreads * kCount) {
      Piece<T, kCount> x, t, w, v, of_input, of_target;
      load_or_one(x, p.input, row, col, p.packs, last - col);
      load_or_one(t, p.target, row, col, p.packs, last - col);
      load_or_one(w, p.weight, row, col, p.packs, last - col);
      load_or_one(v, p.pos_weight, row, col, p.packs, last - col);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (col + i >= last) continue;
        const int64_t at = p.grad_loss.offset(row) + (col + i) * p.grad_loss.col_stride;
        const float scale =
            static_cast<float>(p.factor) * load_as(p.grad_loss_dtype, p.grad_loss.data, at) * w.values[i];
        of_input.values[i] = scale * grad_input_of(p.kind, x.values[i], t.values[i], v.values[i]);
        of_target.values[i] = scale * grad_target_of(p.kind, x.values[i], t.values[i], v.values[i]);
      }
      const int64_t out = row * p.cols + col;
      if (p.grad_input != nullptr) of_input.store(static_cast<T*>(p.grad_input) + out, 1, p.packs, last - col);
      if (p.grad_target != nullptr) of_target.store(static_cast<T*>(p.grad_target) + out, 1, p.packs, last - col);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

template <class T, class Params>
bool all_fit_packs(const Params& p) {
  bool fit = p.cols % kPackSize<T> == 0 || p.rows == 1;
  for (const Rows* rows : {&p.input, &p.target, &p.weight, &p.pos_weight}) {
    fit = fit && (rows->data == nullptr || rows_fit_packs<T>(*rows));
  }
  return fit;
}

template <class Params>
LaunchConfig config_of(const Params& p, Stream stream) {
  return {grid_of_rows(p.rows * loss_pieces(p.cols)), dim3(kThreads), stream};
}

}  // namespace

void pointwise_loss(const PointwiseLossParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const ForwardParams packed{params, all_fit_packs<T>(params)};
    launch("pointwise_loss", pointwise_loss_kernel<T>, config_of(params, stream), packed);
  });
}

void pointwise_loss_backward(const PointwiseLossBackwardParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const BackwardParams packed{params, all_fit_packs<T>(params)};
    launch("pointwise_loss_backward", pointwise_loss_backward_kernel<T>, config_of(params, stream), packed);
  });
}

}  // namespace warpwright::cuda
