// What the CPU kernels of norm_relu_pool share: sums over a plane, planes in memory, pooling.
#pragma once

#include <algorithm>

#include "block/norm_relu_pool.h"
#include "common/dtypes_cpu.h"
#include "common/rows_cpu.h"

namespace pyddfast {

// N sums over a plane, of kWidth lanes each: in T over kSumBlocks steps, in fp64 from there.
template <class T, int N, int64_t kWidth = kLanes>
struct PlaneSums {
  alignas(64) T lanes[N][kWidth] = {};
  double totals[N] = {};

  PYDD_HD void close() {
    for (int n = 0; n < N; ++n) {
      alignas(64) T folded[kLanes] = {};
      for (int64_t w = 0; w < kWidth; w += kLanes) {
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) folded[l] += lanes[n][w + l];
      }
      totals[n] += double(fold(folded, Sum()));
      std::fill_n(lanes[n], kWidth, T(0));
    }
  }
  PYDD_HD double mean(int n, double inverse) const { return totals[n] * inverse; }
};

// Scratch planes, padded to whole blocks.
template <class T>
struct ScratchPlanes {
  Scratch<T> memory;
  int64_t each;

  ScratchPlanes(int64_t count, int64_t pixels)
      : memory(new_scratch<T>(count * blocks_of(pixels) * kLanes)),
        each(blocks_of(pixels) * kLanes) {}
  T* operator[](int64_t i) const { return &memory[i * each]; }
};

template <class S>
const S* plane_of(const Planes& planes, int64_t n, int64_t c) {
  return static_cast<const S*>(planes.data) + n * planes.stride_n + c * planes.stride_c;
}

template <class T, class S>
PYDD_HD void store_plane(const T* values, int64_t count, S* target) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) target[i] = stored<S>(values[i]);
}

// A plane of values to one of results; `row` is scratch.  The width is known at compile time, or 0:
// for the rows of small planes the bookkeeping of a loop costs more than the loop.
template <int64_t kWidth, class T, class S>
PYDD_HD void pool_rows(int64_t height, int64_t any_width, const T* values, T* row, S* target) {
  const int64_t width = kWidth ? kWidth : any_width, pooled = width / 2;
  for (int64_t i = 0; i < height / 2; ++i) {
    const T* const upper = values + 2 * i * width;
    const T* const lower = upper + width;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) row[j] = upper[j] + lower[j];
#pragma omp simd
    for (int64_t j = 0; j < pooled; ++j) {
      target[i * pooled + j] = stored<S>(T(0.25) * (row[2 * j] + row[2 * j + 1]));
    }
  }
}

template <class T, class S>
PYDD_HD void pool_plane(int64_t height, int64_t width, bool pool, const T* values, T* row,
                        S* target) {
  if (!pool) return store_plane(values, height * width, target);
  switch (width) {
    case 8:
      return pool_rows<8>(height, width, values, row, target);
    case 16:
      return pool_rows<16>(height, width, values, row, target);
    default:
      return pool_rows<0>(height, width, values, row, target);
  }
}

}  // namespace pyddfast
