// Bindings of the multi_tensor family.

#include "kernels/multi_tensor.h"

#include <cmath>

#include "bindings/tensor_lists.h"

namespace warpwright {
namespace {

void check_tensors(const char* op, const Tensors& tensors) {
  WARPWRIGHT_CHECK(!tensors.empty(), op, "tensors must hold at least 1 tensor, got 0");
  const Tensor& first = tensors[0];
  check_float(op, "tensors[0]", first);
  for (size_t i = 1; i < tensors.size(); ++i) {
    const std::string name = "tensors[" + std::to_string(i) + "]";
    check_same_device(op, name.c_str(), tensors[i], "tensors[0]", first);
    check_same_dtype(op, name.c_str(), tensors[i], "tensors[0]", first);
  }
}

// One pass over all tensors, as many in a launch as a table holds, then one over what each chunk had to say.
void run(const Tensors& tensors, ListParams& table, ListResultParams& result, bool writes) {
  const Tensor& first = tensors[0];
  const ScalarType acc = acc_dtype(first.scalar_type());
  for (const Tensor& tensor : tensors) result.chunks += (tensor.numel() + kListChunk - 1) / kListChunk;
  Tensor partials = empty({result.chunks}, acc, first), flags = empty({result.chunks}, ScalarType::Float, first);
  result.partials = partials.const_data_ptr();
  result.flags = static_cast<const float*>(flags.const_data_ptr());
  result.dtype = table.dtype = to_dtype(first.scalar_type());
  result.largest = table.largest;
  table.partials = partials.mutable_data_ptr();
  table.flags = static_cast<float*>(flags.mutable_data_ptr());
  Launch launch(first);
  Arranged arranged;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t numel = tensors[i].numel();
    if (numel > 0) {
      const std::vector<int64_t> strides = dense_strides(tensors[i]);
      const int t = append_chunks(table, numel, kListChunk);
      table.data[t] =
          writes ? arranged.write(tensors[i], strides) : const_cast<void*>(arranged.read(tensors[i], strides));
      table.numel[t] = numel;
    }
    if (table.count == kMaxListTensors || (i + 1 == tensors.size() && table.count > 0)) {
      backend::tensor_list_pass(table, launch.stream());
      const int64_t chunks = table.first_chunk[table.count];
      const int64_t size = acc == ScalarType::Double ? sizeof(double) : sizeof(float);
      table.partials = static_cast<char*>(table.partials) + chunks * size;
      table.flags += chunks;
      table.count = 0;
    }
  }
  if (result.norm != nullptr || result.found_inf != nullptr) backend::tensor_list_result(result, launch.stream());
  arranged.write_back();
}

std::tuple<Tensor, Tensor> multi_tensor_norm(Tensors tensors, double order) {
  const char* op = "multi_tensor_norm";
  check_tensors(op, tensors);
  WARPWRIGHT_CHECK(order == 2 || std::isinf(order), op, "order must be 2 or inf, got ", order);
  Tensor norm = empty({}, acc_dtype(tensors[0].scalar_type()), tensors[0]);
  Tensor found_inf = empty({}, ScalarType::Float, tensors[0]);
  ListParams table{};
  table.largest = order != 2;
  ListResultParams result{};
  result.norm = norm.mutable_data_ptr();
  result.found_inf = static_cast<float*>(found_inf.mutable_data_ptr());
  run(tensors, table, result, false);
  return {norm, found_inf};
}

void multi_tensor_scale_(Tensors tensors, Tensor multiplier, OptionalTensor found_inf) {
  const char* op = "multi_tensor_scale_";
  check_tensors(op, tensors);
  check_writable(op, "tensors", tensors);
  const ScalarType acc = acc_dtype(tensors[0].scalar_type());
  check_same_device(op, "multiplier", multiplier, "tensors[0]", tensors[0]);
  WARPWRIGHT_CHECK(multiplier.scalar_type() == acc && multiplier.numel() == 1, op, "multiplier must be 1 element of ",
                   dtype_name(acc), ", got ", multiplier.numel(), " of ", dtype_name(multiplier.scalar_type()));
  if (found_inf.has_value()) check_scalar(op, "found_inf", *found_inf, "tensors[0]", tensors[0]);
  ListParams table{};
  table.multiplier = multiplier.const_data_ptr();
  ListResultParams result{};
  result.found_inf = static_cast<float*>(data_or_null(found_inf));
  run(tensors, table, result, true);
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("multi_tensor_norm", TORCH_BOX(&multi_tensor_norm));
  m.impl("multi_tensor_scale_", TORCH_BOX(&multi_tensor_scale_));
}

}  // namespace warpwright
