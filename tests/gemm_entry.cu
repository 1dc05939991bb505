// The tensor-core products as functions that ctypes can call: for test_gemm_wgmma.py, and, with each statement that
// orders or guards something behind a switch, for test_dropped_statements.py.

#include <exception>
#include <string>

#include "cuda/matmul/gemm_mma.cuh"
#include "cuda/matmul/gemm_wgmma.cuh"

#define WARPWRIGHT_ENTRY extern "C" __attribute__((visibility("default")))

namespace {

// What went wrong, or "".
template <class Run>
const char* message_of(const Run& run) {
  static std::string message;
  message.clear();
  try {
    run();
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

constexpr const char* kRefused = "the kernel does not take these matrices";

}  // namespace

// The site that is dropped; 0: none.
int dropped_site = 0;

WARPWRIGHT_ENTRY void drop_site(int site) { dropped_site = site; }

WARPWRIGHT_ENTRY const char* run_mma(const warpwright::GemmParams* params) {
  if (!warpwright::cuda::gemm_mma_takes(*params)) return kRefused;
  return message_of([&] {
    warpwright::cuda::gemm_mma(*params, {warpwright::GemmKernel::kMma, 128, 128, 1, 0, 0, 1, 0}, nullptr, nullptr);
  });
}

WARPWRIGHT_ENTRY const char* run_wgmma(const warpwright::GemmParams* params,
                                       const warpwright::cuda::WgmmaConfig* config, void* workspace) {
  if (!warpwright::cuda::gemm_wgmma_takes(*params)) return kRefused;
  return message_of([&] { warpwright::cuda::gemm_wgmma(*params, *config, workspace, nullptr); });
}

// Writes at most `most` of the product's configurations and returns how many there are; -1: it is not taken.
WARPWRIGHT_ENTRY int wgmma_configs(const warpwright::GemmParams* params, warpwright::cuda::WgmmaConfig* configs,
                                   int most) {
  if (!warpwright::cuda::gemm_wgmma_takes(*params)) return -1;
  const auto found = warpwright::cuda::wgmma_configs(*params);
  for (int i = 0; i < most && i < static_cast<int>(found.size()); ++i) configs[i] = found[static_cast<size_t>(i)];
  return static_cast<int>(found.size());
}

WARPWRIGHT_ENTRY bool wgmma_allows(const warpwright::GemmParams* params, const warpwright::cuda::WgmmaConfig* config) {
  return warpwright::cuda::wgmma_allows(*params, *config);
}

WARPWRIGHT_ENTRY int64_t wgmma_workspace_bytes(const warpwright::GemmParams* params,
                                               const warpwright::cuda::WgmmaConfig* config) {
  return warpwright::cuda::wgmma_workspace_bytes(*params, *config);
}
