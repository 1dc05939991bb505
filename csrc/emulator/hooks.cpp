// What the compiler's instrumentation calls before each access to memory.

#include <string>

#include "emulator/machine.h"

namespace {

// As GCC lays out its description of a dereference whose type wants an alignment.
struct Dereference {
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log2_alignment, kind;
};

}  // namespace

// A dereference is checked where the source has it: optimised code may do with smaller accesses than the GPU's.
extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1(Dereference* what, void* to) {
  const std::string file = what->file, bytes = std::to_string(1 << what->log2_alignment);
  warpwright::emulator::stop_thread(file.substr(file.rfind('/') + 1) + ":" + std::to_string(what->line) +
                                    ": misaligned access, " + bytes + "-byte alignment is needed and the address is " +
                                    std::to_string(reinterpret_cast<uintptr_t>(to) % (1u << what->log2_alignment)) +
                                    " bytes off");
}

#define WARPWRIGHT_HIDDEN extern "C" __attribute__((visibility("hidden")))
#define WARPWRIGHT_HOOK(NAME, SIZE, WRITE)                                              \
  WARPWRIGHT_HIDDEN void __tsan_##NAME(void* address) {                                 \
    warpwright::emulator::on_access(address, SIZE, WRITE, __builtin_return_address(0)); \
  }
#define WARPWRIGHT_HOOKS(SIZE)                       \
  WARPWRIGHT_HOOK(read##SIZE, SIZE, false)           \
  WARPWRIGHT_HOOK(write##SIZE, SIZE, true)           \
  WARPWRIGHT_HOOK(unaligned_read##SIZE, SIZE, false) \
  WARPWRIGHT_HOOK(unaligned_write##SIZE, SIZE, true)
WARPWRIGHT_HOOKS(1)
WARPWRIGHT_HOOKS(2)
WARPWRIGHT_HOOKS(4)
WARPWRIGHT_HOOKS(8)
WARPWRIGHT_HOOKS(16)
WARPWRIGHT_HIDDEN void __tsan_read_range(void* address, size_t size) {
  warpwright::emulator::on_access(address, size, false, __builtin_return_address(0));
}
WARPWRIGHT_HIDDEN void __tsan_write_range(void* address, size_t size) {
  warpwright::emulator::on_access(address, size, true, __builtin_return_address(0));
}
// The guard of a function's static variable, in the launchers.
WARPWRIGHT_HIDDEN unsigned char __tsan_atomic8_load(const volatile unsigned char* guard, int) {
  return __atomic_load_n(guard, __ATOMIC_ACQUIRE);
}
WARPWRIGHT_HIDDEN void __tsan_init() {}
WARPWRIGHT_HIDDEN void __tsan_vptr_update(void**, void*) {}
WARPWRIGHT_HIDDEN void __tsan_vptr_read(void**) {}
