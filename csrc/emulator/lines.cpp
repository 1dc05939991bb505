// From a return address to a source line.

#include <dlfcn.h>
#include <execinfo.h>

#include <array>
#include <cstdio>
#include <sstream>

#include "emulator/memory.h"

namespace warpwright::emulator {
namespace {

// "file.cu:12", or nothing where no line outside the emulator's own files is known.
std::string known_line(const void* code) {
  Dl_info info{};
  if (dladdr(code, &info) == 0 || info.dli_fname == nullptr) return "";
  const uintptr_t offset =
      reinterpret_cast<uintptr_t>(code) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;  // Inside the call.
  std::ostringstream command;
  command << "addr2line -i -e '" << info.dli_fname << "' 0x" << std::hex << offset << " 2>/dev/null";
  std::string found;
  if (FILE* pipe = popen(command.str().c_str(), "r"); pipe != nullptr) {
    std::array<char, 4096> text{};
    while (std::fgets(text.data(), text.size(), pipe) != nullptr) {
      std::string line = text.data();
      line = line.substr(0, line.find_first_of(" \n"));
      const auto within = [&](const char* folder) { return line.find(folder) != std::string::npos; };
      if (line.empty() || line[0] == '?' || within("csrc/emulator/") || within("cuda/ptx/") || within("/c++/"))
        continue;  // Inlined into the kernel: its caller follows.
      found = line.substr(line.rfind('/') + 1);
      break;
    }
    pclose(pipe);
  }
  return found;
}

}  // namespace

uintptr_t code_base() {
  static const uintptr_t base = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&code_base), &info);
    return reinterpret_cast<uintptr_t>(info.dli_fbase);
  }();
  return base;
}

std::string source_line(const void* code) {
  const std::string found = known_line(code);
  if (!found.empty()) return found;
  std::ostringstream text;
  text << "code offset 0x" << std::hex << reinterpret_cast<uintptr_t>(code) - code_base();
  return text.str();
}

std::string calling_line() {
  std::array<void*, 16> frames{};
  const int count = backtrace(frames.data(), static_cast<int>(frames.size()));
  for (int i = 1; i < count; ++i) {
    const std::string found = known_line(frames[static_cast<size_t>(i)]);
    if (!found.empty()) return found;
  }
  return "an unknown line";
}

}  // namespace warpwright::emulator
