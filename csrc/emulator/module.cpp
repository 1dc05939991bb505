// The emulator as a Python module, warpwright_emulator: what has run, and what kernels may touch. Every library that
// holds the emulator is such a module, with kernels of its own; tests/emulated.py imports them.

#include <pybind11/pybind11.h>

#include <mutex>
#include <string>

#include "emulator/machine.h"

namespace py = pybind11;

namespace warpwright::emulator {
namespace {

int64_t launches(const std::string& kernel) {
  const std::lock_guard<std::mutex> lock(launch_mutex());
  const auto& all = machine().launches;
  const auto found = all.find(kernel);
  return found == all.end() ? 0 : found->second;
}

bool reached(int64_t offset) {
  const std::lock_guard<std::mutex> lock(launch_mutex());
  const uintptr_t address = code_base() + static_cast<uintptr_t>(offset);
  return machine().kernels.count(reinterpret_cast<const void*>(address)) != 0;
}

void start_noting() {
  const std::lock_guard<std::mutex> lock(launch_mutex());
  machine().noted.emplace();
}

py::list take_noted() {
  const std::lock_guard<std::mutex> lock(launch_mutex());
  py::list offsets;
  for (const void* kernel : machine().noted.value()) offsets.append(reinterpret_cast<uintptr_t>(kernel) - code_base());
  machine().noted.reset();
  return offsets;
}

void start_traffic() {
  const std::lock_guard<std::mutex> lock(launch_mutex());
  machine().traffic.start();
}

py::list take_traffic() {
  std::vector<Traffic::Launch> launches;
  {
    const std::lock_guard<std::mutex> lock(launch_mutex());
    launches = machine().traffic.take();
  }
  py::list result;
  for (const Traffic::Launch& launch : launches) {
    py::list tensors;
    for (const Traffic::Tensor& tensor : launch.tensors) {
      tensors.append(py::make_tuple(tensor.range.begin, tensor.range.size(), tensor.read, tensor.written));
    }
    result.append(py::make_tuple(launch.kernel, tensors));
  }
  return result;
}

void allow(const py::buffer& memory) {
  const py::buffer_info info = memory.request();
  const auto begin = reinterpret_cast<uintptr_t>(info.ptr);
  const std::lock_guard<std::mutex> lock(launch_mutex());
  machine().allowed.push_back({begin, begin + static_cast<uintptr_t>(info.size * info.itemsize)});
}

void allow_everything() {
  const std::lock_guard<std::mutex> lock(launch_mutex());
  machine().allowed.clear();
}

}  // namespace

PYBIND11_MODULE(warpwright_emulator, m) {
  m.doc() = "CUDA kernels run on the CPU: see docs/verification.md.";
  m.def("multiprocessors", &multiprocessors);
  m.def("capability", &capability, "The compute capability that is emulated: 90 is sm_90.");
  m.def("launches", &launches, py::arg("kernel"),
        "How often a kernel has been launched since the library was loaded, by the name that its launcher gives.");
  m.def("reached", &reached, py::arg("offset"),
        "Whether the kernel that starts at this offset in the library has run.");
  m.def("start_noting", &start_noting,
        "From now on a launch only notes its kernel: what it would write is not written.");
  m.def("take_noted", &take_noted, "The offsets of the kernels that were noted, which ends it.");
  m.def("start_traffic", &start_traffic, "Meters the global memory that launches read and write from now on.");
  m.def("take_traffic", &take_traffic,
        "What was metered, which ends it: [(kernel, [(address, bytes, bytes read, bytes written) of each tensor])].");
  m.def("allow", &allow, py::arg("memory"),
        "Kernels may touch this contiguous array, and from the first call on nothing else in global memory.");
  m.def("allow_everything", &allow_everything, "Takes back all calls of allow.");
}

}  // namespace warpwright::emulator
