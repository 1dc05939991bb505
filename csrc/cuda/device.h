// What a launcher chooses a kernel by.

#pragma once

#include "cuda/launch.h"

namespace warpwright::cuda {

struct Device {
  int capability;  // 90 for sm_90.
  int multiprocessors;
};

#if defined(WARPWRIGHT_BACKEND_EMULATED)

inline Device current_device() { return {emulator::capability(), emulator::multiprocessors()}; }

#else

// Of the calling thread. The runtime answers from memory.
inline Device current_device() {
  int device = 0, major = 0, minor = 0, multiprocessors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const auto ask = [&](int* value, cudaDeviceAttr attribute) {
    check(cudaDeviceGetAttribute(value, attribute, device), "cudaDeviceGetAttribute");
  };
  ask(&major, cudaDevAttrComputeCapabilityMajor);
  ask(&minor, cudaDevAttrComputeCapabilityMinor);
  ask(&multiprocessors, cudaDevAttrMultiProcessorCount);
  return {10 * major + minor, multiprocessors};
}

#endif

}  // namespace warpwright::cuda
