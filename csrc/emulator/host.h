// Host threads for the blocks of a cluster. Static shared variables are thread-local ones (runtime.h), so blocks that
// run together need a host thread each; only one of them runs at a time.

#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace warpwright::emulator {

class Host {
 public:
  Host() : thread_([this] { loop(); }) {}
  ~Host() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  // Runs `job` on this host thread; returns when it is done.
  void run(const std::function<void()>& job) {
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = &job;
    changed_.notify_all();
    changed_.wait(lock, [this] { return job_ == nullptr; });
  }

 private:
  void loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return ended_ || job_ != nullptr; });
      if (ended_) return;
      (*job_)();
      job_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void()>* job_ = nullptr;
  bool ended_ = false;
  std::thread thread_;
};

}  // namespace warpwright::emulator
