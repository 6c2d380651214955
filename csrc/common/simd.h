// CPU vectorisation: one macro that clones a function for each instruction set worth having, and
// the transcendental functions that vectorise inside it.
//
// A kernel is a free function marked PYDD_CPU_CLONES whose loops carry `#pragma omp simd` and call
// only PYDD_HD / always_inline helpers, so that every clone compiles its own copy of them. setup.py
// probes the compiler and sets PYDDFAST_CLONES (0: none, 1: by CPU model, 2: by microarchitecture
// level).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/half.h"
#include "common/types.h"

#if PYDDFAST_CLONES == 2
#define PYDD_CPU_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif PYDDFAST_CLONES == 1
#define PYDD_CPU_CLONES \
  __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define PYDD_CPU_CLONES
#endif

namespace pyddfast {

// exp(x * factor) for x * factor <= 0, relative error below 2e-7 near 0, growing with |x * factor|
// by one rounding.  Results under 2^-126 are 0 or tiny; NaN stays NaN.
template <class T>
struct ScaledExp;

template <>
struct ScaledExp<float> {
  // factor * log2(e) as the sum of two positive floats: rounded to one, its error would be common
  // to all x and not average out; positive, so that x = -inf gives -inf + -inf.
  float hi, lo;

  explicit ScaledExp(double factor) {
    constexpr double kLog2e = 1.4426950408889634, kLargest = 0x1.fp+126;
    const double scale = std::min(factor * kLog2e, kLargest);
    hi = float(scale * (1.0 - 0x1p-24));
    lo = float(scale - double(hi));
  }

  PYDD_HD float operator()(float x) const {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float scaled = x * hi + x * lo;
    // At -127 the exponent field below becomes 0 and the mantissa is that of 1: exactly 0.
    // In this order a NaN passes.
    const float y = -127.0f > scaled ? -127.0f : scaled;
    const float shifted = y + kRound;
    const float f = y - (shifted - kRound);
    // Minimax polynomial of 2^f on [-1/2, 1/2], relative error 7e-8 with these fp32 coefficients.
    float g = 0x1.44138ap-13f;
    g = g * f + 0x1.5f0890p-10f;
    g = g * f + 0x1.3b2a54p-7f;
    g = g * f + 0x1.c6af6cp-5f;
    g = g * f + 0x1.ebfbe0p-3f;
    g = g * f + 0x1.62e430p-1f;
    g = g * f + 1.0f;
    return bits_to_float(float_to_bits(g) + (float_to_bits(shifted) << 23));
  }
};

template <>
struct ScaledExp<double> {
  double factor;

  explicit ScaledExp(double factor_) : factor(factor_) {}
  PYDD_HD double operator()(double x) const { return std::exp(x * factor); }
};

// log(x) for x > 0, NaN for x < 0, a finite number for x = 0; relative error below 2e-7 of
// max(|log x|, |x - 1|).
PYDD_HD float log_positive(float x) {
  const bool subnormal = x < 0x1p-126f;
  const uint32_t bits = float_to_bits(subnormal ? x * 0x1p24f : x);
  const uint32_t offset = bits - 0x3f3504f3u;  // sqrt(1/2): the mantissa ends up in [0.707, 1.414)
  const float n = float(int32_t(offset) >> 23) - (subnormal ? 24.0f : 0.0f);
  const float f = bits_to_float((offset & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  // log(1 + f) = 2 atanh(u), u = f / (2 + f); the tail beyond 2u as a minimax polynomial in u^2.
  const float u = f / (2.0f + f);
  const float u2 = u * u;
  float y = 0x1.2ee73ep-2f;
  y = y * u2 + 0x1.997c2ap-2f;
  y = y * u2 + 0x1.55555cp-1f;
  const float tail = u * u2 * y;
  const float log_x = (tail + 2.0f * u) + n * 0.69314718f;
  return x >= 0.0f ? log_x : std::numeric_limits<float>::quiet_NaN();
}

PYDD_HD double log_positive(double x) { return std::log(x); }

}  // namespace pyddfast
