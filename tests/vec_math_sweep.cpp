// Applies one function of cpu/vec_math.h to a file of floats: `sweep FUNCTION IN OUT`. Built by test_vec_math.py.

#include <cstdio>
#include <cstring>

#include "cpu/vec_math.h"

using namespace warpwright::cpu::WARPWRIGHT_ISA;

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  std::FILE* in = std::fopen(argv[2], "rb");
  std::FILE* out = std::fopen(argv[3], "wb");
  if (in == nullptr || out == nullptr) return 1;
  float buffer[kFloatLanes];
  while (std::fread(buffer, sizeof(float), kFloatLanes, in) == kFloatLanes) {
    const Vec<float> x = load(buffer);
    Vec<float> y{};
    if (std::strcmp(argv[1], "exp") == 0) y = vexp(x);
    if (std::strcmp(argv[1], "log") == 0) y = vlog(x);
    if (std::strcmp(argv[1], "tanh") == 0) y = vtanh(x);
    if (std::strcmp(argv[1], "normal_cdf") == 0) y = vnormal_cdf(x, vexp(-0.5f * x * x));
    if (std::strcmp(argv[1], "sigmoid") == 0) y = vsigmoid(x);
    store(buffer, y);
    std::fwrite(buffer, sizeof(float), kFloatLanes, out);
  }
  return std::fclose(out) == 0 ? 0 : 1;
}
