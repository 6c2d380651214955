// Every row with each of its neighbours, whose probabilities are computed again: cheaper than to
// keep them, in pages that are new in every call.
#include <algorithm>
#include <cmath>
#include <limits>

#include "common/dtypes_cpu.h"
#include "common/rows_cpu.h"
#include "pairwise/knn_divergence.h"

namespace pyddfast {
namespace {

// What of a row a pass over some of its classes adds to.
struct Sums {
  alignas(64) double divergence[kLanes] = {}, mass[kLanes] = {};
  bool known = true;  // whether the neighbours are rows
};

// Adds kSize classes of a row, or the first `count` of them, from class `first` on, with those of
// all of its neighbours.
template <Divergence kKind, int64_t kSize, class T>
PYDD_HD void add_classes(const KnnDivergenceParams& params, const ScaledExp<T>& exp, int64_t row,
                         int64_t first, int64_t count, Sums& sums) {
  constexpr bool kWhole = kSize > kLanes;
  const T* const logp = vector<T>(params.logp) + first;
  const int64_t* const knn = params.knn + row * params.neighbours;
  alignas(64) T log_p[kSize], p[kSize], block[kSize];
  if constexpr (kWhole) {
    std::copy_n(logp + row * params.stride, kSize, log_p);
  } else {
    load_block(logp + row * params.stride, count, T(0), log_p);
  }
#pragma omp simd
  for (int64_t l = 0; l < kSize; ++l) {
    p[l] = kWhole || l < count ? exp(log_p[l] > T(kHighest) ? T(kHighest) : log_p[l]) : T(0);
  }
  for (int64_t start = 0; start < params.neighbours; start += kSumBlocks) {
    const int64_t stop = std::min(params.neighbours, start + kSumBlocks);
    alignas(64) T sum[kSize] = {};
    for (int64_t j = start; j < stop; ++j) {
      const bool is_row = knn[j] >= 0 && knn[j] < params.rows;
      sums.known &= is_row;
      const T* log_q = logp + (is_row ? knn[j] : row) * params.stride;
      if constexpr (!kWhole) {
        load_block(log_q, count, T(0), block);
        log_q = block;
      }
#pragma omp simd
      for (int64_t l = 0; l < kSize; ++l) {
        const T q = kWhole || l < count ? exp(log_q[l]) : T(0);
        sum[l] += divergence_term<kKind>(log_p[l], p[l], log_q[l], q);
      }
      asm volatile("");  // else GCC exchanges the two loops, and gathers
    }
    for (int64_t b = 0; b < kSize; b += kLanes) {
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) sums.divergence[l] += double(sum[b + l]);
    }
  }
  for (int64_t b = 0; b < kSize; b += kLanes) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) sums.mass[l] += double(p[b + l]);
  }
}

template <Divergence kKind, class T>
PYDD_HD void divergences(const KnnDivergenceParams& params, int64_t begin, int64_t end) {
  constexpr int64_t kSpan = 4 * kLanes;  // rows are read in stretches of some cache lines
  const ScaledExp<T> exp(1.0);
  for (int64_t row = begin; row < end; ++row) {
    Sums sums;
    int64_t first = 0;
    for (; first + kSpan <= params.classes; first += kSpan) {
      add_classes<kKind, kSpan, T>(params, exp, row, first, kSpan, sums);
    }
    for (; first < params.classes; first += kLanes) {
      const int64_t count = std::min(kLanes, params.classes - first);
      add_classes<kKind, kLanes, T>(params, exp, row, first, count, sums);
    }
    const bool sound = sums.known && std::fabs(fold(sums.mass, Sum()) - 1) < kMassError;
    const double mean = mean_divergence<kKind>(fold(sums.divergence, Sum()), params.neighbours);
    static_cast<T*>(params.result)[row] =
        T(sound ? mean : std::numeric_limits<double>::quiet_NaN());
  }
}

template <class T, class S>
PYDD_HD void divergence(const KnnDivergenceParams& params, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<T, S>) {  // 16 bit: not here
    switch (params.kind) {
      case Divergence::kJeffreys:
        return divergences<Divergence::kJeffreys, T>(params, begin, end);
      case Divergence::kKlNeighbourRow:
        return divergences<Divergence::kKlNeighbourRow, T>(params, begin, end);
      case Divergence::kKlRowNeighbour:
        return divergences<Divergence::kKlRowNeighbour, T>(params, begin, end);
    }
  }
}

}  // namespace

PYDD_CPU_KERNEL(knn_divergence_cpu, KnnDivergenceParams, params.dtype, divergence)

}  // namespace pyddfast
