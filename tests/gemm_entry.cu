// The tensor-core products as functions that ctypes can call, for test_dropped_statements.py: gemm_mma.cu and
// gemm_wgmma.cu with each statement that orders or guards something behind a switch.

#include <exception>
#include <string>

#include "cuda/matmul/gemm_mma.cuh"
#include "cuda/matmul/gemm_wgmma.cuh"

// The site that is dropped; 0: none.
int dropped_site = 0;

extern "C" __attribute__((visibility("default"))) void drop_site(int site) { dropped_site = site; }

// Runs the product; what went wrong, or "".
extern "C" __attribute__((visibility("default"))) const char* run_gemm(int wgmma,
                                                                       const warpwright::GemmParams* params) {
  static std::string message;
  message.clear();
  try {
    const bool takes =
        wgmma != 0 ? warpwright::cuda::gemm_wgmma_takes(*params) : warpwright::cuda::gemm_mma_takes(*params);
    if (!takes) return "the kernel does not take these matrices";
    wgmma != 0 ? warpwright::cuda::gemm_wgmma(*params, nullptr) : warpwright::cuda::gemm_mma(*params, nullptr);
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
