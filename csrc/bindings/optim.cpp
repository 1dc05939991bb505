// Bindings of the optim family: every rule has the same lists, checks and table, and its own numbers.

#include "kernels/optim.h"

#include <algorithm>

#include "bindings/tensor_lists.h"

namespace warpwright {
namespace {

// What every step is given. `moments` and `scales` have a name and a list for each moment of the rule; `maxima` has the
// running maxima of Adam's second moments, or nothing.
struct Step {
  const char* op;
  Tensors &params, &grads, &masters, &steps;
  std::vector<std::pair<const char*, Tensors*>> moments, scales;
  OptionalTensor &grad_scale, &found_inf, &lr_tensor, &grad_multiplier;
  std::optional<int64_t> rounding_seed;
  Tensors* maxima = nullptr;

  bool amsgrad() const { return maxima != nullptr && !maxima->empty(); }
};

using Launcher = void (*)(const OptimParams&, Stream);

// ---- checks ----

void check_hyperparameter(const char* op, const char* name, double value, bool fits, const char* range) {
  WARPWRIGHT_CHECK(fits, op, name, " must be ", range, ", got ", value);
}
void check_not_negative(const char* op, const char* name, double value) {
  check_hyperparameter(op, name, value, value >= 0, "at least 0");
}
void check_beta(const char* op, const char* name, double value) {
  check_hyperparameter(op, name, value, value >= 0 && value < 1, "in [0, 1)");
}

void check_scales(const char* op, const char* name, const Tensors& scales, const Tensors& params) {
  check_count(op, name, scales, params);
  for (size_t i = 0; i < scales.size(); ++i) {
    const Tensor& tensor = scales[i];
    check_same_device(op, name, tensor, "params", params[0]);
    const int64_t blocks = (params[i].numel() + kCodeBlock - 1) / kCodeBlock;
    WARPWRIGHT_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.dim() == 1 && tensor.size(0) == blocks, op,
                     name, "[", i, "] must be torch.float32 of shape (", blocks, ",), got ",
                     dtype_name(tensor.scalar_type()), " of shape ", shape_text(tensor.sizes()));
  }
}

// The moments' dtype: of the parameters, what is computed in, or 8-bit codes with scales.
ScalarType check_moments(const Step& s, ScalarType dtype) {
  const ScalarType acc = acc_dtype(dtype);
  if (s.moments.empty() || s.moments[0].second->empty()) return dtype;
  const auto& [first_name, first_list] = s.moments[0];
  check_count(s.op, first_name, *first_list, s.params);
  const ScalarType state = (*first_list)[0].scalar_type();
  const bool coded = !s.scales.empty() && !s.scales[0].second->empty();
  if (coded) {
    WARPWRIGHT_CHECK(dtype != ScalarType::Double, s.op, s.scales[0].first, " must be empty for torch.float64 params");
    WARPWRIGHT_CHECK(state == ScalarType::Byte, s.op, first_name, "[0] must be torch.uint8 with scales, got ",
                     dtype_name(state));
  } else {
    WARPWRIGHT_CHECK(state == acc || (state == dtype && s.masters.empty()), s.op, first_name, "[0] must be ",
                     dtype_name(acc), s.masters.empty() ? " or have the dtype of params" : " with masters", ", got ",
                     dtype_name(state));
  }
  for (const auto& [name, list] : s.moments) {
    check_list(s.op, name, *list, s.params, state);
    check_writable(s.op, name, *list);
  }
  for (const auto& [name, list] : s.scales) {
    WARPWRIGHT_CHECK(coded || list->empty(), s.op, name, " must be empty without ", s.scales[0].first, ", got ",
                     list->size(), " tensors");
    if (coded) check_scales(s.op, name, *list, s.params);
    check_writable(s.op, name, *list);
  }
  if (s.amsgrad()) {
    check_list(s.op, "max_exp_avg_sqs", *s.maxima, s.params, coded ? acc : state);
    check_writable(s.op, "max_exp_avg_sqs", *s.maxima);
  }
  return state;
}

ScalarType check_step(const Step& s) {
  const char* op = s.op;
  const Tensor& first = s.params[0];
  const ScalarType dtype = first.scalar_type(), acc = acc_dtype(dtype);
  check_float(op, "params[0]", first);
  check_list(op, "params", s.params, s.params, dtype);
  check_list(op, "grads", s.grads, s.params, dtype);
  WARPWRIGHT_CHECK(s.masters.empty() || dtype != acc, op, "masters must be empty for ", dtype_name(dtype),
                   " params, got ", s.masters.size(), " tensors");
  const ScalarType state = check_moments(s, dtype);
  if (!s.masters.empty()) check_list(op, "masters", s.masters, s.params, acc);
  check_writable(op, "params", s.params);
  check_writable(op, "masters", s.masters);
  check_count(op, "steps", s.steps, s.params);
  for (size_t i = 0; i < s.steps.size(); ++i) {
    check_scalar(op, "steps[" + std::to_string(i) + "]", s.steps[i], "params", first);
  }
  if (s.grad_scale.has_value()) check_scalar(op, "grad_scale", *s.grad_scale, "params", first);
  if (s.found_inf.has_value()) check_scalar(op, "found_inf", *s.found_inf, "params", first);
  if (s.lr_tensor.has_value()) check_scalar(op, "lr", *s.lr_tensor, "params", first);
  if (s.grad_multiplier.has_value()) check_scalar(op, "grad_multiplier", *s.grad_multiplier, "params", first);
  WARPWRIGHT_CHECK(!s.rounding_seed.has_value() || (dtype == ScalarType::BFloat16 && s.masters.empty()), op,
                   "rounding_seed must be None unless params are torch.bfloat16 without masters");
  return state;
}

// ---- the table ----

OptimTensor entry(const Step& s, size_t i, bool row_by_row, Arranged& arranged) {
  const Tensor& param = s.params[i];
  const std::vector<int64_t> strides = row_by_row ? contiguous_strides(param) : dense_strides(param);
  OptimTensor t{};
  t.param = arranged.write(param, strides);
  t.grad = arranged.read(s.grads[i], strides);
  for (size_t k = 0; k < s.moments.size(); ++k) {
    if (!s.moments[k].second->empty()) t.moments[k] = arranged.write((*s.moments[k].second)[i], strides);
  }
  for (size_t k = 0; k < s.scales.size(); ++k) {
    if (!s.scales[k].second->empty()) t.scales[k] = static_cast<float*>(arranged.write((*s.scales[k].second)[i], {1}));
  }
  if (s.amsgrad()) t.maximum = arranged.write((*s.maxima)[i], strides);
  if (!s.masters.empty()) t.master = static_cast<float*>(arranged.write(s.masters[i], strides));
  t.step = static_cast<const float*>(s.steps[i].const_data_ptr());
  t.numel = param.numel();
  t.index = static_cast<int32_t>(i);
  return t;
}

// Checks the step, and launches it for as many tensors at a time as a table holds. `table` has the rule's numbers;
// `workspace` says whether it needs partial sums.
void run(const Step& s, OptimParams& table, Launcher launcher, bool workspace = false) {
  const ScalarType state = check_step(s);
  const Tensor& first = s.params[0];
  table.grad_scale = static_cast<const float*>(data_or_null(s.grad_scale));
  table.found_inf = static_cast<const float*>(data_or_null(s.found_inf));
  table.lr_tensor = static_cast<const float*>(data_or_null(s.lr_tensor));
  table.grad_multiplier = static_cast<const float*>(data_or_null(s.grad_multiplier));
  table.stochastic = s.rounding_seed.has_value();
  table.seed = s.rounding_seed.value_or(0);
  table.dtype = to_dtype(first.scalar_type());
  table.state_dtype = to_dtype(state);
  const bool row_by_row = table.stochastic || state == ScalarType::Byte;
  Launch launch(first);
  Arranged arranged;
  Tensors held;
  for (size_t i = 0; i < s.params.size(); ++i) {
    if (s.params[i].numel() > 0) {
      const int t = append_chunks(table, s.params[i].numel(), kOptimChunk);
      table.tensors[t] = entry(s, i, row_by_row, arranged);
    }
    if (table.count == kMaxOptimTensors || (i + 1 == s.params.size() && table.count > 0)) {
      if (workspace) {
        const ScalarType acc = acc_dtype(first.scalar_type());
        held.push_back(empty({2 * table.first_chunk[table.count]}, acc, first));
        table.partials = held.back().mutable_data_ptr();
        held.push_back(empty({table.count}, acc, first));
        table.trust = held.back().mutable_data_ptr();
      }
      launcher(table, launch.stream());
      table.count = 0;
    }
  }
  arranged.write_back();
}

// ---- the operators ----

void adam_step(const Step& s, bool decoupled, double lr, double beta1, double beta2, double eps, double weight_decay,
               bool maximize, Launcher launcher, bool workspace = false) {
  check_not_negative(s.op, "lr", lr);
  check_beta(s.op, "beta1", beta1);
  check_beta(s.op, "beta2", beta2);
  check_not_negative(s.op, "eps", eps);
  check_not_negative(s.op, "weight_decay", weight_decay);
  OptimParams table{};
  table.decoupled = decoupled;
  table.lr = lr;
  table.beta1 = beta1;
  table.beta2 = beta2;
  table.eps = eps;
  table.weight_decay = weight_decay;
  table.maximize = maximize;
  table.amsgrad = s.amsgrad();
  run(s, table, launcher, workspace);
}

// adamw_, whose decay is decoupled, and adam_.
template <bool kDecoupled>
void adam_(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors masters, Tensors steps,
           double lr, double beta1, double beta2, double eps, double weight_decay, bool maximize,
           OptionalTensor grad_scale, OptionalTensor found_inf, OptionalTensor lr_tensor,
           OptionalTensor grad_multiplier, Tensors exp_avg_scales, Tensors exp_avg_sq_scales, Tensors max_exp_avg_sqs,
           std::optional<int64_t> rounding_seed) {
  if (params.empty()) return;
  const Step s{kDecoupled ? "adamw_" : "adam_",
               params,
               grads,
               masters,
               steps,
               {{"exp_avgs", &exp_avgs}, {"exp_avg_sqs", &exp_avg_sqs}},
               {{"exp_avg_scales", &exp_avg_scales}, {"exp_avg_sq_scales", &exp_avg_sq_scales}},
               grad_scale,
               found_inf,
               lr_tensor,
               grad_multiplier,
               rounding_seed,
               &max_exp_avg_sqs};
  adam_step(s, kDecoupled, lr, beta1, beta2, eps, weight_decay, maximize, &backend::adam);
}

void lamb_(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors masters, Tensors steps,
           double lr, double beta1, double beta2, double eps, double weight_decay, bool maximize,
           OptionalTensor grad_scale, OptionalTensor found_inf, OptionalTensor lr_tensor,
           OptionalTensor grad_multiplier, Tensors exp_avg_scales, Tensors exp_avg_sq_scales,
           std::optional<int64_t> rounding_seed) {
  if (params.empty()) return;
  const char* op = "lamb_";
  const Step s{op,
               params,
               grads,
               masters,
               steps,
               {{"exp_avgs", &exp_avgs}, {"exp_avg_sqs", &exp_avg_sqs}},
               {{"exp_avg_scales", &exp_avg_scales}, {"exp_avg_sq_scales", &exp_avg_sq_scales}},
               grad_scale,
               found_inf,
               lr_tensor,
               grad_multiplier,
               rounding_seed};
  // Its second pass makes each direction again out of the moments, which therefore must not have been rounded; out of
  // codes it makes the moments again too.
  if (exp_avg_scales.empty()) check_list(op, "exp_avgs", exp_avgs, params, acc_dtype(params[0].scalar_type()));
  adam_step(s, true, lr, beta1, beta2, eps, weight_decay, maximize, &backend::lamb, true);
}

void sgd_(Tensors params, Tensors grads, Tensors momentum_buffers, Tensors masters, Tensors steps, double lr,
          double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
          OptionalTensor grad_scale, OptionalTensor found_inf, OptionalTensor lr_tensor, OptionalTensor grad_multiplier,
          Tensors momentum_buffer_scales, std::optional<int64_t> rounding_seed) {
  if (params.empty()) return;
  const char* op = "sgd_";
  check_not_negative(op, "lr", lr);
  check_not_negative(op, "momentum", momentum);
  check_not_negative(op, "weight_decay", weight_decay);
  WARPWRIGHT_CHECK(!nesterov || (momentum > 0 && dampening == 0), op,
                   "nesterov must come with a momentum above 0 and a dampening of 0");
  WARPWRIGHT_CHECK(momentum_buffers.empty() == (momentum == 0), op, "momentum_buffers must hold ",
                   momentum == 0 ? "no tensor without momentum" : "a tensor for each of params", ", got ",
                   momentum_buffers.size());
  const Step s{op,
               params,
               grads,
               masters,
               steps,
               {{"momentum_buffers", &momentum_buffers}},
               {{"momentum_buffer_scales", &momentum_buffer_scales}},
               grad_scale,
               found_inf,
               lr_tensor,
               grad_multiplier,
               rounding_seed};
  OptimParams table{};
  table.lr = lr;
  table.momentum = momentum;
  table.dampening = dampening;
  table.weight_decay = weight_decay;
  table.nesterov = nesterov;
  table.maximize = maximize;
  run(s, table, &backend::sgd);
}

void lion_(Tensors params, Tensors grads, Tensors exp_avgs, Tensors masters, Tensors steps, double lr, double beta1,
           double beta2, double weight_decay, bool maximize, OptionalTensor grad_scale, OptionalTensor found_inf,
           OptionalTensor lr_tensor, OptionalTensor grad_multiplier, Tensors exp_avg_scales,
           std::optional<int64_t> rounding_seed) {
  if (params.empty()) return;
  const char* op = "lion_";
  check_not_negative(op, "lr", lr);
  check_beta(op, "beta1", beta1);
  check_beta(op, "beta2", beta2);
  check_not_negative(op, "weight_decay", weight_decay);
  const Step s{op,
               params,
               grads,
               masters,
               steps,
               {{"exp_avgs", &exp_avgs}},
               {{"exp_avg_scales", &exp_avg_scales}},
               grad_scale,
               found_inf,
               lr_tensor,
               grad_multiplier,
               rounding_seed};
  OptimParams table{};
  table.decoupled = true;
  table.lr = lr;
  table.beta1 = beta1;
  table.beta2 = beta2;
  table.weight_decay = weight_decay;
  table.maximize = maximize;
  run(s, table, &backend::lion);
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("adamw_", TORCH_BOX(&adam_<true>));
  m.impl("adam_", TORCH_BOX(&adam_<false>));
  m.impl("lamb_", TORCH_BOX(&lamb_));
  m.impl("sgd_", TORCH_BOX(&sgd_));
  m.impl("lion_", TORCH_BOX(&lion_));
}

}  // namespace warpwright
