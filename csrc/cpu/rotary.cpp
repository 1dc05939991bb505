// Rotary embedding on the CPU: heads go to threads, pairs of one head to vectors. The cosines and sines of a position
// are looked up or computed once for all of its heads that a thread has.

#include "kernels/rotary.h"

#include "cpu/parallel.h"
#include "cpu/rotate.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// Neighbours change places: (b0, a0, b1, a1, ...).
inline Vec<float> swap_neighbours(Vec<float> v) {
  I32s places;
  for (int i = 0; i < kFloatLanes; ++i) places[i] = i ^ 1;
  return __builtin_shuffle(v, places);
}
inline Vec<double> swap_neighbours(Vec<double> v) {
  Vec<double> swapped;
  for (int64_t i = 0; i < kLanes<double>; ++i) swapped[i] = v[i ^ 1];
  return swapped;
}

// The cosine and the sine of an angle in turns of 2^64.
inline void cos_and_sin(uint64_t angle, double* cosine, double* sine) {
  constexpr double kTwoPi = 6.28318530717958647692;
  const double x = static_cast<double>(static_cast<int64_t>(angle)) * 0x1p-64 * kTwoPi;
  *cosine = ::cos(x);
  *sine = ::sin(x);
}
// In single precision with what kernels/rotary.h says of it, in a form that the compiler makes vectors of.
inline void cos_and_sin(uint64_t angle, float* cosine, float* sine) {
  const uint64_t rounded = angle + kEighthTurn, quarter = rounded >> kQuarterShift;
  const auto rest = static_cast<int64_t>(angle - (quarter << kQuarterShift));
  const float r = static_cast<float>(rest) * kTurnScale;
  const float x = multiply_add(r, kTwoPiHigh, r * kTwoPiLow), z = x * x;
  const float s = x + x * z * (kSin0 + z * (kSin1 + z * (kSin2 + z * kSin3)));
  const float c = 1.0f - 0.5f * z + z * z * (kCos0 + z * (kCos1 + z * kCos2));
  const bool swapped = quarter & 1u;
  const float a = swapped ? s : c, b = swapped ? c : s;
  *cosine = (quarter + 1) & 2u ? -a : a;
  *sine = quarter & 2u ? -b : b;
}

// The factors of one position: of pair i, or where pairs are neighbours of each element, (c0, c0, c1, c1, ...) and
// (-s0, s0, -s1, s1, ...).
template <class T>
class Angles {
  using A = acc_t<T>;

 public:
  explicit Angles(const RotaryParams& p)
      : p_(p), pairs_(p.rotary_dim / 2), cos_(p.rotary_dim), sin_(p.rotary_dim), frequencies_(p.cos ? 0 : pairs_) {
    if (p.cos != nullptr) return;
    for (int64_t i = 0; i < pairs_; ++i) frequencies_.data()[i] = rotary_frequency(p.base, i, p.rotary_dim);
  }

  const A* cos() const { return cos_.data(); }
  const A* sin() const { return sin_.data(); }

  void move_to(int64_t b, int64_t s) {
    if (b == batch_ && s == place_) return;
    batch_ = b;
    place_ = s;
    const int64_t position = p_.positions == nullptr ? s : p_.positions[b * p_.position_batch + s * p_.position_at];
    if (p_.cos == nullptr) {
      compute(position);
    } else if (p_.table_dtype == DType::kFloat32) {
      look_up<float>(b * p_.table_batch + position * p_.table_row);
    } else {
      look_up<T>(b * p_.table_batch + position * p_.table_row);
    }
    if (p_.inverse) {
      for (int64_t i = 0; i < pairs_; ++i) sin_.data()[i] = -sin_.data()[i];
    }
    if (p_.interleaved) repeat();
  }

 private:
  void compute(int64_t position) {
    const auto turns = static_cast<uint64_t>(position);
    for (int64_t i = 0; i < pairs_; ++i) {
      cos_and_sin(turns * frequencies_.data()[i], cos_.data() + i, sin_.data() + i);
    }
  }
  template <class Table>
  void look_up(int64_t at) {
    for (int64_t i = 0; i < pairs_; ++i) {
      cos_.data()[i] = static_cast<A>(to_acc(static_cast<const Table*>(p_.cos)[at + i]));
      sin_.data()[i] = static_cast<A>(to_acc(static_cast<const Table*>(p_.sin)[at + i]));
    }
  }
  void repeat() {
    for (int64_t i = pairs_; i-- > 0;) {  // From behind: what is read lies before what is written.
      const A c = cos_.data()[i], s = sin_.data()[i];
      cos_.data()[2 * i] = cos_.data()[2 * i + 1] = c;
      sin_.data()[2 * i] = -s;
      sin_.data()[2 * i + 1] = s;
    }
  }

  const RotaryParams& p_;
  const int64_t pairs_;
  Scratch<A> cos_, sin_;
  Scratch<uint64_t> frequencies_;
  int64_t batch_ = -1, place_ = -1;
};

template <class T>
void rotate_neighbours(const T* x, const acc_t<T>* cos, const acc_t<T>* sin, int64_t rotary_dim, T* y) {
  using A = acc_t<T>;
  for_each_vector<A>(rotary_dim, [&](int64_t i, auto n) {
    const Vec<A> v = load(x + i, n);
    store(y + i, v * load(cos + i, n) + swap_neighbours(v) * load(sin + i, n), n);
  });
}

template <class T>
void rotate_rows(const RotaryParams& p, int64_t begin, int64_t end) {
  const int64_t heads = p.first.heads + p.second.heads;
  Scratch<T> gathered(p.head_dim);
  Angles<T> angles(p);
  for (int64_t row = begin; row < end; ++row) {  // row = (batch, sequence, head), the second tensor's heads last
    const int64_t place = row / heads, b = place / p.sequence, s = place % p.sequence;
    const bool second = row % heads >= p.first.heads;
    const RotaryTensor& tensor = second ? p.second : p.first;
    const int64_t head = row % heads - (second ? p.first.heads : 0);
    angles.move_to(b, s);
    const T* x =
        static_cast<const T*>(tensor.input) + b * tensor.stride[0] + s * tensor.stride[1] + head * tensor.stride[2];
    if (tensor.stride[3] != 1) {
      for (int64_t i = 0; i < p.head_dim; ++i) gathered.data()[i] = x[i * tensor.stride[3]];
      x = gathered.data();
    }
    T* y = static_cast<T*>(tensor.output) + (place * tensor.heads + head) * p.head_dim;
    if (p.interleaved) {
      rotate_neighbours<T>(x, angles.cos(), angles.sin(), p.rotary_dim, y);
    } else {
      rotate_halves(x, angles.cos(), angles.sin(), acc_t<T>(1), p.rotary_dim / 2, y);
    }
    for (int64_t i = p.rotary_dim; i < p.head_dim; ++i) y[i] = x[i];
  }
}

}  // namespace

void rotary(const RotaryParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    const int64_t rows = p.batch * p.sequence * (p.first.heads + p.second.heads);
    parallel_for(0, rows, row_grain(p.head_dim),
                 [&](int64_t begin, int64_t end) { rotate_rows<decltype(tag)>(p, begin, end); });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(rotary, RotaryParams)
