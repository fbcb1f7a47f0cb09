// Batch Renormalization on a CPU: all of a layer's forward pass in one call, all of its backward in another.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "planes.h"
#include "rows.h"

namespace {

using at::Tensor;
using Maybe = const std::optional<Tensor>&;

void check_vector(const Tensor& t, int64_t numbers) {
  TORCH_CHECK(t.is_contiguous() && t.numel() == numbers, "a vector of ", numbers, " neighbours expected");
}

template <class T>
const T* vector(Maybe t, int64_t numbers) {
  if (!t) return nullptr;
  check_vector(*t, numbers);
  return t->const_data_ptr<T>();
}

// For tensors that the call changes: autograd must hear of it.
template <class T>
T* changed(Maybe t, int64_t numbers) {
  if (!t) return nullptr;
  check_vector(*t, numbers);
  t->unsafeGetTensorImpl()->bump_version();
  return t->data_ptr<T>();
}

// One number, whatever its type.
template <class A>
A number(const Tensor& t) {
  return t.scalar_type() == at::kDouble ? static_cast<A>(*t.const_data_ptr<double>())
                                        : static_cast<A>(*t.const_data_ptr<float>());
}

Tensor per_channel(const Tensor& like, int64_t rows = 1) {
  auto options = like.options();
  return rows == 1 ? at::empty({like.numel()}, options) : at::empty({rows, like.numel()}, options);
}

// Planes where each channel's values are neighbours, else rows of channels.
bool in_planes(const Tensor& x) { return x.is_contiguous() && x.numel() > x.size(0) * x.size(1); }

void check_alike(const Tensor& x, const Tensor& other, const char* name) {
  TORCH_CHECK(
      other.strides() == x.strides() && other.sizes() == x.sizes() && other.scalar_type() == x.scalar_type(), name,
      " must lie in memory as the input does");
}

// f(T, A): the input's type and its statistics'.
template <class F>
void with_types(const Tensor& x, const Tensor& statistics, F f) {
  auto type = x.scalar_type();
  bool wide = type == at::kDouble;
  TORCH_CHECK(statistics.scalar_type() == (wide ? at::kDouble : at::kFloat), "statistics of another type");
  if (wide) return f(double{}, double{});
  if (type == at::kFloat) return f(float{}, float{});
  TORCH_CHECK(type == at::kBFloat16, "input of type ", type);
  f(c10::BFloat16{}, float{});
}

std::tuple<Tensor, Tensor> forward(
    const Tensor& x, Maybe weight, Maybe bias, Maybe added, const Tensor& running_mean, const Tensor& running_var,
    const Tensor& rmax, const Tensor& dmax, const Tensor& momentum, double eps, bool relu, Maybe clipped) {
  if (added) check_alike(x, *added, "what is added");
  Tensor y = at::empty_like(x), saved = per_channel(running_mean, Saved<float>::rows);
  int64_t channels = x.size(1);
  with_types(x, running_mean, [&](auto t, auto a) {
    using T = decltype(t);
    using A = decltype(a);
    A high = number<A>(rmax);
    A* beyond = changed<A>(clipped, 2 * channels);
    Correction<A> layer{
        vector<A>(weight, channels), vector<A>(bias, channels), changed<A>(running_mean, channels),
        changed<A>(running_var, channels), 1 / high, high,
        number<A>(dmax), number<A>(momentum), static_cast<A>(eps), beyond,
        beyond ? beyond + channels : nullptr, Saved<A>(saved.data_ptr<A>(), channels)};
    const T *from = x.const_data_ptr<T>(), *plus = added ? added->const_data_ptr<T>() : nullptr;
    T* to = y.data_ptr<T>();
    if (!in_planes(x)) return row_forward<A>(from, plus, to, Rows(x.numel() / channels, channels), relu, layer);
    Planes s{x.size(0), channels, x.numel() / x.size(0) / channels};
    parallel_for(channels, std::max<int64_t>(1, kGrain / s.values()), [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) plane_forward<A>(from, plus, to, s, c, relu, layer);
    });
  });
  return {y, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& dy, const Tensor& x, Maybe y, const Tensor& saved, bool relu, bool needs_dx, Maybe moments,
    Maybe moving_batches, Maybe moving_momentum) {
  check_alike(x, dy, "the gradient");
  if (y) check_alike(x, *y, "the output");
  Tensor d_weight = per_channel(saved[0]), d_bias = per_channel(saved[0]), line = per_channel(saved[0], 2);
  Tensor dx, d_added;
  if (needs_dx) dx = at::empty_like(x);
  if (y) d_added = at::empty_like(x);
  int64_t channels = x.size(1);
  with_types(x, saved, [&](auto t, auto a) {
    using T = decltype(t);
    using A = decltype(a);
    A* coefficients = line.data_ptr<A>();
    Gradient<A> layer{
        Saved<A>(saved.data_ptr<A>(), channels), changed<A>(moments, 4 * channels), channels,
        moments ? std::max(A(1) / ++*changed<A>(moving_batches, 1), number<A>(*moving_momentum)) : A(1), A(x.numel() / channels),
        d_weight.data_ptr<A>(), d_bias.data_ptr<A>(), coefficients, coefficients + channels};
    const T *g = dy.const_data_ptr<T>(), *from = x.const_data_ptr<T>(), *out = y ? y->const_data_ptr<T>() : nullptr;
    T *to = needs_dx ? dx.data_ptr<T>() : nullptr, *to_added = y ? d_added.data_ptr<T>() : nullptr;
    auto run = [&](auto kind) {
      constexpr Mask mask = decltype(kind)::value;
      if (!in_planes(x)) {
        return row_backward<mask, A>(g, from, out, to, to_added, Rows(x.numel() / channels, channels), layer);
      }
      Planes s{x.size(0), channels, x.numel() / x.size(0) / channels};
      parallel_for(channels, std::max<int64_t>(1, kGrain / s.values()), [&](int64_t first, int64_t last) {
        for (int64_t c = first; c < last; ++c) plane_backward<mask, A>(g, from, out, to, to_added, s, c, layer);
      });
    };
    if (y) return run(std::integral_constant<Mask, Mask::output>{});
    if (relu) return run(std::integral_constant<Mask, Mask::input>{});
    run(std::integral_constant<Mask, Mask::none>{});
  });
  return {dx, d_weight, d_bias, d_added};
}

}  // namespace

TORCH_LIBRARY(batch_renorm_native, m) {
  m.def(
      "forward(Tensor x, Tensor? weight, Tensor? bias, Tensor? added, Tensor(a!) running_mean, "
      "Tensor(b!) running_var, Tensor rmax, Tensor dmax, Tensor momentum, float eps, bool relu, Tensor(c!)? clipped) "
      "-> (Tensor, Tensor)");
  m.def(
      "backward(Tensor dy, Tensor x, Tensor? y, Tensor saved, bool relu, bool needs_dx, Tensor(a!)? moments, "
      "Tensor(b!)? moving_batches, Tensor? moving_momentum) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(batch_renorm_native, CPU, m) {
  m.impl("forward", &forward);
  m.impl("backward", &backward);
}
