// The CPU's convolution: oneDNN through torch, with the epilogue fused where oneDNN has it. Depthwise ones are our own
// (cpu/depthwise.cpp) but for small filters over channels last.
//
// oneDNN is called through torch's C functions, looked up weakly: a torch without the fused ones still loads this
// library and takes the plain convolution and one pass of ours over its result. They pad both sides alike, so unlike
// padding costs a padded copy of the input here, as it does in PyTorch.

#include "bindings/conv.h"

#include <algorithm>

#include "bindings/onednn/post_op.h"
#include "kernels/conv_fold.h"
#include "kernels/depthwise.h"
#include "kernels/epilogue.h"

#define WARPWRIGHT_WEAK __attribute__((weak)) AOTITorchError
extern "C" {
WARPWRIGHT_WEAK aoti_torch_cpu_convolution(AtenTensorHandle input, AtenTensorHandle weight, AtenTensorHandle* bias,
                                           const int64_t* stride, int64_t stride_len, const int64_t* padding,
                                           int64_t padding_len, const int64_t* dilation, int64_t dilation_len,
                                           int32_t transposed, const int64_t* output_padding,
                                           int64_t output_padding_len, int64_t groups, AtenTensorHandle* result);
WARPWRIGHT_WEAK aoti_torch_cpu_convolution_backward(
    AtenTensorHandle grad_output, AtenTensorHandle input, AtenTensorHandle weight, const int64_t** bias_sizes,
    int64_t bias_sizes_len, const int64_t* stride, int64_t stride_len, const int64_t* padding, int64_t padding_len,
    const int64_t* dilation, int64_t dilation_len, int32_t transposed, const int64_t* output_padding,
    int64_t output_padding_len, int64_t groups, const int32_t* output_mask, int64_t output_mask_len,
    AtenTensorHandle* grad_input, AtenTensorHandle* grad_weight, AtenTensorHandle* grad_bias);
WARPWRIGHT_WEAK aoti_torch_cpu_mkldnn__convolution_pointwise(AtenTensorHandle input, AtenTensorHandle weight,
                                                             AtenTensorHandle* bias, const int64_t* padding,
                                                             int64_t padding_len, const int64_t* stride,
                                                             int64_t stride_len, const int64_t* dilation,
                                                             int64_t dilation_len, int64_t groups, const char* attr,
                                                             const double** scalars, int64_t scalars_len,
                                                             const char** algorithm, AtenTensorHandle* result);
WARPWRIGHT_WEAK aoti_torch_cpu_mkldnn__convolution_pointwise_binary(
    AtenTensorHandle input, AtenTensorHandle other, AtenTensorHandle weight, AtenTensorHandle* bias,
    const int64_t* padding, int64_t padding_len, const int64_t* stride, int64_t stride_len, const int64_t* dilation,
    int64_t dilation_len, int64_t groups, const char* binary_attr, double* alpha, const char** unary_attr,
    const double** unary_scalars, int64_t unary_scalars_len, const char** unary_algorithm, AtenTensorHandle* result);
}

namespace warpwright {
namespace {

void check_there(const void* function) {
  if (function == nullptr) fail("convolution", "this torch has no C function for convolution on the CPU");
}

int64_t count(const ConvCall& call) { return static_cast<int64_t>(call.dims()); }

// A number for each dimension, transposed or not.
std::vector<int64_t> padding_of_output(const ConvCall& call) {
  return call.transposed ? call.output_padding : std::vector<int64_t>(call.dims());
}

Tensor plain_conv(const ConvCall& call, const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  check_there(reinterpret_cast<const void*>(&aoti_torch_cpu_convolution));
  AtenTensorHandle bias_handle = bias.has_value() ? bias->get() : nullptr, result = nullptr;
  const std::vector<int64_t> output_padding = padding_of_output(call);
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_convolution(input.get(), weight.get(), bias_handle ? &bias_handle : nullptr, call.stride.data(),
                                 count(call), call.padding.data(), count(call), call.dilation.data(), count(call),
                                 call.transposed, output_padding.data(), count(call), call.groups, &result));
  return Tensor(result);
}

Tensor fused_unary(const ConvCall& call, const OptionalTensor& bias, Activation activation) {
  AtenTensorHandle bias_handle = bias.has_value() ? bias->get() : nullptr, result = nullptr;
  onednn::PostOp post = onednn::post_op(activation);
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mkldnn__convolution_pointwise(
      call.input.get(), call.weight.get(), bias_handle ? &bias_handle : nullptr, call.padding.data(), count(call),
      call.stride.data(), count(call), call.dilation.data(), count(call), call.groups, post.name,
      post.parameter ? &post.parameter : nullptr, post.parameter ? 1 : 0, post.algorithm ? &post.algorithm : nullptr,
      &result));
  return Tensor(result);
}

Tensor fused_add(const ConvCall& call, const OptionalTensor& bias, const Tensor& residual, Activation activation) {
  AtenTensorHandle bias_handle = bias.has_value() ? bias->get() : nullptr, result = nullptr;
  const char* relu = "relu";
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mkldnn__convolution_pointwise_binary(
      call.input.get(), to_format(residual, call.channels_last).get(), call.weight.get(),
      bias_handle ? &bias_handle : nullptr, call.padding.data(), count(call), call.stride.data(), count(call),
      call.dilation.data(), count(call), call.groups, "add", nullptr, activation == Activation::kRelu ? &relu : nullptr,
      nullptr, 0, nullptr, &result));
  return Tensor(result);
}

bool is_empty(const ConvCall& call) { return call.input.numel() == 0 || call.weight.numel() == 0; }

bool onednn_fuses(const ConvCall& call) {
  const ScalarType dtype = call.input.scalar_type();
  return (dtype == ScalarType::Float || dtype == ScalarType::BFloat16) && !call.transposed && !is_empty(call) &&
         &aoti_torch_cpu_mkldnn__convolution_pointwise != nullptr &&
         &aoti_torch_cpu_mkldnn__convolution_pointwise_binary != nullptr;
}

Tensor zeros_in_format(const std::vector<int64_t>& sizes, bool channels_last, ScalarType dtype, const Tensor& like) {
  Tensor result = empty_in_format(sizes, channels_last, dtype, like);
  torch::stable::zero_(result);
  return result;
}

Tensor to_float(const Tensor& tensor) { return torch::stable::to(tensor, ScalarType::Float); }
Tensor to_bfloat16(const Tensor& tensor) { return torch::stable::to(tensor, ScalarType::BFloat16); }

ConvCall in_float(const ConvCall& call) {
  ConvCall wide = call;
  wide.input = to_float(call.input);
  wide.weight = to_float(call.weight);
  return wide;
}

// convolution + bias, unrounded (float32, without the bias) for float16: few processors multiply it.
Tensor product(const ConvCall& call, const OptionalTensor& bias) {
  const ScalarType dtype = call.input.scalar_type();
  if (is_empty(call)) return zeros_in_format(call.output_sizes, call.channels_last, dtype, call.input);
  if (dtype == ScalarType::Half) return plain_conv(call, to_float(call.input), to_float(call.weight), std::nullopt);
  return plain_conv(call, call.input, call.weight, bias);
}

// ---- where oneDNN is wrong ----

// Elements that a window spans in dimension d.
int64_t span(const ConvCall& call, size_t d) {
  return call.dilation[d] * (call.weight.size(static_cast<int64_t>(2 + d)) - 1) + 1;
}

// Shapes for which oneDNN's bfloat16 kernels (3.12, that of torch 2.13; most of them those for AMX) are wrong. They are
// computed in float32 and rounded once. The rules are a little wider than what failed while all new memory was full of
// NaN. Wrong whatever memory contains, and in the forward pass alone:
// - fewer than 32 channels, of which a row of a filter, or its only column, has more than 32 elements, in whole 32s:
//   patches of 16x16 of 4 channels.
// The others use scratch memory that nobody has written, so that results are NaN or off as it happens to be, and some
// leave their buffers:
// - a stride along rows where the output has one column (forward) or the input fewer than a stride (weight's gradient);
// - a volume and a stride whose windows do not overlap (forward), or leave a rest behind the last (input's gradient);
// - a volume of depth 1 and a filter that is deeper (forward);
// - a filter for each channel where the weight's gradient is not by our own kernel.
// A transposed convolution is the gradient of one whose input is its output.
bool is_wrong_in_bfloat16(const ConvCall& call) {
  if (call.input.scalar_type() != ScalarType::BFloat16 || is_empty(call)) return false;
  const std::vector<int64_t> input_sizes = sizes_of(call.input);
  const std::vector<int64_t>& from = call.transposed ? call.output_sizes : input_sizes;
  const std::vector<int64_t>& to = call.transposed ? input_sizes : call.output_sizes;
  const int64_t stride = call.stride.back();
  if (stride > 1 && (to.back() == 1 || from.back() < stride)) return true;
  const int64_t channels = call.weight.size(1), last = call.weight.dim() - 1;
  const bool upright = call.dims() > 1 && call.weight.size(last) == 1;
  const int64_t line = channels * call.weight.size(upright ? last - 1 : last);
  if (channels < 32 && line > 32 && line % 32 == 0) return true;
  const bool depthwise = call.groups != 1 && call.groups == to[1] && call.groups == from[1];
  if (call.dims() < 3) return depthwise && call.transposed;
  if (depthwise || (from[2] == 1 && call.weight.size(2) > 1)) return true;
  for (size_t d = 0; d < call.dims(); ++d) {
    if (call.stride[d] == 1) continue;
    const int64_t end = (to[2 + d] - 1) * call.stride[d] + span(call, d) - call.padding[d];
    if (call.weight.size(static_cast<int64_t>(2 + d)) <= call.stride[d] || end < from[2 + d]) return true;
  }
  return false;
}

// In float32, not in bfloat16, the weight's gradient is wrong for volumes that are no deeper than a padded filter with
// a stride: 7x7x7 with stride 2 over 7 frames. For some it writes past its buffers. Not where the input is padded
// before.
bool needs_padded_copy(const ConvCall& call) {
  return call.dims() == 3 && !call.transposed && call.input.scalar_type() != ScalarType::BFloat16 &&
         call.stride[0] > 1 && call.padding[0] > 0 && call.input.size(2) <= span(call, 0);
}

// An input that fits between two taps of a filter, so that windows see padding alone: oneDNN crashes with bfloat16 on
// AMX, and with float32 where a bias is there and channels come last.
bool fits_between_taps(const ConvCall& call) {
  for (size_t d = 0; d < call.dims() && !call.transposed; ++d) {
    if (call.padding[d] > 0 && call.dilation[d] > call.input.size(static_cast<int64_t>(2 + d))) return true;
  }
  return false;
}

// ---- one dimension as two, where torch's own call would not do: oneDNN's fused calls know no other way ----

std::vector<int64_t> with_height(std::vector<int64_t> values, int64_t height) {
  values.insert(values.end() - 1, height);
  return values;
}

Tensor with_height(const Tensor& tensor) { return torch::stable::view(tensor, with_height(sizes_of(tensor), 1)); }

// `tensor` without its third dimension, of size 1.
Tensor without_height(const Tensor& tensor) {
  if (tensor.dim() != 4) return tensor;  // Nothing was asked for.
  return torch::stable::view(tensor, {tensor.size(0), tensor.size(1), tensor.size(3)});
}

ConvCall with_height(const ConvCall& call) {
  ConvCall flat = call;
  flat.input = with_height(call.input);
  flat.weight = with_height(call.weight);
  flat.stride = with_height(call.stride, 1);
  flat.padding = with_height(call.padding, 0);
  flat.padding_after = with_height(call.padding_after, 0);
  flat.dilation = with_height(call.dilation, 1);
  if (call.transposed) flat.output_padding = with_height(call.output_padding, 0);
  flat.output_sizes = with_height(call.output_sizes, 1);
  return flat;
}

// ---- padding that is not alike on both sides ----

// The input's place in one that has `before[d]` elements more before it in dimension d, and as many as it takes after.
Tensor place_in(Tensor padded, const Tensor& input, const std::vector<int64_t>& before) {
  for (size_t d = 0; d < before.size(); ++d) {
    const auto dim = static_cast<int64_t>(2 + d);
    padded = torch::stable::narrow(padded, dim, before[d], input.size(dim));
  }
  return padded;
}

// The same call on an input that contains what the smaller of both paddings leaves, or all of it; `before` as
// place_in's.
ConvCall evenly_padded(const ConvCall& call, std::vector<int64_t>& before, bool all = false) {
  ConvCall even = call;
  std::vector<int64_t> sizes = sizes_of(call.input);
  before.clear();
  for (size_t d = 0; d < call.dims(); ++d) {
    const int64_t both = all ? 0 : std::min(call.padding[d], call.padding_after[d]);
    before.push_back(call.padding[d] - both);
    sizes[2 + d] += call.padding[d] + call.padding_after[d] - 2 * both;
    even.padding[d] = even.padding_after[d] = both;
  }
  even.input = zeros_in_format(sizes, is_channels_last(call.input), call.input.scalar_type(), call.input);
  Tensor inside = place_in(even.input, call.input, before);
  torch::stable::copy_(inside, call.input);
  return even;
}

// ---- a filter for each channel: our own kernel ----

// Channels last, where oneDNN has no reorder to pay for, its kernels are ahead below this many taps (Zen 4, float32 and
// bfloat16, one thread): forward 3x3 1.3 to 2 times, 7x7 up to 1.4 times, 13x13 and larger level or behind. Its input's
// gradient is ahead for 3x3, up to 1.7 times.
constexpr int64_t kForwardTaps = 100, kInputGradTaps = 25;

// A single channel is no depthwise convolution to oneDNN, which has vectors along its width.
bool has_a_filter_for_each_channel(const ConvCall& call) {
  return !call.transposed && call.groups != 1 && call.groups == call.input.size(1) &&
         call.groups == call.weight.size(0);
}

// Whether ours takes it.
bool is_depthwise(const ConvCall& call, bool channels_last, int64_t least_taps) {
  if (call.dims() != 2 || !has_a_filter_for_each_channel(call) || is_empty(call)) return false;
  const ScalarType dtype = call.input.scalar_type();
  const bool onednn_has_it = (dtype == ScalarType::Float || dtype == ScalarType::BFloat16) &&
                             call.padding == call.padding_after && channels_last;
  return !onednn_has_it || call.weight.size(2) * call.weight.size(3) >= least_taps;
}

DepthwiseParams depthwise_params(const ConvCall& call, bool channels_last) {
  const auto axis = [&](size_t d) {
    const auto dim = static_cast<int64_t>(2 + d);
    return DepthwiseAxis{call.input.size(dim), call.weight.size(dim), call.output_sizes[2 + d],
                         call.stride[d],       call.padding[d],       call.dilation[d]};
  };
  DepthwiseParams params{};
  params.batch = call.input.size(0);
  params.channels = call.input.size(1);
  params.height = axis(0);
  params.width = axis(1);
  params.channels_last = channels_last;
  params.dtype = to_dtype(call.input.scalar_type());
  return params;
}

ProductOutput depthwise_product(const ConvCall& call, const OptionalTensor& bias, const OptionalTensor& residual,
                                Activation activation, bool keep) {
  const ScalarType dtype = call.input.scalar_type();
  const auto make = [&] { return empty_in_format(call.output_sizes, call.channels_last, dtype, call.input); };
  ProductOutput result{make(), keep ? make() : nothing(dtype, call.input)};
  const Tensor input = to_format(call.input, call.channels_last), weight = contiguous(call.weight);
  const OptionalTensor bias_row = contiguous(bias);
  const Tensor addend = residual.has_value() ? to_format(*residual, call.channels_last) : nothing(dtype, call.input);
  DepthwiseParams params = depthwise_params(call, call.channels_last);
  params.x = input.const_data_ptr();
  params.w = weight.const_data_ptr();
  params.bias = data_or_null(bias_row);
  params.residual = residual.has_value() ? addend.const_data_ptr() : nullptr;
  params.preact = keep ? result.preact.mutable_data_ptr() : nullptr;
  params.output = result.output.mutable_data_ptr();
  params.activation = activation;
  cpu::depthwise_forward(params, nullptr);
  return result;
}

ConvGrads depthwise_grads(const ConvCall& call, const Tensor& grad, bool need_input, bool need_weight) {
  const ScalarType dtype = call.input.scalar_type();
  const bool channels_last = is_channels_last(call.input);
  ConvGrads grads{nothing(dtype, grad), nothing(dtype, grad)};
  const Tensor input = to_format(call.input, channels_last), output = to_format(grad, channels_last);
  const Tensor weight = contiguous(call.weight);
  DepthwiseParams params = depthwise_params(call, channels_last);
  params.x = input.const_data_ptr();
  params.w = weight.const_data_ptr();
  params.y = output.const_data_ptr();
  if (need_input) {
    grads.grad_input = empty_in_format(sizes_of(call.input), channels_last, dtype, grad);
    params.output = grads.grad_input.mutable_data_ptr();
    cpu::depthwise_input_grad(params, nullptr);
  }
  if (need_weight) {
    grads.grad_weight = empty(sizes_of(call.weight), dtype, grad);
    const ScalarType wide = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    const Tensor partials = empty({depthwise_partials(params.batch), params.channels * params.taps()}, wide, grad);
    params.output = grads.grad_weight.mutable_data_ptr();
    params.partials = partials.mutable_data_ptr();
    cpu::depthwise_weight_grad(params, nullptr);
  }
  return grads;
}

}  // namespace

ProductOutput conv_product(const ConvCall& call, const OptionalTensor& bias, const OptionalTensor& residual,
                           Activation activation, bool keep, SlabStatistics*) {
  const ScalarType dtype = call.input.scalar_type();
  if (is_wrong_in_bfloat16(call)) {
    const auto widen = [](const OptionalTensor& t) { return t.has_value() ? OptionalTensor(to_float(*t)) : t; };
    const ProductOutput wide = conv_product(in_float(call), widen(bias), widen(residual), activation, keep);
    return {to_bfloat16(wide.output), to_bfloat16(wide.preact)};
  }
  const bool plain = activation == Activation::kNone && !residual.has_value();
  // torch takes a bfloat16 sum out of oneDNN in some layouts, and then has no fused relu for it.
  const bool add_fits =
      dtype == ScalarType::Float && (activation == Activation::kNone || activation == Activation::kRelu);
  const bool fuses = onednn_fuses(call) && !plain && !keep && (!residual.has_value() || add_fits);
  if (call.dims() == 1 && (fuses || call.channels_last || has_a_filter_for_each_channel(call))) {
    const OptionalTensor addend = residual.has_value() ? OptionalTensor(with_height(*residual)) : std::nullopt;
    const ProductOutput flat = conv_product(with_height(call), bias, addend, activation, keep);
    return {without_height(flat.output), without_height(flat.preact)};
  }
  if (is_depthwise(call, call.channels_last, kForwardTaps)) {
    return depthwise_product(call, bias, residual, activation, keep);
  }
  const bool pad_all = fits_between_taps(call);
  if (pad_all || (call.padding != call.padding_after && !call.transposed)) {
    std::vector<int64_t> before;
    return conv_product(evenly_padded(call, before, pad_all), bias, residual, activation, keep);
  }
  const Tensor none = nothing(dtype, call.input);
  const OptionalTensor bias_row = contiguous(bias);  // oneDNN's fused calls read a strided bias as if it were not.
  if (fuses) {
    const Tensor fused = residual.has_value() ? fused_add(call, bias_row, *residual, activation)
                                              : fused_unary(call, bias_row, activation);
    return {to_format(fused, call.channels_last), none};
  }
  const bool bias_in_product = !is_empty(call) && dtype != ScalarType::Half;
  const Tensor rough = to_format(product(call, bias_in_product ? bias_row : std::nullopt), call.channels_last);
  if (plain && bias_in_product) return {rough, none};

  const Tensor addend = residual.has_value() ? to_format(*residual, call.channels_last) : none;
  ProductOutput result{empty_in_format(call.output_sizes, call.channels_last, dtype, call.input),
                       keep ? empty_in_format(call.output_sizes, call.channels_last, dtype, call.input) : none};
  const int64_t pixels = call.output_pixels();
  EpilogueParams params{};
  params.product = rough.const_data_ptr();
  params.bias = bias_in_product ? nullptr : data_or_null(bias_row);
  params.residual = residual.has_value() ? addend.const_data_ptr() : nullptr;
  params.output = result.output.mutable_data_ptr();
  params.preact = keep ? result.preact.mutable_data_ptr() : nullptr;
  params.outer = call.channels_last ? call.output_sizes[0] * pixels : call.output_sizes[0];
  params.channels = call.output_sizes[1];
  params.inner = call.channels_last ? 1 : pixels;
  params.alpha = params.beta = params.output_scale = 1;
  params.activation = activation;
  params.product_dtype = to_dtype(rough.scalar_type());
  params.dtype = params.output_dtype = to_dtype(dtype);
  cpu::epilogue_forward(params, nullptr);
  return result;
}

// The norm's factors go into the weight, its summands into the bias, so that oneDNN's post-ops do the rest: a pass over
// the weight at each call, for which one over the output is saved. Where the weight is not much smaller, and in 16
// bits, where it would be rounded once more to few digits, the norm stays a pass of its own.
std::optional<Tensor> conv_normalized(const ConvCall& call, const OptionalTensor& bias, const OptionalTensor& residual,
                                      const Affine& affine, const Running& running, double eps, Activation activation) {
  constexpr int64_t kMuchSmaller = 4;
  const ScalarType dtype = call.input.scalar_type();
  const int64_t filters = call.output_sizes[1], outputs = call.output_sizes[0] * filters * call.output_pixels();
  if (dtype != ScalarType::Float || is_empty(call) || kMuchSmaller * call.weight.numel() > outputs) return std::nullopt;
  const bool format = is_channels_last(call.weight);
  const Tensor weight = to_format(call.weight, format);
  Tensor scaled = empty_in_format(sizes_of(weight), format, dtype, weight), shift = empty({filters}, dtype, weight);
  const OptionalTensor bias_row = contiguous(bias), mean = contiguous(running.mean), var = contiguous(running.var);
  const OptionalTensor factor = contiguous(affine.weight), summand = contiguous(affine.bias);
  ConvFoldParams params{};
  params.w = static_cast<const float*>(weight.const_data_ptr());
  params.conv_bias = static_cast<const float*>(data_or_null(bias_row));
  params.mean = per_channel(mean, dtype);
  params.var = per_channel(var, dtype);
  params.weight = per_channel(factor, dtype);
  params.bias = per_channel(summand, dtype);
  params.scaled = static_cast<float*>(scaled.mutable_data_ptr());
  params.shift = static_cast<float*>(shift.mutable_data_ptr());
  params.filters = filters;
  params.size = weight.numel() / filters;
  params.eps = eps;
  cpu::conv_fold(params, nullptr);
  ConvCall folded = call;
  folded.weight = scaled;
  return conv_product(folded, shift, residual, activation, false).output;
}

// oneDNN could add the bias's gradient up beside the weight's, in 97% of the time that a pass of ours takes with it.
// It does not, so that the bits are the same where that gradient is wanted alone.
ConvGrads conv_grads(const ConvCall& call, const Tensor& grad, bool need_input, bool need_weight, bool) {
  const ScalarType dtype = call.input.scalar_type();
  const bool input_format = is_channels_last(call.input), weight_format = is_channels_last(call.weight);
  ConvGrads grads{nothing(dtype, grad), nothing(dtype, grad)};
  if (!need_input && !need_weight) return grads;
  if (is_wrong_in_bfloat16(call)) {
    const ConvGrads wide = conv_grads(in_float(call), to_float(grad), need_input, need_weight);
    return {to_bfloat16(wide.grad_input), to_bfloat16(wide.grad_weight)};
  }
  if (call.dims() == 1 && (input_format || weight_format || has_a_filter_for_each_channel(call))) {
    const ConvGrads flat = conv_grads(with_height(call), with_height(grad), need_input, need_weight);
    return {without_height(flat.grad_input), without_height(flat.grad_weight)};
  }
  const bool own_input = need_input && is_depthwise(call, input_format, kInputGradTaps);
  // oneDNN's sum over the images depends on the number of threads.
  const bool own_weight = need_weight && is_depthwise(call, false, 0);
  if (own_input || own_weight) {
    grads = depthwise_grads(call, grad, own_input, own_weight);
    if (own_input == need_input) return grads;
    grads.grad_input = conv_grads(call, grad, true, false).grad_input;
    return grads;
  }
  const bool pad_all = fits_between_taps(call) || (need_weight && needs_padded_copy(call));
  if (pad_all || (call.padding != call.padding_after && !call.transposed)) {
    std::vector<int64_t> before;
    grads = conv_grads(evenly_padded(call, before, pad_all), grad, need_input, need_weight);
    if (need_input) grads.grad_input = to_format(place_in(grads.grad_input, call.input, before), input_format);
    return grads;
  }
  if (is_empty(call)) {
    if (need_input) grads.grad_input = zeros_in_format(sizes_of(call.input), input_format, dtype, grad);
    if (need_weight) grads.grad_weight = zeros_in_format(sizes_of(call.weight), weight_format, dtype, grad);
    return grads;
  }
  check_there(reinterpret_cast<const void*>(&aoti_torch_cpu_convolution_backward));
  const bool half = dtype == ScalarType::Half;
  const auto widen = [&](const Tensor& t) { return half ? to_float(t) : t; };
  const Tensor wide_grad = widen(grad), wide_input = widen(call.input), wide_weight = widen(call.weight);
  const std::vector<int64_t> output_padding = padding_of_output(call);
  const int32_t mask[3] = {need_input, need_weight, 0};
  AtenTensorHandle handles[3] = {nullptr, nullptr, nullptr};
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution_backward(
      wide_grad.get(), wide_input.get(), wide_weight.get(), nullptr, 0, call.stride.data(), count(call),
      call.padding.data(), count(call), call.dilation.data(), count(call), call.transposed, output_padding.data(),
      count(call), call.groups, mask, 3, &handles[0], &handles[1], &handles[2]));
  const Tensor results[3] = {Tensor(handles[0]), Tensor(handles[1]), Tensor(handles[2])};
  const auto narrow = [&](const Tensor& t) { return half ? torch::stable::to(t, ScalarType::Half) : t; };
  if (need_input) grads.grad_input = to_format(narrow(results[0]), input_format);
  if (need_weight) grads.grad_weight = to_format(narrow(results[1]), weight_format);
  return grads;
}

}  // namespace warpwright
