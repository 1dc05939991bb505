// What every binding is made of: checks with one form of message, outputs, rows, the device and its stream.

#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/backend.h"

namespace warpwright {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- checks: every message reads `warpwright: OP: what was expected, what came` ----

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << "warpwright: " << op << ": ";
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

#define WARPWRIGHT_CHECK(condition, op, ...)               \
  do {                                                     \
    if (!(condition)) ::warpwright::fail(op, __VA_ARGS__); \
  } while (false)

std::string dtype_name(ScalarType dtype);             // "torch.float32"
std::string shape_text(IntHeaderOnlyArrayRef sizes);  // "(2, 3)"
std::string device_text(const Tensor& tensor);        // "cpu", "cuda:0"

// Throws unless `dtype` is one of float32, float16, bfloat16 or, on the CPU, float64.
void check_float_dtype(const char* op, const char* name, ScalarType dtype);
void check_float(const char* op, const char* name, const Tensor& tensor);
// Throws unless `tensor` has the dtype, the device or the shape of the argument it goes with.
void check_same_dtype(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                      const Tensor& like);
void check_same_device(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                       const Tensor& like);
void check_same_shape(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                      const Tensor& like);
// The three above at once.
void check_like(const char* op, const char* name, const Tensor& tensor, const char* like_name, const Tensor& like);

DType to_dtype(ScalarType dtype);
Activation to_activation(const char* op, const std::string& name);

// ---- outputs ----

// Uninitialised, contiguous, on the device of `like`.
Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype, const Tensor& like);
Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype,
                     const Tensor& like);
inline std::vector<int64_t> sizes_of(const Tensor& tensor) { return {tensor.sizes().begin(), tensor.sizes().end()}; }
// An output that the caller did not ask for.
inline Tensor nothing(ScalarType dtype, const Tensor& like) { return empty({0}, dtype, like); }
// float64 for float64, else float32: what statistics and partial sums are kept in.
inline ScalarType acc_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}
inline void* data_or_null(const OptionalTensor& tensor) {
  return tensor.has_value() ? const_cast<void*>(tensor->const_data_ptr()) : nullptr;
}

// ---- inputs ----

// `tensor` seen as rows of its last `row_ndim` dimensions. Any strides are read in place; only a row whose own
// dimensions do not share one stride, or more than four leading dimensions that do not merge, is copied, and then
// `holder` owns the copy.
Rows rows_of(const Tensor& tensor, int64_t row_ndim, Tensor& holder);
// The same for an optional tensor: data is null without one.
Rows rows_of(const OptionalTensor& tensor, int64_t row_ndim, Tensor& holder);

// The tensor's elements seen with other sizes and strides, from `offset` elements after its first one on.
Tensor seen_as(const Tensor& tensor, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
               int64_t offset = 0);

// `tensor` in one contiguous piece, itself where it is so already; none for none.
OptionalTensor contiguous(const OptionalTensor& tensor);

// ---- the device ----

// Makes `tensor`'s device current for its lifetime, and gives the stream that torch is using on it. Ends after the last
// launch of kernels that get addresses which were asked for before: the emulator forgets them then.
class Launch {
 public:
  explicit Launch(const Tensor& tensor);
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  ~Launch();
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;
#endif
  Stream stream() const { return stream_; }

 private:
#if defined(WARPWRIGHT_BACKEND_CUDA)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  Stream stream_ = nullptr;
};

}  // namespace warpwright
