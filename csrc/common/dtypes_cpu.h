// CPU kernels for each storage type: one clone a type and instruction set, and conversions.
#pragma once

#include "common/dtypes.h"
#include "common/simd.h"

// Defines `name(params, begin, end)`, which runs body<T, S> with the storage type S of `dtype`, an
// expression in `params`, and the type T that it is computed in.
#define PYDD_CPU_KERNEL(name, Params, dtype, body)                                            \
  static PYDD_CPU_CLONES void name##_f32(const Params& params, int64_t begin, int64_t end) {  \
    body<float, float>(params, begin, end);                                                   \
  }                                                                                           \
  static PYDD_CPU_CLONES void name##_f16(const Params& params, int64_t begin, int64_t end) {  \
    body<float, Half>(params, begin, end);                                                    \
  }                                                                                           \
  static PYDD_CPU_CLONES void name##_bf16(const Params& params, int64_t begin, int64_t end) { \
    body<float, BFloat16>(params, begin, end);                                                \
  }                                                                                           \
  static PYDD_CPU_CLONES void name##_f64(const Params& params, int64_t begin, int64_t end) {  \
    body<double, double>(params, begin, end);                                                 \
  }                                                                                           \
  void name(const Params& params, int64_t begin, int64_t end) {                               \
    switch (dtype) {                                                                          \
      case DType::kFloat32:                                                                   \
        return name##_f32(params, begin, end);                                                \
      case DType::kFloat16:                                                                   \
        return name##_f16(params, begin, end);                                                \
      case DType::kBFloat16:                                                                  \
        return name##_bf16(params, begin, end);                                               \
      case DType::kFloat64:                                                                   \
        return name##_f64(params, begin, end);                                                \
    }                                                                                         \
  }

namespace pyddfast {

template <class T>
const T* vector(const void* data) {
  return static_cast<const T*>(data);
}

// `value` rounded to the storage type S.
template <class S, class T>
PYDD_HD S stored(T value) {
  if constexpr (std::is_same_v<S, double>) {
    return value;
  } else {
    return from_float<S>(float(value));
  }
}

}  // namespace pyddfast
