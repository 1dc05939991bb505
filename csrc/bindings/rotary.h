// What the bindings of every op with rotary embedding check.

#pragma once

#include "bindings/common.h"

namespace warpwright {

// Throws unless `input` is (batch, sequence, heads, head_dim) in a floating type.
inline void check_heads(const char* op, const char* name, const Tensor& input) {
  check_float(op, name, input);
  WARPWRIGHT_CHECK(input.dim() == 4, op, name, " must have 4 dimensions (batch, sequence, heads, head_dim), got ",
                   input.dim());
}

inline void check_table_dtype(const char* op, const char* name, const Tensor& table, const char* input_name,
                              const Tensor& input) {
  check_same_device(op, name, table, input_name, input);
  const ScalarType dtype = table.scalar_type();
  WARPWRIGHT_CHECK(dtype == ScalarType::Float || dtype == input.scalar_type(), op, name, " must have the dtype of ",
                   input_name, " (", dtype_name(input.scalar_type()), ") or torch.float32, got ", dtype_name(dtype));
}

// Throws unless `table` holds an angle's cosine or sine for each position of `input` and each pair that is rotated.
inline void check_table(const char* op, const char* name, const Tensor& table, const char* input_name,
                        const Tensor& input) {
  check_table_dtype(op, name, table, input_name, input);
  const int64_t dims = table.dim();
  const int64_t batch = input.size(0), sequence = input.size(1), head_dim = input.size(3);
  const bool fits = (dims == 2 || dims == 3) && table.size(dims - 2) == sequence &&
                    2 * table.size(dims - 1) <= head_dim && (dims == 2 || table.size(0) == batch);
  WARPWRIGHT_CHECK(fits, op, name, " must have shape (", sequence, ", n) or (", batch, ", ", sequence,
                   ", n) with 2 * n at most head_dim ", head_dim, ", got ", shape_text(table.sizes()));
}

inline void check_tables(const char* op, const Tensor& cos, const Tensor& sin, const char* input_name,
                         const Tensor& input) {
  check_table(op, "cos", cos, input_name, input);
  check_table(op, "sin", sin, input_name, input);
  check_like(op, "sin", sin, "cos", cos);
}

}  // namespace warpwright
