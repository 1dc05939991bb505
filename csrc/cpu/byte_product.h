// What the products of bytes share on the CPU: matrices of 8-bit floats or int8, and convolutions.
//
// A task is a tile of the output of up to kTileRows x kTileCols. For each step of k both operands' bytes become words
// of 4 bytes that a multiplication takes: a float, or two int16 neighbours along k. The words of one operand lie row by
// row, those of the other in panels of kPanel columns, a vector's lanes. Sums of a step stay in registers, and are then
// added to the tile's.

#pragma once

#include <type_traits>

#include "cpu/float8.h"
#include "kernels/scaled.h"

WARPWRIGHT_ISA_BEGIN

inline constexpr int64_t kTileRows = 240, kTileCols = 128;
inline constexpr int kVectors = 2, kPanel = kVectors * kFloatLanes;  // Columns that are multiplied together,
inline constexpr int kRows = 6;  // and rows: as many sums as 16 registers have room for.
inline constexpr int64_t kStep = kScaleBlock;
static_assert(kTileRows % kRows == 0 && kTileCols % kPanel == 0);

// ---- the words of a format: Sum and Word are what one is added to and multiplied as ----

template <class F>
struct Float8Words {
  using Format = F;
  using Sum = float;
  using Word = float;
  static constexpr int kTerms = 1;  // Elements of k in a word.

  Float8Words() {
    for (int i = 0; i < 256; i += kFloatLanes) {
      U32s bytes{};
      for (int lane = 0; lane < kFloatLanes; ++lane) bytes[lane] = static_cast<uint32_t>(i + lane);
      store(table + i, decode_float8<F>(bytes));
    }
  }
  void expand(float* to, const uint8_t* row, int64_t count) const {
    for_each_vector<float>(count,
                           [&](int64_t i, auto n) { store(to + i, decode_float8<F>(load_bytes(row + i, n)), n); });
  }
  float word(const uint8_t* from, int64_t, int64_t) const { return table[*from]; }

  float table[256];  // The number that each byte is.
};

struct Int8Words {
  using Sum = int32_t;
  using Word = int32_t;
  static constexpr int kTerms = 2;

  void expand(int32_t* to, const uint8_t* row, int64_t count) const {
    constexpr int64_t kTogether = kVectorBytes / 2;
    typedef int8_t Bytes __attribute__((vector_size(kTogether)));
    typedef int16_t Shorts __attribute__((vector_size(kVectorBytes)));
    int64_t i = 0;
    for (; i + kTogether <= count; i += kTogether) {
      Bytes bytes;
      std::memcpy(&bytes, row + i, sizeof(bytes));
      const Shorts shorts = __builtin_convertvector(bytes, Shorts);
      std::memcpy(to + i / kTerms, &shorts, sizeof(shorts));
    }
    for (; i < count; i += kTerms) to[i / kTerms] = word(row + i, count - i, 1);
  }
  // The neighbour past the end is zero.
  int32_t word(const uint8_t* from, int64_t left, int64_t stride) const {
    const int32_t low = static_cast<int8_t>(from[0]), high = left > 1 ? static_cast<int8_t>(from[stride]) : 0;
    return static_cast<int32_t>(static_cast<uint32_t>(high) << 16 | (static_cast<uint32_t>(low) & 0xffffu));
  }
};

inline Vec<float> multiply_add(Vec<float> sum, float a, Vec<float> b) { return sum + a * b; }
// Both products of a lane's two pairs.
inline I32s multiply_add(I32s sum, int32_t a, I32s b) {
#if defined(__AVX512BW__)
  return sum + (I32s)_mm512_madd_epi16(_mm512_set1_epi32(a), (__m512i)b);
#elif defined(__AVX2__)
  return sum + (I32s)_mm256_madd_epi16(_mm256_set1_epi32(a), (__m256i)b);
#elif defined(__SSE2__)
  return sum + (I32s)_mm_madd_epi16(_mm_set1_epi32(a), (__m128i)b);
#else
  return sum + static_cast<int16_t>(a) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

template <class Sum>
using VecOfSum = std::conditional_t<std::is_same_v<Sum, float>, Vec<float>, I32s>;

// ---- a tile ----

// sums[r][v] = the products of `count` words of row r with a panel; rows past the last are multiplied as the last.
template <class Words>
void multiply(VecOfSum<typename Words::Sum> (&sums)[kRows][kVectors], const typename Words::Word* a, int64_t rows,
              const typename Words::Word* panel, int64_t count) {
  using V = VecOfSum<typename Words::Sum>;
  const typename Words::Word* row[kRows];
  for (int r = 0; r < kRows; ++r) row[r] = a + (r < rows ? r : rows - 1) * (kStep / Words::kTerms);
  V local[kRows][kVectors]{};
  for (int64_t i = 0; i < count; ++i) {
    V b[kVectors];
    for (int v = 0; v < kVectors; ++v) std::memcpy(&b[v], panel + i * kPanel + v * kFloatLanes, sizeof(V));
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) local[r][v] = multiply_add(local[r][v], row[r][i], b[v]);
    }
  }
  // One by one: a copy of the whole would have the compiler keep them in memory, and store each at each step.
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = local[r][v];
  }
}

inline Vec<float> load_sums(const float* p) { return load(p); }
inline Vec<float> load_sums(const int32_t* p) {
  I32s v;
  std::memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, Vec<float>);
}

WARPWRIGHT_ISA_END
