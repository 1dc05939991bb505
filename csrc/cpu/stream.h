// Copies whose result is not read again soon: stores that bypass the cache save the read of each line that a store
// begins with, a third of a copy's traffic.

#pragma once

#include "cpu/vec.h"

WARPWRIGHT_ISA_BEGIN

// An output of fewer bytes fits the cache, where whoever comes next finds it.
inline constexpr int64_t kStreamBytes = int64_t{8} << 20;

// `count` bytes from `from`, or zeros where it is null.
inline void stream_bytes(void* to, const void* from, int64_t count) {
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  int64_t i = 0;
#if defined(__x86_64__)
  constexpr int64_t kStep = 16;
  const int64_t head = (kStep - static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % kStep)) % kStep;
  if (count >= head + kStep) {
    for (; i < head; ++i) out[i] = in == nullptr ? 0 : in[i];
    for (; i + kStep <= count; i += kStep) {
      const __m128i v = in == nullptr ? _mm_setzero_si128() : _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
      _mm_stream_si128(reinterpret_cast<__m128i*>(out + i), v);
    }
  }
#endif
  for (; i < count; ++i) out[i] = in == nullptr ? 0 : in[i];
}

// Whether a vector can be streamed to `p` and to whole vectors after it: rows whose length vectors divide stay aligned.
template <class T>
inline bool streams(const T* p, int64_t row_length) {
  constexpr int64_t kBytes = kLanes<acc_t<T>> * static_cast<int64_t>(sizeof(T));
  return reinterpret_cast<uintptr_t>(p) % kBytes == 0 && row_length % kLanes<acc_t<T>> == 0;
}
template <class T>
inline void stream(T* p, Vec<acc_t<T>> v) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return _mm512_stream_ps(p, (__m512)v);
  if constexpr (sizeof(T) == 2) return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow(T{}, v));
#endif
  store(p, v);
}

// Streamed stores become visible to other threads in order with the plain ones that follow.
inline void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

WARPWRIGHT_ISA_END
