// Rows of any storage type as blocks of the accumulation type, and sums over them.
//
// The kernels work on whole blocks of kLanes elements, which the compiler turns into vector
// instructions of any width.  A row is padded to whole blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "common/half.h"
#include "common/simd.h"
#include "common/types.h"

namespace pyddfast {

constexpr int64_t kLanes = 16;  // fp32 elements of the widest vector register

inline int64_t blocks_of(int64_t n) { return (n + kLanes - 1) / kLanes; }

inline int64_t element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

inline const void* element(const void* base, DType dtype, int64_t offset) {
  return static_cast<const char*>(base) + offset * element_size(dtype);
}

inline void* element(void* base, DType dtype, int64_t offset) {
  return static_cast<char*>(base) + offset * element_size(dtype);
}

// A logit that has no probability beside any other, and whose differences stay finite.
template <class T>
inline constexpr T kPadding = T(-1e38);

// The sum, or the maximum, of the lanes: pairwise, in an order that is the same for every
// instruction set.
template <class T>
PYDD_HD T lane_sum(T (&lanes)[kLanes]) {
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

template <class T>
PYDD_HD T lane_maximum(T (&lanes)[kLanes]) {
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) {
      lanes[l] = lanes[l + width] > lanes[l] ? lanes[l + width] : lanes[l];
    }
  }
  return lanes[0];
}

// Blocks per partial sum.  Lanes add up in the accumulation type, at most kSumBlocks terms each;
// partial sums are added in fp64, so that the error does not grow with the number of classes.
constexpr int64_t kSumBlocks = 64;

template <class T, class S>
PYDD_HD void load_blocks(const S* source, int64_t n, T fill, T* target) {
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t start = 0; start < whole; start += kLanes) {
#pragma omp simd
    for (int64_t i = start; i < start + kLanes; ++i) target[i] = T(to_float(source[i]));
  }
  for (int64_t i = whole; i < n; ++i) target[i] = T(to_float(source[i]));
  for (int64_t i = n; i < blocks_of(n) * kLanes; ++i) target[i] = fill;
}

// The row as blocks: itself if it is stored so, else `scratch` filled with its values and `fill`.
template <class T>
PYDD_HD const T* load_row(const void* row, DType dtype, int64_t n, T fill, T* scratch) {
  switch (dtype) {
    case DType::kFloat64:
      if (std::is_same_v<T, double> && n % kLanes == 0) return static_cast<const T*>(row);
      load_blocks(static_cast<const double*>(row), n, fill, scratch);
      break;
    case DType::kFloat32:
      if (std::is_same_v<T, float> && n % kLanes == 0) return static_cast<const T*>(row);
      load_blocks(static_cast<const float*>(row), n, fill, scratch);
      break;
    case DType::kFloat16:
      load_blocks(static_cast<const Half*>(row), n, fill, scratch);
      break;
    case DType::kBFloat16:
      load_blocks(static_cast<const BFloat16*>(row), n, fill, scratch);
      break;
  }
  return scratch;
}

// Where a row of results is computed: in place if it is stored as T in whole blocks, else in
// `scratch`, to be written out by store_row.
template <class T>
PYDD_HD T* result_row(void* row, DType dtype, int64_t n, T* scratch) {
  const bool same = dtype == (std::is_same_v<T, double> ? DType::kFloat64 : DType::kFloat32);
  return same && n % kLanes == 0 ? static_cast<T*>(row) : scratch;
}

template <class T, class S>
PYDD_HD void store_blocks(const T* source, int64_t n, S* target) {
  for (int64_t start = 0; start < n; start += kLanes) {
    const int64_t stop = std::min(n, start + kLanes);
#pragma omp simd
    for (int64_t i = start; i < stop; ++i) {
      if constexpr (std::is_same_v<S, double>) {
        target[i] = double(source[i]);
      } else {
        target[i] = from_float<S>(float(source[i]));
      }
    }
  }
}

template <class T>
PYDD_HD void store_row(const T* values, int64_t n, void* row, DType dtype) {
  if (static_cast<const void*>(values) == row) return;
  switch (dtype) {
    case DType::kFloat64:
      return store_blocks(values, n, static_cast<double*>(row));
    case DType::kFloat32:
      if (std::is_same_v<T, float>) {
        std::memcpy(row, values, size_t(n) * sizeof(float));
        return;
      }
      return store_blocks(values, n, static_cast<float*>(row));
    case DType::kFloat16:
      return store_blocks(values, n, static_cast<Half*>(row));
    case DType::kBFloat16:
      return store_blocks(values, n, static_cast<BFloat16*>(row));
  }
}

}  // namespace pyddfast
