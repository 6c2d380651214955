// exp(x / T) of a difference x <= 0 for the device code, with a relative error of about 2e-7.
#pragma once

#include <cfloat>
#include <cmath>

#include "common/types.h"

namespace pyddfast {

// log2(e) / T as the sum of two floats: rounded to one, its error would grow with |x|/T (to 4e-6 at
// x/T = -60).
struct ExpScale {
  float high, low;
  float lowest;  // below this x, the result is 0
};

inline ExpScale exp_scale(double temperature) {
  constexpr double kLog2e = 1.4426950408889634074;
  constexpr double kLowest = -160.0;  // 2^-160 is 0 in fp32, subnormals included
  const double scale = kLog2e / temperature;
  const float high = scale < double(FLT_MAX) ? float(scale) : FLT_MAX;
  const double lowest = kLowest / scale;
  return {high, float(scale - double(high)), lowest > -double(FLT_MAX) ? float(lowest) : -FLT_MAX};
}

// 2^x by the special function unit, relative error 2^-22.
PYDD_HD float exp2_approximate(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return std::exp2(x);
#endif
}

// The larger of two numbers; NaN if one is.
PYDD_HD float max_with_nan(float a, float b) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a < b ? b : (b == b ? a : b);
#endif
}

// exp(x/T).  -inf gives 0, NaN stays NaN.
PYDD_HD float exp_scaled(float x, ExpScale scale) {
  constexpr float kLn2 = 0x1.62e430p-1f;
  x = max_with_nan(x, scale.lowest);  // keeps the residual finite
  const float exponent = x * scale.high;
  const float residual = std::fma(x, scale.low, std::fma(x, scale.high, -exponent));
  const float result = exp2_approximate(exponent);
  return std::fma(result, residual * kLn2, result);
}

}  // namespace pyddfast
