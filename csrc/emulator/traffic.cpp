#include "emulator/traffic.h"

#include <utility>

namespace warpwright::emulator {

std::vector<Traffic::Launch> Traffic::take() {
  metering_ = false;
  return std::exchange(launches_, {});
}

void Traffic::start_launch(const std::string& kernel, const std::vector<Range>& tensors) {
  if (!metering_) return;
  Launch& launch = launches_.emplace_back(Launch{kernel, {}});
  for (const Range& range : tensors) launch.tensors.push_back({range});
}

void Traffic::note(uintptr_t address, size_t size, bool write) {
  if (!metering_) return;
  for (Tensor& tensor : launches_.back().tensors) {
    if (!tensor.range.holds(address)) continue;
    (write ? tensor.written : tensor.read) += static_cast<int64_t>(size);
    return;
  }
}

}  // namespace warpwright::emulator
