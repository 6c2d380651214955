// What host and device code share: the function qualifiers and the element types.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define PYDD_HD __host__ __device__ __forceinline__
#else
#define PYDD_HD inline __attribute__((always_inline))
#endif

namespace pyddfast {

enum class DType : int { kFloat32, kFloat16, kBFloat16, kFloat64 };

// 16-bit storage; arithmetic is done after to_float() (common/half.h).
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// What a launcher returns for what it does not take: cudaErrorInvalidValue.
constexpr int kInvalidValue = 1;

}  // namespace pyddfast
