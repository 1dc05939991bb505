// Norms and scaling of many tensors in one launch: a block takes one chunk of one tensor and leaves one number and one
// flag, a single block adds these up in order. The table of tensors is a kernel argument.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/reduction.cuh"
#include "kernels/multi_tensor.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

// The larger of two magnitudes, or the one that is NaN.
struct LargerOrNan {
  static __device__ __forceinline__ float identity() { return 0.0f; }
  static __device__ __forceinline__ float combine(float a, float b) { return b > a || b != b ? b : a; }
};

// What becomes of the elements of a list.
enum class Pass { kSquares, kLargest, kScale };

template <Pass kPass>
struct Element {
  float multiplier;
  float partial = 0.0f;
  bool odd = false;  // Whether one was infinite or NaN.

  __device__ __forceinline__ float take(float x) {
    odd = odd || x - x != 0.0f;
    if (kPass == Pass::kSquares) partial += x * x;
    if (kPass == Pass::kLargest) partial = LargerOrNan::combine(partial, fabsf(x));
    return x * multiplier;
  }
};

// machine code: 2>: 16-byte; else: LDG.128
template <class T, int kPass>
__global__ void __launch_bounds__(kThreads) tensor_list_kernel(const ListParams p) {
  constexpr Pass kKind = static_cast<Pass>(kPass);
  constexpr int kSize = kPackSize<T>;
  const int index = p.tensor_of(static_cast<int>(blockIdx.x));
  const int64_t first = (static_cast<int64_t>(blockIdx.x) - p.first_chunk[index]) * kListChunk;
  const int64_t left = p.numel[index] - first;
  const int length = static_cast<int>(left < kListChunk ? left : kListChunk);
  T* data = static_cast<T*>(p.data[index]) + first;
  Element<kKind> element{kKind == Pass::kScale ? *static_cast<const float*>(p.multiplier) : 1.0f};

  const int whole = reinterpret_cast<uintptr_t>(data) % kPackBytes == 0 ? length / kSize * kSize : 0;
  for (int i = static_cast<int>(threadIdx.x) * kSize; i < whole; i += kThreads * kSize) {
    auto pack = *reinterpret_cast<const Pack<T, kSize>*>(data + i);
#pragma unroll
    for (int k = 0; k < kSize; ++k) pack.values[k] = from_float<T>(element.take(to_float(pack.values[k])));
    if (kKind == Pass::kScale) store_whole(data + i, pack);
  }
  for (int i = whole + static_cast<int>(threadIdx.x); i < length; i += kThreads) {
    const float scaled = element.take(to_float(data[i]));
    if (kKind == Pass::kScale) data[i] = from_float<T>(scaled);
  }

  const float flag = block_reduce<LargerOrNan, kThreads>(element.odd ? 1.0f : 0.0f);
  using Combine = std::conditional_t<kKind == Pass::kLargest, LargerOrNan, Sum>;
  const float partial = block_reduce<Combine, kThreads>(element.partial);
  if (threadIdx.x == 0) {
    p.flags[blockIdx.x] = flag;
    static_cast<float*>(p.partials)[blockIdx.x] = partial;
  }
}

// machine code: plain
template <class Combine>
__global__ void __launch_bounds__(kThreads) tensor_list_result_kernel(const ListResultParams p) {
  const float* partials = static_cast<const float*>(p.partials);
  float total = 0.0f, flag = 0.0f;
  for (int64_t i = threadIdx.x; i < p.chunks; i += kThreads) {
    total = Combine::combine(total, partials[i]);
    flag = fmaxf(flag, p.flags[i]);
  }
  total = block_reduce<Combine, kThreads>(total);
  flag = block_reduce<LargerOrNan, kThreads>(flag);
  if (threadIdx.x != 0) return;
  if (p.norm != nullptr) *static_cast<float*>(p.norm) = p.largest ? total : sqrtf(total);
  if (p.found_inf != nullptr && (flag != 0.0f || p.norm != nullptr)) *p.found_inf = flag;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void tensor_list_pass(const ListParams& params, Stream stream) {
  const auto chunks = static_cast<unsigned>(params.first_chunk[params.count]);
  const LaunchConfig config{dim3(chunks), dim3(kThreads), stream};
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto kernel = params.multiplier != nullptr ? tensor_list_kernel<T, static_cast<int>(Pass::kScale)>
                        : params.largest             ? tensor_list_kernel<T, static_cast<int>(Pass::kLargest)>
                                                     : tensor_list_kernel<T, static_cast<int>(Pass::kSquares)>;
    launch("tensor_list", kernel, config, params);
  });
}

void tensor_list_result(const ListResultParams& params, Stream stream) {
  const auto kernel = params.largest ? tensor_list_result_kernel<LargerOrNan> : tensor_list_result_kernel<Sum>;
  launch("tensor_list_result", kernel, {dim3(1), dim3(kThreads), stream}, params);
}

}  // namespace warpwright::cuda
