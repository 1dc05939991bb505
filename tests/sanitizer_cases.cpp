// Host code that is wrong in one way, for tests/test_sanitizers.py, which builds it as `csrc/build.py --sanitized`
// builds the CPU kernels and the bindings.

#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

namespace {

struct Case {
  const char* name;
  float (*run)(float* data, int64_t count);
};

typedef float Lanes __attribute__((vector_size(32)));

const Case kCases[] = {
    {"right", [](float* data, int64_t count) { return data[0] + data[count - 1]; }},
    {"read past the end", [](float* data, int64_t count) { return data[count]; }},
    {"read before the start", [](float* data, int64_t) { return data[-1]; }},
    {"write past the end", [](float* data, int64_t count) { return data[count] = 1; }},
    {"vector over the end",
     [](float* data, int64_t count) {
       Lanes lanes;
       std::memcpy(&lanes, data + count - 7, sizeof(lanes));
       return std::accumulate(reinterpret_cast<const float*>(&lanes), reinterpret_cast<const float*>(&lanes) + 8, 0.0f);
     }},
    {"use after free",
     [](float*, int64_t count) {
       auto* const scratch = new std::vector<float>(static_cast<size_t>(count), 1.0f);
       const float* const kept = scratch->data();
       delete scratch;
       return kept[0];
     }},
    {"signed overflow",
     [](float*, int64_t count) {
       const auto large = static_cast<int32_t>(count + 0x7fffffb0);
       return static_cast<float>(large + static_cast<int32_t>(count));
     }},
    {"shift", [](float*, int64_t count) { return static_cast<float>(1 << (count + 20)); }},
    {"misaligned",
     [](float* data, int64_t count) {
       return *reinterpret_cast<float*>(reinterpret_cast<unsigned char*>(data) + count / 28);
     }},
};

}  // namespace

// Runs a case on `count` floats; false where there is none of this name.
extern "C" __attribute__((visibility("default"))) bool sanitizer_case(const char* name, float* data, int64_t count) {
  for (const Case& one : kCases) {
    if (name != std::string(one.name)) continue;
    volatile float result = one.run(data, count);
    (void)result;
    return true;
  }
  return false;
}
