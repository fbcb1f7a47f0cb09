// Shares work among torch's threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include <ATen/Parallel.h>

// at::parallel_for takes the compiler's own OpenMP, and clang's is not the one that torch brings: two in one process
// number their threads differently. These are torch's, whatever the compiler.
extern "C" int omp_get_num_threads();
extern "C" int omp_get_thread_num();
extern "C" void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags);

// Calls f(from, to) on shares of [0, end), one a thread, each of `grain` at least. f must not throw.
template <class F>
void parallel_for(int64_t end, int64_t grain, const F& f) {
  if (end <= grain || at::get_num_threads() == 1 || at::in_parallel_region()) {
    if (end > 0) f(int64_t{0}, end);
    return;
  }
  struct Work {
    const F& f;
    int64_t end, grain;
  } work{f, end, grain};
  auto run = [](void* data) {
    auto& w = *static_cast<Work*>(data);
    int64_t threads = std::min<int64_t>(omp_get_num_threads(), (w.end + w.grain - 1) / w.grain);
    int64_t share = (w.end + threads - 1) / threads, from = omp_get_thread_num() * share;
    if (from < w.end) w.f(from, std::min(from + share, w.end));
  };
  // 0: as many threads as before. Another number each time would have them end and start anew.
  GOMP_parallel(run, &work, 0, 0);
}
