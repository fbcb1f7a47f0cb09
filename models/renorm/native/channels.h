// The arithmetic on one channel: r, d and the moving averages. statistics.py and autograd.py do the same.
#pragma once

#include <cmath>

#include "lanes.h"

template <class A>
KERNEL bool finite(A v) {
  return v - v == 0;
}

// Not a number stays so.
template <class A>
KERNEL A clip(A v, A low, A high) {
  return v < low ? low : v > high ? high : v;
}

// Vectors of one entry a channel that the backward pass needs, rows of one tensor.
template <class A>
struct Saved {
  A *mean, *invstd, *r, *d, *scale, *shift;
  static constexpr int64_t rows = 6;

  Saved(A* p, int64_t channels)
      : mean(p), invstd(p + channels), r(p + 2 * channels), d(p + 3 * channels), scale(p + 4 * channels),
        shift(p + 5 * channels) {}
};

template <class A>
struct Correction {
  const A *weight, *bias;  // or null
  A *running_mean, *running_var;
  A low, high, bound, momentum, eps;
  A *r_clipped, *d_clipped;  // or null
  Saved<A> saved;

  // From a batch's mean and biased variance to what the output is made with; moves the running statistics,
  // unless the batch's are not finite.
  KERNEL void settle(int64_t c, A mean, A var) const {
    A std = std::sqrt(var + eps), running_std = std::sqrt(running_var[c] + eps);
    A moved = mean - running_mean[c];
    A raw_r = std / running_std, raw_d = moved / running_std;
    A r = clip(raw_r, low, high), d = clip(raw_d, -bound, bound);
    if (r_clipped) {
      r_clipped[c] = raw_r == r ? 0 : 1;
      d_clipped[c] = raw_d == d ? 0 : 1;
    }
    bool good = finite(std) & finite(mean);
    A deviation = running_std + momentum * (std - running_std);
    A next_mean = running_mean[c] + momentum * moved, next_var = deviation * deviation - eps;
    running_mean[c] = good ? next_mean : running_mean[c];
    running_var[c] = good ? next_var : running_var[c];
    A invstd = 1 / std, gamma = weight ? weight[c] : 1, beta = bias ? bias[c] : 0;
    saved.mean[c] = mean;
    saved.invstd[c] = invstd;
    saved.r[c] = r;
    saved.d[c] = d;
    saved.scale[c] = r * invstd * gamma;
    saved.shift[c] = beta + d * gamma;
  }
};

template <class A>
struct Gradient {
  Saved<A> saved;
  A* moments;  // four rows of averages over batches, or null: GradientAverages in autograd.py
  int64_t channels;
  A share;  // weight of this batch in them
  A values;                            // a channel
  A *d_weight, *d_bias;
  A *slope, *shift;  // dx = scale * dy + slope * (x - mean) + shift

  // From the sums of dy and of dy * (x - mean).
  KERNEL void settle(int64_t c, A total, A product) const {
    A projection = product * saved.invstd[c];
    d_weight[c] = saved.r[c] * projection + saved.d[c] * total;
    d_bias[c] = total;
    A g_mean = total / values, g_projection = projection / values;
    if (moments) {
      A r = saved.r[c], d = saved.d[c];
      A dy = average(c, g_mean), product = average(channels + c, d_weight[c] / values);
      A z = average(2 * channels + c, d), square = average(3 * channels + c, r * r + d * d);
      A fitted = (product - z * dy) / (square - z * z);
      g_mean = dy + (d - z) * fitted;
      g_projection = r * fitted;
    }
    slope[c] = -saved.scale[c] * saved.invstd[c] * g_projection;
    shift[c] = -saved.scale[c] * g_mean;
  }

  KERNEL A average(int64_t i, A now) const {
    return moments[i] = finite(now) ? moments[i] + share * (now - moments[i]) : moments[i];
  }
};
