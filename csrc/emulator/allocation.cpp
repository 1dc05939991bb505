#include "emulator/allocation.h"

#include <cstdint>
#include <map>
#include <mutex>
#include <thread>

// As sanitizer/asan_interface.h declares them, but weak: null in a process without AddressSanitizer.
extern "C" __attribute__((weak)) void* __asan_region_is_poisoned(void* begin, size_t size);
extern "C" __attribute__((weak)) const char* __asan_locate_address(void* address, char* name, size_t name_size,
                                                                   void** region, size_t* region_size);

namespace warpwright::emulator {
namespace {

std::string describe(size_t size, bool write) {
  return std::string(write ? "write" : "read") + " of " + std::to_string(size) + " bytes";
}

// Where an access lies that leaves `range`. Of one that starts inside, what counts is how far it goes.
std::string beside(const Range& range, uintptr_t address, size_t size) {
  if (address < range.begin) return ", " + std::to_string(range.begin - address) + " bytes before ";
  return ", to " + std::to_string(address + size - range.end) + " bytes past the end of ";
}

// By host thread. Not thread_local, which is what shared variables are made of here.
struct Calls {
  std::mutex mutex;
  std::map<std::thread::id, std::vector<Range>> tensors;
};

Calls& calls() {
  static Calls all;
  return all;
}

}  // namespace

std::string outside_allocation(const void* address, size_t size, bool write) {
  if (__asan_region_is_poisoned == nullptr) return "";
  void* const forbidden = __asan_region_is_poisoned(const_cast<void*>(address), size);
  if (forbidden == nullptr) return "";
  const std::string access = describe(size, write);
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
  return access + beside({begin, end}, at, size) + allocation;
}

std::string outside_ranges(const std::vector<Range>& ranges, uintptr_t address, size_t size, bool write) {
  const Range* nearest = nullptr;
  uintptr_t least = UINTPTR_MAX;
  for (const Range& range : ranges) {
    if (range.holds(address, size)) return "";
    const uintptr_t distance = address < range.begin ? range.begin - address
                               : address < range.end ? 0
                                                     : address - range.end;
    if (distance < least) {
      least = distance;
      nearest = &range;
    }
  }
  if (nearest == nullptr) return "";
  return describe(size, write) + " of global memory" + beside(*nearest, address, size) + "an array of " +
         std::to_string(nearest->size()) + " bytes";
}

void add_tensor(const Range& tensor) {
  const std::lock_guard<std::mutex> lock(calls().mutex);
  calls().tensors[std::this_thread::get_id()].push_back(tensor);
}

std::vector<Range> tensors_of_call() {
  const std::lock_guard<std::mutex> lock(calls().mutex);
  const auto found = calls().tensors.find(std::this_thread::get_id());
  return found == calls().tensors.end() ? std::vector<Range>{} : found->second;
}

void forget_tensors() {
  const std::lock_guard<std::mutex> lock(calls().mutex);
  calls().tensors.erase(std::this_thread::get_id());
}

}  // namespace warpwright::emulator
