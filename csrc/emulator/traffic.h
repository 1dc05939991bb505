// How many bytes each launch reads from global memory and writes to it, tensor by tensor: the kernels' own accounting,
// which the tables of docs/traffic.md are made of.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "emulator/memory.h"

namespace warpwright::emulator {

class Traffic {
 public:
  struct Tensor {
    Range range;
    int64_t read = 0, written = 0;  // Bytes asked for; those asked for twice count twice.
  };
  struct Launch {
    std::string kernel;
    std::vector<Tensor> tensors;
  };

  // From now on launches are metered, until they are taken.
  void start() { metering_ = true; }
  std::vector<Launch> take();

  void start_launch(const std::string& kernel, const std::vector<Range>& tensors);
  void note(uintptr_t address, size_t size, bool write);

 private:
  bool metering_ = false;
  std::vector<Launch> launches_;
};

}  // namespace warpwright::emulator
