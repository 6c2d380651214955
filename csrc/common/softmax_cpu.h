// The pieces of a row softmax that the CPU kernels share.
#pragma once

#include <algorithm>
#include <limits>

#include "common/rows_cpu.h"
#include "common/simd.h"

namespace pyddfast {

template <class T>
PYDD_HD T row_maximum(const T* x, int64_t n) {
  T maximum = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : maximum)
  for (int64_t i = 0; i < n; ++i) maximum = x[i] > maximum ? x[i] : maximum;
  return maximum;
}

// y <- exp((x - maximum) * inv_temperature); returns the sum.
template <class T>
PYDD_HD double row_exponentials(const T* x, int64_t n, T maximum, T inv_temperature, T* y) {
  double total = 0;
  for (int64_t start = 0; start < n; start += kSumBlock) {
    const int64_t stop = std::min(n, start + kSumBlock);
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = start; i < stop; ++i) {
      y[i] = exp_nonpositive((x[i] - maximum) * inv_temperature);
      sum += y[i];
    }
    total += sum;
  }
  return total;
}

}  // namespace pyddfast
