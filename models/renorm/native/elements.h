// The arithmetic on every element, over rows of n values that lie a stride apart in memory. K gives a number for
// each value of a row, see lanes.h; in_one_piece says that nothing lies between the rows.
#pragma once

#include "lanes.h"

// Whose gradient a ReLU at the end lets through: all, or what was above zero, known from the input or (where
// something was added before the ReLU) from the output.
enum class Mask { none, input, output };

template <class V>
KERNEL V affine(V x, V mean, V scale, V shift) {
  // Never contracted to a fused multiply-add: the backward pass must find the very same number.
  return (x - mean) * scale + shift;
}

template <class V>
KERNEL V relu_of(V v) {
  return V{} > v ? V{} : v;  // what is not a number stays so
}

template <class V>
KERNEL V let_through(V output, V gradient) {
  return output <= V{} ? V{} : gradient;
}

template <bool in_one_piece, class A, class T, class K>
KERNEL void normalize(
    const T* x, const T* added, T* y, int64_t rows, int64_t stride, int64_t n, bool relu, K mean, K scale, K shift) {
  auto run = [&](auto adds, auto cuts) KERNEL_LAMBDA {
    for (int64_t at = 0; at < rows * stride; at += stride) {
      sweep<A>(n, [&](int64_t i, auto lane, int) KERNEL_LAMBDA {
        using L = decltype(lane);
        if constexpr (in_one_piece) will_write(y + at + i);
        auto v = affine(
            L::load(x + at + i), mean.template at<L>(i), scale.template at<L>(i), shift.template at<L>(i));
        if constexpr (adds) v += L::load(added + at + i);
        if constexpr (cuts) v = relu_of(v);
        L::store(y + at + i, v);
      });
    }
  };
  using Yes = std::true_type;
  using No = std::false_type;
  if (added) {
    relu ? run(Yes{}, Yes{}) : run(Yes{}, No{});
  } else {
    relu ? run(No{}, Yes{}) : run(No{}, No{});
  }
}

template <bool in_one_piece, Mask mask, class A, class T, class K>
KERNEL void input_gradient(
    const T* dy, const T* x, T* dx, int64_t rows, int64_t stride, int64_t n, K mean, K scale, K shift, K slope,
    K offset) {
  for (int64_t at = 0; at < rows * stride; at += stride) {
    sweep<A>(n, [&](int64_t i, auto lane, int) KERNEL_LAMBDA {
      using L = decltype(lane);
      if constexpr (in_one_piece) will_write(dx + at + i);
      auto m = mean.template at<L>(i), a = scale.template at<L>(i);
      auto value = L::load(x + at + i), g = L::load(dy + at + i);
      if constexpr (mask == Mask::input) g = let_through(affine(value, m, a, shift.template at<L>(i)), g);
      L::store(dx + at + i, g * a + ((value - m) * slope.template at<L>(i) + offset.template at<L>(i)));
    });
  }
}
