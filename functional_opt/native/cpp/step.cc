// One step of a chain of transformations on the CPU, all leaves in one pass over memory.
//
// A chain arrives as a program: what its links do to the update u of one element, one after another.
//
//     u = grad;  u = scale(u);  u, m, v = adam(u, m, v);  u = u + decay * w;  w = w + factor * u
//
// It runs on a block of elements at a time, which stays in the first-level cache, so however long a program is, each
// gradient, weight and slot goes through memory once. Results replace what was read: XLA gives the same buffer
// for both, or has made a copy before.
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

FOR_INSTRUCTIONS(void, run, (const Program& p, const Leaf& leaf, int slots, int64_t i, int64_t j), (p, leaf, slots, i, j))
FOR_INSTRUCTIONS(double, squares, (const Leaf& leaf, int64_t i, int64_t j), (leaf, i, j))

// ---- All leaves, cut in pieces; neighbours that together have about CHUNK elements are one task. ----

struct Piece {  // blocks of a leaf
  int64_t leaf, begin, end;
};

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
  // Backwards, as the ends of the gradients may still be in the cache from the sum of their squares.
  work.run(pool, true, [&](const Piece& piece, size_t) {
    run_best(program, leaves[piece.leaf], static_cast<int>(slots), piece.begin, piece.end);
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
  work.run(pool, false, [&](const Piece& piece, size_t i) {
    parts[i] = squares_best(leaves[piece.leaf], piece.begin, piece.end);
  });
  std::vector<double> totals(leaves.size());
  for (size_t i = 0; i < parts.size(); ++i) totals[work.pieces[i].leaf] += parts[i];
  for (size_t i = 0; i < totals.size(); ++i) sums->typed_data()[i] = static_cast<float>(totals[i]);
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
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().Ret<ffi::BufferR1<ffi::F32>>());
