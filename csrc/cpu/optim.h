// The walk of every optimizer on the CPU: all tensors of a call are cut into chunks, and the chunks go to threads. What
// a rule does with an element is the rule's; where its numbers come from and go to is here.

#pragma once

#include "cpu/parallel.h"
#include "cpu/vec_math.h"
#include "kernels/optim.h"
#include "kernels/philox.h"

WARPWRIGHT_ISA_BEGIN

// The storage type of moments that are 8-bit codes.
struct Code8 {};
template <class S>
inline constexpr bool kIsCode = false;
template <>
inline constexpr bool kIsCode<Code8> = true;

// ---- 8-bit moments: kernels/optim.h has the code ----

typedef uint8_t U8s __attribute__((vector_size(kFloatLanes)));

// The elements of one block, decoded.
inline void decode(const uint8_t* codes, float scale, bool is_signed, int64_t count, float* values) {
  alignas(64) uint8_t whole[kCodeBlock] = {};
  std::memcpy(whole, codes, static_cast<size_t>(count));
  for (int64_t i = 0; i < kCodeBlock; i += kFloatLanes) {
    U8s raw;
    std::memcpy(&raw, whole + i, sizeof(raw));
    const Vec<float> code = __builtin_convertvector(raw, Vec<float>);
    if (is_signed) {
      const Vec<float> root = (code - kZeroCode) / splat(kSignedCodes);
      store(values + i, root * vabs(root) * scale);
    } else {
      const Vec<float> root = code / splat(kUnsignedCodes), square = root * root;
      store(values + i, square * square * scale);
    }
  }
}

// The other way round; returns the scale. A block with an infinity or a NaN is a NaN throughout.
inline float encode(float* values, bool is_signed, int64_t count, uint8_t* codes) {
  for (int64_t i = count; i < kCodeBlock; ++i) values[i] = 0;
  Vec<float> largest{};
  for (int64_t i = 0; i < kCodeBlock; i += kFloatLanes) {
    const Vec<float> a = vabs(load(values + i));
    largest = (a > largest) | (a != a) ? a : largest;
  }
  float scale = 0;
  for (int i = 0; i < kFloatLanes; ++i) scale = largest[i] > scale || largest[i] != largest[i] ? largest[i] : scale;
  const bool usable = scale > 0 && scale <= std::numeric_limits<float>::max();
  // Adding 1.5 * 2^23 rounds to an integer, to even where two are as near.
  constexpr float kRound = 12582912.0f;
  alignas(64) uint8_t whole[kCodeBlock];
  for (int64_t i = 0; i < kCodeBlock; i += kFloatLanes) {
    const Vec<float> value = load(values + i);
    Vec<float> code = usable ? vsqrt(vabs(value) / splat(scale)) : Vec<float>{};
    if (is_signed) {
      code = (code * kSignedCodes + kRound) - kRound;
      code = kZeroCode + (value < 0.0f ? -code : code);
    } else {
      code = (vsqrt(code) * kUnsignedCodes + kRound) - kRound;
      code = value > 0.0f ? vmax(code, splat(usable ? 1.0f : 0.0f)) : code;
    }
    const U8s raw = __builtin_convertvector(__builtin_convertvector(code, I32s), U8s);
    std::memcpy(whole + i, &raw, sizeof(raw));
  }
  std::memcpy(codes, whole, static_cast<size_t>(count));
  return scale;
}

// The moments of one block of a tensor, the first one signed.
template <int kMoments>
void decode_moments(const OptimTensor& t, int64_t first, int64_t count, float (&values)[kMoments][kCodeBlock]) {
  for (int k = 0; k < kMoments; ++k) {
    const uint8_t* codes = static_cast<const uint8_t*>(t.moments[k]) + first;
    decode(codes, t.scales[k][first / kCodeBlock], k == 0, count, values[k]);
  }
}
template <int kMoments>
void encode_moments(const OptimTensor& t, int64_t first, int64_t count, float (&values)[kMoments][kCodeBlock]) {
  for (int k = 0; k < kMoments; ++k) {
    uint8_t* codes = static_cast<uint8_t*>(t.moments[k]) + first;
    t.scales[k][first / kCodeBlock] = encode(values[k], k == 0, count, codes);
  }
}

// ---- stochastic rounding ----

// Adds the words' upper halves to the half of each float32 that bfloat16 has no room for, and cuts.
inline Vec<float> stochastically_rounded(Vec<float> x, U32s words) {
  const U32s moved = ((U32s)x + (words >> 16)) & 0xffff0000u;
  return (x - x == 0.0f) ? (Vec<float>)moved : x;
}
inline U32s load_words(const uint32_t* words, Whole) {
  U32s v;
  std::memcpy(&v, words, sizeof(v));
  return v;
}
inline U32s load_words(const uint32_t* words, int64_t count) {
  U32s v{};
  for (int64_t i = 0; i < count; ++i) v[i] = words[i];
  return v;
}

// ---- the walk ----

// What every rule reads of a call.
template <class A>
struct StepScalars {
  double lr, step;
  A grad_scale, grad_multiplier;
  bool scaled;  // Whether these two change anything: a division takes as long as all else that happens to an element.

  StepScalars(const OptimParams& p, const OptimTensor& t)
      : lr(p.lr_tensor == nullptr ? p.lr : *p.lr_tensor),
        step(*t.step),
        grad_scale((p.grad_scale == nullptr ? A(1) : static_cast<A>(*p.grad_scale)) * (p.maximize ? A(-1) : A(1))),
        grad_multiplier(p.grad_multiplier == nullptr ? A(1) : static_cast<A>(*p.grad_multiplier)),
        scaled(grad_scale != 1 || grad_multiplier != 1) {}

  Vec<A> gradient(Vec<A> g) const { return scaled ? g / splat<A>(grad_scale) * grad_multiplier : g; }
};

// A piece of one tensor. M: the type of its moments here, which for codes is float.
template <class P, class M>
struct Piece {
  P* param;
  const P* grad;
  M* moments[2];
  M* maximum;
  float* master;
  const uint32_t* words;  // for stochastic rounding, or null
  int64_t count;

  template <class Count>
  auto value(int64_t i, Count n) const {
    if constexpr (sizeof(P) < sizeof(float)) {
      if (master != nullptr) return load(master + i, n);
    }
    return load(param + i, n);
  }
  template <class Count>
  void set_value(int64_t i, Vec<acc_t<P>> x, Count n) const {
    if constexpr (sizeof(P) < sizeof(float)) {
      if (master != nullptr) store(master + i, x, n);
      if (words != nullptr) x = stochastically_rounded(x, load_words(words + i, n));
    }
    store(param + i, x, n);
  }
};

template <class Rule, class P, class M>
void update_piece(const Rule& rule, const StepScalars<acc_t<P>>& s, const Piece<P, M>& piece) {
  using A = acc_t<P>;
  for_each_vector<A>(piece.count, [&](int64_t i, auto n) {
    const Vec<A> g = s.gradient(load(piece.grad + i, n));
    Vec<A> x = piece.value(i, n), m{}, v{}, maximum{};
    if (piece.moments[0] != nullptr) m = load(piece.moments[0] + i, n);
    if constexpr (Rule::kMoments == 2) v = load(piece.moments[1] + i, n);
    if constexpr (Rule::kMaximum) maximum = load(piece.maximum + i, n);
    rule(x, g, m, v, maximum);
    if (piece.moments[0] != nullptr) store(piece.moments[0] + i, m, n);
    if constexpr (Rule::kMoments == 2) store(piece.moments[1] + i, v, n);
    if constexpr (Rule::kMaximum) store(piece.maximum + i, maximum, n);
    piece.set_value(i, x, n);
  });
}

// The random words of elements [first, first + count), count at most kCodeBlock and first a multiple of it.
inline void random_words(const OptimParams& p, const OptimTensor& t, int64_t first, int64_t count, uint32_t* words) {
  for (int64_t i = 0; i < count; i += kPhiloxWords) {
    const PhiloxBlock block = philox(p.seed, t.index, (first + i) / kPhiloxWords, static_cast<int64_t>(*t.step));
    for (int k = 0; k < kPhiloxWords; ++k) words[i + k] = block.words[k];
  }
}

template <class T>
T* offset_or_null(void* p, int64_t offset) {
  return p == nullptr ? nullptr : static_cast<T*>(p) + offset;
}

// Elements [first, first + count) of a tensor, whose moments of type S lie where they are or are decoded for the time.
template <class Rule, class P, class S>
void update_block(const OptimParams& p, const OptimTensor& t, const Rule& rule, const StepScalars<acc_t<P>>& s,
                  int64_t first, int64_t count) {
  P* param = static_cast<P*>(t.param) + first;
  const P* grad = static_cast<const P*>(t.grad) + first;
  float* master = offset_or_null<float>(t.master, first);
  uint32_t words[kCodeBlock];
  if (p.stochastic) random_words(p, t, first, count, words);
  const uint32_t* used = p.stochastic ? words : nullptr;
  if constexpr (kIsCode<S>) {
    float values[Rule::kMoments][kCodeBlock];
    Piece<P, float> piece{param, grad, {}, offset_or_null<float>(t.maximum, first), master, used, count};
    for (int k = 0; k < Rule::kMoments; ++k) piece.moments[k] = values[k];
    decode_moments(t, first, count, values);
    update_piece(rule, s, piece);
    encode_moments(t, first, count, values);
  } else {
    Piece<P, S> piece{param, grad, {}, offset_or_null<S>(t.maximum, first), master, used, count};
    for (int k = 0; k < Rule::kMoments; ++k) piece.moments[k] = offset_or_null<S>(t.moments[k], first);
    update_piece(rule, s, piece);
  }
}

template <class Rule, class P, class S>
void update_chunk(const OptimParams& p, int32_t chunk) {
  const int index = p.tensor_of(chunk);
  const OptimTensor& t = p.tensors[index];
  const int64_t first = (chunk - p.first_chunk[index]) * kOptimChunk;
  const int64_t last = t.numel - first < kOptimChunk ? t.numel : first + kOptimChunk;
  const StepScalars<acc_t<P>> scalars(p, t);
  const Rule rule(p, scalars);
  const int64_t length = kIsCode<S> || p.stochastic ? kCodeBlock : kOptimChunk;
  for (int64_t at = first; at < last; at += length) {
    update_block<Rule, P, S>(p, t, rule, scalars, at, last - at < length ? last - at : length);
  }
}

// Threads take the next chunk when they are done with one: the last chunk of a tensor may have an element or 16384, and
// a model's small tensors lie together, so that equal numbers of chunks are unequal work.
template <class F>
void for_each_chunk(const OptimParams& p, const F& f) {
  const int32_t count = p.first_chunk[p.count];
  int32_t next = 0;
  parallel_for(0, count, 1, [&](int64_t, int64_t) {
    while (true) {
      const int32_t chunk = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (chunk >= count) return;
      f(chunk);
    }
  });
}

template <class Rule, class P>
void update_of_dtype(const OptimParams& p) {
  for_each_chunk(p, [&](int32_t chunk) {
    if constexpr (sizeof(P) <= sizeof(float)) {
      if (p.state_dtype == DType::kUInt8) return update_chunk<Rule, P, Code8>(p, chunk);
    }
    if (p.state_dtype == p.dtype) return update_chunk<Rule, P, P>(p, chunk);
    update_chunk<Rule, P, acc_t<P>>(p, chunk);
  });
}

// One step by Rule<A>, with the types that the tensors have.
template <template <class> class Rule>
void update(const OptimParams& p) {
  if (p.found_inf != nullptr && *p.found_inf != 0) return;
  visit_float(p.dtype, [&](auto tag) {
    using P = decltype(tag);
    update_of_dtype<Rule<acc_t<P>>, P>(p);
  });
}

WARPWRIGHT_ISA_END
