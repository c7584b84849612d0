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
  float *first, *second, *third, *fourth;
};

INLINE float larger(float x, float y) { return (x > y) | (x != x) ? x : y; }  // NaN if one is

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
  float b1, one_minus_b1, b2, one_minus_b2, m_weight, g_weight, b2_correction, eps_root, eps;
};

struct RAdamScalars : AdamScalars {  // the same and two more, which follow them in Python too
  float adaptive, r;
};

struct AmsgradScalars {
  float b1, one_minus_b1, b2, one_minus_b2, b1_correction, before, after, eps_root, eps;
};

struct AdamaxScalars {
  float b1, one_minus_b1, b2, b1_correction, inside, outside;
};

struct AdemamixScalars {
  float b1, one_minus_b1, b2, one_minus_b2, b3, one_minus_b3, alpha, b1_correction, b2_correction, eps_root, eps;
};

struct AdanScalars {
  float b1, one_minus_b1, b2, one_minus_b2, b3, one_minus_b3, b1_correction, b2_correction, b3_correction, eps_root,
      eps, first;
};

struct AdoptScalars {
  float b1, one_minus_b1, b2, one_minus_b2, bound, eps, started, nesterov;
};

struct LionScalars {
  float b1, one_minus_b1, b2, one_minus_b2;
};

struct RMSScalars {
  float decay, one_minus_decay, correction, eps;
};

struct AdadeltaScalars {
  float rho, one_minus_rho, eps;
};

struct ScheduleFreeScalars {
  float toward_z, u_weight;
};

struct EmaScalars {
  float decay, one_minus_decay;
};

struct AccumulateScalars {
  float take, mean, weight, total, close;
};

template <class Scalars>
INLINE Scalars read(const float* s) {
  Scalars scalars;
  std::memcpy(&scalars, s, sizeof(Scalars));
  return scalars;
}

// The means of g and g² that most rules have. Here and below c = 1 − b, and what is corrected is multiplied by `by`.
struct Means {
  float b1, c1, b2, c2;
  template <class Scalars>
  explicit Means(const Scalars& s) : b1(s.b1), c1(s.one_minus_b1), b2(s.b2), c2(s.one_minus_b2) {}
  INLINE float m(float g, const SlotPointers& slots, int64_t i) const {
    return slots.first[i] = b1 * slots.first[i] + c1 * g;
  }
  INLINE float v(float g, const SlotPointers& slots, int64_t i) const {
    return slots.second[i] = b2 * slots.second[i] + c2 * (g * g);
  }
};

// m̂, which with Nesterov's momentum has a part of g: an infinite g times 0 is none.
struct Corrected {
  float of_m, of_g;
  bool ahead;
  Corrected(float m_weight, float g_weight) : of_m(m_weight), of_g(g_weight), ahead(g_weight != 0) {}
  INLINE float operator()(float m, float g) const { return ahead ? of_m * m + of_g * g : of_m * m; }
};

template <bool nesterov>
struct Adam : Means {
  static constexpr int SLOTS = 2;
  float of_m, of_g, by2, eps_root, eps;
  explicit Adam(const float* s) : Adam(read<AdamScalars>(s)) {}
  explicit Adam(const AdamScalars& s)
      : Means(s), of_m(s.m_weight), of_g(s.g_weight), by2(1 / s.b2_correction), eps_root(s.eps_root), eps(s.eps) {}
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
    const float m = this->m(g, slots, i), v = this->v(g, slots, i);
    const float m_hat = nesterov ? of_m * m + of_g * g : of_m * m;
    return m_hat / (std::sqrt(by2 * v + eps_root) + eps);
  }
};

struct RAdam : Means {
  static constexpr int SLOTS = 2;
  Corrected corrected;
  float by2, eps_root, eps, r;
  bool adaptive;
  explicit RAdam(const float* s) : RAdam(read<RAdamScalars>(s)) {}
  explicit RAdam(const RAdamScalars& s)
      : Means(s), corrected(s.m_weight, s.g_weight), by2(1 / s.b2_correction), eps_root(s.eps_root), eps(s.eps),
        r(s.r), adaptive(s.adaptive != 0) {}
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
    const float m = this->m(g, slots, i), v = this->v(g, slots, i);
    const float root = std::sqrt(by2 * v + eps_root) + eps;
    return corrected(m, g) * (adaptive ? r : 1.0f) / (adaptive ? root : 1.0f);
  }
};

struct Belief : Means {
  static constexpr int SLOTS = 2;
  Corrected corrected;
  float by2, eps_root, eps;
  explicit Belief(const float* s) : Belief(read<AdamScalars>(s)) {}
  explicit Belief(const AdamScalars& s)
      : Means(s), corrected(s.m_weight, s.g_weight), by2(1 / s.b2_correction), eps_root(s.eps_root), eps(s.eps) {}
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
    const float m = this->m(g, slots, i), far = g - m;
    const float v = b2 * slots.second[i] + c2 * (far * far) + eps_root;
    slots.second[i] = v;
    return corrected(m, g) / (std::sqrt(by2 * v) + eps);
  }
};

struct Yogi : Means {
  static constexpr int SLOTS = 2;
  float of_m, by2, eps_root, eps;
  explicit Yogi(const float* s) : Yogi(read<AdamScalars>(s)) {}
  explicit Yogi(const AdamScalars& s)
      : Means(s), of_m(s.m_weight), by2(1 / s.b2_correction), eps_root(s.eps_root), eps(s.eps) {}
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
    const float m = this->m(g, slots, i), before = slots.second[i], squares = g * g;
    const float up = squares < before ? -squares : squares;
    const float v = before + c2 * (squares == before ? 0.0f : up);
    slots.second[i] = v;
    return of_m * m / (std::sqrt(by2 * v + eps_root) + eps);
  }
};

struct LaProp : Means {
  static constexpr int SLOTS = 2;
  float of_m, by2, eps;
  explicit LaProp(const float* s) : LaProp(read<AdamScalars>(s)) {}
  explicit LaProp(const AdamScalars& s) : Means(s), of_m(s.m_weight), by2(1 / s.b2_correction), eps(s.eps) {}
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
    const float v = this->v(g, slots, i);
    const float m = b1 * slots.first[i] + c1 * g / (std::sqrt(by2 * v) + eps);
    slots.first[i] = m;
    return of_m * m;
  }
};

struct Amsgrad : Means {
  static constexpr int SLOTS = 3;
  float by1, before, after, eps_root, eps;  // v is multiplied by one before the maximum is taken, by one after it
  explicit Amsgrad(const float* s) : Amsgrad(read<AmsgradScalars>(s)) {}
  explicit Amsgrad(const AmsgradScalars& s)
      : Means(s), by1(1 / s.b1_correction), before(1 / s.before), after(1 / s.after), eps_root(s.eps_root),
        eps(s.eps) {}
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
    const float m = this->m(g, slots, i), v = this->v(g, slots, i);
    const float most = larger(slots.third[i], before * v);
    slots.third[i] = most;
    return by1 * m / (std::sqrt(after * most + eps_root) + eps);
  }
};

struct Adamax {
  static constexpr int SLOTS = 2;
  float b1, c1, b2, by1, inside, outside;
  explicit Adamax(const float* s) : Adamax(read<AdamaxScalars>(s)) {}
  explicit Adamax(const AdamaxScalars& s)
      : b1(s.b1), c1(s.one_minus_b1), b2(s.b2), by1(1 / s.b1_correction), inside(s.inside), outside(s.outside) {}
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
    const float m = b1 * slots.first[i] + c1 * g;
    const float v = larger(b2 * slots.second[i], std::fabs(g) + inside);
    slots.first[i] = m;
    slots.second[i] = v;
    return by1 * m / (v + outside);
  }
};

struct Ademamix {
  static constexpr int SLOTS = 3;
  float b1, c1, b2, c2, b3, c3, alpha, by1, by2, eps_root, eps;
  explicit Ademamix(const float* s) : Ademamix(read<AdemamixScalars>(s)) {}
  explicit Ademamix(const AdemamixScalars& s)
      : b1(s.b1), c1(s.one_minus_b1), b2(s.b2), c2(s.one_minus_b2), b3(s.b3), c3(s.one_minus_b3), alpha(s.alpha),
        by1(1 / s.b1_correction), by2(1 / s.b2_correction), eps_root(s.eps_root), eps(s.eps) {}
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
    const float m1 = b1 * slots.first[i] + c1 * g, m2 = b3 * slots.second[i] + c3 * g;
    const float v = b2 * slots.third[i] + c2 * (g * g);
    slots.first[i] = m1;
    slots.second[i] = m2;
    slots.third[i] = v;
    return (by1 * m1 + alpha * m2) / (std::sqrt(by2 * v + eps_root) + eps);
  }
};

struct Adan {
  static constexpr int SLOTS = 4;
  float b1, c1, b2, c2, b3, c3, by1, by2, by3, eps_root, eps;
  bool first;  // step, before which there was no gradient
  explicit Adan(const float* s) : Adan(read<AdanScalars>(s)) {}
  explicit Adan(const AdanScalars& s)
      : b1(s.b1), c1(s.one_minus_b1), b2(s.b2), c2(s.one_minus_b2), b3(s.b3), c3(s.one_minus_b3),
        by1(1 / s.b1_correction), by2(1 / s.b2_correction), by3(1 / s.b3_correction), eps_root(s.eps_root),
        eps(s.eps), first(s.first != 0) {}
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
    const float change = g - slots.fourth[i], d = first ? 0.0f : change, ahead = g + b2 * d;
    const float m = b1 * slots.first[i] + c1 * g, v = b2 * slots.second[i] + c2 * d;
    const float n = b3 * slots.third[i] + c3 * (ahead * ahead);
    slots.first[i] = m;
    slots.second[i] = v;
    slots.third[i] = n;
    slots.fourth[i] = g;
    return (by1 * m + by2 * (b2 * v)) / (std::sqrt(by3 * n + eps_root) + eps);
  }
};

struct Adopt {
  static constexpr int SLOTS = 2;
  float b1, c1, b2, c2, bound, eps;
  bool started, nesterov;
  explicit Adopt(const float* s) : Adopt(read<AdoptScalars>(s)) {}
  explicit Adopt(const AdoptScalars& s)
      : b1(s.b1), c1(s.one_minus_b1), b2(s.b2), c2(s.one_minus_b2), bound(s.bound), eps(s.eps),
        started(s.started != 0), nesterov(s.nesterov != 0) {}
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
    const float before = slots.second[i], squares = g * g, v = b2 * before + c2 * squares;
    const float ratio = g / larger(std::sqrt(before), eps);
    const float bounded = ratio > bound ? bound : ratio < -bound ? -bound : ratio;
    const float x = started ? bounded : 0.0f;
    const float m = b1 * slots.first[i] + c1 * x, ahead = b1 * m + c1 * x;
    slots.first[i] = m;
    slots.second[i] = started ? v : squares;
    return nesterov ? ahead : m;
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

struct Adadelta {
  static constexpr int SLOTS = 2;
  float rho, c, eps;
  explicit Adadelta(const float* s) : Adadelta(read<AdadeltaScalars>(s)) {}
  explicit Adadelta(const AdadeltaScalars& s) : rho(s.rho), c(s.one_minus_rho), eps(s.eps) {}
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
    const float of_g = rho * slots.first[i] + c * (g * g), of_u = slots.second[i];
    const float u = std::sqrt(of_u + eps) / std::sqrt(of_g + eps) * g;
    slots.first[i] = of_g;
    slots.second[i] = rho * of_u + c * (u * u);
    return u;
  }
};

// The update of the params y, given that of z.
struct ScheduleFree {
  static constexpr int SLOTS = 1;
  float toward_z, of_u;
  explicit ScheduleFree(const float* s) : ScheduleFree(read<ScheduleFreeScalars>(s)) {}
  explicit ScheduleFree(const ScheduleFreeScalars& s) : toward_z(s.toward_z), of_u(s.u_weight) {}
  INLINE float operator()(float u, float y, const SlotPointers& slots, int64_t i) const {
    const float z = slots.first[i];
    slots.first[i] = z + u;
    return toward_z * (z - y) + of_u * u;
  }
};

// A running mean of the params to be, w + u.
struct Ema {
  static constexpr int SLOTS = 1;
  float decay, c;
  explicit Ema(const float* s) : Ema(read<EmaScalars>(s)) {}
  explicit Ema(const EmaScalars& s) : decay(s.decay), c(s.one_minus_decay) {}
  INLINE float operator()(float u, float w, const SlotPointers& slots, int64_t i) const {
    slots.first[i] = decay * slots.first[i] + c * (w + u);
    return u;
  }
};

// The mean or sum of the gradients in a window, which starts anew after the one that closes it.
struct Accumulate {
  static constexpr int SLOTS = 1;
  float weight, by;
  bool take, mean, close;
  explicit Accumulate(const float* s) : Accumulate(read<AccumulateScalars>(s)) {}
  explicit Accumulate(const AccumulateScalars& s)
      : weight(s.weight), by(1 / s.total), take(s.take != 0), mean(s.mean != 0), close(s.close != 0) {}
  INLINE float next(float g, float a) const {
    const float far = mean ? g - a : g, moved = a + far * weight * by;
    return take ? moved : a;
  }
  INLINE float operator()(float g, float, const SlotPointers& slots, int64_t i) const {
    const float a = next(g, slots.first[i]);
    slots.first[i] = close ? 0.0f : a;
    return a;
  }
};

// Numbered as OPS in plan.py. A program ends with ADD, for new params, or UPDATE, for what is to be added to them. It
// stops at a GATE whose scalar is 0.
enum Op : int32_t {
  SCALE, CLIP, DECAY, TRACE, NESTEROV, ADAM, NADAM, RADAM, BELIEF, YOGI, LAPROP, AMSGRAD, ADAMAX, ADEMAMIX, ADAN, ADOPT,
  LION, RMS_IN, RMS_OUT, RSS_IN, RSS_OUT, ADADELTA, SCHEDULE_FREE, EMA, ACCUMULATE, GATE, ADD, UPDATE, OPS
};

#define FOR_RULES(X)                                                                                         \
  X(TRACE, Trace<false>) X(NESTEROV, Trace<true>) X(ADAM, Adam<false>) X(NADAM, Adam<true>) X(RADAM, RAdam)  \
  X(BELIEF, Belief) X(YOGI, Yogi) X(LAPROP, LaProp) X(AMSGRAD, Amsgrad) X(ADAMAX, Adamax)                    \
  X(ADEMAMIX, Ademamix) X(ADAN, Adan) X(ADOPT, Adopt) X(LION, Lion) X(RMS_IN, RMS<true>)                     \
  X(RMS_OUT, RMS<false>) X(RSS_IN, RSS<true>) X(RSS_OUT, RSS<false>) X(ADADELTA, Adadelta)                   \
  X(SCHEDULE_FREE, ScheduleFree) X(EMA, Ema) X(ACCUMULATE, Accumulate)

constexpr int slots_of(int32_t op) {
#define SLOTS_OF(NAME, RULE) op == NAME ? RULE::SLOTS :
  return FOR_RULES(SLOTS_OF) 0;
#undef SLOTS_OF
}

}  // namespace functional_opt
