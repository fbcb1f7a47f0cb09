// Input whose channels are planes of neighbouring values: contiguous (N, C, L). One channel at a time, so that
// its values come from the cache when they are needed again.
#pragma once

#include <algorithm>

#include "channels.h"
#include "elements.h"

struct Planes {
  int64_t examples, channels, length;

  int64_t stride() const { return channels * length; }
  int64_t values() const { return examples * length; }
};

// Calls f(first value, planes, values of each) over a channel in pieces of a few thousand values.
template <class F>
KERNEL void pieces(const Planes& s, int64_t channel, F f) {
  constexpr int64_t most = 4096;
  int64_t start = channel * s.length, together = std::max<int64_t>(1, most / s.length);
  for (int64_t n = 0; n < s.examples; n += together) {
    int64_t planes = std::min(together, s.examples - n);
    for (int64_t i = 0; i < s.length; i += most) {
      f(start + n * s.stride() + i, planes, std::min(most, s.length - i));
    }
  }
}

// Mean and biased variance. Each piece is summed about the mean so far (the first about a guess of it, from planes far apart),
// which keeps rounding small; the pieces are put together after Chan, Golub and LeVeque (1979).
template <class A, class T>
void plane_moments(const T* x, const Planes& s, int64_t channel, A& mean_out, A& var_out) {
  double mean = 0, squares = 0, seen = 0;
  pieces(s, channel, [&](int64_t at, int64_t planes, int64_t length) KERNEL_LAMBDA {
    if (seen == 0) {
      Sum<A> sum;
      int64_t step = std::max<int64_t>(1, planes / 8), taken = 0;
      for (int64_t n = 0; n < planes; n += step, ++taken) {
        const T* p = x + at + n * s.stride();
        sweep<A>(length, [&](int64_t i, auto lane, int slot) KERNEL_LAMBDA {
          sum.add(decltype(lane)::load(p + i), slot);
        });
      }
      mean = sum.total() / static_cast<double>(taken * length);
    }
    A guess = static_cast<A>(mean);
    Sum<A> sum, square;
    for (int64_t n = 0; n < planes; ++n) {
      const T* p = x + at + n * s.stride();
      sweep<A>(length, [&](int64_t i, auto lane, int slot) KERNEL_LAMBDA {
        using L = decltype(lane);
        auto v = L::load(p + i) - L::fill(guess);
        sum.add(v, slot);
        square.add(v * v, slot);
      });
    }
    double count = static_cast<double>(planes * length), off = sum.total() / count, share = count / (seen + count);
    double delta = guess + off - mean;
    squares += square.total() - off * off * count + delta * delta * seen * share;
    mean = seen == 0 ? guess + off : mean + delta * share;
    seen += count;
  });
  mean_out = static_cast<A>(mean);
  var_out = static_cast<A>((squares < 0 ? 0 : squares) / seen);
}

template <class A, class T>
void plane_forward(
    const T* x, const T* added, T* y, const Planes& s, int64_t c, bool relu, const Correction<A>& layer) {
  A mean, var;
  plane_moments(x, s, c, mean, var);
  layer.settle(c, mean, var);
  Same<A> m{mean}, scale{layer.saved.scale[c]}, shift{layer.saved.shift[c]};
  int64_t at = c * s.length;
  normalize<false, A>(
      x + at, added ? added + at : nullptr, y + at, s.examples, s.stride(), s.length, relu, m, scale, shift);
}

// dx and d_added may be null.
template <Mask mask, class A, class T>
void plane_backward(
    const T* dy, const T* x, const T* y, T* dx, T* d_added, const Planes& s, int64_t c, const Gradient<A>& layer) {
  A m = layer.saved.mean[c], a = layer.saved.scale[c], b = layer.saved.shift[c];
  double total = 0, product = 0;
  pieces(s, c, [&](int64_t start, int64_t planes, int64_t length) KERNEL_LAMBDA {
    Sum<A> sum, with_x;
    for (int64_t n = 0; n < planes; ++n) {
      int64_t first = start + n * s.stride();
      sweep<A>(length, [&](int64_t i, auto lane, int slot) KERNEL_LAMBDA {
        using L = decltype(lane);
        auto value = L::load(x + first + i), g = L::load(dy + first + i);
        if constexpr (mask == Mask::input) g = let_through(affine(value, L::fill(m), L::fill(a), L::fill(b)), g);
        if constexpr (mask == Mask::output) {
          g = let_through(L::load(y + first + i), g);
          L::store(d_added + first + i, g);
        }
        sum.add(g, slot);
        with_x.add(g * (value - L::fill(m)), slot);
      });
    }
    total += sum.total();
    product += with_x.total();
  });
  layer.settle(c, static_cast<A>(total), static_cast<A>(product));
  if (!dx) return;
  constexpr Mask again = mask == Mask::input ? Mask::input : Mask::none;
  const T* g = mask == Mask::output ? d_added : dy;
  int64_t at = c * s.length;
  input_gradient<false, again, A>(
      g + at, x + at, dx + at, s.examples, s.stride(), s.length, Same<A>{m}, Same<A>{a}, Same<A>{b},
      Same<A>{layer.slope[c]}, Same<A>{layer.shift[c]});
}
