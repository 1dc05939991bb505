// Lists of tensors that one launch takes together: their checks, and one order of elements for those that belong
// together.

#pragma once

#include <utility>
#include <vector>

#include "bindings/common.h"

namespace warpwright {

using Tensors = std::vector<Tensor>;

// Throws unless `list` holds a tensor for each of params.
void check_count(const char* op, const char* name, const Tensors& list, const Tensors& params);
// Each of `list` has `dtype`, and the shape and the device of the parameter it belongs to.
void check_list(const char* op, const char* name, const Tensors& list, const Tensors& params, ScalarType dtype);
// Two elements of a tensor that is written to must not share memory.
void check_writable(const char* op, const char* name, const Tensors& list);
// One float32 element on the device of `like`.
void check_scalar(const char* op, const std::string& name, const Tensor& tensor, const char* like_name,
                  const Tensor& like);

// The strides of `tensor` where its elements fill one piece of memory, else those of a contiguous tensor.
std::vector<int64_t> dense_strides(const Tensor& tensor);
std::vector<int64_t> contiguous_strides(const Tensor& tensor);

// Brings the tensors of one call into one order of elements, and afterwards writes back those that had to move.
class Arranged {
 public:
  const void* read(const Tensor& tensor, const std::vector<int64_t>& strides) {
    return arrange(tensor, strides).const_data_ptr();
  }
  void* write(const Tensor& tensor, const std::vector<int64_t>& strides) {
    Tensor arranged = arrange(tensor, strides);
    if (arranged.get() != tensor.get()) moved_.emplace_back(tensor, arranged);
    return arranged.mutable_data_ptr();
  }
  void write_back() {
    for (auto& [tensor, copy] : moved_) torch::stable::copy_(tensor, copy);
  }

 private:
  Tensor arrange(const Tensor& tensor, const std::vector<int64_t>& strides);
  Tensors copies_;
  std::vector<std::pair<Tensor, Tensor>> moved_;
};

// Appends `numel` elements to a table of chunks; returns the tensor's place in it.
template <class Params>
int append_chunks(Params& table, int64_t numel, int64_t chunk) {
  const int t = table.count++;
  table.first_chunk[t + 1] = table.first_chunk[t] + static_cast<int32_t>((numel + chunk - 1) / chunk);
  return t;
}

}  // namespace warpwright
