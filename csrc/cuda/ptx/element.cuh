// The types of elements that the tensor cores multiply, as PTX calls them, and what their bits mean.

#pragma once

#include <bit>
#include <type_traits>

#include "cuda/ptx/tf32.cuh"

namespace warpwright::cuda::ptx {

// The bytes of the inner dimension that one instruction multiplies, whatever the type.
inline constexpr int kProductBytes = 32;

template <class T>
struct Element;
template <>
struct Element<__half> {
  static constexpr char kName[] = "f16";
};
template <>
struct Element<__nv_bfloat16> {
  static constexpr char kName[] = "bf16";
};
template <>
struct Element<Tf32> {
  static constexpr char kName[] = "tf32";
};
template <>
struct Element<__nv_fp8_e4m3> {
  static constexpr char kName[] = "e4m3";
};
template <>
struct Element<__nv_fp8_e5m2> {
  static constexpr char kName[] = "e5m2";
};
template <>
struct Element<int8_t> {
  static constexpr char kName[] = "s8";
};
template <>
struct Element<uint8_t> {
  static constexpr char kName[] = "u8";
};

template <class T>
inline constexpr bool kIsFloat8 = std::is_same_v<T, __nv_fp8_e4m3> || std::is_same_v<T, __nv_fp8_e5m2>;
template <class T>
inline constexpr bool kIsInt8 = std::is_same_v<T, int8_t> || std::is_same_v<T, uint8_t>;
template <class T>
inline constexpr bool kIsFloat16 = std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>;

// Whether one instruction multiplies A by B: two of a kind, mixed where they have 8 bits.
template <class A, class B>
inline constexpr bool kMultiply = (std::is_same_v<A, B> && (kIsFloat16<A> || std::is_same_v<A, Tf32>)) ||
                                  (kIsFloat8<A> && kIsFloat8<B>) || (kIsInt8<A> && kIsInt8<B>);

// What products of T are added up in.
template <class T>
using Sum = std::conditional_t<kIsInt8<T>, int32_t, float>;

#if defined(WARPWRIGHT_BACKEND_EMULATED)
// The number that the low bits of a word are. float32 holds every one of them, and every product of two.
template <class T>
float emulated_value(uint32_t bits) {
  if constexpr (std::is_same_v<T, Tf32>) {
    return std::bit_cast<float>(bits & 0xffffe000);
  } else if constexpr (sizeof(T) == 2) {
    return static_cast<float>(std::bit_cast<T>(static_cast<uint16_t>(bits)));
  } else {
    return static_cast<float>(std::bit_cast<T>(static_cast<uint8_t>(bits)));
  }
}
#endif

}  // namespace warpwright::cuda::ptx
