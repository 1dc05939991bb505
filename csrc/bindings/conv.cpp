// Bindings of the convolution family.

#include "bindings/conv.h"

#include <algorithm>

#include "kernels/conv.h"

namespace warpwright {

int64_t ConvCall::output_pixels() const {
  int64_t pixels = 1;
  for (size_t d = 2; d < output_sizes.size(); ++d) pixels *= output_sizes[d];
  return pixels;
}

namespace {

// Strides of a tensor that lies channels last.
std::vector<int64_t> channels_last_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  const auto next = [&](size_t d) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  };
  next(1);
  for (size_t d = sizes.size() - 1; d >= 2; --d) next(d);
  next(0);
  return strides;
}

}  // namespace

bool is_channels_last(const Tensor& tensor) {
  if (tensor.is_contiguous()) return false;
  const std::vector<int64_t> sizes = sizes_of(tensor), strides = channels_last_strides(sizes);
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != 1 && tensor.stride(static_cast<int64_t>(d)) != strides[d]) return false;
  }
  return true;
}

Tensor empty_in_format(const std::vector<int64_t>& sizes, bool channels_last, ScalarType dtype, const Tensor& like) {
  return channels_last ? empty_strided(sizes, channels_last_strides(sizes), dtype, like) : empty(sizes, dtype, like);
}

Tensor to_format(const Tensor& tensor, bool channels_last) {
  if (channels_last ? is_channels_last(tensor) : tensor.is_contiguous()) return tensor;
  Tensor moved = empty_in_format(sizes_of(tensor), channels_last, tensor.scalar_type(), tensor);
  torch::stable::copy_(moved, tensor);
  return moved;
}

ConvTensor as_conv_tensor(const Tensor& tensor) {
  ConvTensor result{const_cast<void*>(tensor.const_data_ptr()), {}};
  const int64_t missing = kConvDims + 2 - tensor.dim();
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    // A stride that is never taken must not keep a kernel from reading in packs.
    result.stride[d < 2 ? d : missing + d] = tensor.size(d) == 1 ? 0 : tensor.stride(d);
  }
  return result;
}

ConvParams conv_params(const ConvCall& call, const Tensor& input, const Tensor& weight, const Tensor& output) {
  const Tensor &x = call.transposed ? output : input, &y = call.transposed ? input : output;
  ConvParams params{};
  params.x = as_conv_tensor(x);
  params.w = as_conv_tensor(weight);
  params.y = as_conv_tensor(y);
  params.batch = x.size(0);
  params.channels = x.size(1);
  params.filters = y.size(1);
  params.groups = call.groups;
  for (int64_t d = 0; d < kConvDims; ++d) {
    const int64_t at = d - (kConvDims - static_cast<int64_t>(call.dims()));
    params.x_size[d] = at < 0 ? 1 : x.size(2 + at);
    params.kernel[d] = at < 0 ? 1 : weight.size(2 + at);
    params.y_size[d] = at < 0 ? 1 : y.size(2 + at);
    params.stride[d] = at < 0 ? 1 : call.stride[at];
    params.padding[d] = at < 0 ? 0 : call.padding[at];
    params.dilation[d] = at < 0 ? 1 : call.dilation[at];
  }
  params.dtype = to_dtype(x.scalar_type());
  params.precision = call.precision;
  return params;
}

#if !defined(WARPWRIGHT_BACKEND_CPU)
namespace {

ConvParams forward_params(const ConvCall& call, const Tensor& output, const OptionalTensor& bias_row,
                          const OptionalTensor& residual, Activation activation) {
  ConvParams params = conv_params(call, call.input, call.weight, output);
  if (residual.has_value()) params.residual = as_conv_tensor(*residual);
  params.bias = data_or_null(bias_row);
  params.activation = activation;
  return params;
}

// Has the kernel write partial results, if it is one that does.
void leave_statistics(ConvParams& params, const GemmPlan& plan, SlabStatistics& found, const Tensor& like) {
  found.slab = backend::conv_statistics_slab(plan);
  if (found.slab == 0) return;
  const int64_t slabs = (params.y_pixels() + found.slab - 1) / found.slab;
  found.means = empty({slabs, params.filters}, ScalarType::Float, like);
  found.squares = empty({slabs, params.filters}, ScalarType::Float, like);
  params.mean_partials = static_cast<float*>(found.means.mutable_data_ptr());
  params.square_partials = static_cast<float*>(found.squares.mutable_data_ptr());
}

}  // namespace

ProductOutput conv_product(const ConvCall& call, const OptionalTensor& bias, const OptionalTensor& residual,
                           Activation activation, bool keep, SlabStatistics* found) {
  const ScalarType dtype = call.input.scalar_type();
  const auto make = [&] { return empty_in_format(call.output_sizes, call.channels_last, dtype, call.input); };
  ProductOutput result{make(), keep ? make() : nothing(dtype, call.input)};
  const OptionalTensor bias_row = contiguous(bias);
  ConvParams params = forward_params(call, result.output, bias_row, residual, activation);
  params.preact = keep ? result.preact.mutable_data_ptr() : nullptr;
  Launch launch(call.input);
  const GemmRole role = call.transposed ? GemmRole::kInputGradient : GemmRole::kForward;
  const GemmPlan plan = backend::conv_plan(params, role, found != nullptr);
  if (found != nullptr) leave_statistics(params, plan, *found, call.input);
  call.transposed ? backend::conv_dgrad(params, plan, launch.stream())
                  : backend::conv_fprop(params, plan, launch.stream());
  return result;
}

std::optional<Tensor> conv_normalized(const ConvCall& call, const OptionalTensor& bias, const OptionalTensor& residual,
                                      const Affine& affine, const Running& running, double eps, Activation activation) {
  const ScalarType dtype = call.input.scalar_type();
  Tensor output = empty_in_format(call.output_sizes, call.channels_last, dtype, call.input);
  const OptionalTensor bias_row = contiguous(bias), mean = contiguous(running.mean), var = contiguous(running.var);
  const OptionalTensor scale = contiguous(affine.weight), shift = contiguous(affine.bias);
  ConvParams params = forward_params(call, output, bias_row, residual, activation);
  params.norm = {per_channel(mean, dtype), per_channel(var, dtype), per_channel(scale, dtype),
                 per_channel(shift, dtype), static_cast<float>(eps)};
  Launch launch(call.input);
  backend::conv_fprop(params, backend::conv_plan(params, GemmRole::kForward), launch.stream());
  return output;
}

ConvGrads conv_grads(const ConvCall& call, const Tensor& grad, bool need_input, bool need_weight, bool need_bias) {
  const ScalarType dtype = grad.scalar_type();
  ConvGrads grads{nothing(dtype, grad), nothing(dtype, grad)};
  Launch launch(grad);
  if (need_input) {
    grads.grad_input = empty_in_format(sizes_of(call.input), is_channels_last(call.input), dtype, grad);
    const ConvParams params = conv_params(call, grads.grad_input, call.weight, grad);
    const GemmPlan plan = backend::conv_plan(params, call.transposed ? GemmRole::kForward : GemmRole::kInputGradient);
    call.transposed ? backend::conv_fprop(params, plan, launch.stream())
                    : backend::conv_dgrad(params, plan, launch.stream());
  }
  if (need_weight) {
    grads.grad_weight = empty_in_format(sizes_of(call.weight), is_channels_last(call.weight), dtype, grad);
    ConvParams params = conv_params(call, call.input, grads.grad_weight, grad);
    const GemmPlan plan = backend::conv_plan(params, GemmRole::kWeightGradient);
    // Of a transposed convolution `grad` is not what the kernel sums over.
    const bool sums = need_bias && !call.transposed && grads.grad_weight.numel() > 0;
    if (sums && backend::conv_sums_bias(params, plan)) {
      grads.grad_bias = empty({params.filters}, dtype, grad);
      params.grad_bias = grads.grad_bias->mutable_data_ptr();
    }
    const int64_t each = grads.grad_weight.numel() + (params.grad_bias != nullptr ? params.filters : 0);
    Tensor partials = empty({plan.splits > 1 ? plan.splits * each : 0}, ScalarType::Float, grad);
    backend::conv_wgrad(params, plan, static_cast<float*>(partials.mutable_data_ptr()), launch.stream());
  }
  return grads;
}
#endif

std::string conv_name(const Tensor& weight, bool transposed, const char* suffix) {
  const int64_t dims = weight.dim() - 2;
  if (dims < 1 || dims > kConvDims) return std::string("convolution") + suffix;
  return std::string(transposed ? "conv_transpose" : "conv") + std::to_string(dims) + "d" + suffix;
}

namespace {

void check_list(const char* op, const char* name, const std::vector<int64_t>& values, size_t count, int64_t least) {
  const IntHeaderOnlyArrayRef list(values);
  WARPWRIGHT_CHECK(values.size() == count, op, name, " must have ", count, count == 1 ? " value" : " values", ", got ",
                   shape_text(list));
  for (const int64_t value : values) {
    WARPWRIGHT_CHECK(value >= least, op, name, " must be at least ", least, ", got ", shape_text(list));
  }
}

void check_geometry(const char* op, const Tensor& input, const Tensor& weight, const ConvGeometry& geometry) {
  const int64_t rank = weight.dim();
  WARPWRIGHT_CHECK(rank >= 3 && rank <= kConvDims + 2, op, "weight must have 3, 4 or 5 dimensions, got ", rank);
  WARPWRIGHT_CHECK(input.dim() == rank, op, "input must have ", rank, " dimensions, got ", input.dim());
  check_same_device(op, "weight", weight, "input", input);
  const auto dims = static_cast<size_t>(rank - 2);
  check_list(op, "stride", geometry.stride, dims, 1);
  const bool both_sides = geometry.padding.size() == 2 * dims && !geometry.transposed;
  check_list(op, "padding", geometry.padding, both_sides ? 2 * dims : dims, 0);
  check_list(op, "dilation", geometry.dilation, dims, 1);
  check_list(op, "output_padding", geometry.output_padding, geometry.transposed ? dims : 0, 0);
  const int64_t groups = geometry.groups, channels = input.size(1), lines = weight.size(0);
  if (geometry.transposed) {
    WARPWRIGHT_CHECK(groups >= 1 && channels % groups == 0, op, "groups must divide ", channels,
                     " input channels, got ", groups);
    WARPWRIGHT_CHECK(lines == channels, op, "weight has ", lines, " input channels, input has ", channels);
    return;
  }
  WARPWRIGHT_CHECK(groups >= 1 && channels % groups == 0 && lines % groups == 0, op, "groups must divide ", channels,
                   " input channels and ", lines, " filters, got ", groups);
  WARPWRIGHT_CHECK(weight.size(1) == channels / groups, op, "weight has ", weight.size(1),
                   " channels a group, input has ", channels / groups);
}

// The size of the output in dimension d, from both sizes there.
int64_t output_size(const char* op, const ConvCall& call, size_t d) {
  const auto dim = static_cast<int64_t>(2 + d);
  const int64_t size = call.input.size(dim), taps = call.weight.size(dim);
  WARPWRIGHT_CHECK(taps >= 1, op, "weight must have at least 1 element in each dimension, got ",
                   shape_text(call.weight.sizes()));
  const int64_t reach = call.dilation[d] * (taps - 1) + 1;
  if (!call.transposed) {
    const int64_t padded = size + call.padding[d] + call.padding_after[d];
    WARPWRIGHT_CHECK(padded >= reach, op, "weight reaches over ", reach, " input elements, input with its padding has ",
                     padded);
    return (padded - reach) / call.stride[d] + 1;
  }
  const int64_t limit = std::max(call.stride[d], call.dilation[d]), extra = call.output_padding[d];
  WARPWRIGHT_CHECK(extra < limit, op, "output_padding must be less than the larger of stride and dilation, ", limit,
                   ", got ", extra);
  const int64_t result = (size - 1) * call.stride[d] - 2 * call.padding[d] + reach + extra;
  WARPWRIGHT_CHECK(result >= 1, op, "the output would have size ", result, " in dimension ", dim,
                   ": padding is too large");
  return result;
}

}  // namespace

ConvCall check_conv_shapes(const char* op, const Tensor& input, const Tensor& weight, const ConvGeometry& geometry) {
  check_geometry(op, input, weight, geometry);
  const size_t dims = geometry.stride.size();
  const auto middle = geometry.padding.begin() + static_cast<std::ptrdiff_t>(dims);
  ConvCall call{
      input,
      weight,
      geometry.stride,
      {geometry.padding.begin(), middle},
      geometry.padding.size() == dims ? geometry.padding : std::vector<int64_t>(middle, geometry.padding.end()),
      geometry.dilation,
      geometry.output_padding,
      geometry.transposed,
      geometry.groups,
      {input.size(0), geometry.transposed ? weight.size(1) * geometry.groups : weight.size(0)},
      is_channels_last(input) || is_channels_last(weight)};
  for (size_t d = 0; d < dims; ++d) call.output_sizes.push_back(output_size(op, call, d));
  return call;
}

ConvCall check_conv(const char* op, const Tensor& input, const Tensor& weight, const ConvGeometry& geometry,
                    const std::string& precision) {
  check_float(op, "input", input);
  check_same_dtype(op, "weight", weight, "input", input);
  ConvCall call = check_conv_shapes(op, input, weight, geometry);
  call.precision = to_arithmetic(op, precision, false).precision;
  return call;
}

void check_conv_output(const char* op, const char* name, const Tensor& tensor, const ConvCall& call) {
  check_same_device(op, name, tensor, "input", call.input);
  check_same_dtype(op, name, tensor, "input", call.input);
  WARPWRIGHT_CHECK(sizes_of(tensor) == call.output_sizes, op, name, " must have the shape of the output ",
                   shape_text(IntHeaderOnlyArrayRef(call.output_sizes)), ", got ", shape_text(tensor.sizes()));
}

namespace {

std::tuple<Tensor, Tensor> convolution(Tensor input, Tensor weight, OptionalTensor bias, OptionalTensor residual,
                                       std::vector<int64_t> stride, std::vector<int64_t> padding,
                                       std::vector<int64_t> dilation, bool transposed,
                                       std::vector<int64_t> output_padding, int64_t groups, std::string activation_name,
                                       std::string precision, bool save_preact) {
  const std::string name = conv_name(weight, transposed, "");
  const char* op = name.c_str();
  const ConvGeometry geometry{stride, padding, dilation, transposed, output_padding, groups};
  const ConvCall call = check_conv(op, input, weight, geometry, precision);
  const Activation activation = to_activation(op, activation_name);
  check_bias(op, "bias", bias, input, call.output_sizes[1]);
  if (residual.has_value()) check_conv_output(op, "residual", *residual, call);
  ProductOutput result = conv_product(call, bias, residual, activation, save_preact && needs_preact(activation));
  return {result.output, result.preact};
}

// As the epilogue's rows: (batch * pixels, channels) when channels come last, else (batch * channels, pixels). A view
// where the strides allow it.
Tensor as_rows(const Tensor& tensor, const ConvCall& call) {
  const int64_t batch = tensor.size(0), channels = tensor.size(1), pixels = call.output_pixels();
  if (!call.channels_last) return torch::stable::reshape(tensor, {batch * channels, pixels});
  Tensor last = tensor;
  for (int64_t d = 1; d + 1 < tensor.dim(); ++d) last = torch::stable::transpose(last, d, d + 1);
  return torch::stable::reshape(last, {batch * pixels, channels});
}

Tensor from_rows(const Tensor& rows, const ConvCall& call) {
  const std::vector<int64_t>& sizes = call.output_sizes;
  if (!call.channels_last) return torch::stable::view(rows, sizes);
  std::vector<int64_t> last(sizes);
  last.erase(last.begin() + 1);
  last.push_back(sizes[1]);
  Tensor result = torch::stable::view(rows, last);
  for (int64_t d = result.dim() - 1; d > 1; --d) result = torch::stable::transpose(result, d - 1, d);
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> convolution_backward(
    Tensor grad_output, Tensor input, Tensor weight, OptionalTensor saved, std::vector<int64_t> stride,
    std::vector<int64_t> padding, std::vector<int64_t> dilation, bool transposed, std::vector<int64_t> output_padding,
    int64_t groups, std::string activation_name, std::string precision, bool need_input, bool need_weight,
    bool need_bias, bool need_residual) {
  const std::string name = conv_name(weight, transposed, "_backward");
  const char* op = name.c_str();
  const ConvGeometry geometry{stride, padding, dilation, transposed, output_padding, groups};
  const ConvCall call = check_conv(op, input, weight, geometry, precision);
  const Activation activation = to_activation(op, activation_name);
  check_conv_output(op, "grad_output", grad_output, call);
  check_saved(op, saved, activation, grad_output);

  const ScalarType dtype = input.scalar_type();
  Tensor grad = grad_output, grad_bias = nothing(dtype, input), grad_residual = nothing(dtype, input);
  const auto pass = [&] {
    if (saved.has_value()) saved = as_rows(*saved, call);
    const bool need_preact = need_input || need_weight || need_residual;
    return epilogue_grads(as_rows(grad_output, call), saved, activation, call.output_sizes[1], !call.channels_last,
                          need_preact, need_bias);
  };
  // An activation's derivative is multiplied in by a pass, which adds up the bias's gradient as it goes: every kernel
  // below reads an element several times, and would read what was saved as often (docs/performance.md).
  const bool plain = activation == Activation::kNone;
  if (!plain) {
    const EpilogueGrads grads = pass();
    grad_bias = grads.grad_bias;
    grad = from_rows(grads.grad_preact, call);
  }
  if (need_residual) {
    grad_residual = empty_in_format(call.output_sizes, call.channels_last, dtype, input);
    torch::stable::copy_(grad_residual, grad);
  }
  ConvGrads grads = conv_grads(call, grad, need_input, need_weight, need_bias && plain);
  if (need_bias && plain) grad_bias = grads.grad_bias.has_value() ? *grads.grad_bias : pass().grad_bias;
  return {grads.grad_input, grads.grad_weight, grad_bias, grad_residual};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("convolution", TORCH_BOX(&convolution));
  m.impl("convolution_backward", TORCH_BOX(&convolution_backward));
}

}  // namespace warpwright
