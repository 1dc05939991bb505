// A warpgroup's way out for wgmma's sums: 64 rows by 64 columns of 16 bits at a time through shared memory and TMA,
// which drops what lies outside the matrix (sm_90).

#pragma once

#include "cuda/dtype.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/stmatrix.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace warpwright::cuda {

// Boxes of kSide rows and columns, column by column: open, put for each kColumns of them, close. There are two buffers:
// while the TMA store of one runs, the other is filled.
struct BoxWriter {
  static constexpr int kSide = 64;                  // Its 128 bytes are the span that the swizzle permutes.
  static constexpr int kColumns = 16;               // That one stmatrix of each warp stores.
  static constexpr int kValues = 8;                 // Registers that hold them, of each thread.
  static constexpr int kBytes = kSide * kSide * 2;  // A buffer's, which starts at a multiple of the swizzle's pattern.
  static constexpr int kBuffers = 2;
  static constexpr auto kSwizzle = ptx::Swizzle::k128Bytes;

  unsigned char* buffers;
  int barrier;  // Named barrier of the warpgroup.
  int thread;   // Number in the warpgroup.
  int boxes = 0;

  __device__ __forceinline__ unsigned char* buffer() const { return buffers + boxes % kBuffers * kBytes; }

  __device__ __forceinline__ void open() {
    ptx::tma_store_wait_read<kBuffers - 1>();  // Thread 0's: it alone stores.
    ptx::named_barrier_sync(barrier, ptx::kWarpgroup);
  }

  // Columns [first, first + kColumns), as kValues registers of a wgmma's result hold them.
  template <class T>
  __device__ __forceinline__ void put(int first, const float* values) {
    const int lane = thread % 32, matrix = lane / 8;  // (rows 0-7, cols 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15)
    const int row = thread / 32 * 16 + matrix % 2 * 8 + lane % 8, col = first + matrix / 2 * 8;
    uint32_t words[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) words[w] = pack_pair<T>(values[2 * w], values[2 * w + 1]);
    ptx::stmatrix_x4<false>(buffer() + ptx::swizzled(row * kSide * 2 + col * 2, kSwizzle), words);
  }

  // Starts storing the box to (row0, col0) of `map`.
  __device__ __forceinline__ void close(const ptx::TensorMap* map, int row0, int col0) {
    ptx::fence_proxy_async();
    ptx::named_barrier_sync(barrier, ptx::kWarpgroup);
    if (thread == 0) {
      ptx::tma_store(map, buffer(), {col0, row0});
      ptx::tma_store_commit();
    }
    ++boxes;
  }

  // All of it at once.
  template <class T>
  __device__ __forceinline__ void store(const ptx::TensorMap* map, int row0, int col0, const float* values) {
    open();
#pragma unroll
    for (int part = 0; part < kSide / kColumns; ++part) put<T>(part * kColumns, values + part * kValues);
    close(map, row0, col0);
  }

  // Shared memory ends with the block: not before it has been read.
  __device__ __forceinline__ void finish() { ptx::tma_store_wait_read<0>(); }
};

}  // namespace warpwright::cuda
