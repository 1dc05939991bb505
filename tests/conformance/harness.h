// What the files of cases share. A case is a kernel and the function that launches it; a test calls it by name through
// conformance() in entry.cu, with bytes in, bytes in and out, and numbers.

#pragma once

#include <cstdint>
#include <span>

#include "cuda/launch.h"

namespace warpwright::conformance {

struct Case {
  const void* input;
  void* output;
  const int64_t* numbers;

  // The next number, narrowed: tests give no more than an int holds.
  int next() { return static_cast<int>(*numbers++); }
};

struct NamedCase {
  const char* name;
  void (*run)(Case);
};

std::span<const NamedCase> warp_cases();
std::span<const NamedCase> barrier_cases();
std::span<const NamedCase> cluster_cases();
std::span<const NamedCase> tma_cases();
std::span<const NamedCase> wgmma_cases();

// What most kernels take.
inline constexpr int kMaxNumbers = 32;
struct Params {
  const uint32_t* input;
  uint32_t* output;
  int numbers[kMaxNumbers];
};

// Params with the first `count` numbers of the case.
inline Params make_params(Case& c, int count) {
  Params params{static_cast<const uint32_t*>(c.input), static_cast<uint32_t*>(c.output), {}};
  for (int i = 0; i < count; ++i) params.numbers[i] = c.next();
  return params;
}

}  // namespace warpwright::conformance
