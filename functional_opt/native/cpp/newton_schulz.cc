// Newton–Schulz iterations, X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ, of a stack of matrices no taller than wide; or two
// at a time, X ← p₂(P·A·P)·P·X with P = p₁(A) and p(A) = a·I + b·A + c·A².
//
// A thread does all of one matrix, which stays in its cache. A and all polynomials of it are symmetric, so half of them
// is computed and the other half mirrored. Inside, matrices have sides that are multiples of SIDE, filled with zeros, which stay
// zeros; and rows somewhat longer, as rows a power of two apart would fall into the same few lines of the cache.

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "machine.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace functional_opt {
namespace {

constexpr int64_t SIDE = 32, MORE = 16;

struct Matrix {
  float* data;
  int64_t rows, columns, stride;
};

int64_t padded(int64_t n) { return (n + SIDE - 1) / SIDE * SIDE; }

// What one thread works with.
struct Scratch {
  std::vector<float> memory;
  Matrix x, y, s, t, q;
  float* panel;

  Scratch(int64_t rows, int64_t columns) {
    const int64_t n = padded(rows), m = padded(columns), wide = m + MORE, square = n + MORE;
    memory.resize(2 * n * wide + 3 * n * square + SIDE * std::max(n, m));
    float* at = memory.data();
    for (Matrix* a : {&x, &y}) *a = {at, n, m, wide}, at += n * wide;
    for (Matrix* a : {&s, &t, &q}) *a = {at, n, n, square}, at += n * square;
    panel = at;
  }
  Scratch(Scratch&&) = default;
};

// ROWS rows and 2·LANES columns of a product stay in registers.
template <int LANES>
struct Tile {
  typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));
  static constexpr int ROWS = LANES == 16 ? 8 : 6, COLUMNS = 2 * LANES;

  // The panel: as many columns of b, or of its transpose, one row after another.
  static INLINE void pack(const Matrix& b, bool transposed, int64_t column, float* panel) {
    if (!transposed) {
      for (int64_t k = 0; k < b.rows; ++k)
        for (int64_t j = 0; j < COLUMNS; ++j) panel[k * COLUMNS + j] = b.data[k * b.stride + column + j];
      return;
    }
    for (int64_t j = 0; j < COLUMNS; j += 8)
      for (int64_t k = 0; k < b.columns; k += 8)
        for (int64_t i = 0; i < 8; ++i)
          for (int64_t l = 0; l < 8; ++l)
            panel[(k + i) * COLUMNS + j + l] = b.data[(column + j + l) * b.stride + k + i];
  }

  // c = alpha·d + beta·a·panel, in ROWS rows and COLUMNS columns.
  static INLINE void multiply(const float* a, int64_t stride, int64_t depth, const float* panel, float alpha,
                              const float* d, float beta, float* c, int64_t c_stride) {
    Vector sums[ROWS][2];
    for (auto& row : sums) row[0] = row[1] = Vector{};
    for (int64_t k = 0; k < depth; ++k) {
      const Vector* b = reinterpret_cast<const Vector*>(panel + k * COLUMNS);
      const Vector b0 = b[0], b1 = b[1];
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; ++i) {
        const float x = a[i * stride + k];
        sums[i][0] += x * b0;
        sums[i][1] += x * b1;
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
      for (int half = 0; half < 2; ++half) {
        const int64_t at = i * c_stride + half * LANES;
        Vector& to = *reinterpret_cast<Vector*>(c + at);
        to = d ? alpha * *reinterpret_cast<const Vector*>(d + at) + beta * sums[i][half] : beta * sums[i][half];
      }
  }
};

// c = alpha·d + beta·a·b, or a·bᵀ, and no d; of a symmetric one half is computed.
template <int LANES>
INLINE void product(const Matrix& a, const Matrix& b, bool transposed, bool symmetric, float alpha, const float* d,
                    float beta, const Matrix& c, float* panel) {
  using T = Tile<LANES>;
  for (int64_t column = 0; column < c.columns; column += T::COLUMNS) {
    T::pack(b, transposed, column, panel);
    for (int64_t i = symmetric ? column : 0; i < c.rows; i += T::ROWS) {
      const int64_t row = std::min(i, c.rows - T::ROWS), at = row * c.stride + column;  // some rows twice, at the end
      T::multiply(a.data + row * a.stride, a.stride, a.columns, panel, alpha, d ? d + at : d, beta, c.data + at, c.stride);
    }
    if (!symmetric) continue;
    for (int64_t j = column; j < column + T::COLUMNS; ++j)
      for (int64_t i = j + 1; i < c.rows; ++i) c.data[j * c.stride + i] = c.data[i * c.stride + j];
  }
}

// p = a·I + b·s + c·s², for coefficients (a, b, c).
template <int LANES>
INLINE void polynomial(const Matrix& s, const float* coefficients, const Matrix& p, float* panel) {
  product<LANES>(s, s, false, true, coefficients[1], s.data, coefficients[2], p, panel);
  for (int64_t i = 0; i < p.rows; ++i) p.data[i * (p.stride + 1)] += coefficients[0];
}

template <int LANES>
INLINE void iterate(const float* from, float* to, int64_t rows, int64_t columns, const float* coefficients,
                    int64_t steps, bool in_pairs, Scratch& scratch) {
  auto& [memory, x, y, s, t, q, panel] = scratch;
  for (int64_t i = 0; i < x.rows; ++i) {
    float* row = x.data + i * x.stride;
    if (i < rows) row = std::copy_n(from + i * columns, columns, row);
    std::fill(row, x.data + (i + 1) * x.stride, 0.0f);
  }
  for (int64_t step = 0; step < steps; ++step, coefficients += 3) {
    product<LANES>(x, x, true, true, 0, nullptr, 1, s, panel);
    if (in_pairs) {
      polynomial<LANES>(s, coefficients, q, panel);
      if (++step < steps) {
        product<LANES>(q, s, false, true, 0, nullptr, 1, t, panel);
        product<LANES>(t, q, false, true, 0, nullptr, 1, s, panel);
        polynomial<LANES>(s, coefficients += 3, t, panel);
        product<LANES>(t, q, false, true, 0, nullptr, 1, s, panel);
        std::swap(s, q);
      }
      product<LANES>(q, x, false, false, 0, nullptr, 1, y, panel);
      std::swap(x, y);
      continue;
    }
    product<LANES>(s, s, false, true, coefficients[1], s.data, coefficients[2], t, panel);
    product<LANES>(t, x, false, false, coefficients[0], x.data, 1, y, panel);
    std::swap(x, y);
  }
  for (int64_t i = 0; i < rows; ++i) std::copy_n(x.data + i * x.stride, columns, to + i * columns);
}

// The width of vectors goes with the instruction set.
#define ITERATE_PARAMETERS \
  (const float* from, float* to, int64_t n, int64_t m, const float* coefficients, int64_t steps, bool in_pairs, \
   Scratch& scratch)
#define ITERATE(LANES) \
  { iterate<LANES>(from, to, n, m, coefficients, steps, in_pairs, scratch); }

void iterate_any ITERATE_PARAMETERS ITERATE(4)
#ifdef FOR_X86
AVX2 void iterate_avx2 ITERATE_PARAMETERS ITERATE(8)
AVX512 void iterate_avx512 ITERATE_PARAMETERS ITERATE(16)
void (*const iterate_best) ITERATE_PARAMETERS = has_avx512() ? iterate_avx512 : has_avx2() ? iterate_avx2 : iterate_any;
#else
void (*const iterate_best) ITERATE_PARAMETERS = iterate_any;
#endif

// Arguments: matrices (..., n, m) with n ≤ m, (a, b, c) of each step, and whether to do steps in pairs. Result: like
// the matrices.
ffi::Error newton_schulz(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::BufferR2<ffi::F32> coefficients,
                         ffi::Result<ffi::Buffer<ffi::F32>> y, bool in_pairs) {
  const auto shape = x.dimensions();
  const int64_t n = shape[shape.size() - 2], m = shape.back(), steps = coefficients.dimensions()[0];
  if (n > m || coefficients.dimensions()[1] != 3)
    return ffi::Error::InvalidArgument("functional_opt: matrices may not be tall, a step has three coefficients");
  const size_t count = x.element_count() ? x.element_count() / (n * m) : 0;
  in_parallel(count, pool, [&] {
    return [&, scratch = Scratch(n, m)](size_t i) mutable {
      iterate_best(x.typed_data() + i * n * m, y->typed_data() + i * n * m, n, m, coefficients.typed_data(), steps,
                   in_pairs, scratch);
    };
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace functional_opt

XLA_FFI_DEFINE_HANDLER_SYMBOL(functional_opt_newton_schulz, functional_opt::newton_schulz,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("in_pairs"));
