// The one way a kernel is launched: on the caller's stream, with its error checked. There is no <<<>>> in kernel
// files, so the emulator can stand behind the same call.

#pragma once

#include <stdexcept>
#include <string>

#include "cuda/runtime.h"

namespace warpwright::cuda {

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  Stream stream = nullptr;
  int shared_bytes = 0;  // Dynamic shared memory.
  int cluster = 1;       // Blocks along x that run together.
};

#if defined(WARPWRIGHT_BACKEND_EMULATED)

// Runs kernel(params) on the CPU, see csrc/emulator/runtime.h.
template <class Params>
void launch(const char* name, void (*kernel)(Params), const LaunchConfig& config, const Params& params) {
  // The copy of the parameters that each thread gets is not an access of the kernel's.
  const auto body = [&]() __attribute__((no_sanitize("thread"))) { kernel(params); };
  emulator::run(
      {name, reinterpret_cast<const void*>(kernel), config.grid, config.block, config.shared_bytes, config.cluster},
      body);
}

#else

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("warpwright: ") + what + ": " + cudaGetErrorString(error));
  }
}

// Runs kernel(params) on config.stream; `name` is what an error message calls it.
template <class Params>
void launch(const char* name, void (*kernel)(Params), const LaunchConfig& config, const Params& params) {
  constexpr int kSharedBytesWithoutAsking = 48 * 1024;
  if (config.shared_bytes > kSharedBytesWithoutAsking) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, config.shared_bytes), name);
  }
  cudaLaunchConfig_t launch_config{};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = static_cast<size_t>(config.shared_bytes);
  launch_config.stream = static_cast<cudaStream_t>(config.stream);
  cudaLaunchAttribute cluster{};
  if (config.cluster > 1) {
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(config.cluster), 1, 1};
    launch_config.attrs = &cluster;
    launch_config.numAttrs = 1;
  }
  check(cudaLaunchKernelEx(&launch_config, kernel, params), name);
}

#endif

}  // namespace warpwright::cuda
