// What the bindings of the losses share.

#pragma once

#include "bindings/common.h"
#include "kernels/loss.h"

namespace warpwright {

Reduction to_reduction(const char* op, const std::string& name);
// Throws unless `name` is one of the reductions of a divergence.
void check_kl_reduction(const char* op, const std::string& name);

// The class dimension is the second, or the only one.
inline int64_t class_dim(const Tensor& input) { return input.dim() == 1 ? 0 : 1; }
// (N, C, d1, ...) seen as (N, d1, ..., C).
Tensor classes_last(Tensor tensor);
// input's without the class dimension.
std::vector<int64_t> row_sizes(const Tensor& input);

// Throws unless `input` has classes, and `weight` fits them.
void check_classes(const char* op, const Tensor& input, const OptionalTensor& weight);
// Throws unless `weight`, an argument called `name`, has one element of input's dtype, or of what that is added up in,
// for each class.
void check_class_weight(const char* op, const char* name, const OptionalTensor& weight, const Tensor& input,
                        int64_t classes);
// Throws unless `target` holds a class for each row.
void check_class_indices(const char* op, const Tensor& input, const Tensor& target);
// The same of their values on the CPU. On a GPU nobody can look at the targets without waiting for it: there the
// kernels answer a bad one with NaN.
void check_targets(const char* op, const Rows& target, int64_t rows, int64_t classes, int64_t ignore_index);
// Throws unless `grad_loss` fits the loss that `reduction` makes of rows of these sizes.
void check_grad_loss(const char* op, const Tensor& grad_loss, const Tensor& input, const std::vector<int64_t>& sizes,
                     Reduction reduction);
// Throws unless `tensor` holds `rows` numbers in what input's dtype is added up in.
void check_row_statistic(const char* op, const char* name, const Tensor& tensor, const Tensor& input, int64_t rows);
void check_loss_options(const char* op, double label_smoothing, double z_loss, double softcap);
// Throws unless `total` is what a mean was divided by.
void check_total(const char* op, const Tensor& total, const Tensor& input, Reduction reduction);

// Class weights in one piece, in what input's dtype is added up in.
OptionalTensor weight_row(const OptionalTensor& weight, ScalarType dtype);

// What a loss over rows is put together from.
struct RowLosses {
  Tensor loss;      // The result; with reduction none the same as row_loss.
  Tensor row_loss;  // (rows)
  Tensor total;     // One element, or none with reduction none.
};
RowLosses empty_losses(const std::vector<int64_t>& sizes, Reduction reduction, bool float32_loss, const Tensor& input);
// The sum, times `factor`, or the mean; with `total_only` just what a mean is divided by. `target` is null where each
// row counts alike.
void sum_losses(const RowLosses& losses, const Rows& target, const OptionalTensor& weight, int64_t rows,
                int64_t classes, int64_t ignore_index, Reduction reduction, Stream stream, bool total_only = false,
                double factor = 1);

}  // namespace warpwright
