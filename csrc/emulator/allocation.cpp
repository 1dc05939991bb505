#include "emulator/allocation.h"

#include <cstdint>

// As sanitizer/asan_interface.h declares them, but weak: null in a process without AddressSanitizer.
extern "C" __attribute__((weak)) void* __asan_region_is_poisoned(void* begin, size_t size);
extern "C" __attribute__((weak)) const char* __asan_locate_address(void* address, char* name, size_t name_size,
                                                                   void** region, size_t* region_size);

namespace warpwright::emulator {

std::string outside_allocation(const void* address, size_t size, bool write) {
  if (__asan_region_is_poisoned == nullptr) return "";
  void* const forbidden = __asan_region_is_poisoned(const_cast<void*>(address), size);
  if (forbidden == nullptr) return "";
  const std::string access = std::string(write ? "write" : "read") + " of " + std::to_string(size) + " bytes";
  char name[1] = {};
  void* region = nullptr;
  size_t region_size = 0;
  const std::string kind = __asan_locate_address(forbidden, name, sizeof(name), &region, &region_size);
  if (kind != "heap") return access + " of memory that is not allocated";
  const auto at = reinterpret_cast<uintptr_t>(address), begin = reinterpret_cast<uintptr_t>(region);
  const std::string allocation = "an allocation of " + std::to_string(region_size) + " bytes";
  const uintptr_t end = begin + region_size;
  const auto first = reinterpret_cast<uintptr_t>(forbidden);
  if (first >= begin && first < end) {
    // Whoever poisons a part of an allocation that is in use leaves its first byte.
    const bool freed = __asan_region_is_poisoned(region, 1) != nullptr;
    return access + " inside " + allocation + (freed ? " that was freed" : ", in a part that is poisoned");
  }
  // Of an access that starts inside, what counts is how far it goes.
  if (at < begin) return access + ", " + std::to_string(begin - at) + " bytes before " + allocation;
  return access + ", to " + std::to_string(at + size - end) + " bytes past the end of " + allocation;
}

}  // namespace warpwright::emulator
