// A packed weight as a matrix of floats: what gradients and products of many rows multiply by.

#include "cuda/launch.h"
#include "cuda/packed/packed.cuh"
#include "cuda/tile/pack.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

struct DequantizeLaunch {
  DequantizePackedParams params;
  bool whole;  // Whether every eight elements of the output are whole 16-byte stores.
};

// The 32-bit word at byte `at` of a row, whose bytes may lie anywhere.
__device__ __forceinline__ uint32_t word_at(const PackedWeight& w, int64_t row, int64_t at) {
  const auto* bytes = static_cast<const uint8_t*>(w.data) + row * w.row + at * w.col;
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(bytes[i * w.col]) << (8 * i);
  return word;
}

// machine code: STG.128
template <class T>
__global__ void __launch_bounds__(kThreads) dequantize_packed_kernel(const DequantizeLaunch p) {
  const PackedWeight& w = p.params.weight;
  const int64_t pieces = (w.k + kUnpacked - 1) / kUnpacked;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= w.n * pieces) return;
  const int64_t row = index / pieces, k = index % pieces * kUnpacked;
  const float scale = to_float(scale_at<T>(w, row, group_of(w, k)));
  const int zero = static_cast<int>(zero_at(w, row, group_of(w, k)));
  const int64_t at = k * w.bits / 8;
  const uint32_t words[2] = {word_at(w, row, at), w.bits == 8 ? word_at(w, row, at + 4) : 0};
  Pack<T, kPackSize<T>> packs[kUnpacked / kPackSize<T>];
#pragma unroll
  for (int i = 0; i < kUnpacked; ++i) {
    const uint32_t q =
        w.bits == 4 ? words[0] >> packed_shift(4, i) & 0xfu : words[i / 4] >> packed_shift(8, i % 4) & 0xffu;
    packs[i / kPackSize<T>].values[i % kPackSize<T>] =
        from_float<T>(static_cast<float>(static_cast<int>(q) - zero) * scale);
  }
  T* const out = static_cast<T*>(p.params.output) + row * w.k + k;
  if (p.whole) {
#pragma unroll
    for (int i = 0; i < kUnpacked / kPackSize<T>; ++i) store_whole(out + i * kPackSize<T>, packs[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kUnpacked; ++i) {
      if (k + i < w.k) out[i] = packs[i / kPackSize<T>].values[i % kPackSize<T>];
    }
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void dequantize_packed(const DequantizePackedParams& params, Stream stream) {
  const PackedWeight& w = params.weight;
  const int64_t blocks = (w.n * ((w.k + kUnpacked - 1) / kUnpacked) + kThreads - 1) / kThreads;
  if (blocks == 0) return;
  const bool whole = w.k % kUnpacked == 0 && reinterpret_cast<uintptr_t>(params.output) % kPackBytes == 0;
  visit_float(w.dtype, [&](auto tag) {
    const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream};
    launch("dequantize_packed", dequantize_packed_kernel<decltype(tag)>, config, DequantizeLaunch{params, whole});
  });
}

}  // namespace warpwright::cuda
