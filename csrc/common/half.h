// Conversions between fp32 and the 16-bit storage types, correctly rounded (ties to even), with
// subnormals kept.  The host versions are branch-free integer arithmetic, so that loops over them
// vectorise on every instruction set.
#pragma once

#include <cstring>

#include "common/types.h"

namespace pyddfast {

PYDD_HD float bits_to_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

PYDD_HD uint32_t float_to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

PYDD_HD float to_float(float value) { return value; }
PYDD_HD double to_float(double value) { return value; }
PYDD_HD float to_float(BFloat16 value) { return bits_to_float(uint32_t(value.bits) << 16); }

PYDD_HD float to_float(Half value) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  // Rebias the exponent; subnormals are normalised by an exact subtraction, so no fp32 subnormal
  // is ever an operand (flush-to-zero modes cannot change the result).
  const uint32_t magnitude = uint32_t(value.bits & 0x7fffu) << 13;
  const uint32_t exponent = magnitude & 0x0f800000u;
  const uint32_t rebiased = magnitude + (112u << 23);
  const uint32_t special = rebiased + (112u << 23);  // inf, NaN
  const float subnormal = bits_to_float(rebiased + (1u << 23)) - bits_to_float(113u << 23);
  uint32_t bits = exponent == 0x0f800000u ? special : rebiased;
  bits = exponent == 0u ? float_to_bits(subnormal) : bits;
  return bits_to_float(bits | (uint32_t(value.bits & 0x8000u) << 16));
#endif
}

template <class T>
PYDD_HD T from_float(float value);

template <>
PYDD_HD float from_float<float>(float value) {
  return value;
}

template <>
PYDD_HD BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return BFloat16{uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded)};
}

template <>
PYDD_HD Half from_float<Half>(float value) {
#if defined(__CUDA_ARCH__)
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#else
  const uint32_t bits = float_to_bits(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal range: rebias with round to nearest even.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 0.5 aligns the mantissa to the half's subnormal grid, rounded by the FPU.
  const uint32_t subnormal =
      float_to_bits(bits_to_float(magnitude < (113u << 23) ? magnitude : 0u) + 0.5f) - (126u << 23);
  uint32_t half = magnitude < (113u << 23) ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and above round to infinity
  half = magnitude > 0x7f800000u ? 0x7e00u : half;   // NaN
  return Half{uint16_t(half | ((bits >> 16) & 0x8000u))};
#endif
}

}  // namespace pyddfast
