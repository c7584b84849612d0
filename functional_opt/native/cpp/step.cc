// One step of a chain of transformations on the CPU, all leaves in one pass over memory.
//
// A chain arrives as a program: what its links do to the update u of one element, one after another.
//
//     u = grad;  u = scale(u);  u, m, v = adam(u, m, v);  u = u + decay * w;  w = w + factor * u
//
// It runs on a block of elements at a time, which stays in the first-level cache, so however long a program is, each
// gradient, weight and slot goes through memory once. Results replace what was read: XLA gives the same buffer
// for both, or has made a copy before. Where the updates are asked for instead of new params, they go to buffers of
// their own: the program ends with UPDATE, and adds to −0, which changes no number.
//
// `step` and `sums_of_squares`, at the end, are what JAX calls (plan.py).

#include <algorithm>
#include <cstdint>
#include <vector>

#include "arrays.h"
#include "machine.h"
#include "rules.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace functional_opt {
namespace {

// ---- Programs: (operation, where its scalars start) pairs. ----

// One of the usual form, scale, rule, decay, end, each but the last optional, is `fused`: an element stays in registers.
// One with a closed GATE is cut there: `ends` is false, only the `slots` of the rules before it change, and updates are 0.
struct Program {
  const int32_t* code;
  int64_t length;
  const float* scalars;
  int slots = 0;
  bool fused, adds, ends = true;
  int32_t rule = ADD;  // which stands for none
  const float *scale = nullptr, *of_rule = nullptr, *decay = nullptr, *factor = nullptr;

  Program(const int32_t* c, int64_t n, const float* s) : code(c), length(n), scalars(s), adds(c[n - 2] == ADD) {
    for (int64_t k = 0; k < length; k += 2) {
      slots += slots_of(code[k]);
      if (code[k] == GATE && s[code[k + 1]] == 0) length = k, ends = false;
    }
    int64_t i = code[0] == GATE ? 2 : 0;
    if (i < n && code[i] == SCALE) scale = s + code[i + 1], i += 2;
    if (i < n && slots_of(code[i])) rule = code[i], of_rule = s + code[i + 1], i += 2;
    if (i < n && code[i] == DECAY) decay = s + code[i + 1], i += 2;
    fused = ends && i + 2 == n;
    if (fused) factor = s + code[i + 1];
  }
};

struct Block {
  const float *g, *w, *base;  // base: to which the update is added
  float* out;
  float* slots[MAX_SLOTS];
  int64_t size;
};

template <typename First, typename Rule, typename Last>
INLINE void fused(const Program& program, const Block& block) {
  const First first(program.scale);
  const float factor = program.factor[0];
  const Rule rule(program.of_rule);
  const Last last(program.decay);
  const SlotPointers slots{block.slots[0], block.slots[1], block.slots[2], block.slots[3]};
  const float *g = block.g, *w = block.w, *base = block.base;
  float* out = block.out;
  VECTORIZE for (int64_t i = 0; i < block.size; ++i) {
    const float u = last(rule(first(g[i], 0, slots, i), w[i], slots, i), w[i], slots, i);
    out[i] = base[i] + factor * u;
  }
}

template <typename Rule>
INLINE void fused(const Program& program, const Block& block) {
  if (program.scale)
    program.decay ? fused<Scale, Rule, Decay>(program, block) : fused<Scale, Rule, Nothing>(program, block);
  else
    program.decay ? fused<Nothing, Rule, Decay>(program, block) : fused<Nothing, Rule, Nothing>(program, block);
}

INLINE void add(const float* s, const float* x, const Block& block) {
  const float factor = s[0];
  const float* base = block.base;
  float* out = block.out;
  VECTORIZE for (int64_t i = 0; i < block.size; ++i) out[i] = base[i] + factor * x[i];
}

template <typename Rule>
INLINE void apply(const float* s, const float* x, float* u, const Block& block, int slot) {
  const Rule rule(s);
  SlotPointers slots{};
  if constexpr (Rule::SLOTS > 0) slots.first = block.slots[slot];
  if constexpr (Rule::SLOTS > 1) slots.second = block.slots[slot + 1];
  if constexpr (Rule::SLOTS > 2) slots.third = block.slots[slot + 2];
  if constexpr (Rule::SLOTS > 3) slots.fourth = block.slots[slot + 3];
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
      case GATE: continue;
      default: add(s, x, block);
    }
    slot += slots_of(op);
    x = u;
  }
}

INLINE void run(const Program& program, const Leaf& leaf, int64_t begin, int64_t end) {
  alignas(64) float g[BLOCK], w[BLOCK], out[BLOCK], nothing[BLOCK], decoded[MAX_SLOTS][BLOCK];
  const bool rounds = program.adds && leaf.param.kind == BFLOAT16;  // an update has the dtype of the weight
  const bool adds = program.adds && !rounds;
  const auto has_codes = [](const Array& x) { return x.scales != nullptr; };
  const bool coded = std::any_of(leaf.slots, leaf.slots + program.slots, has_codes);
  if (!adds) std::fill(nothing, nothing + BLOCK, -0.0f);
  for (int64_t index = begin; index < end; ++index) {
    const Span span(leaf, index);
    Block block{read(leaf.grad, span, g), read(leaf.param, span, w), nothing, out, {}, span.size};
    if (adds) block.base = block.w;
    if (leaf.out.kind == FLOAT32) block.out = static_cast<float*>(leaf.out.data) + span.begin;
    for (int k = 0; k < program.slots; ++k) block.slots[k] = read(leaf.slots[k], span, decoded[k]);
    if (!program.fused) interpret(program, block);
    else switch (program.rule) {
#define FUSED(NAME, RULE) \
  case NAME: fused<RULE>(program, block); break;
      FUSED(ADD, Nothing) FOR_RULES(FUSED)
#undef FUSED
    }
    if (program.ends || !program.adds) {  // else the weights stay
      if (!program.ends) std::fill(block.out, block.out + span.size, 0.0f);
      if (rounds) VECTORIZE for (int64_t i = 0; i < span.size; ++i) out[i] = w[i] + widened(rounded(out[i]));
      write(leaf.out, span, out);
    }
    if (coded) {  // while the codes are computed, which takes long
      const Span next(leaf, std::min(index + 1, end - 1));
      fetch(leaf.grad, next);
      fetch(leaf.param, next);
      for (int k = 0; k < program.slots; ++k) fetch(leaf.slots[k], next);
    }
    for (int k = 0; k < program.slots; ++k) write(leaf.slots[k], span, decoded[k]);
  }
}

// Σx² of some spans of a leaf: float32 sums of a span's columns, float64 over spans. x is the gradient or, given
// `accumulate`, the mean or sum that it makes with the first slot.
INLINE double squares(const Accumulate* accumulate, const Leaf& leaf, int64_t begin, int64_t end) {
  constexpr int64_t LANES = 64;
  alignas(64) float block[BLOCK];
  double total = 0;
  for (int64_t index = begin; index < end; ++index) {
    const Span span(leaf, index);
    float lanes[LANES] = {};
    const float* from = read(leaf.grad, span, block);
    if (accumulate) {
      const Accumulate with = *accumulate;
      const float* a = static_cast<float*>(leaf.slots[0].data) + span.begin;
      VECTORIZE for (int64_t i = 0; i < span.size; ++i) block[i] = with.share * with.next(from[i], a[i]);
      from = block;
    }
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

FOR_INSTRUCTIONS(void, run, (const Program& p, const Leaf& leaf, int64_t i, int64_t j), (p, leaf, i, j))
FOR_INSTRUCTIONS(double, squares, (const Accumulate* a, const Leaf& leaf, int64_t i, int64_t j), (a, leaf, i, j))

// ---- All leaves, cut in pieces; neighbours that together have about CHUNK elements are one task. ----

struct Piece {  // spans of a leaf
  int64_t leaf, begin, end;
};

struct Work {
  std::vector<Piece> pieces;
  std::vector<size_t> tasks{0};  // where each starts among the pieces, and the end

  explicit Work(const std::vector<Leaf>& leaves) {
    int64_t gathered = 0;
    for (size_t leaf = 0; leaf < leaves.size(); ++leaf) {
      const int64_t spans = leaves[leaf].spans();
      if (!spans) continue;
      const int64_t step = leaves[leaf].spans_together();
      for (int64_t begin = 0; begin < spans; begin += step) {
        const int64_t end = std::min(begin + step, spans);
        pieces.push_back({static_cast<int64_t>(leaf), begin, end});
        gathered += std::min((end - begin) * leaves[leaf].span(), leaves[leaf].size);
        if (gathered >= CHUNK) {
          tasks.push_back(pieces.size());
          gathered = 0;
        }
      }
    }
    if (tasks.back() < pieces.size()) tasks.push_back(pieces.size());
  }

  // Calls `each(piece, its number)` for all of them.
  template <typename F>
  void run(ffi::ThreadPool pool, bool backwards, const F& each) const {
    const size_t n = tasks.size() - 1;
    in_parallel(n, pool, [&] {
      return [&](size_t i) {
        const size_t task = backwards ? n - 1 - i : i;
        for (size_t k = tasks[task]; k < tasks[task + 1]; ++k) each(pieces[k], k);
      };
    });
  }
};

// ---- What JAX calls ----

bool is_float(const ffi::AnyBuffer& buffer, Array* to) {
  to->data = buffer.untyped_data();
  to->kind = buffer.element_type() == ffi::DataType::BF16 ? BFLOAT16 : FLOAT32;
  return to->kind == BFLOAT16 || buffer.element_type() == ffi::DataType::F32;
}

const char* const NO_FLOAT = "functional_opt: a leaf is neither float32 nor bfloat16";

// Whether the operations are known, and the last of them, alone, is an end. `slots`: how many all of them have.
bool is_program(ffi::Span<const int32_t> code, size_t* slots) {
  *slots = 0;
  for (size_t i = 0; i < code.size(); i += 2) {
    if (code[i] < 0 || code[i] >= OPS || (code[i] >= ADD) != (i + 2 == code.size())) return false;
    *slots += slots_of(code[i]);
  }
  return code.size() && code.size() % 2 == 0;
}

// Bits of an element as it is stored.
int64_t width(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::F32: return 32;
    case ffi::DataType::BF16: return 16;
    case ffi::DataType::S8: case ffi::DataType::U8: return 8;
    default: return 0;
  }
}

// Whether a slot's buffer holds `size` elements of its kind; two of 4 bits are a byte.
bool holds(const ffi::AnyBuffer& buffer, int32_t kind, int64_t size) {
  const int64_t bits = width(buffer.element_type()) * static_cast<int64_t>(buffer.element_count());
  return kind >= FLOAT32 && kind < KINDS && bits >= WIDTHS[kind] * size;
}

// Arguments: n gradients, n params, n of each slot, and of each slot that is codes n arrays of scales. Slots and
// scales are replaced: the results are the same buffers; so are params if the program ends with ADD. With UPDATE, the
// first n results are the updates. `kinds`: how each slot is stored.
//
// plan.py sees to it that all fits. It is looked at again, once for a leaf: a mistake there must not become memory
// that is written over.
ffi::Error step(ffi::ThreadPool pool, ffi::Span<const int32_t> code, ffi::Span<const int32_t> kinds,
                ffi::AnyBuffer scalars, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  size_t slots = 0, trees = 2 + kinds.size();
  for (const int32_t kind : kinds) trees += kind >= INT8;
  const size_t n = args.size() / trees;
  if (!is_program(code, &slots) || slots > MAX_SLOTS || slots != kinds.size() || args.size() != n * trees ||
      rets.size() != n * (trees - 1))
    return ffi::Error::InvalidArgument("functional_opt: the arguments do not fit the program");
  const bool adds = code[code.size() - 2] == ADD;
  for (size_t k = adds ? 0 : n; k < rets.size(); ++k)
    if ((*rets.get<ffi::AnyBuffer>(k))->untyped_data() != args.get<ffi::AnyBuffer>(n + k)->untyped_data())
      return ffi::Error::InvalidArgument("functional_opt: a result is not where its argument was");
  std::vector<Leaf> leaves(n);
  for (size_t i = 0; i < n; ++i) {
    Leaf& leaf = leaves[i];
    const auto grad = *args.get<ffi::AnyBuffer>(i), param = *args.get<ffi::AnyBuffer>(n + i);
    const ffi::AnyBuffer out = **rets.get<ffi::AnyBuffer>(i);
    if (!is_float(grad, &leaf.grad) || !is_float(param, &leaf.param) || !is_float(out, &leaf.out))
      return ffi::Error::InvalidArgument(NO_FLOAT);
    bool fits = param.element_count() == grad.element_count() && out.element_count() == grad.element_count() &&
                leaf.out.kind == leaf.param.kind;
    leaf.size = leaf.row = static_cast<int64_t>(grad.element_count());
    if (!leaf.size) continue;
    int64_t in_row = 0, all = 0;  // scales of a row, and of the leaf: the same for all slots
    for (size_t k = 0, coded = 0; k < slots; ++k) {
      const auto slot = *args.get<ffi::AnyBuffer>((2 + k) * n + i);
      leaf.slots[k].kind = kinds[k];
      leaf.slots[k].data = slot.untyped_data();
      fits = fits && holds(slot, kinds[k], leaf.size);
      if (kinds[k] < INT8) continue;
      const auto scales = *args.get<ffi::AnyBuffer>((2 + slots + coded++) * n + i);
      const int64_t count = static_cast<int64_t>(scales.element_count());
      const int64_t last = scales.dimensions().size() ? scales.dimensions().back() : 0;
      if (all == 0) in_row = last, all = count;
      fits = fits && all > 0 && count == all && last == in_row && scales.element_type() == ffi::DataType::F32;
      if (!fits) break;
      leaf.slots[k].scales = static_cast<float*>(scales.untyped_data());
      leaf.row = leaf.size * in_row / all;
      leaf.block = (leaf.row + in_row - 1) / in_row;
      fits = leaf.block > 0 && leaf.block <= BLOCK && leaf.size % leaf.row == 0 && leaf.blocks() == all;
    }
    if (!fits) return ffi::Error::InvalidArgument("functional_opt: the arrays of a leaf do not fit each other");
    leaf.join_rows();
  }
  const Program program(code.begin(), code.size(), static_cast<float*>(scalars.untyped_data()));
  const Work work(leaves);
  // Backwards, as the ends of the gradients may still be in the cache from the sum of their squares.
  work.run(pool, true, [&](const Piece& piece, size_t) {
    run_best(program, leaves[piece.leaf], piece.begin, piece.end);
  });
  return ffi::Error::Success();
}

// Arguments: the scalars of an ACCUMULATE or none, n gradients, and given scalars the n slots that it reads. Result: Σx²
// of each gradient, or of each x that ACCUMULATE makes with its slot, summed in an order that does not depend on the
// threads; zeros if it closes no window, since nothing reads them then.
ffi::Error sums_of_squares(ffi::ThreadPool pool, ffi::BufferR1<ffi::F32> scalars, ffi::RemainingArgs args,
                           ffi::Result<ffi::BufferR1<ffi::F32>> sums) {
  constexpr size_t COUNT = sizeof(AccumulateScalars) / sizeof(float);
  const bool accumulates = scalars.element_count() == COUNT;
  const size_t n = sums->element_count();
  if ((!accumulates && scalars.element_count()) || args.size() != (accumulates ? 2 * n : n))
    return ffi::Error::InvalidArgument("functional_opt: the arguments do not fit the sums");
  std::vector<Leaf> leaves(n);
  for (size_t i = 0; i < n; ++i) {
    const auto x = *args.get<ffi::AnyBuffer>(i);
    if (!is_float(x, &leaves[i].grad)) return ffi::Error::InvalidArgument(NO_FLOAT);
    leaves[i].size = leaves[i].row = static_cast<int64_t>(x.element_count());
    if (!accumulates) continue;
    const auto slot = *args.get<ffi::AnyBuffer>(n + i);
    if (slot.element_type() != ffi::DataType::F32 || slot.element_count() != x.element_count())
      return ffi::Error::InvalidArgument("functional_opt: a slot does not fit its gradient");
    leaves[i].slots[0].data = slot.untyped_data();
  }
  std::fill(sums->typed_data(), sums->typed_data() + n, 0.0f);
  constexpr float NONE[COUNT] = {};
  const Accumulate accumulate(accumulates ? scalars.typed_data() : NONE);
  if (accumulates && !accumulate.close) return ffi::Error::Success();
  const Work work(leaves);
  std::vector<double> parts(work.pieces.size());
  work.run(pool, false, [&](const Piece& piece, size_t i) {
    parts[i] = squares_best(accumulates ? &accumulate : nullptr, leaves[piece.leaf], piece.begin, piece.end);
  });
  std::vector<double> totals(n);
  for (size_t i = 0; i < parts.size(); ++i) totals[work.pieces[i].leaf] += parts[i];
  for (size_t i = 0; i < n; ++i) sums->typed_data()[i] = static_cast<float>(totals[i]);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace functional_opt

XLA_FFI_DEFINE_HANDLER_SYMBOL(functional_opt_step, functional_opt::step,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int32_t>>("program")
                                  .Attr<ffi::Span<const int32_t>>("kinds")
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(functional_opt_sums_of_squares, functional_opt::sums_of_squares,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR1<ffi::F32>>()
                                  .RemainingArgs()
                                  .Ret<ffi::BufferR1<ffi::F32>>());

// What Python asks before anything is registered: the FFI that this was built for, and a checksum of these sources,
// by which they are told from later ones, where arguments or codes mean something else.
#ifndef FUNCTIONAL_OPT_SOURCES
#define FUNCTIONAL_OPT_SOURCES 0
#endif
extern "C" const int32_t functional_opt_built_for[] = {XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR, FUNCTIONAL_OPT_SOURCES};

// Which vector instructions are used: 0, 2 for AVX2, 512 for AVX-512.
extern "C" int32_t functional_opt_instructions() {
#ifdef FOR_X86
  return functional_opt::has_avx512() ? 512 : functional_opt::has_avx2() ? 2 : 0;
#else
  return 0;
#endif
}
