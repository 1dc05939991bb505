// What the kernels of the loss family share.

#pragma once

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/pack.cuh"
#include "kernels/loss.h"

namespace warpwright::cuda {

__device__ __forceinline__ float load_as(DType dtype, const void* data, int64_t index) {
  switch (dtype) {
    case DType::kFloat16: return to_float(static_cast<const __half*>(data)[index]);
    case DType::kBFloat16: return to_float(static_cast<const __nv_bfloat16*>(data)[index]);
    default: return static_cast<const float*>(data)[index];
  }
}

__device__ __forceinline__ void store_as(DType dtype, void* data, int64_t index, float value) {
  switch (dtype) {
    case DType::kFloat16: static_cast<__half*>(data)[index] = from_float<__half>(value); break;
    case DType::kBFloat16: static_cast<__nv_bfloat16*>(data)[index] = from_float<__nv_bfloat16>(value); break;
    default: static_cast<float*>(data)[index] = value;
  }
}

__device__ __forceinline__ int64_t target_of(const Rows& target, int64_t row) {
  return static_cast<const int64_t*>(target.data)[target.offset(row)];
}

// kCount neighbours of one row, as floats: by 16-byte instructions where `packs`. Elements from `left` on are `fill`.
template <class T, int kCount>
struct Piece {
  float values[kCount];

  __device__ __forceinline__ void load(const T* from, int64_t step, bool packs, int64_t left, float fill = 0.0f) {
    constexpr int kPack = kPackSize<T> < kCount ? kPackSize<T> : kCount;
    if (packs && left >= kCount) {
#pragma unroll
      for (int first = 0; first < kCount; first += kPack) {
        const auto pack = *reinterpret_cast<const Pack<T, kPack>*>(from + first);
#pragma unroll
        for (int i = 0; i < kPack; ++i) values[first + i] = to_float(pack.values[i]);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = i < left ? to_float(from[i * step]) : fill;
  }

  __device__ __forceinline__ void store(T* to, int64_t step, bool packs, int64_t left) const {
    constexpr int kPack = kPackSize<T> < kCount ? kPackSize<T> : kCount;
    if (packs && left >= kCount) {
#pragma unroll
      for (int first = 0; first < kCount; first += kPack) {
        Pack<T, kPack> pack;
#pragma unroll
        for (int i = 0; i < kPack; ++i) pack.values[i] = from_float<T>(values[first + i]);
        store_whole(to + first, pack);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < left) to[i * step] = from_float<T>(values[i]);
    }
  }
};

// More rows than a grid has blocks are walked in strides of the grid.
inline dim3 grid_of_rows(int64_t rows) {
  constexpr int64_t kMaxBlocks = 0x7fffffff;
  return dim3(static_cast<unsigned>(rows < kMaxBlocks ? rows : kMaxBlocks));
}

}  // namespace warpwright::cuda
