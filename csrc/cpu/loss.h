// What the CPU kernels of the loss family share.

#pragma once

#include "cpu/vec.h"
#include "kernels/loss.h"

WARPWRIGHT_ISA_BEGIN

// One element of a tensor whose storage type is known at run time.
template <class A>
A load_as(DType dtype, const void* data, int64_t index) {
  A value = 0;
  visit_float(dtype, [&](auto tag) { value = static_cast<A>(to_acc(static_cast<const decltype(tag)*>(data)[index])); });
  return value;
}
template <class A>
void store_as(DType dtype, void* data, int64_t index, A value) {
  visit_float(dtype, [&](auto tag) {
    using T = decltype(tag);
    static_cast<T*>(data)[index] = from_acc<T>(static_cast<acc_t<T>>(value));
  });
}

inline int64_t target_of(const Rows& target, int64_t row) {
  return static_cast<const int64_t*>(target.data)[target.offset(row)];
}

WARPWRIGHT_ISA_END
