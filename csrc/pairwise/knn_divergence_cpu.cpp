// The probabilities of all rows, once, in whole blocks; then every row with each of its neighbours.
#include <algorithm>
#include <cmath>
#include <limits>

#include "common/dtypes_cpu.h"
#include "common/rows_cpu.h"
#include "pairwise/knn_divergence.h"

namespace pyddfast {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// A row of `filled`: log-probabilities and probabilities, 0 where there is no class.
template <class T>
struct Distribution {
  T *log, *p;

  PYDD_HD Distribution(const KnnDivergenceParams& params, int64_t row) {
    const int64_t width = blocks_of(params.classes) * kLanes;
    log = static_cast<T*>(params.filled) + row * 2 * width;
    p = log + width;
  }
};

template <class T>
PYDD_HD void fill_rows(const KnnDivergenceParams& params, int64_t begin, int64_t end) {
  constexpr T kHigh = T(80);  // beyond what a log-probability is, before exp() overflows
  const ScaledExp<T> exp(1.0);
  for (int64_t row = begin; row < end; ++row) {
    const T* const source = vector<T>(params.logp) + row * params.stride;
    const Distribution<T> filled(params, row);
    alignas(64) T sum[kLanes] = {};  // a mass within kMassError needs no more digits
    for (int64_t first = 0; first < params.classes; first += kLanes) {
      const int64_t count = std::min(kLanes, params.classes - first);
      alignas(64) T x[kLanes];
      load_block(source + first, count, T(0), x);
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const T value = l < count ? exp(x[l] > kHigh ? kHigh : x[l]) : T(0);
        filled.log[first + l] = x[l];
        filled.p[first + l] = value;
        sum[l] += value;
      }
    }
    const double mass = double(fold(sum, Sum()));
    static_cast<T*>(params.result)[row] = T(std::fabs(mass - 1) < kMassError ? 0.0 : kNan);
  }
}

// Adds kBlocks blocks of a row, from class `first` on, with those of all of its neighbours; returns
// whether these are rows.
template <Divergence kKind, int64_t kBlocks, class T>
PYDD_HD bool add_blocks(const KnnDivergenceParams& params, int64_t row, int64_t first,
                        double (&total)[kLanes]) {
  constexpr int64_t kSize = kBlocks * kLanes;
  const int64_t width = blocks_of(params.classes) * kLanes;
  const T* const filled = vector<T>(params.filled) + first;
  const int64_t* const knn = params.knn + row * params.neighbours;
  alignas(64) T log_p[kSize], p[kSize];
  std::copy_n(filled + row * 2 * width, kSize, log_p);
  std::copy_n(filled + row * 2 * width + width, kSize, p);
  bool known = true;
  for (int64_t start = 0; start < params.neighbours; start += kSumBlocks) {
    const int64_t stop = std::min(params.neighbours, start + kSumBlocks);
    alignas(64) T sum[kSize] = {};
    for (int64_t j = start; j < stop; ++j) {
      const bool is_row = knn[j] >= 0 && knn[j] < params.rows;
      known &= is_row;
      const T* const log_q = filled + (is_row ? knn[j] : row) * 2 * width;
      const T* const q = log_q + width;
#pragma omp simd
      for (int64_t l = 0; l < kSize; ++l) {
        sum[l] += divergence_term<kKind>(log_p[l], p[l], log_q[l], q[l]);
      }
      asm volatile("");  // else GCC exchanges the two loops, and gathers
    }
    for (int64_t b = 0; b < kSize; b += kLanes) {
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) total[l] += double(sum[b + l]);
    }
  }
  return known;
}

template <Divergence kKind, class T>
PYDD_HD void divergences(const KnnDivergenceParams& params, int64_t begin, int64_t end) {
  constexpr int64_t kBlocks = 4;  // at a time: rows are read in stretches of some cache lines
  const int64_t width = blocks_of(params.classes) * kLanes;
  for (int64_t row = begin; row < end; ++row) {
    alignas(64) double total[kLanes] = {};
    bool known = true;
    int64_t first = 0;
    for (; first + kBlocks * kLanes <= width; first += kBlocks * kLanes) {
      known &= add_blocks<kKind, kBlocks, T>(params, row, first, total);
    }
    for (; first < width; first += kLanes) {
      known &= add_blocks<kKind, 1, T>(params, row, first, total);
    }
    const double mean = mean_divergence<kKind>(fold(total, Sum()), params.neighbours);
    static_cast<T*>(params.result)[row] += T(known ? mean : kNan);
  }
}

template <class T, class S>
PYDD_HD void fill(const KnnDivergenceParams& params, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<T, S>) fill_rows<T>(params, begin, end);  // 16 bit: not here
}

template <class T, class S>
PYDD_HD void divergence(const KnnDivergenceParams& params, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<T, S>) {
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

PYDD_CPU_KERNEL(knn_fill_cpu, KnnDivergenceParams, params.dtype, fill)
PYDD_CPU_KERNEL(knn_divergence_cpu, KnnDivergenceParams, params.dtype, divergence)

}  // namespace pyddfast
