// What every step takes, and how it is called from C. docs/hopper-matmul.md walks through the steps.

#pragma once

#include <exception>
#include <string>

#include "cuda/dtype.cuh"
#include "cuda/launch.h"

namespace warpwright::examples {

using cuda::from_float, cuda::launch, cuda::to_float;
using bf16 = __nv_bfloat16;

// C (m, n) = A (m, k) times the transpose of B (n, k). Elements of a row lie together, rows follow each other.
struct MatmulParams {
  const bf16* a;
  const bf16* b;
  bf16* c;
  int64_t m, n, k;  // At least 1.
};

WARPWRIGHT_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A block for each tile of kTileM x kTileN: along x those of a row of tiles.
template <int kTileM, int kTileN>
dim3 grid_of(const MatmulParams& p) {
  return {static_cast<unsigned>(ceil_div(p.n, kTileN)), static_cast<unsigned>(ceil_div(p.m, kTileM))};
}

// Throws unless the rows of A and B can be read 16 bytes at a time.
inline void require_whole_chunks(const MatmulParams& p) {
  if (p.k % 8 != 0) {
    throw std::invalid_argument("warpwright: matmul: k must be a multiple of 8, got " + std::to_string(p.k));
  }
}

// Launches a step; what went wrong, or "".
inline const char* run_step(void (*step)(const MatmulParams&, Stream), const MatmulParams& params, Stream stream) {
  static std::string message;
  message.clear();
  try {
    step(params, stream);
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

}  // namespace warpwright::examples

// The step as a C function. The pointers are the device's, and the host's in the emulator; `stream` is a cudaStream_t.
#define WARPWRIGHT_STEP(NAME, LAUNCHER)                                                                                \
  extern "C" __attribute__((visibility("default"))) const char* NAME(const warpwright::examples::MatmulParams* params, \
                                                                     void* stream) {                                   \
    return warpwright::examples::run_step(warpwright::examples::LAUNCHER, *params, stream);                            \
  }
