// One step of a chain of transformations on the CPU, all leaves in one pass over memory.
//
// A chain arrives as a program: what its links do to the update u of one element, one after another.
//
//     u = grad;  u = scale(u);  u, m, v = adam(u, m, v);  u = u + decay * w;  w = w + factor * u
//
// It runs on BLOCK elements at a time, which stay in the first-level cache, so however long a program is, each
// gradient, weight and slot goes through memory once. Results replace what was read: XLA gives the same buffer
// for both, or has made a copy before.
//
// `step` and `sums_of_squares` are what JAX calls (primitive.py); both run on XLA's own threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t BLOCK = 512;       // elements a program works on at a time
constexpr int64_t CHUNK = 32 * 1024;  // elements a thread takes at a time
constexpr int MAX_SLOTS = 4;

#define INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define VECTORIZE _Pragma("clang loop vectorize(assume_safety)")
#else
#define VECTORIZE _Pragma("GCC ivdep")
#endif

// ---- Formulas: u from x, in the letters of the Python rules. `s` are a link's scalars. ----
//
// As XLA does it, so that results are the same to the last bit or two: a product and the sum it goes into are one
// operation (-ffp-contract=fast), and to divide by a scalar is to multiply by its inverse.

INLINE float widened(uint16_t bfloat16) {
  const uint32_t bits = static_cast<uint32_t>(bfloat16) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

INLINE uint16_t rounded(float x) {  // to the nearest bfloat16, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<uint16_t>((nan ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

struct Slots {
  const float* in[MAX_SLOTS];
  float* out[MAX_SLOTS];
};

INLINE void scale(const float* x, float* u, const float* s, int64_t n) {
  const float factor = s[0];
  VECTORIZE for (int64_t i = 0; i < n; ++i) u[i] = factor * x[i];
}

INLINE void clip(const float* x, float* u, const float* s, int64_t n) {
  const float largest = s[0];
  VECTORIZE for (int64_t i = 0; i < n; ++i) u[i] = x[i] > largest ? largest : x[i] < -largest ? -largest : x[i];
}

INLINE void decay(const float* x, float* u, const float* w, const float* s, int64_t n) {
  const float rate = s[0];
  VECTORIZE for (int64_t i = 0; i < n; ++i) u[i] = x[i] + rate * w[i];
}

template <bool nesterov>
INLINE void trace(const float* x, float* u, const Slots& slots, const float* s, int64_t n) {
  const float decay = s[0];
  const float* t_in = slots.in[0];
  float* t_out = slots.out[0];
  VECTORIZE for (int64_t i = 0; i < n; ++i) {
    const float g = x[i];
    const float t = g + decay * t_in[i];
    t_out[i] = t;
    u[i] = nesterov ? g + decay * t : t;
  }
}

template <bool nesterov>
INLINE void adam(const float* x, float* u, const Slots& slots, const float* s, int64_t n) {
  const float b1 = s[0], c1 = s[1], b2 = s[2], c2 = s[3];  // c = 1 − b
  const float by1 = 1 / s[4], by2 = 1 / s[5], eps_root = s[6], eps = s[7];  // what m and v are divided by
  const float ahead_m = b1 * (1 / s[8]), ahead_g = c1 * by1;
  const float *m_in = slots.in[0], *v_in = slots.in[1];
  float *m_out = slots.out[0], *v_out = slots.out[1];
  VECTORIZE for (int64_t i = 0; i < n; ++i) {
    const float g = x[i];
    const float m = b1 * m_in[i] + c1 * g;
    const float v = b2 * v_in[i] + c2 * (g * g);
    m_out[i] = m;
    v_out[i] = v;
    const float m_hat = nesterov ? ahead_m * m + ahead_g * g : by1 * m;
    u[i] = m_hat / (std::sqrt(by2 * v + eps_root) + eps);
  }
}

INLINE void lion(const float* x, float* u, const Slots& slots, const float* s, int64_t n) {
  const float b1 = s[0], c1 = s[1], b2 = s[2], c2 = s[3];
  const float* m_in = slots.in[0];
  float* m_out = slots.out[0];
  VECTORIZE for (int64_t i = 0; i < n; ++i) {
    const float g = x[i];
    const float c = b1 * m_in[i] + c1 * g;
    m_out[i] = b2 * m_in[i] + c2 * g;
    u[i] = c > 0 ? 1.0f : c < 0 ? -1.0f : c;  // NaN stays
  }
}

template <bool in_root>
INLINE void rms(const float* x, float* u, const Slots& slots, const float* s, int64_t n) {
  const float decay = s[0], c = s[1], by = 1 / s[2], eps = s[3];
  const float* v_in = slots.in[0];
  float* v_out = slots.out[0];
  VECTORIZE for (int64_t i = 0; i < n; ++i) {
    const float g = x[i];
    const float v = decay * v_in[i] + c * (g * g);
    v_out[i] = v;
    u[i] = in_root ? g * (1 / std::sqrt(by * v + eps)) : g / (std::sqrt(by * v) + eps);
  }
}

template <bool in_root>
INLINE void rss(const float* x, float* u, const Slots& slots, const float* s, int64_t n) {
  const float eps = s[0];
  const float* s_in = slots.in[0];
  float* s_out = slots.out[0];
  VECTORIZE for (int64_t i = 0; i < n; ++i) {
    const float g = x[i];
    const float sum = s_in[i] + g * g;
    s_out[i] = sum;
    const float root = in_root ? std::sqrt(sum + eps) : std::sqrt(sum) + eps;
    u[i] = sum > 0 ? g / (sum > 0 ? root : 1.0f) : 0.0f;
  }
}

// The end: an update has the dtype of its param, so that of a 16-bit one is rounded before it is added.
INLINE void add(const float* x, const float* w_in, float* w_out, const float* s, int64_t n, bool bfloat16) {
  const float factor = s[0];
  if (bfloat16) {
    VECTORIZE for (int64_t i = 0; i < n; ++i) w_out[i] = w_in[i] + widened(rounded(factor * x[i]));
  } else {
    VECTORIZE for (int64_t i = 0; i < n; ++i) w_out[i] = w_in[i] + factor * x[i];
  }
}

// ---- Leaves ----

struct Array {  // float32 or bfloat16
  const void* in = nullptr;
  void* out = nullptr;
  bool bfloat16 = false;
};

struct Leaf {
  int64_t size = 0;
  Array grad, param;
  Slots slots{};
};

// Elements from `at` on: in place, or widened into a block.
INLINE const float* read(const Array& x, int64_t at, float* block, int64_t n) {
  if (!x.bfloat16) return static_cast<const float*>(x.in) + at;
  const uint16_t* from = static_cast<const uint16_t*>(x.in) + at;
  VECTORIZE for (int64_t i = 0; i < n; ++i) block[i] = widened(from[i]);
  return block;
}

// ---- Programs: (operation, where its scalars start) pairs. The operations are numbered as OPS in link.py. ----

enum Op : int32_t { SCALE, CLIP, DECAY, TRACE, NESTEROV, ADAM, NADAM, LION, RMS, RMS_OUTSIDE, RSS, RSS_OUTSIDE, ADD };

struct Program {
  const int32_t* code;
  int64_t length;
  const float* scalars;
};

constexpr int slots_of(int32_t op) {
  return op == ADAM || op == NADAM ? 2 : op == SCALE || op == CLIP || op == DECAY || op == ADD ? 0 : 1;
}

INLINE void run(const Program& program, const Leaf& leaf, int64_t begin, int64_t end) {
  alignas(64) float u[BLOCK], wide_g[BLOCK], wide_w[BLOCK];
  const bool bfloat16 = leaf.param.bfloat16;
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int64_t n = std::min(BLOCK, end - at);
    const float* x = read(leaf.grad, at, wide_g, n);
    const float* w = read(leaf.param, at, wide_w, n);
    float* w_out = bfloat16 ? wide_w : static_cast<float*>(leaf.param.out) + at;
    int slot = 0;
    for (int64_t i = 0; i < program.length; i += 2) {
      const int32_t op = program.code[i];
      const float* s = program.scalars + program.code[i + 1];
      Slots slots{};
      for (int k = 0; k < slots_of(op); ++k, ++slot) {
        slots.in[k] = leaf.slots.in[slot] + at;
        slots.out[k] = leaf.slots.out[slot] + at;
      }
      switch (op) {
        case SCALE: scale(x, u, s, n); break;
        case CLIP: clip(x, u, s, n); break;
        case DECAY: decay(x, u, w, s, n); break;
        case TRACE: trace<false>(x, u, slots, s, n); break;
        case NESTEROV: trace<true>(x, u, slots, s, n); break;
        case ADAM: adam<false>(x, u, slots, s, n); break;
        case NADAM: adam<true>(x, u, slots, s, n); break;
        case LION: lion(x, u, slots, s, n); break;
        case RMS: rms<true>(x, u, slots, s, n); break;
        case RMS_OUTSIDE: rms<false>(x, u, slots, s, n); break;
        case RSS: rss<true>(x, u, slots, s, n); break;
        case RSS_OUTSIDE: rss<false>(x, u, slots, s, n); break;
        case ADD: add(x, w, w_out, s, n, bfloat16); break;
      }
      x = u;
    }
    if (bfloat16) {
      uint16_t* to = static_cast<uint16_t*>(leaf.param.out) + at;
      VECTORIZE for (int64_t i = 0; i < n; ++i) to[i] = rounded(w_out[i]);
    }
  }
}

// Σx² of part of a leaf: float32 sums of a block's columns, float64 over blocks.
INLINE double squares(const Array& x, int64_t begin, int64_t end) {
  constexpr int64_t LANES = 64;
  alignas(64) float block[BLOCK];
  double total = 0;
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int64_t n = std::min(BLOCK, end - at);
    float lanes[LANES] = {};
    const float* from = read(x, at, block, n);
    if (n < BLOCK) {
      if (from != block) std::copy(from, from + n, block);
      std::fill(block + n, block + BLOCK, 0.0f);
      from = block;
    }
    for (int64_t i = 0; i < BLOCK; i += LANES)
      VECTORIZE for (int64_t j = 0; j < LANES; ++j) lanes[j] += from[i + j] * from[i + j];
    for (int64_t half = LANES / 2; half > 0; half /= 2)
      for (int64_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
    total += lanes[0];
  }
  return total;
}

// ---- The same for several instruction sets; the processor says which. ----

using Run = void (*)(const Program&, const Leaf&, int64_t, int64_t);
using Squares = double (*)(const Array&, int64_t, int64_t);

#define FOR_INSTRUCTIONS(NAME, ...)                                                                             \
  __VA_ARGS__ void run_##NAME(const Program& p, const Leaf& leaf, int64_t i, int64_t j) { run(p, leaf, i, j); } \
  __VA_ARGS__ double squares_##NAME(const Array& x, int64_t i, int64_t j) { return squares(x, i, j); }

FOR_INSTRUCTIONS(any)
#if defined(__x86_64__)
FOR_INSTRUCTIONS(avx2, __attribute__((target("avx2,fma"))))
FOR_INSTRUCTIONS(avx512, __attribute__((target("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq"))))
#endif

std::pair<Run, Squares> best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
    return {run_avx512, squares_avx512};
  if (fma) return {run_avx2, squares_avx2};
#endif
  return {run_any, squares_any};
}

const std::pair<Run, Squares> BEST = best();

// ---- Threads ----

struct Piece {  // of a leaf
  int64_t leaf, begin, end;
};

// All leaves cut in pieces; neighbours that together have about CHUNK elements are one task.
struct Work {
  std::vector<Piece> pieces;
  std::vector<size_t> tasks{0};  // where each starts among the pieces, and the end

  explicit Work(const std::vector<Leaf>& leaves) {
    int64_t gathered = 0;
    for (size_t leaf = 0; leaf < leaves.size(); ++leaf)
      for (int64_t begin = 0; begin < leaves[leaf].size; begin += CHUNK) {
        const int64_t end = std::min(begin + CHUNK, leaves[leaf].size);
        pieces.push_back({static_cast<int64_t>(leaf), begin, end});
        gathered += end - begin;
        if (gathered >= CHUNK) {
          tasks.push_back(pieces.size());
          gathered = 0;
        }
      }
    if (tasks.back() < pieces.size()) tasks.push_back(pieces.size());
  }
};

// Calls `each(piece)` for all pieces, on this thread and on those of the pool that come in time.
//
// This thread is one of the pool's, so it must not wait for another to begin: it does what is left itself, and
// waits only for tasks that others are in the midst of. One that comes later finds nothing to do.
template <typename F>
void for_pieces(const Work& work, ffi::ThreadPool pool, const F& each) {
  struct Shared {
    std::atomic<size_t> next{0}, done{0};
  };
  const size_t tasks = work.tasks.size() - 1;
  auto shared = std::make_shared<Shared>();
  auto help = [shared, tasks, &work, &each] {
    for (size_t i; (i = shared->next.fetch_add(1)) < tasks; shared->done.fetch_add(1))
      for (size_t piece = work.tasks[i]; piece < work.tasks[i + 1]; ++piece) each(piece);
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), static_cast<int64_t>(tasks)) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(help));
  help();
  while (shared->done.load() < tasks) std::this_thread::yield();
}

// ---- What JAX calls ----

bool read_array(const ffi::AnyBuffer& buffer, Array* to) {
  to->in = buffer.untyped_data();
  to->bfloat16 = buffer.element_type() == ffi::DataType::BF16;
  return to->bfloat16 || buffer.element_type() == ffi::DataType::F32;
}

// Arguments: n gradients, n params, n of each slot. Results: n params, n of each slot.
ffi::Error step(ffi::ThreadPool pool, ffi::Span<const int32_t> code, ffi::AnyBuffer scalars, ffi::RemainingArgs args,
                ffi::RemainingRets rets) {
  int64_t slots = 0;
  for (size_t i = 0; i < code.size(); i += 2) slots += slots_of(code[i]);
  const size_t n = args.size() / (2 + slots);
  if (slots > MAX_SLOTS || args.size() != n * (2 + slots) || rets.size() != n * (1 + slots))
    return ffi::Error::InvalidArgument("functional_opt: the arguments do not fit the program");
  std::vector<Leaf> leaves(n);
  for (size_t i = 0; i < n; ++i) {
    Leaf& leaf = leaves[i];
    const auto grad = args.get<ffi::AnyBuffer>(i), param = args.get<ffi::AnyBuffer>(n + i);
    auto result = rets.get<ffi::AnyBuffer>(i);
    if (!read_array(*grad, &leaf.grad) || !read_array(*param, &leaf.param))
      return ffi::Error::InvalidArgument("functional_opt: a leaf is neither float32 nor bfloat16");
    leaf.size = static_cast<int64_t>(grad->element_count());
    leaf.param.out = (*result)->untyped_data();
    for (int64_t k = 0; k < slots; ++k) {
      leaf.slots.in[k] = static_cast<const float*>(args.get<ffi::AnyBuffer>((2 + k) * n + i)->untyped_data());
      leaf.slots.out[k] = static_cast<float*>((*rets.get<ffi::AnyBuffer>((1 + k) * n + i))->untyped_data());
    }
  }
  const Program program{code.begin(), static_cast<int64_t>(code.size()), static_cast<float*>(scalars.untyped_data())};
  const Work work(leaves);
  for_pieces(work, pool, [&](size_t i) {
    const Piece& piece = work.pieces[i];
    BEST.first(program, leaves[piece.leaf], piece.begin, piece.end);
  });
  return ffi::Error::Success();
}

// Arguments: n arrays. Result: Σx² of each, summed in an order that does not depend on the threads.
ffi::Error sums_of_squares(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::Result<ffi::BufferR1<ffi::F32>> sums) {
  std::vector<Leaf> leaves(args.size());
  for (size_t i = 0; i < leaves.size(); ++i) {
    const auto x = args.get<ffi::AnyBuffer>(i);
    if (!read_array(*x, &leaves[i].grad))
      return ffi::Error::InvalidArgument("functional_opt: a leaf is neither float32 nor bfloat16");
    leaves[i].size = static_cast<int64_t>(x->element_count());
  }
  const Work work(leaves);
  std::vector<double> parts(work.pieces.size());
  for_pieces(work, pool, [&](size_t i) {
    const Piece& piece = work.pieces[i];
    parts[i] = BEST.second(leaves[piece.leaf].grad, piece.begin, piece.end);
  });
  std::vector<double> totals(leaves.size());
  for (size_t i = 0; i < parts.size(); ++i) totals[work.pieces[i].leaf] += parts[i];
  for (size_t i = 0; i < totals.size(); ++i) sums->typed_data()[i] = static_cast<float>(totals[i]);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(functional_opt_step, step,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int32_t>>("program")
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(functional_opt_sums_of_squares, sums_of_squares,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().Ret<ffi::BufferR1<ffi::F32>>());
