// Params and launchers of the packed family: linear layers whose weights are 4- or 8-bit integers.

#pragma once

#include "kernels/common.h"
#include "kernels/matmul.h"

namespace warpwright {

// Packed rows are whole pieces of this many elements: 16 bytes of 4 bits each, 32 of 8.
inline constexpr int64_t kPackedPiece = 32;

// A weight (n, k) of integers q, w = scale * (q - zero). Strides count elements. Every 32-bit word of `data` holds 8
// elements of 4 bits (element 2i in bits [4i, 4i + 4), element 2i + 1 in bits [4i + 16, 4i + 20)) or 4 of 8 bits in
// order: see packed_shift.
struct PackedWeight {
  const void* data;  // (n, packed_bytes(k, bits)) bytes
  int64_t row, col;
  const void* scale;  // (n, groups) of dtype
  int64_t scale_row, scale_col;
  const void* zero;  // (n, groups) bytes, or null: 2^(bits - 1) everywhere
  int64_t zero_row, zero_col;
  int64_t n, k;
  int32_t bits, group_shift;  // Element i of a row belongs to group i >> group_shift.
  DType dtype;
};

WARPWRIGHT_HOST_DEVICE int64_t packed_bytes(int64_t k, int64_t bits) {
  return (k + kPackedPiece - 1) / kPackedPiece * kPackedPiece * bits / 8;
}

// Where an element of a word starts: the pairs (0, 1), (2, 3), ... lie 16 bits apart, so that one mask takes both out,
// in order, into the halves of a register.
WARPWRIGHT_HOST_DEVICE constexpr int packed_shift(int bits, int element) {
  return bits == 4 ? element / 2 * 4 + element % 2 * 16 : element * 8;
}

// The zero point of weights without one.
WARPWRIGHT_HOST_DEVICE constexpr int packed_center(int bits) { return 1 << (bits - 1); }

// gemm.output = epilogue(gemm.a @ weight.T): the fields of gemm.b are not used. On the CPU the output is the product
// alone, in float32.
struct LinearPackedParams {
  GemmParams gemm;
  PackedWeight weight;
};

struct DequantizePackedParams {
  PackedWeight weight;
  void* output;  // (n, k) contiguous, of weight.dtype
};

// Packs the nearest integers q = clamp(round(weight / scale) + zero, 0, 2^bits - 1) of each group, rounded half to
// even. The scale is the group's span over its steps, rounded up to dtype: the largest magnitude over 2^(bits - 1) - 1
// where zero points are not wanted and zero is packed_center, else the distance from the smallest to the largest
// element and zero over 2^bits - 1, with zero = round(-smallest / scale). A group of zeros has scale 1. NaN becomes the
// integer 0, of a group whose scale is NaN.
struct QuantizePackedParams {
  Rows weight;    // (n, k) of dtype
  uint8_t* data;  // (n, packed_bytes(k, bits)): see PackedWeight; zeros past the end of a row
  void* scale;    // (n, groups) of dtype
  uint8_t* zero;  // (n, groups), or null: symmetric
  int64_t n, k, groups;
  int64_t group_size;  // Whole pieces; the whole row where that is one group.
  int32_t bits;
  DType dtype;
};

// Rows of the input up to which the fused kernels are taken; for more the weight is dequantized once and multiplied as
// any other. That moves some 4.5 more bytes an element of the weight (the packed one read, 16 bits written, and read by
// the product) and saves the fused kernel's slower arithmetic. If that reaches half of the ordinary product's rate P,
// it loses 2 m / P seconds an element, and both are even at m = 2.25 P / bandwidth: 660 rows on an H100 (989
// TFLOP/s, 3.35 TB/s by datasheet), 350 on an A100. Not measured yet.
inline constexpr int64_t kMaxFusedRows = 512;
// On the CPU the dequantized weight costs about as much as some 40 rows: 8.5 bytes an element at 10 GB/s a core,
// against 2 operations a row at 100 GFLOP/s.
inline constexpr int64_t kMaxFusedRowsCpu = 32;

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(linear_packed, LinearPackedParams)
WARPWRIGHT_DECLARE_LAUNCHER(dequantize_packed, DequantizePackedParams)
WARPWRIGHT_DECLARE_LAUNCHER(quantize_packed, QuantizePackedParams)

namespace warpwright::cpu {
// Whether linear_packed takes this product; the others' weight is dequantized first.
inline bool linear_packed_takes(const LinearPackedParams& p) {
  const bool some = p.gemm.m > 0 && p.gemm.n > 0 && p.gemm.k > 0;
  const bool few = p.gemm.m <= kMaxFusedRowsCpu || p.gemm.batch_invariant;
  return some && few && p.gemm.dtype != DType::kFloat64;
}
}  // namespace warpwright::cpu
namespace warpwright::cuda {
bool linear_packed_takes(const LinearPackedParams& params);
}
