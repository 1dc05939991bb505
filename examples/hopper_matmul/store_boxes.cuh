// The sums' way out of steps 10 and 11: registers, stmatrix, shared memory, TMA.

#pragma once

#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/stmatrix.cuh"
#include "hopper.cuh"

namespace warpwright::examples {

inline constexpr int kBoxN = 64;    // A box of C has 64 rows and 64 columns.
inline constexpr int kBuffers = 2;  // Of each consumer: one is filled while TMA reads the other.

// Stores a consumer's sums, 64 rows by kN from (row0, col0) on, a box after the other through its buffers in turn. One
// thread starts the stores and waits for them: thread 0 of the warpgroup.
template <int kN>
__device__ __forceinline__ void store_boxes(const TensorMap* map, Tile<ptx::kWgmmaM> (&buffers)[kBuffers],
                                            const float (&sums)[kN / 2], int row0, int col0, int consumer, int thread) {
  const int lane = thread % 32, matrix = lane / 8;  // (rows 0-7, cols 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15)
  const int row = thread / 32 * 16 + matrix % 2 * 8 + lane % 8;
#pragma unroll
  for (int box = 0; box < kN / kBoxN; ++box) {
    unsigned char* const buffer = buffers[box % kBuffers].bytes;
    ptx::tma_store_wait_read<kBuffers - 1>();  // Thread 0's stores: the last but one has left the buffer.
    ptx::named_barrier_sync(1 + consumer, ptx::kWarpgroup);
#pragma unroll
    for (int j = 0; j < kBoxN / 16; ++j) {
      uint32_t words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int first = box * kBoxN / 2 + 8 * j + 2 * w;
        words[w] = cuda::pack_pair<bf16>(sums[first], sums[first + 1]);
      }
      const int col = 16 * j + matrix / 2 * 8;
      ptx::stmatrix_x4<false>(buffer + ptx::swizzled(row * kRowBytes + 2 * col, kSwizzle), words);
    }
    ptx::fence_proxy_async();                                // What this thread wrote, TMA may read,
    ptx::named_barrier_sync(1 + consumer, ptx::kWarpgroup);  // and what the others wrote.
    if (thread == 0) {
      ptx::tma_store(map, buffer, {col0 + box * kBoxN, row0});
      ptx::tma_store_commit();
    }
  }
}

}  // namespace warpwright::examples
