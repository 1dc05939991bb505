// What a launch consists of while it runs; for the files of the emulator alone.

#pragma once

#include <atomic>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "emulator/fiber.h"
#include "emulator/memory.h"
#include "emulator/runtime.h"

namespace warpwright::emulator {

// A cp.async on its way.
struct Copy {
  unsigned char* shared;
  const void* global;
  int bytes, source_bytes;  // The rest are zeros.
  int64_t group;            // Of the thread's groups, which one it belongs to.
  bool moved;               // Its bytes have arrived already; the thread may not know.
  const void* code;
};

// A thread's copies, oldest first, and the number of the group that its next commit closes.
struct Copies {
  std::deque<Copy> started;
  int64_t open_group = 0;
};

enum class State { kReady, kBarrier, kWarp, kDone };

struct Thread {
  ThreadContext context;
  State state = State::kDone;
  unsigned warp_mask = 0;
  bool orders_memory = false;  // What it waits for is __syncwarp.
  Copies copies;
  std::unique_ptr<Fiber> fiber;
};

struct Warp {
  WarpWords buffers[2];  // A lane may start the next exchange while another still reads the last.
  unsigned arrived = 0;
  int generation = 0;
};

struct Machine {
  const Launch* launch = nullptr;
  const std::function<void()>* body = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::atomic<std::thread::id> host;  // The thread that runs the launch; no thread's between launches.
  Thread* running = nullptr;
  std::vector<unsigned char> dynamic;
  Memory memory;
  std::exception_ptr error;
  std::mt19937_64 random;
  std::map<std::string, int64_t> launches;  // By name, and which kernels they were.
  std::set<const void*> kernels;
};

Machine& machine();

// The running thread, where that is this host thread's; null outside a kernel.
Thread* running(Machine& m);

}  // namespace warpwright::emulator
