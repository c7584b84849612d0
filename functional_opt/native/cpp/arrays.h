// How arrays are stored, and the floats they stand for: a block is read, worked on in the cache, and written.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "machine.h"

namespace functional_opt {

constexpr int64_t BLOCK = 512;        // the most elements worked on at a time, as in plan.py
constexpr int64_t SPAN = 256;         // as many of codes, or one block: longer loops overlap less
constexpr int64_t CHUNK = 32 * 1024;  // elements a thread takes at a time
constexpr int MAX_SLOTS = 6;          // of all rules of a program; one rule has four at most

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

// The last bits of a code, whatever number was not finite: the others are those of another row.
INLINE uint32_t four_bits(uint32_t code) { return code & 15u; }

// The integer nearest to a small x, ties to even: in the last byte of the result.
INLINE uint32_t nearest(float x) { return bits_of(x + 12582912.0f); }

// By the bits, whose order as integers is that of floats ≥ 0. `greater` also takes a negative one and another.
INLINE float greater(float x, float y) {
  return of_bits(static_cast<uint32_t>(std::max(static_cast<int32_t>(bits_of(x)), static_cast<int32_t>(bits_of(y)))));
}
INLINE float lesser(float x, float y) { return of_bits(std::min(bits_of(x), bits_of(y))); }

// The codes of 8 bits (transforms/precision/codes.py). `number`: what a code stands for, with a scale of 1. `code`:
// that of x, given y = |x| / scale, in the last byte; a maximum is its first argument where y is NaN. Codes are floats
// here, and compared as such: of a condition on bytes GCC makes a mask of bytes, and to make masks of floats from that
// takes longer than all else.

// Equal steps of 1/64 from 1/8 on, which is the code LEAST; below it OCTAVE codes an octave.
template <int32_t LEVELS, int32_t OCTAVE>
struct Octaves {
  static constexpr int32_t EIGHTH = 0x3e000000, STEP = (1 << 23) / OCTAVE, EVEN = LEVELS - 64, LEAST = LEVELS - 56;
  static constexpr uint32_t TO_BITS = 0x4b000000;  // of 2²³; those of 2²³ + c are c more
  static INLINE float decoded(float c) {
    const float even = c * (1 / 64.0f) - EVEN / 64.0f, up_to_least = lesser(c, LEAST) + 8388608.0f;
    const uint32_t octaves = bits_of(up_to_least) * STEP + (EIGHTH - (TO_BITS + LEAST) * STEP);
    return lesser(greater(even, of_bits(octaves)), c);  // 0 where c is; other codes are at least the number
  }
  static INLINE float level(float y) {
    const int32_t bits = static_cast<int32_t>(bits_of(y));
    const float even = 64 * y + EVEN, octaves = static_cast<float>(bits - EIGHTH) * (1.0f / STEP) + LEAST;
    return (bits >= EIGHTH ? even : octaves) - 1e-3f;
  }
};

struct SignedOctaves : Octaves<127, 4> {
  using Code = int8_t;
  static INLINE float number(float c) { return std::copysign(decoded(std::fabs(c)), c); }
  static INLINE uint32_t code(float x, float y) { return nearest(std::copysign(std::max(0.0f, level(y)), x)); }
};

struct UnsignedOctaves : Octaves<255, 5> {
  using Code = uint8_t;
  static INLINE float number(float c) { return decoded(c); }
  static INLINE uint32_t code(float x, float y) { return nearest(std::max(x > 0 ? 1.0f : 0.0f, level(y))); }
};

struct SignedCompanded {
  using Code = int8_t;
  static INLINE float number(float c) {
    const float z = c * (1 / 127.0f);
    return z / (2 - std::fabs(z));
  }
  static INLINE uint32_t code(float x, float y) { return nearest(std::copysign(2 * y / (1 + y) * 127, x)); }
};

struct UnsignedCompanded {
  using Code = uint8_t;
  static INLINE float number(float c) {
    const float root = c * (1 / 255.0f);
    return root * root;
  }
  static INLINE uint32_t code(float x, float y) { return nearest(std::max(x > 0 ? 1.0f : 0.0f, std::sqrt(y) * 255)); }
};

// Numbered as KINDS in plan.py. Those of 4 bits are last.
enum Kind : int32_t { FLOAT32, BFLOAT16, INT8, UINT8, COMPANDED_INT8, COMPANDED_UINT8, INT4, UINT4, KINDS };
constexpr int64_t WIDTHS[KINDS] = {32, 16, 8, 8, 8, 8, 4, 4};  // bits of an element

struct Array {
  void* data = nullptr;
  int32_t kind = FLOAT32;
  float* scales = nullptr;  // of codes: the largest |x| of every block
};

// A leaf is cut in rows, these in spans, which are worked on at a time, and these in blocks, which have a scale each.
// The last span of a row may be shorter, as its last block. Without codes there is one row, and a span is a block.
struct Leaf {
  int64_t size = 0, row = 0, block = BLOCK;
  Array grad, param, out, slots[MAX_SLOTS];  // out: new params, where the params are, or updates

  bool has_pairs() const {  // of rows, which have bytes in common
    return std::any_of(slots, slots + MAX_SLOTS, [](const Array& x) { return x.kind >= INT4; });
  }
  void join_rows() {  // where blocks go on as in one row
    if (row % block == 0 && !has_pairs()) row = size;
  }
  int64_t in_row() const { return (row + block - 1) / block; }
  int64_t blocks() const { return row ? size / row * in_row() : 0; }
  int64_t span() const { return std::max<int64_t>(SPAN / block, 1) * block; }
  int64_t spans_in_row() const { return (row + span() - 1) / span(); }
  int64_t spans() const { return row ? size / row * spans_in_row() : 0; }

  // How many spans one thread takes: about CHUNK elements, and whole pairs of rows.
  int64_t spans_together() const {
    const int64_t unit = has_pairs() ? 2 * spans_in_row() : 1;
    return std::max<int64_t>(CHUNK / span() / unit, 1) * unit;
  }
};

struct Span {
  int64_t begin, size, block;
  int64_t first;       // of its blocks, among those of the leaf
  int64_t pair, half;  // of 4 bits: where its first byte is, and which bits of it
  Span(const Leaf& leaf, int64_t i) : block(leaf.block) {
    const int64_t r = i / leaf.spans_in_row(), at = i % leaf.spans_in_row() * leaf.span();
    begin = r * leaf.row + at;
    size = std::min(leaf.span(), leaf.row - at);
    first = r * leaf.in_row() + at / block;
    pair = r / 2 * leaf.row + at;
    half = 4 * (r % 2);
  }
};

// Asks for a span that is read soon.
INLINE void fetch(const Array& x, const Span& span) {
  const int64_t width = WIDTHS[x.kind];
  const int64_t begin = x.kind >= INT4 ? span.pair : span.begin * width / 8;
  const int64_t bytes = x.kind >= INT4 ? span.size : span.size * width / 8;
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(x.data) + begin + i);
}

// Calls f(where it begins in the span, its size, its number in the leaf) for each block. A size of FEW, which is usual
// for companded codes, is known when f is compiled.
template <typename F>
INLINE void for_blocks(const Span& span, const F& f) {
  constexpr int64_t FEW = 32;
  const int64_t n = span.size, block = span.block, first = span.first;
  int64_t i = 0, k = first;
  if (block == FEW)
    for (; i + FEW <= n; i += FEW, ++k) f(i, FEW, k);
  else
    for (; i + block <= n; i += block, ++k) f(i, block, k);
  if (i < n) f(i, n - i, k);
}

INLINE void fill(float* x, int64_t n, float number) {
  VECTORIZE for (int64_t i = 0; i < n; ++i) x[i] = number;
}

template <typename Format>
INLINE void decode(const Array& x, const Span& span, const float* scales, float* to) {
  const typename Format::Code* from = static_cast<const typename Format::Code*>(x.data) + span.begin;
  const int64_t n = span.size;
  VECTORIZE for (int64_t i = 0; i < n; ++i) to[i] = Format::number(from[i]) * scales[i];
}

template <typename Format>
INLINE void encode(const Array& x, const Span& span, const float* inverses, const float* from) {
  typename Format::Code* to = static_cast<typename Format::Code*>(x.data) + span.begin;
  const int64_t n = span.size;  // for the compiler, a code may lie anywhere, even there
  VECTORIZE for (int64_t i = 0; i < n; ++i)
    to[i] = static_cast<typename Format::Code>(Format::code(from[i], std::fabs(from[i]) * inverses[i]));
}

// The floats of a span: in place, or decoded.
INLINE float* read(const Array& x, const Span& span, float* to) {
  alignas(64) float scales[BLOCK];
  if (x.scales)
    for_blocks(span, [&](int64_t i, int64_t size, int64_t k) INLINED { fill(scales + i, size, x.scales[k]); });
  const int64_t n = span.size;
  switch (x.kind) {
    case BFLOAT16: {
      const uint16_t* from = static_cast<const uint16_t*>(x.data) + span.begin;
      VECTORIZE for (int64_t i = 0; i < n; ++i) to[i] = widened(from[i]);
      return to;
    }
    case INT8: decode<SignedOctaves>(x, span, scales, to); return to;
    case UINT8: decode<UnsignedOctaves>(x, span, scales, to); return to;
    case COMPANDED_INT8: decode<SignedCompanded>(x, span, scales, to); return to;
    case COMPANDED_UINT8: decode<UnsignedCompanded>(x, span, scales, to); return to;
    case INT4: {
      const uint8_t* from = static_cast<const uint8_t*>(x.data) + span.pair;
      VECTORIZE for (int64_t i = 0; i < n; ++i) {
        const float c = ((from[i] >> span.half & 15) - 8) * (1 / 7.0f);
        to[i] = c * std::fabs(c) * scales[i];
      }
      return to;
    }
    case UINT4: {
      const uint8_t* from = static_cast<const uint8_t*>(x.data) + span.pair;
      VECTORIZE for (int64_t i = 0; i < n; ++i) {
        const float c = ((from[i] >> span.half & 15) + 1) * (1 / 16.0f);
        to[i] = c * c * scales[i];
      }
      return to;
    }
    default: return static_cast<float*>(x.data) + span.begin;
  }
}

// The largest |x|, NaN if one is.
INLINE float largest(const float* x, int64_t n) {
  int32_t top = 0;  // the order of integers is that of positive floats, and NaN is above all
  VECTORIZE for (int64_t i = 0; i < n; ++i) top = std::max(top, static_cast<int32_t>(bits_of(x[i]) & 0x7fffffffu));
  return of_bits(static_cast<uint32_t>(top));
}

// The scale of a block: its largest |x| without the last bits. `inverse`: 0 of what is too small for one.
INLINE float scale_of(const float* x, int64_t n, float* inverse) {
  const uint32_t bits = bits_of(largest(x, n)), rounded = (bits + 0x7fu + (bits >> 8 & 1)) & ~0xffu;
  const float a = of_bits(bits <= 0x7f800000u ? rounded : bits);
  constexpr float SMALLEST = 1.17549435e-38f;
  *inverse = a >= SMALLEST ? 1 / a : 0;
  return a;
}

// Stores a span that `read` has decoded.
INLINE void write(const Array& x, const Span& span, const float* from) {
  alignas(64) float by[BLOCK];
  if (x.scales)
    for_blocks(span, [&](int64_t i, int64_t size, int64_t k) INLINED {
      float inverse;
      x.scales[k] = scale_of(from + i, size, &inverse);
      fill(by + i, size, inverse);
    });
  const int64_t n = span.size;
  const uint8_t kept = static_cast<uint8_t>(0xf0 >> span.half);
  switch (x.kind) {
    case BFLOAT16: {
      uint16_t* to = static_cast<uint16_t*>(x.data) + span.begin;
      VECTORIZE for (int64_t i = 0; i < n; ++i) to[i] = rounded(from[i]);
      break;
    }
    case INT8: encode<SignedOctaves>(x, span, by, from); break;
    case UINT8: encode<UnsignedOctaves>(x, span, by, from); break;
    case COMPANDED_INT8: encode<SignedCompanded>(x, span, by, from); break;
    case COMPANDED_UINT8: encode<UnsignedCompanded>(x, span, by, from); break;
    case INT4: {
      uint8_t* to = static_cast<uint8_t*>(x.data) + span.pair;
      VECTORIZE for (int64_t i = 0; i < n; ++i) {
        const uint32_t c = nearest(std::copysign(std::sqrt(std::fabs(from[i]) * by[i]) * 7, from[i])) + 8;
        to[i] = static_cast<uint8_t>((to[i] & kept) | four_bits(c) << span.half);
      }
      break;
    }
    case UINT4: {
      uint8_t* to = static_cast<uint8_t*>(x.data) + span.pair;
      VECTORIZE for (int64_t i = 0; i < n; ++i) {
        const uint32_t c = nearest(std::max(1.0f, std::sqrt(std::fabs(from[i]) * by[i]) * 16)) - 1;
        to[i] = static_cast<uint8_t>((to[i] & kept) | four_bits(c) << span.half);
      }
      break;
    }
    default: break;
  }
}

}  // namespace functional_opt
