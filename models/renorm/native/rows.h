// Input whose channels are neighbours in memory: (rows, C), which channels_last and (N, C) are.
#pragma once

#include <algorithm>
#include <vector>

#include "channels.h"
#include "elements.h"
#include "parallel.h"

// Values that one thread takes at least.
constexpr int64_t kGrain = 32768;

// As many rows of a tile stay in the cache.
constexpr int64_t kFewRows = 256;

// A part of the input that one thread works on.
struct Part {
  int64_t row, rows, channel, channels, chunk;
};

// The rows are cut into chunks that threads share; where all fits into a cache, the channels are cut instead, and
// each tile of them is done at once. The cuts do not depend on the number of threads, and so neither do the results.
struct Rows {
  int64_t rows, channels, tile, chunk;

  Rows(int64_t rows, int64_t channels) : rows(rows), channels(channels), tile(channels), chunk(rows) {
    if (rows <= kFewRows) {
      tile = std::min<int64_t>(channels, 256);
    } else {
      int64_t chunks = std::clamp<int64_t>(rows * channels / kGrain, 1, 32);
      chunk = (rows + chunks - 1) / chunks;
    }
  }
  int64_t tiles() const { return (channels + tile - 1) / tile; }
  int64_t chunks() const { return (rows + chunk - 1) / chunk; }

  // Calls f on each part; backwards through each thread's share, where the one before went forwards, so that what
  // it saw last comes from the cache.
  template <class F>
  void parts(F f, bool backwards = false) const {
    int64_t grain = std::max<int64_t>(1, kGrain / (chunk * tile));
    parallel_for(tiles() * chunks(), grain, [&](int64_t from, int64_t to) {
      for (int64_t next = from; next < to; ++next) {
        int64_t part = backwards ? to - 1 - (next - from) : next;
        int64_t row = part / tiles() * chunk, channel = part % tiles() * tile;
        f(Part{row, std::min(chunk, rows - row), channel, std::min(tile, channels - channel), part / tiles()});
      }
    });
  }

  // Collects from every part, settles the channels, and writes every part; a tile at once where there is one chunk.
  template <class Collect, class Settle, class Write>
  void passes(Collect collect, Settle settle, Write write) const {
    if (chunks() == 1) {
      return parts([&](const Part& part) {
        collect(part);
        settle(part.channel, part.channel + part.channels);
        write(part);
      });
    }
    parts(collect);
    settle(0, channels);
    parts(write, true);
  }
};

// What a chunk gives for each channel, two vectors.
template <class A>
struct Pair {
  std::vector<A> memory;
  int64_t channels;

  Pair(int64_t count, int64_t channels) : memory(2 * count * channels, 0), channels(channels) {}
  A* first(int64_t chunk) { return memory.data() + 2 * chunk * channels; }
  A* second(int64_t chunk) { return first(chunk) + channels; }
};

// Adds to a[c] and b[c] what term(index in the input, channel, lane, a, b) says, over rows of one tile. Four rows
// at a time, so that the sums are loaded once for them; but not where they are far apart and many, for memory is
// slower so.
template <class A, class F>
KERNEL void add_rows(const Part& part, int64_t rows, int64_t stride, A* a, A* b, F term) {
  auto some = [&](int64_t row, auto count) KERNEL_LAMBDA {
    sweep<A>(part.channels, [&](int64_t c, auto lane, int) KERNEL_LAMBDA {
      using L = decltype(lane);
      auto u = L::load(a + c), v = L::load(b + c);
      for (int64_t n = 0; n < count; ++n) term((row + n) * stride + c, c, lane, u, v);
      L::store(a + c, u);
      L::store(b + c, v);
    });
  };
  bool together = stride <= 256 || part.rows <= kFewRows;
  int64_t row = 0;
  for (; together && row + 4 <= rows; row += 4) some(row, std::integral_constant<int64_t, 4>{});
  for (; row < rows; ++row) some(row, std::integral_constant<int64_t, 1>{});
}

// Rows that are summed before their sums are put together with the earlier ones'.
constexpr int64_t kBlock = 32;

// Mean and sum of squares about it of a part; as plane_moments.
template <class A, class T>
void row_moments(const T* x, const Part& part, int64_t stride, A* mean, A* squares) {
  int64_t n = part.channels;
  bool in_one_piece = n == stride;
  std::vector<A> sums(2 * n);
  A *sum = sums.data(), *square = sum + n;
  int64_t step = std::max<int64_t>(1, part.rows / 8);  // a guess of the mean from rows far apart
  A one = A(1) / ((part.rows + step - 1) / step);
  for (int64_t row = 0; row < part.rows; row += step) {
    for (int64_t c = 0; c < n; ++c) mean[c] += static_cast<A>(x[row * stride + c]) * one;
  }
  for (int64_t row = 0; row < part.rows; row += kBlock) {
    int64_t rows = std::min(kBlock, part.rows - row);
    std::fill(sums.begin(), sums.end(), A(0));
    add_rows<A>(part, rows, stride, sum, square, [&](int64_t at, int64_t c, auto lane, auto& u, auto& v) KERNEL_LAMBDA {
      using L = decltype(lane);
      if (in_one_piece) will_read(x + row * stride + at);
      auto d = L::load(x + row * stride + at) - L::load(mean + c);
      u += d;
      v += d * d;
    });
    // About the mean so far; the first guess of it counts nothing.
    A one = A(1) / rows, share = A(rows) / A(row + rows), weight = A(row) * share;
#pragma GCC ivdep
    for (int64_t c = 0; c < n; ++c) {
      A off = sum[c] * one;
      squares[c] += square[c] - off * sum[c] + off * off * weight;
      mean[c] += off * share;
    }
  }
}

template <class A, class T>
void row_forward(const T* x, const T* added, T* y, const Rows& s, bool relu, const Correction<A>& layer) {
  int64_t stride = s.channels;
  Pair<A> moments(s.chunks(), s.channels);
  auto collect = [&](const Part& part) {
    row_moments<A>(
        x + part.row * stride + part.channel, part, stride, moments.first(part.chunk) + part.channel,
        moments.second(part.chunk) + part.channel);
  };
  auto settle = [&](int64_t first, int64_t last) {
    double mean[256], squares[256];
    for (int64_t from = first; from < last; from += 256) {
      int64_t n = std::min<int64_t>(256, last - from);
      std::fill_n(mean, n, 0.0);
      std::fill_n(squares, n, 0.0);
      for (int64_t chunk = 0; chunk < s.chunks(); ++chunk) {
        const A *p = moments.first(chunk) + from, *q = moments.second(chunk) + from;
        double seen = chunk * s.chunk, rows = std::min(s.chunk, s.rows - chunk * s.chunk);
        double share = rows / (seen + rows), weight = seen * share;
#pragma GCC ivdep
        for (int64_t c = 0; c < n; ++c) {
          double delta = p[c] - mean[c];
          squares[c] += q[c] + delta * delta * weight;
          mean[c] += delta * share;
        }
      }
      double one = 1.0 / s.rows;
#pragma GCC ivdep
      for (int64_t c = 0; c < n; ++c) {
        layer.settle(from + c, static_cast<A>(mean[c]), static_cast<A>((squares[c] < 0 ? 0 : squares[c]) * one));
      }
    }
  };
  auto write = [&](const Part& part) {
    int64_t at = part.row * stride + part.channel, c = part.channel;
    Each<A> mean{layer.saved.mean + c}, scale{layer.saved.scale + c}, shift{layer.saved.shift + c};
    auto run = [&](auto in_one_piece) {
      normalize<in_one_piece, A>(
          x + at, added ? added + at : nullptr, y + at, part.rows, stride, part.channels, relu, mean, scale, shift);
    };
    part.channels == stride ? run(std::true_type{}) : run(std::false_type{});
  };
  s.passes(collect, settle, write);
}

// dx and d_added may be null.
template <Mask mask, class A, class T>
void row_backward(const T* dy, const T* x, const T* y, T* dx, T* d_added, const Rows& s, const Gradient<A>& layer) {
  int64_t stride = s.channels;
  Pair<A> parts(s.chunks(), s.channels);
  auto collect = [&](const Part& part) {
    bool in_one_piece = part.channels == stride;
    std::vector<A> both(2 * part.channels);
    A *sum = both.data(), *product = sum + part.channels;
    A *total = parts.first(part.chunk) + part.channel, *products = parts.second(part.chunk) + part.channel;
    const A *mean = layer.saved.mean + part.channel, *scale = layer.saved.scale + part.channel;
    const A* shift = layer.saved.shift + part.channel;
    for (int64_t row = 0; row < part.rows; row += kBlock) {
      int64_t start = (part.row + row) * stride + part.channel, n = part.channels;
      std::fill(both.begin(), both.end(), A(0));
      add_rows<A>(
          part, std::min(kBlock, part.rows - row), stride, sum, product,
          [&](int64_t at, int64_t c, auto lane, auto& u, auto& v) KERNEL_LAMBDA {
            using L = decltype(lane);
            at += start;
            if (in_one_piece) {
              will_read(x + at);
              will_read(dy + at);
            }
            auto value = L::load(x + at), g = L::load(dy + at), m = L::load(mean + c);
            if constexpr (mask == Mask::input) {
              g = let_through(affine(value, m, L::load(scale + c), L::load(shift + c)), g);
            }
            if constexpr (mask == Mask::output) {
              g = let_through(L::load(y + at), g);
              L::store(d_added + at, g);
            }
            u += g;
            v += g * (value - m);
          });
#pragma GCC ivdep
      for (int64_t c = 0; c < n; ++c) {
        total[c] += sum[c];
        products[c] += product[c];
      }
    }
  };
  auto settle = [&](int64_t first, int64_t last) {
    for (int64_t chunk = 1; chunk < s.chunks(); ++chunk) {
      A *to = parts.first(0), *from = parts.first(chunk);
      for (int64_t c = 0; c < 2 * s.channels; ++c) to[c] += from[c];
    }
    A *total = parts.first(0), *products = parts.second(0);
#pragma GCC ivdep
    for (int64_t c = first; c < last; ++c) layer.settle(c, total[c], products[c]);
  };
  auto write = [&](const Part& part) {
    if (!dx) return;
    constexpr Mask again = mask == Mask::input ? Mask::input : Mask::none;
    int64_t at = part.row * stride + part.channel, c = part.channel;
    const T* g = mask == Mask::output ? d_added : dy;
    auto run = [&](auto in_one_piece) {
      input_gradient<in_one_piece, again, A>(
          g + at, x + at, dx + at, part.rows, stride, part.channels, Each<A>{layer.saved.mean + c},
          Each<A>{layer.saved.scale + c}, Each<A>{layer.saved.shift + c}, Each<A>{layer.slope + c},
          Each<A>{layer.shift + c});
    };
    part.channels == stride ? run(std::true_type{}) : run(std::false_type{});
  };
  s.passes(collect, settle, write);
}
