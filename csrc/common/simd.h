// CPU vectorisation: one macro that clones a function for each instruction set worth having, and
// the transcendental functions that vectorise inside it.
//
// A kernel is a free function marked PYDD_CPU_CLONES whose loops carry `#pragma omp simd` and call
// only PYDD_HD / always_inline helpers, so that every clone compiles its own copy of them. setup.py
// probes the compiler and sets PYDDFAST_CLONES (0: none, 1: by CPU model, 2: by microarchitecture
// level).
#pragma once

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

// exp(x) for x <= 0, relative error below 1e-7; NaN stays NaN, and everything under -87 becomes 0
// (fp32 would be subnormal there).
PYDD_HD float exp_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kLog2e = 0x1.715476p+0f;
  constexpr float kLn2Hi = 0x1.62e400p-1f;  // 9 trailing zero bits: n * kLn2Hi is exact
  constexpr float kLn2Lo = 0x1.7f7d1cp-20f;
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * kLog2e + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * kLn2Hi) - n * kLn2Lo;
  // Minimax polynomial of (exp(r) - 1 - r) / r^2 for |r| <= log(2)/2, error 6e-8 of a term that is
  // at most 0.06.
  float y = 0x1.6d10fcp-10f;
  y = y * r + 0x1.120b62p-7f;
  y = y * r + 0x1.55551ap-5f;
  y = y * r + 0x1.5554dep-3f;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  const uint32_t exponent = float_to_bits(shifted) << 23;
  const float scaled = bits_to_float(float_to_bits(y) + exponent);
  const float kept = x < -87.0f ? 0.0f : scaled;
  return x == x ? kept : x;
}

PYDD_HD double exp_nonpositive(double x) { return std::exp(x); }

// log(x) for normal x > 0, NaN for x < 0, a finite number for x = 0; relative error below 2e-7 of
// max(|log x|, |x - 1|).
PYDD_HD float log_positive(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t offset = bits - 0x3f3504f3u;  // sqrt(1/2): the mantissa ends up in [0.707, 1.414)
  const float n = float(int32_t(offset) >> 23);
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
