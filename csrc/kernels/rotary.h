// Params and launchers of the rotary family, and how angles are computed.

#pragma once

#include <cmath>

#include "kernels/common.h"

namespace warpwright {

// (batch, sequence, heads, head_dim)
struct RotaryTensor {
  const void* input;  // any strides
  int64_t stride[4];
  void* output;  // contiguous
  int64_t heads;
};

// Rotates pairs of elements of each head by the angle of their position: (a, b) -> (a cos - b sin, b cos + a sin).
// Pair i is (i, i + rotary_dim / 2), or (2 i, 2 i + 1) when interleaved; elements past rotary_dim are copied.
struct RotaryParams {
  RotaryTensor first, second;           // The second one has no heads where there is one.
  const int64_t* positions;             // (batch or 1, sequence); null: the place in the sequence
  int64_t position_batch, position_at;  // strides of positions
  const void* cos;                 // (batch or 1, rows, rotary_dim / 2), unit last stride; null: computed from `base`
  const void* sin;                 // the strides of cos
  int64_t table_batch, table_row;  // strides of cos and sin
  int64_t table_rows;
  double base;
  int64_t batch, sequence, head_dim, rotary_dim;
  bool interleaved;
  bool inverse;       // rotate back: the backward pass
  DType dtype;        // of inputs, outputs
  DType table_dtype;  // of cos, sin: float32, or dtype
};

// Angles are counted in turns of 2^64, where an unsigned multiplication by the position drops whole turns exactly: no
// digit is lost at any position, but for those that the frequency lacks, which has float64's.

// Turns a position of pair i: base^(-2 i / rotary_dim) / (2 pi).
WARPWRIGHT_HOST_DEVICE uint64_t rotary_frequency(double base, int64_t pair, int64_t rotary_dim) {
  constexpr double kInvTwoPi = 0.15915494309189533577, kTurn = 18446744073709551616.0;
  const double exponent = -2.0 * static_cast<double>(pair) / static_cast<double>(rotary_dim);
  const double turns = ::exp2(exponent * ::log2(base)) * kInvTwoPi;
  return static_cast<uint64_t>((turns - ::floor(turns)) * kTurn);
}

// An angle as a number of quarter turns, 0 to 3, and what remains, at most an eighth of a turn to either side.
inline constexpr uint64_t kEighthTurn = uint64_t{1} << 61;
inline constexpr int kQuarterShift = 62;
inline constexpr float kTurnScale = 0x1p-64f;
// 2 pi in two parts: one float32 would be off by more than the result's last digit.
inline constexpr float kTwoPiHigh = 6.28125f, kTwoPiLow = 0.00193530717958647692f;
// sin(x) = x + x^3 P(x^2) and cos(x) = 1 - x^2 / 2 + x^4 Q(x^2) where |x| <= pi / 4: minimax fits in the error of the
// result, as those of cpu/vec_math.h.
inline constexpr float kSin0 = -0.166666672f, kSin1 = 0.00833332911f, kSin2 = -0.000198393114f, kSin3 = 2.71811791e-06f;
inline constexpr float kCos0 = 0.0416666456f, kCos1 = -0.00138873677f, kCos2 = 2.44384155e-05f;

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(rotary, RotaryParams)
