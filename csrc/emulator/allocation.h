// Whether a kernel may access the bytes that it accesses in global memory.

#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "emulator/memory.h"

namespace warpwright::emulator {

// What is wrong with the access where AddressSanitizer is in the process and forbids it; otherwise nothing.
std::string outside_allocation(const void* address, size_t size, bool write);

// What is wrong with an access that is inside none of `ranges`; nothing where it is inside one.
std::string outside_ranges(const std::vector<Range>& ranges, uintptr_t address, size_t size, bool write);

// The tensors of the op that this host thread is in: none outside an op. bindings/tensors.cpp adds them.
void add_tensor(const Range& tensor);
std::vector<Range> tensors_of_call();
void forget_tensors();

}  // namespace warpwright::emulator
