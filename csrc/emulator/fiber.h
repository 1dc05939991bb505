// Fibers: a stack each, and a switch between them that costs a few nanoseconds.

#pragma once

#include <cstddef>

namespace warpwright::emulator {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next resume() call entry(argument) on this fiber's stack.
  void prepare(void (*entry)(void*), void* argument);
  // Runs until the fiber suspends, or its entry returns. Called from outside any fiber.
  void resume();
  // Back to resume()'s caller; returns at the next resume(). Called on this fiber.
  void suspend();
  // Whether `address` lies on this fiber's stack.
  bool holds(const void* address) const;

 private:
  friend void fiber_main(Fiber* fiber);
  unsigned char* memory_ = nullptr;  // A guard page, then the stack.
  void* inside_ = nullptr;           // The fiber's stack pointer while it is suspended.
  void* outside_ = nullptr;          // The caller's while it runs.
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
};

}  // namespace warpwright::emulator
