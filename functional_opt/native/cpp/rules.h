// The formulas of the rules, in the letters of the Python ones, and their operations.
//
// Each is a struct made from the scalars `s` of an Operation (core/kernels.py). It returns the update of element i from
// the update x before it, the weight w and the slots, which it replaces. They do it as XLA does, so that results are the same to the last
// bit or two: a product and the sum it goes into are one operation (-ffp-contract=fast), and to divide by a scalar is
// to multiply by its inverse.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "machine.h"

namespace functional_opt {

struct SlotPointers {
  float *first, *second;
};

struct Nothing {
  static constexpr int SLOTS = 0;
  explicit Nothing(const float*) {}
  INLINE float operator()(float x, float, const SlotPointers&, int64_t) const { return x; }
};

struct Scale {
  static constexpr int SLOTS = 0;
  float factor;
  explicit Scale(const float* s) : factor(s[0]) {}
  INLINE float operator()(float x, float, const SlotPointers&, int64_t) const { return factor * x; }
};

struct Clip {
  static constexpr int SLOTS = 0;
  float largest;
  explicit Clip(const float* s) : largest(s[0]) {}
  INLINE float operator()(float x, float, const SlotPointers&, int64_t) const {
    return x > largest ? largest : x < -largest ? -largest : x;
  }
};

struct Decay {
  static constexpr int SLOTS = 0;
  float rate;
  explicit Decay(const float* s) : rate(s[0]) {}
  INLINE float operator()(float x, float w, const SlotPointers&, int64_t) const { return x + rate * w; }
};

template <bool nesterov>
struct Trace {
  static constexpr int SLOTS = 1;
  float decay;
  explicit Trace(const float* s) : decay(s[0]) {}
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
    const float t = g + decay * slots.first[i];
    slots.first[i] = t;
    return nesterov ? g + decay * t : t;
  }
};

// Scalars as in the NamedTuples of the same names in core/kernels.py, field by field.
struct AdamScalars {
  float b1, one_minus_b1, b2, one_minus_b2, b1_correction, b2_correction, eps_root, eps, next_b1_correction;
};

struct LionScalars {
  float b1, one_minus_b1, b2, one_minus_b2;
};

struct RMSScalars {
  float decay, one_minus_decay, correction, eps;
};

template <class Scalars>
INLINE Scalars read(const float* s) {
  Scalars scalars;
  std::memcpy(&scalars, s, sizeof(Scalars));
  return scalars;
}

template <bool nesterov>
struct Adam {
  static constexpr int SLOTS = 2;
  float b1, c1, b2, c2, by1, by2, eps_root, eps, ahead_m, ahead_g;  // c = 1 − b; m and v are multiplied by `by`
  explicit Adam(const float* s) : Adam(read<AdamScalars>(s)) {}
  explicit Adam(const AdamScalars& s)
      : b1(s.b1), c1(s.one_minus_b1), b2(s.b2), c2(s.one_minus_b2), by1(1 / s.b1_correction),
        by2(1 / s.b2_correction), eps_root(s.eps_root), eps(s.eps), ahead_m(b1 * (1 / s.next_b1_correction)),
        ahead_g(c1 * by1) {}
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
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
  explicit Lion(const float* s) : Lion(read<LionScalars>(s)) {}
  explicit Lion(const LionScalars& s) : b1(s.b1), c1(s.one_minus_b1), b2(s.b2), c2(s.one_minus_b2) {}
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
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
  explicit RMS(const float* s) : RMS(read<RMSScalars>(s)) {}
  explicit RMS(const RMSScalars& s) : decay(s.decay), c(s.one_minus_decay), by(1 / s.correction), eps(s.eps) {}
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
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
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
    const float sum = slots.first[i] + g * g;
    slots.first[i] = sum;
    const float root = in_root ? std::sqrt(sum + eps) : std::sqrt(sum) + eps;
    return sum > 0 ? g / (sum > 0 ? root : 1.0f) : 0.0f;
  }
};

// Numbered as OPS in plan.py. A program ends with ADD, for new params, or UPDATE, for what is to be added to them.
enum Op : int32_t {
  SCALE, CLIP, DECAY, TRACE, NESTEROV, ADAM, NADAM, LION, RMS_IN, RMS_OUT, RSS_IN, RSS_OUT, ADD, UPDATE, OPS
};

#define FOR_RULES(X)                                                                                         \
  X(TRACE, Trace<false>) X(NESTEROV, Trace<true>) X(ADAM, Adam<false>) X(NADAM, Adam<true>) X(LION, Lion)    \
  X(RMS_IN, RMS<true>) X(RMS_OUT, RMS<false>) X(RSS_IN, RSS<true>) X(RSS_OUT, RSS<false>)

constexpr int slots_of(int32_t op) {
#define SLOTS_OF(NAME, RULE) op == NAME ? RULE::SLOTS :
  return FOR_RULES(SLOTS_OF) 0;
#undef SLOTS_OF
}

}  // namespace functional_opt
