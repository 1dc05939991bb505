// Says which threads torch's pool consists of, so that the benchmarks can bind each of them to a core.

#include "bindings/backend.h"

#if defined(WARPWRIGHT_BACKEND_CPU)

#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/parallel.h"

// For warpwright.bench, through ctypes: ids[i] is the system's number of the thread that runs the i-th of `count`
// parts.
extern "C" __attribute__((visibility("default"))) void warpwright_thread_ids(int64_t count, int64_t* ids) {
  const auto note = [](int64_t begin, int64_t end, void* context) {
    for (int64_t i = begin; i < end; ++i) static_cast<int64_t*>(context)[i] = syscall(SYS_gettid);
  };
  warpwright::cpu::parallel_range(0, count, 1, note, ids);
}

#endif
