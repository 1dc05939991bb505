#include "bindings/common.h"

#include <algorithm>

#if defined(WARPWRIGHT_BACKEND_EMULATED)
#include "emulator/allocation.h"
#endif

#if defined(WARPWRIGHT_BACKEND_CUDA)
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);
#endif

namespace warpwright {

std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double: return "torch.float64";
    case ScalarType::Float: return "torch.float32";
    case ScalarType::Half: return "torch.float16";
    case ScalarType::BFloat16: return "torch.bfloat16";
    case ScalarType::Float8_e4m3fn: return "torch.float8_e4m3fn";
    case ScalarType::Float8_e5m2: return "torch.float8_e5m2";
    case ScalarType::Long: return "torch.int64";
    case ScalarType::Int: return "torch.int32";
    case ScalarType::Short: return "torch.int16";
    case ScalarType::Char: return "torch.int8";
    case ScalarType::Byte: return "torch.uint8";
    case ScalarType::Bool: return "torch.bool";
    case ScalarType::ComplexFloat: return "torch.complex64";
    case ScalarType::ComplexDouble: return "torch.complex128";
    default: return "dtype number " + std::to_string(static_cast<int>(dtype));
  }
}

std::string shape_text(IntHeaderOnlyArrayRef sizes) {
  std::string text = "(";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + (sizes.size() == 1 ? ",)" : ")");
}

std::string device_text(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  return (tensor.is_cuda() ? "cuda:" : "device ") + std::to_string(tensor.get_device_index());
}

void check_float_dtype(const char* op, const char* name, ScalarType dtype) {
  const bool half = dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
#if defined(WARPWRIGHT_BACKEND_CPU)
  const bool known = half || dtype == ScalarType::Float || dtype == ScalarType::Double;
  const char* expected = "float32, float16, bfloat16 or float64";
#else
  const bool known = half || dtype == ScalarType::Float;
  const char* expected = "float32, float16 or bfloat16";
#endif
  WARPWRIGHT_CHECK(known, op, name, " must be ", expected, ", got ", dtype_name(dtype));
}

void check_float(const char* op, const char* name, const Tensor& tensor) {
  check_float_dtype(op, name, tensor.scalar_type());
}

void check_same_dtype(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                      const Tensor& like) {
  WARPWRIGHT_CHECK(tensor.scalar_type() == like.scalar_type(), op, name, " must have the dtype of ", like_name, " (",
                   dtype_name(like.scalar_type()), "), got ", dtype_name(tensor.scalar_type()));
}

void check_same_device(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                       const Tensor& like) {
  const bool same = tensor.is_cpu() == like.is_cpu() && tensor.is_cuda() == like.is_cuda() &&
                    tensor.get_device_index() == like.get_device_index();
  WARPWRIGHT_CHECK(same, op, name, " must be on the device of ", like_name, " (", device_text(like), "), got ",
                   device_text(tensor));
}

void check_same_shape(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                      const Tensor& like) {
  const auto a = tensor.sizes(), b = like.sizes();
  WARPWRIGHT_CHECK(a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin()), op, name,
                   " must have the shape of ", like_name, " ", shape_text(b), ", got ", shape_text(a));
}

void check_like(const char* op, const char* name, const Tensor& tensor, const char* like_name, const Tensor& like) {
  check_same_device(op, name, tensor, like_name, like);
  check_same_dtype(op, name, tensor, like_name, like);
  check_same_shape(op, name, tensor, like_name, like);
}

DType to_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Float8_e4m3fn: return DType::kFloat8E4M3;
    case ScalarType::Float8_e5m2: return DType::kFloat8E5M2;
    case ScalarType::Long: return DType::kInt64;
    case ScalarType::Int: return DType::kInt32;
    case ScalarType::Char: return DType::kInt8;
    case ScalarType::Byte: return DType::kUInt8;
    default: throw std::logic_error("warpwright: unchecked dtype " + dtype_name(dtype));
  }
}

Activation to_activation(const char* op, const std::string& name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "silu") return Activation::kSilu;
  if (name == "sigmoid") return Activation::kSigmoid;
  if (name == "tanh") return Activation::kTanh;
  if (name == "leaky_relu") return Activation::kLeakyRelu;
  if (name == "hardswish") return Activation::kHardswish;
  fail(op, "activation must be one of none, relu, gelu, gelu_tanh, silu, sigmoid, tanh, leaky_relu, hardswish, got '",
       name, "'");
}

Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype,
                     const Tensor& like) {
  // Straight to the C function: torch::stable::new_empty goes through the dispatcher, which costs a small op more
  // than its kernel does.
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const auto tag = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), tag, device_type, like.get_device_index(),
                                                         &handle));
  return Tensor(handle);
}

Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype, const Tensor& like) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  return empty_strided(sizes, strides, dtype, like);
}

namespace {

// Merges neighbouring dimensions that one stride walks through; false when more than `limit` remain.
bool merge_dims(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, int64_t begin, int64_t end, int limit,
                int64_t* out_size, int64_t* out_stride, int32_t* out_ndim) {
  int32_t count = 0;
  for (int64_t d = begin; d < end; ++d) {
    if (sizes[d] == 1) continue;
    if (count > 0 && out_stride[count - 1] == strides[d] * sizes[d]) {
      out_size[count - 1] *= sizes[d];
      out_stride[count - 1] = strides[d];
      continue;
    }
    if (count == limit) return false;
    out_size[count] = sizes[d];
    out_stride[count] = strides[d];
    ++count;
  }
  *out_ndim = count;
  return true;
}

}  // namespace

Rows rows_of(const Tensor& tensor, int64_t row_ndim, Tensor& holder) {
  holder = tensor;
  if (tensor.numel() == 0) {  // Whatever its strides say, and no copy would give it others.
    Rows rows;
    rows.data = const_cast<void*>(tensor.const_data_ptr());
    rows.ndim = 1;
    return rows;
  }
  for (int attempt = 0; attempt < 2; ++attempt) {
    Rows rows;
    rows.data = const_cast<void*>(holder.const_data_ptr());
    const int64_t lead = holder.dim() - row_ndim;
    int64_t row_size = 1, row_stride = 1;
    int32_t row_dims = 0;
    const bool row_ok =
        merge_dims(holder.sizes(), holder.strides(), lead, holder.dim(), 1, &row_size, &row_stride, &row_dims);
    const bool lead_ok =
        merge_dims(holder.sizes(), holder.strides(), 0, lead, kMaxLeadingDims, rows.size, rows.stride, &rows.ndim);
    if (row_ok && lead_ok) {
      rows.col_stride = row_dims == 0 ? 1 : row_stride;
      if (rows.ndim == 0) rows.ndim = 1;  // One row: size 1, stride 0.
      return rows;
    }
    holder = torch::stable::contiguous(holder);
  }
  throw std::logic_error("warpwright: a contiguous tensor did not merge into rows");
}

Rows rows_of(const OptionalTensor& tensor, int64_t row_ndim, Tensor& holder) {
  return tensor.has_value() ? rows_of(*tensor, row_ndim, holder) : Rows{};
}

Tensor seen_as(const Tensor& tensor, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
               int64_t offset) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(tensor.get(), static_cast<int64_t>(sizes.size()),
                                                               sizes.data(), strides.data(), offset, &handle));
  return Tensor(handle);
}

OptionalTensor contiguous(const OptionalTensor& tensor) {
  if (!tensor.has_value()) return std::nullopt;
  return torch::stable::contiguous(*tensor);
}

#if defined(WARPWRIGHT_BACKEND_CUDA)
Launch::Launch(const Tensor& tensor) : guard_(tensor.get_device_index()) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
}
#else
Launch::Launch(const Tensor&) {}
#endif
#if defined(WARPWRIGHT_BACKEND_EMULATED)
Launch::~Launch() { emulator::forget_tensors(); }
#endif

}  // namespace warpwright
