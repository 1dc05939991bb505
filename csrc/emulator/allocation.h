// Whether the bytes that a kernel accesses in global memory were allocated.

#pragma once

#include <cstddef>
#include <string>

namespace warpwright::emulator {

// What is wrong with the access where AddressSanitizer is in the process and forbids it; otherwise nothing.
std::string outside_allocation(const void* address, size_t size, bool write);

}  // namespace warpwright::emulator
