// Rows of any storage type as arrays of the accumulation type.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/half.h"
#include "common/simd.h"
#include "common/types.h"

namespace pyddfast {

inline int64_t element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

inline const void* element(const void* base, DType dtype, int64_t offset) {
  return static_cast<const char*>(base) + offset * element_size(dtype);
}

inline void* element(void* base, DType dtype, int64_t offset) {
  return static_cast<char*>(base) + offset * element_size(dtype);
}

template <class T, class S>
PYDD_HD void convert_to(const S* source, int64_t n, T* target) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) target[i] = T(to_float(source[i]));
}

// The row itself if it is stored as T, else `scratch` (n elements) filled with its values.
template <class T>
PYDD_HD const T* load_row(const void* row, DType dtype, int64_t n, T* scratch) {
  switch (dtype) {
    case DType::kFloat64:
      if constexpr (std::is_same_v<T, double>) return static_cast<const double*>(row);
      convert_to(static_cast<const double*>(row), n, scratch);
      return scratch;
    case DType::kFloat32:
      if constexpr (std::is_same_v<T, float>) return static_cast<const float*>(row);
      convert_to(static_cast<const float*>(row), n, scratch);
      return scratch;
    case DType::kFloat16:
      convert_to(static_cast<const Half*>(row), n, scratch);
      return scratch;
    case DType::kBFloat16:
      convert_to(static_cast<const BFloat16*>(row), n, scratch);
      return scratch;
  }
  return nullptr;
}

template <class T, class S>
PYDD_HD void convert_from(const T* source, int64_t n, S* target) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<S, double>) {
      target[i] = source[i];
    } else {
      target[i] = from_float<S>(float(source[i]));
    }
  }
}

// Where a row of results is computed: in place if it is stored as T, else in `scratch`, to be
// written out by store_row.
template <class T>
PYDD_HD T* result_row(void* row, DType dtype, T* scratch) {
  const bool same = dtype == (std::is_same_v<T, double> ? DType::kFloat64 : DType::kFloat32);
  return same ? static_cast<T*>(row) : scratch;
}

template <class T>
PYDD_HD void store_row(const T* values, int64_t n, void* row, DType dtype) {
  if (static_cast<const void*>(values) == row) return;
  switch (dtype) {
    case DType::kFloat64:
      return convert_from(values, n, static_cast<double*>(row));
    case DType::kFloat32:
      return convert_from(values, n, static_cast<float*>(row));
    case DType::kFloat16:
      return convert_from(values, n, static_cast<Half*>(row));
    case DType::kBFloat16:
      return convert_from(values, n, static_cast<BFloat16*>(row));
  }
}

// Elements per partial sum.  Within a block the lanes of a vector register add up in the
// accumulation type (at most kSumBlock/8 terms a lane with AVX2); blocks are added in fp64, so that
// the error does not grow with the number of classes.
constexpr int64_t kSumBlock = 1024;

}  // namespace pyddfast
