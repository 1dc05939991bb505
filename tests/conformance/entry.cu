// The one symbol of the library: no Python, no torch, so that what is built on one machine runs on another.

#include <string>

#include "harness.h"

namespace {

using namespace warpwright::conformance;

std::string message;

void launch_case(const std::string& name, const Case& c) {
  for (const auto& cases : {warp_cases(), barrier_cases(), cluster_cases(), tma_cases(), wgmma_cases()}) {
    for (const NamedCase& one : cases) {
      if (name == one.name) return one.run(c);
    }
  }
  throw std::runtime_error("no case of this name: " + name);
}

#if !defined(WARPWRIGHT_BACKEND_EMULATED)
using warpwright::cuda::check;

// A copy of a host array on the device.
struct DeviceBytes {
  void* data = nullptr;

  DeviceBytes(const void* host, size_t bytes) {
    check(cudaMalloc(&data, bytes), "cudaMalloc");
    check(cudaMemcpy(data, host, bytes, cudaMemcpyHostToDevice), "cudaMemcpy to the device");
  }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  ~DeviceBytes() { cudaFree(data); }
};
#endif

}  // namespace

// Runs a case on host arrays, of which `output` goes in and out; returns what went wrong, or an empty text.
extern "C" __attribute__((visibility("default"))) const char* conformance(const char* name, const void* input,
                                                                          int64_t input_bytes, void* output,
                                                                          int64_t output_bytes,
                                                                          const int64_t* numbers) {
  message.clear();
  try {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
    (void)input_bytes, (void)output_bytes;
    launch_case(name, {input, output, numbers});
#else
    const DeviceBytes device_input(input, static_cast<size_t>(input_bytes));
    const DeviceBytes device_output(output, static_cast<size_t>(output_bytes));
    launch_case(name, {device_input.data, device_output.data, numbers});
    check(cudaMemcpy(output, device_output.data, static_cast<size_t>(output_bytes), cudaMemcpyDeviceToHost), name);
#endif
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
