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

// ---- Formulas, in the letters of the Python rules: each a struct that is made from a link's scalars `s`, and gives
// the update of element i from the update x before it, the weight w and the slots, which it replaces. ----
//
// As XLA does it, so that results are the same to the last bit or two: a product and the sum it goes into are one
// operation (-ffp-contract=fast), and to divide by a scalar is to multiply by its inverse.

struct Slots {
  float *first, *second;
};

struct Nothing {
  static constexpr int SLOTS = 0;
  explicit Nothing(const float*) {}
  INLINE float operator()(float x, float, const Slots&, int64_t) const { return x; }
};

struct Scale {
  static constexpr int SLOTS = 0;
  float factor;
  explicit Scale(const float* s) : factor(s[0]) {}
  INLINE float operator()(float x, float, const Slots&, int64_t) const { return factor * x; }
};

struct Clip {
  static constexpr int SLOTS = 0;
  float largest;
  explicit Clip(const float* s) : largest(s[0]) {}
  INLINE float operator()(float x, float, const Slots&, int64_t) const {
    return x > largest ? largest : x < -largest ? -largest : x;
  }
};

struct Decay {
  static constexpr int SLOTS = 0;
  float rate;
  explicit Decay(const float* s) : rate(s[0]) {}
  INLINE float operator()(float x, float w, const Slots&, int64_t) const { return x + rate * w; }
};

template <bool nesterov>
struct Trace {
  static constexpr int SLOTS = 1;
  float decay;
  explicit Trace(const float* s) : decay(s[0]) {}
  INLINE float operator()(float g, float, const Slots& slots, int64_t i) const {
    const float t = g + decay * slots.first[i];
    slots.first[i] = t;
    return nesterov ? g + decay * t : t;
  }
};

template <bool nesterov>
struct Adam {
  static constexpr int SLOTS = 2;
  float b1, c1, b2, c2, by1, by2, eps_root, eps, ahead_m, ahead_g;  // c = 1 − b; m and v are multiplied by `by`
  explicit Adam(const float* s)
      : b1(s[0]), c1(s[1]), b2(s[2]), c2(s[3]), by1(1 / s[4]), by2(1 / s[5]), eps_root(s[6]), eps(s[7]),
        ahead_m(b1 * (1 / s[8])), ahead_g(c1 * by1) {}
  INLINE float operator()(float g, float, const Slots& slots, int64_t i) const {
    const float m = b1 * slots.first[i] + c1 * g;
    const float v = b2 * slots.second[i] + c2 * (g * g);
    slots.first[i] = m;
    slots.second[i] = v;
    const float m_hat = nesterov ? ahead_m * m + ahead_g * g : by1 * m;
    return m_hat / (std::sqrt(by2 * v + eps_root) + eps);
  }
};

struct Lion {
  static constexpr int SLOTS = 1;
  float b1, c1, b2, c2;
  explicit Lion(const float* s) : b1(s[0]), c1(s[1]), b2(s[2]), c2(s[3]) {}
  INLINE float operator()(float g, float, const Slots& slots, int64_t i) const {
    const float m = slots.first[i];
    slots.first[i] = b2 * m + c2 * g;
    const float c = b1 * m + c1 * g;
    return c > 0 ? 1.0f : c < 0 ? -1.0f : c;  // NaN stays
  }
};

template <bool in_root>
struct RMS {
  static constexpr int SLOTS = 1;
  float decay, c, by, eps;
  explicit RMS(const float* s) : decay(s[0]), c(s[1]), by(1 / s[2]), eps(s[3]) {}
  INLINE float operator()(float g, float, const Slots& slots, int64_t i) const {
    const float v = decay * slots.first[i] + c * (g * g);
    slots.first[i] = v;
    return in_root ? g * (1 / std::sqrt(by * v + eps)) : g / (std::sqrt(by * v) + eps);
  }
};

template <bool in_root>
struct RSS {
  static constexpr int SLOTS = 1;
  float eps;
  explicit RSS(const float* s) : eps(s[0]) {}
  INLINE float operator()(float g, float, const Slots& slots, int64_t i) const {
    const float sum = slots.first[i] + g * g;
    slots.first[i] = sum;
    const float root = in_root ? std::sqrt(sum + eps) : std::sqrt(sum) + eps;
    return sum > 0 ? g / (sum > 0 ? root : 1.0f) : 0.0f;
  }
};

// ---- Arrays: how they are stored, and the floats they stand for. ----

INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

INLINE float of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

INLINE float widened(uint16_t bfloat16) { return of_bits(static_cast<uint32_t>(bfloat16) << 16); }

INLINE uint16_t rounded(float x) {  // to the nearest bfloat16, ties to even; NaN stays NaN
  const uint32_t bits = bits_of(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<uint16_t>((nan ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

INLINE int32_t nearest(float x) {  // of a small x
  return static_cast<int32_t>(bits_of(x + 12582912.0f) - bits_of(12582912.0f));
}

enum Kind : int32_t { FLOAT32, BFLOAT16, INT8, UINT8, INT4, UINT4 };  // numbered as KINDS in link.py

struct Array {
  void* data = nullptr;
  int32_t kind = FLOAT32;
  float* scales = nullptr;  // of codes: the largest |x| of every block
};

// A leaf is cut in rows, and these in blocks, of which the last may be shorter: those of codes, one row for others.
struct Leaf {
  int64_t size = 0, row = 0, block = BLOCK;
  Array grad, param, slots[MAX_SLOTS];

  int64_t in_row() const { return (row + block - 1) / block; }
  int64_t blocks() const { return row ? size / row * in_row() : 0; }

  // How many one thread takes: about CHUNK elements; of 4 bits whole pairs of rows, which have their bytes in common.
  int64_t blocks_together() const {
    const bool pairs = std::any_of(slots, slots + MAX_SLOTS, [](const Array& x) { return x.kind >= INT4; });
    const int64_t unit = pairs ? 2 * in_row() : 1;
    return std::max<int64_t>(CHUNK / block / unit, 1) * unit;
  }
};

struct Span {  // a block of a leaf
  int64_t index, begin, size;
  int64_t pair, half;  // of 4 bits: where its first byte is, and which bits of it
  Span(const Leaf& leaf, int64_t i) : index(i) {
    const int64_t r = i / leaf.in_row(), at = i % leaf.in_row() * leaf.block;
    begin = r * leaf.row + at;
    size = std::min(leaf.block, leaf.row - at);
    pair = r / 2 * leaf.row + at;
    half = 4 * (r % 2);
  }
};

// The floats of a block: in place, or decoded.
INLINE float* read(const Array& x, const Span& span, float* block) {
  const int64_t n = span.size;
  const float a = x.scales ? x.scales[span.index] : 0;
  switch (x.kind) {
    case BFLOAT16: {
      const uint16_t* from = static_cast<const uint16_t*>(x.data) + span.begin;
      VECTORIZE for (int64_t i = 0; i < n; ++i) block[i] = widened(from[i]);
      return block;
    }
    case INT8: {
      const int8_t* from = static_cast<const int8_t*>(x.data) + span.begin;
      VECTORIZE for (int64_t i = 0; i < n; ++i) {
        const float c = from[i] * (1 / 127.0f);
        block[i] = c * std::fabs(c) * a;
      }
      return block;
    }
    case UINT8: {
      const uint8_t* from = static_cast<const uint8_t*>(x.data) + span.begin;
      VECTORIZE for (int64_t i = 0; i < n; ++i) {
        const float c = from[i] * (1 / 255.0f), squared = c * c;
        block[i] = squared * squared * a;
      }
      return block;
    }
    case INT4: {
      const uint8_t* from = static_cast<const uint8_t*>(x.data) + span.pair;
      VECTORIZE for (int64_t i = 0; i < n; ++i) {
        const float c = ((from[i] >> span.half & 15) - 8) * (1 / 7.0f);
        block[i] = c * std::fabs(c) * a;
      }
      return block;
    }
    case UINT4: {
      const uint8_t* from = static_cast<const uint8_t*>(x.data) + span.pair;
      VECTORIZE for (int64_t i = 0; i < n; ++i) {
        const float c = ((from[i] >> span.half & 15) + 1) * (1 / 16.0f);
        block[i] = c * c * a;
      }
      return block;
    }
    default: return static_cast<float*>(x.data) + span.begin;
  }
}

// The largest |x|, without the last bits, and NaN if one is; its inverse, 0 of what is too small for one.
INLINE float scale_of(const float* block, int64_t n, float* inverse) {
  int32_t top = 0;  // the order of integers is that of positive floats, and NaN is above all
  VECTORIZE for (int64_t i = 0; i < n; ++i) top = std::max(top, static_cast<int32_t>(bits_of(block[i]) & 0x7fffffffu));
  uint32_t bits = static_cast<uint32_t>(top);
  if (bits <= 0x7f800000u) bits = (bits + 0x7fu + (bits >> 8 & 1)) & ~0xffu;
  const float a = of_bits(bits);
  constexpr float SMALLEST = 1.17549435e-38f;
  *inverse = a >= SMALLEST ? 1 / a : 0;
  return a;
}

// Stores a block that `read` has decoded.
INLINE void write(const Array& x, const Span& span, const float* block) {
  const int64_t n = span.size;
  float by = 0;
  if (x.scales) x.scales[span.index] = scale_of(block, n, &by);
  const uint8_t kept = static_cast<uint8_t>(0xf0 >> span.half);
  switch (x.kind) {
    case BFLOAT16: {
      uint16_t* to = static_cast<uint16_t*>(x.data) + span.begin;
      VECTORIZE for (int64_t i = 0; i < n; ++i) to[i] = rounded(block[i]);
      break;
    }
    case INT8: {
      int8_t* to = static_cast<int8_t*>(x.data) + span.begin;
      VECTORIZE for (int64_t i = 0; i < n; ++i)
        to[i] = static_cast<int8_t>(nearest(std::copysign(std::sqrt(std::fabs(block[i]) * by) * 127, block[i])));
      break;
    }
    case UINT8: {
      uint8_t* to = static_cast<uint8_t*>(x.data) + span.begin;
      VECTORIZE for (int64_t i = 0; i < n; ++i) {
        const int32_t c = nearest(std::sqrt(std::sqrt(std::fabs(block[i]) * by)) * 255);
        to[i] = static_cast<uint8_t>(std::max(c, static_cast<int32_t>(block[i] > 0)));
      }
      break;
    }
    case INT4: {
      uint8_t* to = static_cast<uint8_t*>(x.data) + span.pair;
      VECTORIZE for (int64_t i = 0; i < n; ++i) {
        const int32_t c = nearest(std::copysign(std::sqrt(std::fabs(block[i]) * by) * 7, block[i])) + 8;
        to[i] = static_cast<uint8_t>((to[i] & kept) | c << span.half);
      }
      break;
    }
    case UINT4: {
      uint8_t* to = static_cast<uint8_t*>(x.data) + span.pair;
      VECTORIZE for (int64_t i = 0; i < n; ++i) {
        const int32_t c = std::max(nearest(std::sqrt(std::fabs(block[i]) * by) * 16) - 1, 0);
        to[i] = static_cast<uint8_t>((to[i] & kept) | c << span.half);
      }
      break;
    }
    default: break;
  }
}

// ---- Programs: (operation, where its scalars start) pairs. The operations are numbered as OPS in link.py. ----

enum Op : int32_t { SCALE, CLIP, DECAY, TRACE, NESTEROV, ADAM, NADAM, LION, RMS_IN, RMS_OUT, RSS_IN, RSS_OUT, ADD };

#define FOR_RULES(X)                                                                                         \
  X(TRACE, Trace<false>) X(NESTEROV, Trace<true>) X(ADAM, Adam<false>) X(NADAM, Adam<true>) X(LION, Lion)    \
  X(RMS_IN, RMS<true>) X(RMS_OUT, RMS<false>) X(RSS_IN, RSS<true>) X(RSS_OUT, RSS<false>)

constexpr int slots_of(int32_t op) {
#define SLOTS_OF(NAME, RULE) op == NAME ? RULE::SLOTS :
  return FOR_RULES(SLOTS_OF) 0;
#undef SLOTS_OF
}

// One of the usual form, scale, rule, decay, add, each but the last optional, is `fused`: an element stays in registers.
struct Program {
  const int32_t* code;
  int64_t length;
  const float* scalars;
  bool fused;
  int32_t rule = ADD;  // which stands for none
  const float *scale = nullptr, *of_rule = nullptr, *decay = nullptr, *factor = nullptr;

  Program(const int32_t* c, int64_t n, const float* s) : code(c), length(n), scalars(s) {
    int64_t i = 0;
    if (i < n && code[i] == SCALE) scale = s + code[i + 1], i += 2;
    if (i < n && slots_of(code[i])) rule = code[i], of_rule = s + code[i + 1], i += 2;
    if (i < n && code[i] == DECAY) decay = s + code[i + 1], i += 2;
    fused = i + 2 == n && code[i] == ADD;
    if (fused) factor = s + code[i + 1];
  }
};

struct Block {
  const float* g;
  float* w;
  float* slots[MAX_SLOTS];
  int64_t size;
  bool bfloat16;  // the weight: an update has its dtype, so that it is rounded before it is added
};

template <bool bfloat16>
INLINE float added(float w, float factor, float u) {
  return w + (bfloat16 ? widened(rounded(factor * u)) : factor * u);
}

template <typename First, typename Rule, typename Last, bool bfloat16>
INLINE void fused(const Program& program, const Block& block) {
  const First first(program.scale);
  const float factor = program.factor[0];
  const Rule rule(program.of_rule);
  const Last last(program.decay);
  const Slots slots{block.slots[0], block.slots[1]};
  const float* g = block.g;
  float* w = block.w;
  VECTORIZE for (int64_t i = 0; i < block.size; ++i) {
    const float u = last(rule(first(g[i], 0, slots, i), 0, slots, i), w[i], slots, i);
    w[i] = added<bfloat16>(w[i], factor, u);
  }
}

template <typename First, typename Rule, typename Last>
INLINE void fused(const Program& program, const Block& block) {
  block.bfloat16 ? fused<First, Rule, Last, true>(program, block) : fused<First, Rule, Last, false>(program, block);
}

template <typename Rule>
INLINE void fused(const Program& program, const Block& block) {
  if (program.scale)
    program.decay ? fused<Scale, Rule, Decay>(program, block) : fused<Scale, Rule, Nothing>(program, block);
  else
    program.decay ? fused<Nothing, Rule, Decay>(program, block) : fused<Nothing, Rule, Nothing>(program, block);
}

template <bool bfloat16>
INLINE void add(const float* s, const float* x, const Block& block) {
  const float factor = s[0];
  float* w = block.w;
  VECTORIZE for (int64_t i = 0; i < block.size; ++i) w[i] = added<bfloat16>(w[i], factor, x[i]);
}

template <typename Rule>
INLINE void apply(const float* s, const float* x, float* u, const Block& block, int slot) {
  const Rule rule(s);
  const Slots slots{block.slots[slot], block.slots[std::min(slot + 1, MAX_SLOTS - 1)]};
  const float* w = block.w;
  VECTORIZE for (int64_t i = 0; i < block.size; ++i) u[i] = rule(x[i], w[i], slots, i);
}

// Any other, one operation after another.
INLINE void interpret(const Program& program, const Block& block) {
  alignas(64) float u[BLOCK];
  const float* x = block.g;
  int slot = 0;
  for (int64_t k = 0; k < program.length; k += 2) {
    const int32_t op = program.code[k];
    const float* s = program.scalars + program.code[k + 1];
    switch (op) {
#define APPLY(NAME, RULE) \
  case NAME: apply<RULE>(s, x, u, block, slot); break;
      APPLY(SCALE, Scale) APPLY(CLIP, Clip) APPLY(DECAY, Decay) FOR_RULES(APPLY)
#undef APPLY
      case ADD: block.bfloat16 ? add<true>(s, x, block) : add<false>(s, x, block);
    }
    slot += slots_of(op);
    x = u;
  }
}

INLINE void run(const Program& program, const Leaf& leaf, int slots, int64_t begin, int64_t end) {
  alignas(64) float g[BLOCK], w[BLOCK], decoded[MAX_SLOTS][BLOCK];
  for (int64_t index = begin; index < end; ++index) {
    const Span span(leaf, index);
    Block block{read(leaf.grad, span, g), read(leaf.param, span, w), {}, span.size, leaf.param.kind == BFLOAT16};
    for (int k = 0; k < slots; ++k) block.slots[k] = read(leaf.slots[k], span, decoded[k]);
    if (!program.fused) interpret(program, block);
    else switch (program.rule) {
#define FUSED(NAME, RULE) \
  case NAME: fused<RULE>(program, block); break;
      FUSED(ADD, Nothing) FOR_RULES(FUSED)
#undef FUSED
    }
    write(leaf.param, span, w);
    for (int k = 0; k < slots; ++k) write(leaf.slots[k], span, decoded[k]);
  }
}

// Σx² of some blocks of a leaf: float32 sums of a block's columns, float64 over blocks.
INLINE double squares(const Leaf& leaf, int64_t begin, int64_t end) {
  constexpr int64_t LANES = 64;
  alignas(64) float block[BLOCK];
  double total = 0;
  for (int64_t index = begin; index < end; ++index) {
    const Span span(leaf, index);
    float lanes[LANES] = {};
    const float* from = read(leaf.grad, span, block);
    if (span.size < BLOCK) {
      if (from != block) std::copy(from, from + span.size, block);
      std::fill(block + span.size, block + BLOCK, 0.0f);
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

using Run = void (*)(const Program&, const Leaf&, int, int64_t, int64_t);
using Squares = double (*)(const Leaf&, int64_t, int64_t);

#define FOR_INSTRUCTIONS(NAME, ...)                                                                 \
  __VA_ARGS__ void run_##NAME(const Program& p, const Leaf& leaf, int slots, int64_t i, int64_t j) { \
    run(p, leaf, slots, i, j);                                                                      \
  }                                                                                                 \
  __VA_ARGS__ double squares_##NAME(const Leaf& leaf, int64_t i, int64_t j) { return squares(leaf, i, j); }

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

struct Piece {  // blocks of a leaf
  int64_t leaf, begin, end;
};

// All leaves cut in pieces; neighbours that together have about CHUNK elements are one task.
struct Work {
  std::vector<Piece> pieces;
  std::vector<size_t> tasks{0};  // where each starts among the pieces, and the end

  explicit Work(const std::vector<Leaf>& leaves) {
    int64_t gathered = 0;
    for (size_t leaf = 0; leaf < leaves.size(); ++leaf) {
      const int64_t blocks = leaves[leaf].blocks(), step = leaves[leaf].blocks_together();
      for (int64_t begin = 0; begin < blocks; begin += step) {
        const int64_t end = std::min(begin + step, blocks);
        pieces.push_back({static_cast<int64_t>(leaf), begin, end});
        gathered += std::min((end - begin) * leaves[leaf].block, leaves[leaf].size);
        if (gathered >= CHUNK) {
          tasks.push_back(pieces.size());
          gathered = 0;
        }
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

bool is_float(const ffi::AnyBuffer& buffer, Array* to) {
  to->data = buffer.untyped_data();
  to->kind = buffer.element_type() == ffi::DataType::BF16 ? BFLOAT16 : FLOAT32;
  return to->kind == BFLOAT16 || buffer.element_type() == ffi::DataType::F32;
}

const char* const NO_FLOAT = "functional_opt: a leaf is neither float32 nor bfloat16";

// Arguments: n gradients, n params, n of each slot, and of each slot that is codes n arrays of scales. All but the
// gradients are replaced: the results are the same buffers. `kinds`: how each slot is stored.
ffi::Error step(ffi::ThreadPool pool, ffi::Span<const int32_t> code, ffi::Span<const int32_t> kinds,
                ffi::AnyBuffer scalars, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  size_t slots = 0, trees = 2 + kinds.size();
  for (size_t i = 0; i < code.size(); i += 2) slots += slots_of(code[i]);
  for (const int32_t kind : kinds) trees += kind >= INT8;
  const size_t n = args.size() / trees;
  if (slots > MAX_SLOTS || slots != kinds.size() || args.size() != n * trees || rets.size() != n * (trees - 1))
    return ffi::Error::InvalidArgument("functional_opt: the arguments do not fit the program");
  std::vector<Leaf> leaves(n);
  for (size_t i = 0; i < n; ++i) {
    Leaf& leaf = leaves[i];
    if (!is_float(*args.get<ffi::AnyBuffer>(i), &leaf.grad) || !is_float(*args.get<ffi::AnyBuffer>(n + i), &leaf.param))
      return ffi::Error::InvalidArgument(NO_FLOAT);
    leaf.size = leaf.row = static_cast<int64_t>(args.get<ffi::AnyBuffer>(i)->element_count());
    for (size_t k = 0, coded = 0; k < slots; ++k) {
      leaf.slots[k].kind = kinds[k];
      leaf.slots[k].data = args.get<ffi::AnyBuffer>((2 + k) * n + i)->untyped_data();
      if (kinds[k] < INT8) continue;
      const auto scales = args.get<ffi::AnyBuffer>((2 + slots + coded++) * n + i);
      const int64_t in_row = scales->dimensions().back();
      leaf.slots[k].scales = static_cast<float*>(scales->untyped_data());
      leaf.row = leaf.size * in_row / static_cast<int64_t>(scales->element_count());
      leaf.block = (leaf.row + in_row - 1) / in_row;
    }
  }
  const Program program(code.begin(), code.size(), static_cast<float*>(scalars.untyped_data()));
  const Work work(leaves);
  const size_t last = work.pieces.size() - 1;
  for_pieces(work, pool, [&](size_t i) {
    const Piece& piece = work.pieces[last - i];  // backwards: the ends of the gradients are in the cache, from their norm
    BEST.first(program, leaves[piece.leaf], slots, piece.begin, piece.end);
  });
  return ffi::Error::Success();
}

// Arguments: n arrays. Result: Σx² of each, summed in an order that does not depend on the threads.
ffi::Error sums_of_squares(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::Result<ffi::BufferR1<ffi::F32>> sums) {
  std::vector<Leaf> leaves(args.size());
  for (size_t i = 0; i < leaves.size(); ++i) {
    const auto x = args.get<ffi::AnyBuffer>(i);
    if (!is_float(*x, &leaves[i].grad)) return ffi::Error::InvalidArgument(NO_FLOAT);
    leaves[i].size = leaves[i].row = static_cast<int64_t>(x->element_count());
  }
  const Work work(leaves);
  std::vector<double> parts(work.pieces.size());
  for_pieces(work, pool, [&](size_t i) {
    const Piece& piece = work.pieces[i];
    parts[i] = BEST.second(leaves[piece.leaf], piece.begin, piece.end);
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
                                  .Attr<ffi::Span<const int32_t>>("kinds")
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(functional_opt_sums_of_squares, sums_of_squares,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().Ret<ffi::BufferR1<ffi::F32>>());
