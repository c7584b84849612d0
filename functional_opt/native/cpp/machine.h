// What kernels need of the machine: vector instructions, and XLA's threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

#define INLINED __attribute__((always_inline))  // for a lambda
#define INLINE inline INLINED
#if defined(__clang__)
#define VECTORIZE _Pragma("clang loop vectorize(assume_safety)")
#else
#define VECTORIZE _Pragma("GCC ivdep")
#endif

namespace functional_opt {

// FOR_INSTRUCTIONS(result, f, (parameters), (arguments)) compiles the inline function f for several instruction sets;
// f_best is that for the processor at hand.

#if defined(__x86_64__) && !defined(FUNCTIONAL_OPT_PORTABLE)
#define FOR_X86
#endif

#ifdef FOR_X86
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")))
#define FOR_INSTRUCTIONS(RESULT, F, PARAMETERS, ARGUMENTS)      \
  RESULT F##_any PARAMETERS { return F ARGUMENTS; }             \
  AVX2 RESULT F##_avx2 PARAMETERS { return F ARGUMENTS; }       \
  AVX512 RESULT F##_avx512 PARAMETERS { return F ARGUMENTS; }   \
  RESULT(*const F##_best) PARAMETERS = has_avx512() ? F##_avx512 : has_avx2() ? F##_avx2 : F##_any;

inline bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}
#else
#define FOR_INSTRUCTIONS(RESULT, F, PARAMETERS, ARGUMENTS) \
  RESULT F##_any PARAMETERS { return F ARGUMENTS; }        \
  RESULT(*const F##_best) PARAMETERS = F##_any;
#endif

// Does `tasks` tasks on this thread and on those of the pool that come in time: each calls `begin()` for a function
// of its own, and this for tasks, one after another.
//
// This thread is one of the pool's, so it must not wait for another to begin: it does what is left itself, and
// waits only for tasks that others are in the midst of. One that comes later finds nothing to do.
template <typename Begin>
void in_parallel(size_t tasks, xla::ffi::ThreadPool pool, const Begin& begin) {
  struct Shared {
    std::atomic<size_t> next{0}, done{0};
  };
  auto shared = std::make_shared<Shared>();
  auto help = [shared, tasks, &begin] {
    size_t i = shared->next.fetch_add(1);
    if (i >= tasks) return;  // late: `begin` may be gone
    auto work = begin();
    for (; i < tasks; i = shared->next.fetch_add(1), shared->done.fetch_add(1)) work(i);
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), static_cast<int64_t>(tasks)) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(help));
  help();
  while (shared->done.load() < tasks) std::this_thread::yield();
}

}  // namespace functional_opt
