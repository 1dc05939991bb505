// What the kernels of an op may touch: the tensors whose memory its binding has asked torch for. The two functions of
// torch that give a tensor's address are wrapped (csrc/build.py links with --wrap), so no binding knows of it; a tensor
// is forgotten when the binding's Launch ends, with the call that it belongs to.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdint>

#include "emulator/allocation.h"

namespace warpwright::emulator {
namespace {

// The bytes from a tensor's first element to its last, the gaps that its strides leave included.
AOTITorchError permit(AtenTensorHandle tensor, const void* data) {
  int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
  int32_t dtype = 0;
  for (const AOTITorchError error : {aoti_torch_get_dim(tensor, &dim), aoti_torch_get_sizes(tensor, &sizes),
                                     aoti_torch_get_strides(tensor, &strides), aoti_torch_get_dtype(tensor, &dtype)}) {
    if (error != AOTI_TORCH_SUCCESS) return error;
  }
  int64_t last = 0;
  for (int64_t d = 0; d < dim; ++d) {
    if (sizes[d] == 0) return AOTI_TORCH_SUCCESS;
    last += (sizes[d] - 1) * strides[d];
  }
  const size_t bytes = static_cast<size_t>(last + 1) * aoti_torch_dtype_element_size(dtype);
  const auto begin = reinterpret_cast<uintptr_t>(data);
  add_tensor({begin, begin + bytes});
  return AOTI_TORCH_SUCCESS;
}

}  // namespace
}  // namespace warpwright::emulator

extern "C" {

AOTITorchError __real_torch_get_const_data_ptr(AtenTensorHandle tensor, const void** data);
AOTITorchError __real_torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** data);

AOTITorchError __wrap_torch_get_const_data_ptr(AtenTensorHandle tensor, const void** data) {
  const AOTITorchError error = __real_torch_get_const_data_ptr(tensor, data);
  return error == AOTI_TORCH_SUCCESS ? warpwright::emulator::permit(tensor, *data) : error;
}

AOTITorchError __wrap_torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** data) {
  const AOTITorchError error = __real_torch_get_mutable_data_ptr(tensor, data);
  return error == AOTI_TORCH_SUCCESS ? warpwright::emulator::permit(tensor, *data) : error;
}

}  // extern "C"
