// The pieces of a row softmax that the CPU kernels share.  Rows are whole blocks (rows_cpu.h).
#pragma once

#include <algorithm>
#include <limits>

#include "common/rows_cpu.h"
#include "common/simd.h"

namespace pyddfast {

// The maximum, NaN passed over.
template <class T>
PYDD_HD T row_maximum(const T* x, int64_t blocks) {
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  // Four blocks side by side hide the latency of a comparison.
  constexpr int64_t kChains = 4, kWide = kChains * kLanes;
  alignas(64) T lanes[kLanes], wide[kWide];
  std::fill_n(lanes, kLanes, kLowest);
  std::fill_n(wide, kWide, kLowest);
  int64_t b = 0;
  for (; b + kChains <= blocks; b += kChains) {
#pragma omp simd
    for (int64_t l = 0; l < kWide; ++l) {
      const T value = x[b * kLanes + l];
      wide[l] = value > wide[l] ? value : wide[l];
    }
  }
  for (; b < blocks; ++b) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      const T value = x[b * kLanes + l];
      lanes[l] = value > lanes[l] ? value : lanes[l];
    }
  }
  for (int64_t chain = 0; chain < kChains; ++chain) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      const T value = wide[chain * kLanes + l];
      lanes[l] = value > lanes[l] ? value : lanes[l];
    }
  }
  return lane_maximum(lanes);
}

// y <- exp((x - maximum)/T); returns the sum.
template <class T>
PYDD_HD double row_exponentials(const T* x, int64_t blocks, T maximum, ScaledExp<T> exp, T* y) {
  double total = 0;
  for (int64_t start = 0; start < blocks; start += kSumBlocks) {
    const int64_t stop = std::min(blocks, start + kSumBlocks);
    alignas(64) T sum[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const int64_t i = b * kLanes + l;
        const T value = exp(x[i] - maximum);
        y[i] = value;
        sum[l] += value;
      }
    }
    total += lane_sum(sum);
  }
  return total;
}

}  // namespace pyddfast
