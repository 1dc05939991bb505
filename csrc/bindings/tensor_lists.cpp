#include "bindings/tensor_lists.h"

#include <algorithm>

namespace warpwright {

void check_count(const char* op, const char* name, const Tensors& list, const Tensors& params) {
  WARPWRIGHT_CHECK(list.size() == params.size(), op, name, " must hold ", params.size(),
                   " tensors, one for each of params, got ", list.size());
}

void check_list(const char* op, const char* name, const Tensors& list, const Tensors& params, ScalarType dtype) {
  check_count(op, name, list, params);
  for (size_t i = 0; i < list.size(); ++i) {
    const Tensor &tensor = list[i], &param = params[i];
    const auto a = tensor.sizes(), b = param.sizes();
    const bool fits = tensor.scalar_type() == dtype && tensor.is_cpu() == params[0].is_cpu() &&
                      tensor.get_device_index() == params[0].get_device_index() && a.size() == b.size() &&
                      std::equal(a.begin(), a.end(), b.begin());
    WARPWRIGHT_CHECK(fits, op, name, "[", i, "] must be ", dtype_name(dtype), " of shape ", shape_text(b), " on ",
                     device_text(params[0]), ", got ", dtype_name(tensor.scalar_type()), " of shape ", shape_text(a),
                     " on ", device_text(tensor));
  }
}

void check_writable(const char* op, const char* name, const Tensors& list) {
  for (size_t i = 0; i < list.size(); ++i) {
    for (int64_t d = 0; d < list[i].dim(); ++d) {
      WARPWRIGHT_CHECK(list[i].stride(d) != 0 || list[i].size(d) <= 1, op, name, "[", i,
                       "] must not be expanded: it is written to");
    }
  }
}

void check_scalar(const char* op, const std::string& name, const Tensor& tensor, const char* like_name,
                  const Tensor& like) {
  check_same_device(op, name.c_str(), tensor, like_name, like);
  WARPWRIGHT_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.numel() == 1, op, name,
                   " must be 1 element of torch.float32, got ", tensor.numel(), " of ",
                   dtype_name(tensor.scalar_type()));
}

std::vector<int64_t> contiguous_strides(const Tensor& tensor) {
  std::vector<int64_t> strides(tensor.dim());
  for (int64_t d = tensor.dim(), stride = 1; d-- > 0;) {
    strides[d] = stride;
    stride *= tensor.size(d);
  }
  return strides;
}

std::vector<int64_t> dense_strides(const Tensor& tensor) {
  std::vector<int64_t> dims, strides(tensor.strides().begin(), tensor.strides().end());
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) != 1) dims.push_back(d);
  }
  std::sort(dims.begin(), dims.end(), [&](int64_t a, int64_t b) { return strides[a] < strides[b]; });
  int64_t expected = 1;
  for (const int64_t d : dims) {
    if (strides[d] != expected) return contiguous_strides(tensor);
    expected *= tensor.size(d);
  }
  return strides;
}

Tensor Arranged::arrange(const Tensor& tensor, const std::vector<int64_t>& strides) {
  bool fits = true;
  for (int64_t d = 0; d < tensor.dim(); ++d) fits = fits && (tensor.size(d) == 1 || tensor.stride(d) == strides[d]);
  if (fits) return tensor;
  Tensor copy = empty_strided(sizes_of(tensor), strides, tensor.scalar_type(), tensor);
  torch::stable::copy_(copy, tensor);
  copies_.push_back(copy);
  return copy;
}

}  // namespace warpwright
