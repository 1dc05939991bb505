// What the losses behind a linear layer share: its output a chunk of rows at a time, and the gradients of its operands,
// which are added up over the chunks.

#pragma once

#include "bindings/gemm.h"

namespace warpwright {

// `count` rows of a matrix.
inline Tensor rows_from(Tensor matrix, int64_t first, int64_t count) {
  return torch::stable::narrow(matrix, 0, first, count);
}

struct LinearNeeds {
  bool input, weight, bias;
  bool any() const { return input || weight || bias; }
};

// A linear layer whose output exists for `chunk` rows at a time.
struct ChunkedLinear {
  Tensor input;   // (rows, features)
  Tensor weight;  // (classes, features)
  OptionalTensor bias;
  int64_t chunk;
  Arithmetic arithmetic;

  int64_t rows() const { return input.size(0); }
  int64_t classes() const { return weight.size(0); }
  // Those of the rows from `first` on: (up to chunk, classes), contiguous.
  Tensor logits(int64_t first) const;
};

// Throws unless the layer has a class, and `chunk_rows` is positive. Without it a chunk of each of `layers` such layers
// is a tenth of the rows, or what 16 MiB hold where that is more.
ChunkedLinear chunked_linear(const char* op, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                             std::optional<int64_t> chunk_rows, const std::string& precision, bool batch_invariant,
                             int64_t layers = 1);

// Sums over several chunks are kept in float32 (float64) and rounded once.
class LinearGrads {
 public:
  LinearGrads(const ChunkedLinear& layer, LinearNeeds needs);
  // `grad` (count, classes) belongs to the rows from `first` on.
  void add(const Tensor& grad, int64_t first);
  // Those of the input, which has these sizes, of the weight and of the bias; no elements where there was no need.
  std::tuple<Tensor, Tensor, Tensor> result(const std::vector<int64_t>& input_sizes);

 private:
  void add_to_weight(const Tensor& grad, int64_t first);

  const ChunkedLinear layer_;
  const LinearNeeds needs_;
  const bool whole_;  // One chunk is everything.
  Tensor grad_input_, grad_weight_, grad_bias_;
};

}  // namespace warpwright
