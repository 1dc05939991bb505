#include "emulator/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if !defined(__x86_64__)
#error "the emulator switches stacks in x86-64 assembly; other processors need a switch of their own in this file"
#endif

// warpwright_switch(save, load): stores the callee-saved registers on this stack and its pointer in *save, then takes
// up the stack whose pointer is `load` (System V ABI, x86-64). ucontext would do, at two system calls a switch.
asm(R"(
.text
.type warpwright_switch, @function
warpwright_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size warpwright_switch, .-warpwright_switch
.type warpwright_fiber_start, @function
warpwright_fiber_start:
  movq %r12, %rdi
  callq *%r13
  ud2
.size warpwright_fiber_start, .-warpwright_fiber_start
)");
extern "C" void warpwright_switch(void** save, void* load);
extern "C" void warpwright_fiber_start();

namespace warpwright::emulator {
namespace {
constexpr size_t kPage = 4096;
constexpr size_t kStack = 128 * 1024;
}  // namespace

void fiber_main(Fiber* fiber) {
  fiber->entry_(fiber->argument_);
  for (;;) fiber->suspend();  // Never resumed again before prepare().
}

Fiber::Fiber() {
  void* memory = mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<unsigned char*>(memory);
  mprotect(memory_, kPage, PROT_NONE);  // A stack overflow faults here instead of in the next fiber.
}

Fiber::~Fiber() { munmap(memory_, kPage + kStack); }

void Fiber::prepare(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
  // What warpwright_switch pops: r15, r14, r13, r12, rbx, rbp, then the address it returns to. After that return the
  // stack is 16-byte aligned, as it must be before a call.
  auto* top = reinterpret_cast<uint64_t*>(memory_ + kPage + kStack) - 2;
  uint64_t* frame = top - 7;
  std::memset(frame, 0, 9 * sizeof(uint64_t));
  frame[2] = reinterpret_cast<uint64_t>(&fiber_main);
  frame[3] = reinterpret_cast<uint64_t>(this);
  frame[6] = reinterpret_cast<uint64_t>(&warpwright_fiber_start);
  inside_ = frame;
}

bool Fiber::holds(const void* address) const {
  const auto* p = static_cast<const unsigned char*>(address);
  return p >= memory_ && p < memory_ + kPage + kStack;
}

void Fiber::resume() { warpwright_switch(&outside_, inside_); }
void Fiber::suspend() { warpwright_switch(&inside_, outside_); }

}  // namespace warpwright::emulator
