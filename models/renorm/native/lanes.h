// Arithmetic on as many bytes at a time as the processor has, with what is left done one by one by the same code.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <c10/util/BFloat16.h>

#define KERNEL inline __attribute__((always_inline))
#define KERNEL_LAMBDA __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int64_t kBytes = 64;
#elif defined(__AVX2__)
constexpr int64_t kBytes = 32;
#else
constexpr int64_t kBytes = 16;
#endif

template <class A>
struct Lanes {
  typedef A V __attribute__((vector_size(kBytes)));
  static constexpr int64_t width = kBytes / sizeof(A);

  static KERNEL V load(const A* p) {
    V v;
    std::memcpy(&v, p, sizeof(V));
    return v;
  }
  static KERNEL void store(A* p, V v) { std::memcpy(p, &v, sizeof(V)); }
  static KERNEL V fill(A a) { return V{} + a; }

  // bfloat16 is the upper half of float32; rounding is to the nearest, ties to even, and keeps NaN.
  static KERNEL V load(const c10::BFloat16* p) {
    typedef uint16_t Half __attribute__((vector_size(kBytes / 2)));
    typedef uint32_t Bits __attribute__((vector_size(kBytes)));
    Half half;
    std::memcpy(&half, p, sizeof(Half));
    Bits bits = __builtin_convertvector(half, Bits) << 16;
    V v;
    std::memcpy(&v, &bits, sizeof(V));
    return v;
  }
  static KERNEL void store(c10::BFloat16* p, V v) {
    typedef uint16_t Half __attribute__((vector_size(kBytes / 2)));
    typedef uint32_t Bits __attribute__((vector_size(kBytes)));
    Bits bits;
    std::memcpy(&bits, &v, sizeof(V));
    Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Bits quiet = Bits{} + 0x7fc0;
    Half half = __builtin_convertvector(v == v ? rounded : quiet, Half);
    std::memcpy(p, &half, sizeof(Half));
  }
};

template <class A>
struct One {
  using V = A;

  template <class T>
  static KERNEL V load(const T* p) {
    return static_cast<A>(*p);
  }
  template <class T>
  static KERNEL void store(T* p, V v) {
    *p = static_cast<T>(v);
  }
  static KERNEL V fill(A a) { return a; }
};

// A number for each of a run of values: the same for all, or one each.
template <class A>
struct Same {
  A value;
  template <class L>
  KERNEL typename L::V at(int64_t) const {
    return L::fill(value);
  }
};
template <class A>
struct Each {
  const A* values;
  template <class L>
  KERNEL typename L::V at(int64_t i) const {
    return L::load(values + i);
  }
};

// Four sums side by side, so that one addition need not wait for the one before.
template <class A>
struct Sum {
  typename Lanes<A>::V wide[4] = {};
  A narrow = 0;

  KERNEL void add(typename Lanes<A>::V v, int slot) { wide[slot] += v; }
  KERNEL void add(A v, int) { narrow += v; }
  KERNEL A total() const {
    auto all = (wide[0] + wide[1]) + (wide[2] + wide[3]);
    A sum = narrow;
    for (int64_t i = 0; i < Lanes<A>::width; ++i) sum += all[i];
    return sum;
  }
};

// Bytes from what is worked on to what is asked of memory meanwhile, where that lies in one piece: the processor's own
// guess comes late, and later for what is only written.
constexpr int64_t kAhead = 4096;

template <class T>
KERNEL void will_read(const T* p) {
  __builtin_prefetch(p + kAhead / sizeof(T), 0);
}
template <class T>
KERNEL void will_write(T* p) {
  __builtin_prefetch(p + kAhead / sizeof(T), 1);
}

// Calls f(index, lane type, slot) over n values.
template <class A, class F>
KERNEL void sweep(int64_t n, F f) {
  constexpr int64_t w = Lanes<A>::width;
  int64_t i = 0;
  for (; i + 4 * w <= n; i += 4 * w) {
    f(i, Lanes<A>{}, 0);
    f(i + w, Lanes<A>{}, 1);
    f(i + 2 * w, Lanes<A>{}, 2);
    f(i + 3 * w, Lanes<A>{}, 3);
  }
  for (; i + w <= n; i += w) f(i, Lanes<A>{}, 0);
  for (; i < n; ++i) f(i, One<A>{}, 0);
}
