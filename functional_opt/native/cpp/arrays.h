// How arrays are stored, and the floats they stand for: a block is read, worked on in the cache, and written.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "machine.h"

namespace functional_opt {

constexpr int64_t BLOCK = 512;        // elements worked on at a time, as in plan.py
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

INLINE int32_t nearest(float x) {  // of a small x
  return static_cast<int32_t>(bits_of(x + 12582912.0f) - bits_of(12582912.0f));
}

// The last bits of a code, whatever number was not finite: the others are those of another row.
INLINE uint32_t four_bits(int32_t code) { return static_cast<uint32_t>(code) & 15u; }
// The codes of 8 bits, as in transforms/codes.py: equal steps of 1/64 from 1/8 on, below it OCTAVE codes an octave.
template <int32_t LEVELS, int32_t OCTAVE>
struct Codes {
  static constexpr int32_t EIGHTH = 0x3e000000, STEP = (1 << 23) / OCTAVE, EVEN = LEVELS - 64, LEAST = LEVELS - 56;
  static INLINE float decoded(int32_t c) {
    const float even = static_cast<float>(c - EVEN) * (1 / 64.0f), octaves = of_bits((c - LEAST) * STEP + EIGHTH);
    return c >= LEAST ? even : c > 0 ? octaves : 0.0f;
  }
  static INLINE int32_t code(float y) {  // of 0 ≤ y ≤ 1; 0 of NaN
    const int32_t bits = static_cast<int32_t>(bits_of(y));
    const float even = 64 * y + EVEN, octaves = static_cast<float>(bits - EIGHTH) * (1.0f / STEP) + LEAST;
    return nearest(std::max(0.0f, (bits >= EIGHTH ? even : octaves) - 1e-3f));
  }
};
using Signed = Codes<127, 4>;
using Unsigned = Codes<255, 5>;

enum Kind : int32_t { FLOAT32, BFLOAT16, INT8, UINT8, INT4, UINT4 };  // numbered as KINDS in link.py

struct Array {
  void* data = nullptr;
  int32_t kind = FLOAT32;
  float* scales = nullptr;  // of codes: the largest |x| of every block
};

// A leaf is cut in rows, and these in blocks, of which the last may be shorter: those of codes, one row for others.
struct Leaf {
  int64_t size = 0, row = 0, block = BLOCK;
  Array grad, param, out, slots[MAX_SLOTS];  // out: new params, where the params are, or updates

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
        const int32_t c = from[i];
        block[i] = std::copysign(Signed::decoded(c < 0 ? -c : c), static_cast<float>(c)) * a;
      }
      return block;
    }
    case UINT8: {
      const uint8_t* from = static_cast<const uint8_t*>(x.data) + span.begin;
      VECTORIZE for (int64_t i = 0; i < n; ++i) block[i] = Unsigned::decoded(from[i]) * a;
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
      VECTORIZE for (int64_t i = 0; i < n; ++i) {
        const int32_t c = Signed::code(std::fabs(block[i]) * by);
        to[i] = static_cast<int8_t>(block[i] < 0 ? -c : c);
      }
      break;
    }
    case UINT8: {
      uint8_t* to = static_cast<uint8_t*>(x.data) + span.begin;
      VECTORIZE for (int64_t i = 0; i < n; ++i) {
        const int32_t c = Unsigned::code(std::fabs(block[i]) * by);
        to[i] = static_cast<uint8_t>(std::max(c, static_cast<int32_t>(block[i] > 0)));
      }
      break;
    }
    case INT4: {
      uint8_t* to = static_cast<uint8_t*>(x.data) + span.pair;
      VECTORIZE for (int64_t i = 0; i < n; ++i) {
        const int32_t c = nearest(std::copysign(std::sqrt(std::fabs(block[i]) * by) * 7, block[i])) + 8;
        to[i] = static_cast<uint8_t>((to[i] & kept) | four_bits(c) << span.half);
      }
      break;
    }
    case UINT4: {
      uint8_t* to = static_cast<uint8_t*>(x.data) + span.pair;
      VECTORIZE for (int64_t i = 0; i < n; ++i) {
        const int32_t c = nearest(std::max(1.0f, std::sqrt(std::fabs(block[i]) * by) * 16)) - 1;
        to[i] = static_cast<uint8_t>((to[i] & kept) | four_bits(c) << span.half);
      }
      break;
    }
    default: break;
  }
}

}  // namespace functional_opt
