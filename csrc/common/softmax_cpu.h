// The pieces of a row softmax that the CPU kernels share.  Rows are blocks (rows_cpu.h).
#pragma once

#include <algorithm>
#include <limits>

#include "common/rows_cpu.h"
#include "common/simd.h"

namespace pyddfast {

// Each lane's maximum, NaN passed over.
template <class T>
PYDD_HD void row_maximum(Blocks<const T> x, int64_t blocks, T (&maximum)[kLanes]) {
  // Two blocks side by side hide the latency of a comparison.
  constexpr int64_t kChains = 2, kWide = kChains * kLanes;
  alignas(64) T wide[kWide];
  std::fill_n(wide, kWide, -std::numeric_limits<T>::infinity());
  int64_t b = 0;
  for (; b + kChains <= x.whole; b += kChains) {
#pragma omp simd
    for (int64_t l = 0; l < kWide; ++l) wide[l] = Maximum()(wide[l], x.body[b * kLanes + l]);
  }
  for (; b < blocks; ++b) {
    const T* const block = x[b];
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) wide[l] = Maximum()(wide[l], block[l]);
  }
#pragma omp simd
  for (int64_t l = 0; l < kLanes; ++l) maximum[l] = Maximum()(wide[l], wide[l + kLanes]);
}

// y <- exp((x - maximum)/T), and each lane's sum.  NaN throughout where all logits are -inf.
template <class T>
PYDD_HD void row_exponentials(Blocks<const T> x, int64_t blocks, T maximum, ScaledExp<T> exp, T* y,
                              double (&total)[kLanes]) {
  std::fill_n(total, kLanes, 0.0);
  for (int64_t start = 0; start < blocks; start += kSumBlocks) {
    const int64_t stop = std::min(blocks, start + kSumBlocks);
    alignas(64) T sum[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
      const T* const block = x[b];
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const T value = exp(block[l] - maximum);
        y[b * kLanes + l] = value;
        sum[l] += value;
      }
    }
    add_lanes(sum, total);
  }
}

// Both for one row: returns the sum of the exponentials.
template <class T>
PYDD_HD double row_softmax(Blocks<const T> x, int64_t blocks, ScaledExp<T> exp, T* y, T& maximum) {
  alignas(64) T maxima[kLanes];
  row_maximum(x, blocks, maxima);
  maximum = fold(maxima, Maximum());
  alignas(64) double sums[kLanes];
  row_exponentials(x, blocks, maximum, exp, y, sums);
  return fold(sums, Sum());
}

}  // namespace pyddfast
