// Bindings of the optim family.

#include "kernels/optim.h"

#include <algorithm>

#include "bindings/common.h"

namespace warpwright {
namespace {

using Tensors = std::vector<Tensor>;

// ---- checks ----

void check_count(const char* op, const char* name, const Tensors& list, const Tensors& params) {
  WARPWRIGHT_CHECK(list.size() == params.size(), op, name, " must hold ", params.size(),
                   " tensors, one for each of params, got ", list.size());
}

// Each of `list` has `dtype`, and the shape and the device of the parameter it belongs to.
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

// Two elements of a tensor that is written to must not share memory.
void check_writable(const char* op, const char* name, const Tensors& list) {
  for (size_t i = 0; i < list.size(); ++i) {
    for (int64_t d = 0; d < list[i].dim(); ++d) {
      WARPWRIGHT_CHECK(list[i].stride(d) != 0 || list[i].size(d) <= 1, op, name, "[", i,
                       "] must not be expanded: it is written to");
    }
  }
}

void check_scalar(const char* op, const std::string& name, const Tensor& tensor, const Tensor& like) {
  check_same_device(op, name.c_str(), tensor, "params", like);
  WARPWRIGHT_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.numel() == 1, op, name,
                   " must be 1 element of torch.float32, got ", tensor.numel(), " of ",
                   dtype_name(tensor.scalar_type()));
}

void check_hyperparameter(const char* op, const char* name, double value, bool fits, const char* range) {
  WARPWRIGHT_CHECK(fits, op, name, " must be ", range, ", got ", value);
}

// ---- layouts ----

// The strides of `tensor` where its elements fill one piece of memory, else those of a contiguous tensor.
std::vector<int64_t> dense_strides(const Tensor& tensor) {
  std::vector<int64_t> dims, strides(tensor.strides().begin(), tensor.strides().end());
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) != 1) dims.push_back(d);
  }
  std::sort(dims.begin(), dims.end(), [&](int64_t a, int64_t b) { return strides[a] < strides[b]; });
  int64_t expected = 1;
  bool dense = true;
  for (const int64_t d : dims) {
    dense = dense && strides[d] == expected;
    expected *= tensor.size(d);
  }
  if (dense) return strides;
  for (int64_t d = tensor.dim(), stride = 1; d-- > 0;) {
    strides[d] = stride;
    stride *= tensor.size(d);
  }
  return strides;
}

bool has_strides(const Tensor& tensor, const std::vector<int64_t>& strides) {
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) != 1 && tensor.stride(d) != strides[d]) return false;
  }
  return true;
}

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
  Tensor arrange(const Tensor& tensor, const std::vector<int64_t>& strides) {
    if (has_strides(tensor, strides)) return tensor;
    Tensor copy = empty_strided(sizes_of(tensor), strides, tensor.scalar_type(), tensor);
    torch::stable::copy_(copy, tensor);
    copies_.push_back(copy);
    return copy;
  }
  Tensors copies_;
  std::vector<std::pair<Tensor, Tensor>> moved_;
};

// ---- the operator ----

void adamw_(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors masters, Tensors steps,
            double lr, double beta1, double beta2, double eps, double weight_decay, bool maximize,
            OptionalTensor grad_scale, OptionalTensor found_inf) {
  const char* op = "adamw_";
  if (params.empty()) return;
  const Tensor& first = params[0];
  const ScalarType dtype = first.scalar_type(), acc = acc_dtype(dtype);
  check_float(op, "params[0]", first);
  check_list(op, "params", params, params, dtype);
  check_list(op, "grads", grads, params, dtype);
  check_count(op, "exp_avgs", exp_avgs, params);
  const ScalarType state = exp_avgs[0].scalar_type();
  WARPWRIGHT_CHECK(masters.empty() || dtype != acc, op, "masters must be empty for ", dtype_name(dtype),
                   " params, got ", masters.size(), " tensors");
  WARPWRIGHT_CHECK(state == acc || (state == dtype && masters.empty()), op, "exp_avgs[0] must be ", dtype_name(acc),
                   masters.empty() ? " or have the dtype of params" : " with masters", ", got ", dtype_name(state));
  check_list(op, "exp_avgs", exp_avgs, params, state);
  check_list(op, "exp_avg_sqs", exp_avg_sqs, params, state);
  if (!masters.empty()) check_list(op, "masters", masters, params, acc);
  check_writable(op, "params", params);
  check_writable(op, "exp_avgs", exp_avgs);
  check_writable(op, "exp_avg_sqs", exp_avg_sqs);
  check_writable(op, "masters", masters);
  check_count(op, "steps", steps, params);
  for (size_t i = 0; i < steps.size(); ++i) {
    check_scalar(op, "steps[" + std::to_string(i) + "]", steps[i], first);
  }
  if (grad_scale.has_value()) check_scalar(op, "grad_scale", *grad_scale, first);
  if (found_inf.has_value()) check_scalar(op, "found_inf", *found_inf, first);
  check_hyperparameter(op, "lr", lr, lr >= 0, "at least 0");
  check_hyperparameter(op, "beta1", beta1, beta1 >= 0 && beta1 < 1, "in [0, 1)");
  check_hyperparameter(op, "beta2", beta2, beta2 >= 0 && beta2 < 1, "in [0, 1)");
  check_hyperparameter(op, "eps", eps, eps >= 0, "at least 0");
  check_hyperparameter(op, "weight_decay", weight_decay, weight_decay >= 0, "at least 0");

  AdamwParams table{};
  table.maximize = maximize;
  table.lr = lr;
  table.beta1 = beta1;
  table.beta2 = beta2;
  table.eps = eps;
  table.weight_decay = weight_decay;
  table.grad_scale = static_cast<const float*>(data_or_null(grad_scale));
  table.found_inf = static_cast<const float*>(data_or_null(found_inf));
  table.dtype = to_dtype(dtype);
  table.state_dtype = to_dtype(state);
  Launch launch(first);
  Arranged arranged;
  for (size_t i = 0; i < params.size(); ++i) {
    const int64_t numel = params[i].numel();
    if (numel > 0) {
      const std::vector<int64_t> strides = dense_strides(params[i]);
      const int t = table.count++;
      table.tensors[t] = {arranged.write(params[i], strides),
                          arranged.read(grads[i], strides),
                          arranged.write(exp_avgs[i], strides),
                          arranged.write(exp_avg_sqs[i], strides),
                          masters.empty() ? nullptr : static_cast<float*>(arranged.write(masters[i], strides)),
                          static_cast<const float*>(steps[i].const_data_ptr()),
                          numel};
      const int64_t chunks = (numel + kAdamwChunk - 1) / kAdamwChunk;
      table.first_chunk[t + 1] = table.first_chunk[t] + static_cast<int32_t>(chunks);
    }
    if (table.count == kMaxAdamwTensors || (i + 1 == params.size() && table.count > 0)) {
      backend::adamw(table, launch.stream());
      table.count = 0;
    }
  }
  arranged.write_back();
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) { m.impl("adamw_", TORCH_BOX(&adamw_)); }

}  // namespace warpwright
