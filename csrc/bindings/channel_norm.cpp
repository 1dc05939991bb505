// Bindings of the channel norms: group_norm and batch_norm are one call of the kernels with other cells.

#include "bindings/channel_norm.h"

#include "kernels/channel_norm.h"

namespace warpwright {

PerChannel per_channel(const OptionalTensor& tensor, ScalarType dtype) {
  if (!tensor.has_value()) return {};
  return {data_or_null(tensor), tensor->scalar_type() != dtype};
}

// ---- arguments ----

Activation norm_activation(const char* op, const std::string& name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "silu") return Activation::kSilu;
  fail(op, "activation must be one of none, relu, silu, got '", name, "'");
}

void check_channels(const char* op, const char* name, const OptionalTensor& tensor, const Tensor& input,
                    int64_t channels) {
  if (!tensor.has_value()) return;
  check_same_device(op, name, *tensor, "input", input);
  const ScalarType narrow = input.scalar_type(), wide = acc_dtype(narrow), found = tensor->scalar_type();
  const std::string either = narrow == wide ? "" : " or " + dtype_name(wide);
  WARPWRIGHT_CHECK(found == narrow || found == wide, op, name, " must be ", dtype_name(narrow), either, ", got ",
                   dtype_name(found));
  WARPWRIGHT_CHECK(tensor->dim() == 1 && tensor->size(0) == channels, op, name, " must have shape (", channels,
                   ",), got ", shape_text(tensor->sizes()));
}

void check_norm_input(const char* op, const Tensor& input) {
  check_float(op, "input", input);
  WARPWRIGHT_CHECK(input.dim() >= 2, op, "input must have at least 2 dimensions, got ", input.dim());
}

void check_norm_statistics(const char* op, const char* name, const Tensor& tensor, const Tensor& input, int64_t cells) {
  check_same_device(op, name, tensor, "input", input);
  const ScalarType dtype = acc_dtype(input.scalar_type());
  WARPWRIGHT_CHECK(tensor.numel() == cells && tensor.scalar_type() == dtype, op, name, " must hold ", cells,
                   " elements of ", dtype_name(dtype), ", got ", tensor.numel(), " of ",
                   dtype_name(tensor.scalar_type()));
}

void check_channels(const char* op, const char* name, const OptionalTensor& tensor, const Tensor& input) {
  check_channels(op, name, tensor, input, input.size(1));
}

namespace {

void check_groups(const char* op, const Tensor& input, int64_t groups) {
  WARPWRIGHT_CHECK(groups >= 1 && input.size(1) % groups == 0, op, "num_groups must divide the ", input.size(1),
                   " channels of input, got ", groups);
}

// ---- layouts ----

// Whether the channels lie closest. The output then lies so too.
bool lies_channels_last(const Tensor& input) {
  const auto sizes = input.sizes(), strides = input.strides();
  if (sizes[1] <= 1) return false;
  bool positions = false;
  for (int64_t d = 2; d < input.dim(); ++d) {
    if (sizes[d] <= 1) continue;
    if (strides[d] <= strides[1]) return false;
    positions = true;
  }
  return positions;
}

Tensor empty_output(const Tensor& input) {
  const auto sizes = sizes_of(input);
  if (!lies_channels_last(input)) return empty(sizes, input.scalar_type(), input);
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  const auto place = [&](size_t d) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  };
  place(1);
  for (size_t d = sizes.size(); d-- > 2;) place(d);
  place(0);
  return empty_strided(sizes, strides, input.scalar_type(), input);
}

Planes planes_of(const Tensor& tensor, Tensor& holder) {
  if (tensor.numel() == 0) return {};  // Its strides say nothing.
  const Rows rows = rows_of(tensor, tensor.dim() - 2, holder);
  return {rows.data, holder.stride(0), holder.stride(1), rows.col_stride};
}
Planes planes_of(const OptionalTensor& tensor, Tensor& holder) {
  return tensor.has_value() ? planes_of(*tensor, holder) : Planes{};
}
Planes planes_of_output(Tensor& tensor) {
  Tensor holder;
  return planes_of(tensor, holder);
}

ChannelShape shape_of(const Tensor& input, int64_t groups, bool shared) {
  ChannelShape shape{};
  shape.samples = input.size(0);
  shape.channels = input.size(1);
  shape.positions = 1;
  for (int64_t d = 2; d < input.dim(); ++d) shape.positions *= input.size(d);
  shape.groups = groups;
  shape.shared = shared;
  shape.channels_last = shape.positions == 1 || lies_channels_last(input);
  return shape;
}

// Cuts the slabs. Where statistics are shared and one stride walks through the positions of all samples, the samples
// become one: slabs then need not end where a sample does.
void cut_slabs(ChannelShape& shape, std::initializer_list<Planes*> tensors) {
  if (shape.shared && shape.channels_last) {
    bool merges = true;
    for (const Planes* t : tensors) {
      merges = merges && (t->data == nullptr || shape.samples == 1 || shape.positions == 1 ||
                          t->sample == shape.positions * t->position);
    }
    if (merges) {
      for (Planes* t : tensors) {
        if (shape.positions == 1) t->position = t->sample;
      }
      shape.positions *= shape.samples;
      shape.samples = 1;
    }
  }
  shape.slab = slab_size(shape.positions, shape.channels_last);
  shape.per_sample = (shape.positions + shape.slab - 1) / shape.slab;
}

#if !defined(WARPWRIGHT_BACKEND_CPU)
// All samples as one, cut into the slabs that partial results came in.
ChannelShape shape_in_slabs(const Tensor& input, const SlabStatistics& found) {
  ChannelShape shape = shape_of(input, input.size(1), true);
  shape.positions *= shape.samples;
  shape.samples = 1;
  shape.slab = found.slab;
  shape.per_sample = (shape.positions + shape.slab - 1) / shape.slab;
  return shape;
}
#endif

// `tensor` as it is where it lies as `like`, else a copy that does: the order of sums must not depend on how a gradient
// came to lie.
Tensor lying_as(const Tensor& tensor, const Tensor& like) {
  if (lies_channels_last(tensor) == lies_channels_last(like)) return tensor;
  Tensor moved = empty_output(like);
  torch::stable::copy_(moved, tensor);
  return moved;
}

// Of a batch norm.
ChannelShape shape_of(const Tensor& input) { return shape_of(input, input.size(1) < 1 ? 1 : input.size(1), true); }

// Room for what becomes of running statistics.
Tensor empty_new(const OptionalTensor& running, bool needed, const Tensor& input) {
  if (!needed || !running.has_value()) return nothing(acc_dtype(input.scalar_type()), input);
  return empty({input.size(1)}, running->scalar_type(), input);
}

Tensor empty_partials(const ChannelShape& shape, bool needed, const Tensor& like) {
  const ScalarType dtype = acc_dtype(like.scalar_type());
  return needed ? empty({shape.slabs(), shape.channels}, dtype, like) : nothing(dtype, like);
}

// ---- calls ----

NormOutput forward(const Tensor& input, ChannelShape shape, const std::vector<int64_t>& cells, const Affine& affine,
                   const Running& running, const OptionalTensor& residual, double eps, Activation activation,
                   const SlabStatistics* found = nullptr, bool in_place = false) {
  const ScalarType dtype = input.scalar_type(), statistics = acc_dtype(dtype);
  NormOutput result{in_place ? input : empty_output(input), empty(cells, statistics, input),
                    empty(cells, statistics, input), empty_new(running.mean, !running.constant, input),
                    empty_new(running.var, !running.constant, input)};
  if (result.mean.numel() == 0) return result;
  Tensor input_holder, residual_holder;
  const OptionalTensor weight = contiguous(affine.weight), bias = contiguous(affine.bias);
  const OptionalTensor running_mean = contiguous(running.mean), running_var = contiguous(running.var);
  ChannelNormParams params{};
  params.input = planes_of(input, input_holder);
  params.residual = planes_of(residual, residual_holder);
  params.output = planes_of_output(result.output);
  cut_slabs(shape, {&params.input, &params.residual, &params.output});
  const bool given = found != nullptr && found->slab > 0, own = !running.constant && !given;
  Tensor means = given ? found->means : empty_partials(shape, own, input);
  Tensor squares = given ? found->squares : empty_partials(shape, own, input);
  params.shape = shape;
  params.weight = per_channel(weight, dtype);
  params.bias = per_channel(bias, dtype);
  params.running_mean = per_channel(running_mean, dtype);
  params.running_var = per_channel(running_var, dtype);
  if (!running.constant && running.mean.has_value()) params.new_mean = per_channel(result.new_mean, dtype);
  if (!running.constant && running.var.has_value()) params.new_var = per_channel(result.new_var, dtype);
  params.constant = running.constant;
  params.momentum = running.momentum;
  params.mean = result.mean.mutable_data_ptr();
  params.rstd = result.rstd.mutable_data_ptr();
  params.mean_partials = means.mutable_data_ptr();
  params.square_partials = squares.mutable_data_ptr();
  params.eps = eps;
  params.activation = activation;
  params.dtype = to_dtype(dtype);
  Launch launch(input);
#if !defined(WARPWRIGHT_BACKEND_CPU)
  if (given) {
    ChannelNormParams joined = params;
    joined.shape = shape_in_slabs(input, *found);
    backend::channel_norm_cells(joined, launch.stream());
    backend::channel_norm_output(params, launch.stream());
    return result;
  }
#endif
  backend::channel_norm_forward(params, launch.stream());
  return result;
}

// A half of (2, channels), contiguous, of the dtype that is computed in.
PerChannel half_of(const Tensor& tensor, int64_t row) {
  const int64_t bytes = tensor.scalar_type() == ScalarType::Double ? 8 : 4;
  return {static_cast<char*>(data_or_null(tensor)) + row * tensor.numel() / 2 * bytes, true};
}

NormGrads backward(const Tensor& grad_output, const Tensor& input, ChannelShape shape, const Affine& affine,
                   const OptionalTensor& residual, const Tensor& mean, const Tensor& rstd, bool constant,
                   Activation activation, const NormNeeds& need, const ChannelSums& sums) {
  const ScalarType dtype = input.scalar_type();
  const auto channels = [&](bool needed, const OptionalTensor& like) {
    const ScalarType own = like.has_value() ? like->scalar_type() : dtype;
    return needed ? empty({shape.channels}, own, input) : nothing(own, input);
  };
  NormGrads grads{need.input ? empty_output(input) : nothing(dtype, input), channels(need.weight, affine.weight),
                  channels(need.bias, affine.bias), need.residual ? empty_output(input) : nothing(dtype, input)};
  if (shape.channels == 0) return grads;
  Tensor grad_holder, input_holder, residual_holder;
  const OptionalTensor weight = contiguous(affine.weight), bias = contiguous(affine.bias);
  const Tensor means = torch::stable::contiguous(mean), rstds = torch::stable::contiguous(rstd);
  ChannelNormBackwardParams params{};
  params.grad_output = planes_of(lying_as(grad_output, input), grad_holder);
  params.input = planes_of(input, input_holder);
  params.residual = planes_of(residual, residual_holder);
  if (need.input) params.grad_input = planes_of_output(grads.grad_input);
  if (need.residual) params.grad_residual = planes_of_output(grads.grad_residual);
  cut_slabs(shape, {&params.grad_output, &params.input, &params.residual, &params.grad_input, &params.grad_residual});
  params.shape = shape;
  params.weight = per_channel(weight, dtype);
  params.bias = per_channel(bias, dtype);
  params.mean = means.const_data_ptr();
  params.rstd = rstds.const_data_ptr();
  params.constant = constant;
  if (need.weight) params.grad_weight = per_channel(grads.grad_weight, dtype);
  if (need.bias) params.grad_bias = per_channel(grads.grad_bias, dtype);
  if (sums.found != nullptr) {
    params.grad_bias = half_of(*sums.found, 0);
    params.grad_weight = half_of(*sums.found, 1);
  }
  Tensor grad_partials = empty_partials(shape, params.needs_sums(), input);
  Tensor dot_partials = empty_partials(shape, params.needs_sums(), input);
  const ScalarType statistics = acc_dtype(dtype);
  if (sums.elements != nullptr) params.elements = sums.elements->const_data_ptr();
  Tensor mean_grad = params.finds_means() ? empty({shape.cells()}, statistics, input) : nothing(statistics, input);
  Tensor mean_dot = params.finds_means() ? empty({shape.cells()}, statistics, input) : nothing(statistics, input);
  params.grad_partials = grad_partials.mutable_data_ptr();
  params.dot_partials = dot_partials.mutable_data_ptr();
  params.mean_grad = mean_grad.mutable_data_ptr();
  params.mean_dot = mean_dot.mutable_data_ptr();
  if (sums.elements != nullptr) {
    params.mean_grad = half_of(*sums.given, 0).data;
    params.mean_dot = half_of(*sums.given, 1).data;
  }
  params.activation = activation;
  params.dtype = to_dtype(dtype);
  Launch launch(input);
  backend::channel_norm_backward(params, launch.stream());
  return grads;
}

// ---- group_norm ----

std::tuple<Tensor, Tensor, Tensor> group_norm(Tensor input, int64_t num_groups, OptionalTensor weight,
                                              OptionalTensor bias, double eps, std::string activation_name) {
  const char* op = "group_norm";
  check_norm_input(op, input);
  check_groups(op, input, num_groups);
  check_channels(op, "weight", weight, input);
  check_channels(op, "bias", bias, input);
  const Activation activation = norm_activation(op, activation_name);
  NormOutput r = forward(input, shape_of(input, num_groups, false), {input.size(0), num_groups}, {weight, bias}, {},
                         std::nullopt, eps, activation);
  return {r.output, r.mean, r.rstd};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_backward(Tensor grad_output, Tensor input, int64_t num_groups,
                                                       OptionalTensor weight, OptionalTensor bias, Tensor mean,
                                                       Tensor rstd, std::string activation_name, bool need_input,
                                                       bool need_weight, bool need_bias) {
  const char* op = "group_norm_backward";
  check_norm_input(op, input);
  check_groups(op, input, num_groups);
  check_like(op, "grad_output", grad_output, "input", input);
  check_channels(op, "weight", weight, input);
  check_channels(op, "bias", bias, input);
  check_norm_statistics(op, "mean", mean, input, input.size(0) * num_groups);
  check_norm_statistics(op, "rstd", rstd, input, input.size(0) * num_groups);
  const Activation activation = norm_activation(op, activation_name);
  NormGrads g = backward(grad_output, input, shape_of(input, num_groups, false), {weight, bias}, std::nullopt, mean,
                         rstd, false, activation, {need_input, need_weight, need_bias, false}, {});
  return {g.grad_input, g.grad_weight, g.grad_bias};
}

// ---- batch_norm ----

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm(Tensor input, OptionalTensor running_mean,
                                                              OptionalTensor running_var, OptionalTensor weight,
                                                              OptionalTensor bias, OptionalTensor residual,
                                                              bool training, double momentum, double eps,
                                                              std::string activation_name) {
  const char* op = "batch_norm";
  check_norm_input(op, input);
  WARPWRIGHT_CHECK(training || (running_mean.has_value() && running_var.has_value()), op,
                   "running_mean and running_var must be given unless training");
  check_channels(op, "running_mean", running_mean, input);
  check_channels(op, "running_var", running_var, input);
  check_channels(op, "weight", weight, input);
  check_channels(op, "bias", bias, input);
  if (residual.has_value()) check_like(op, "residual", *residual, "input", input);
  const Activation activation = norm_activation(op, activation_name);
  const int64_t channels = input.size(1);
  WARPWRIGHT_CHECK(!training || input.numel() != channels || channels == 0, op,
                   "input must have more than one value per channel in training, got shape ",
                   shape_text(input.sizes()));
  NormOutput r = batch_norm_forward(input, {weight, bias}, {running_mean, running_var, !training, momentum}, residual,
                                    eps, activation);
  return {r.output, r.mean, r.rstd, r.new_mean, r.new_var};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_backward(Tensor grad_output, Tensor input, OptionalTensor weight,
                                                               OptionalTensor bias, OptionalTensor residual,
                                                               Tensor mean, Tensor rstd, bool training,
                                                               std::string activation_name, bool need_input,
                                                               bool need_weight, bool need_bias, bool need_residual) {
  const char* op = "batch_norm_backward";
  check_norm_input(op, input);
  check_like(op, "grad_output", grad_output, "input", input);
  check_channels(op, "weight", weight, input);
  check_channels(op, "bias", bias, input);
  if (residual.has_value()) check_like(op, "residual", *residual, "input", input);
  const int64_t channels = input.size(1);
  check_norm_statistics(op, "mean", mean, input, channels);
  check_norm_statistics(op, "rstd", rstd, input, channels);
  const Activation activation = norm_activation(op, activation_name);
  NormGrads g = batch_norm_grads(grad_output, input, {weight, bias}, residual, mean, rstd, !training, activation,
                                 {need_input, need_weight, need_bias, need_residual});
  return {g.grad_input, g.grad_weight, g.grad_bias, g.grad_residual};
}

}  // namespace

NormOutput batch_norm_forward(const Tensor& input, const Affine& affine, const Running& running,
                              const OptionalTensor& residual, double eps, Activation activation,
                              const SlabStatistics* found, bool in_place) {
  return forward(input, shape_of(input), {input.size(1)}, affine, running, residual, eps, activation, found, in_place);
}

NormGrads batch_norm_grads(const Tensor& grad_output, const Tensor& input, const Affine& affine,
                           const OptionalTensor& residual, const Tensor& mean, const Tensor& rstd, bool constant,
                           Activation activation, const NormNeeds& need, const ChannelSums& sums) {
  return backward(grad_output, input, shape_of(input), affine, residual, mean, rstd, constant, activation, need, sums);
}

Tensor batch_norm_moments(const Tensor& input, [[maybe_unused]] const SlabStatistics* found) {
  Tensor moments = empty({3, input.size(1)}, acc_dtype(input.scalar_type()), input);
  if (moments.numel() == 0) return moments;
  Tensor holder;
  ChannelNormParams params{};
  params.moments = moments.mutable_data_ptr();
  params.dtype = to_dtype(input.scalar_type());
  Launch launch(input);
#if !defined(WARPWRIGHT_BACKEND_CPU)
  if (found != nullptr && found->slab > 0) {
    params.shape = shape_in_slabs(input, *found);
    params.mean_partials = found->means.mutable_data_ptr();
    params.square_partials = found->squares.mutable_data_ptr();
    backend::channel_norm_cells(params, launch.stream());
    return moments;
  }
#endif
  params.shape = shape_of(input);
  params.input = planes_of(input, holder);
  cut_slabs(params.shape, {&params.input});
  Tensor means = empty_partials(params.shape, true, input), squares = empty_partials(params.shape, true, input);
  params.mean_partials = means.mutable_data_ptr();
  params.square_partials = squares.mutable_data_ptr();
  backend::channel_norm_moments(params, launch.stream());
  return moments;
}

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("group_norm", TORCH_BOX(&group_norm));
  m.impl("group_norm_backward", TORCH_BOX(&group_norm_backward));
  m.impl("batch_norm", TORCH_BOX(&batch_norm));
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
}

}  // namespace warpwright
