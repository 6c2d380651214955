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

// Adds `count` blocks, which begin at log_p and so on.
template <Divergence kKind, class T>
PYDD_HD void add_blocks(const T* log_p, const T* p, const T* log_q, const T* q, int64_t count,
                        T* sum) {
  for (int64_t b = 0; b < count; ++b) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      const int64_t i = b * kLanes + l;
      sum[l] += divergence_term<kKind>(log_p[i], p[i], log_q[i], q[i]);
    }
  }
}

template <Divergence kKind, class T>
PYDD_HD void divergences(const KnnDivergenceParams& params, int64_t begin, int64_t end) {
  const int64_t blocks = blocks_of(params.classes);
  for (int64_t row = begin; row < end; ++row) {
    const Distribution<T> own(params, row);
    alignas(64) double total[kLanes] = {};
    alignas(64) T sum[kLanes] = {};
    int64_t added = 0;  // blocks, to `sum`
    bool known = true;
    for (int64_t j = 0; j < params.neighbours; ++j) {
      const int64_t wanted = params.knn[row * params.neighbours + j];
      const bool is_row = wanted >= 0 && wanted < params.rows;
      known &= is_row;
      const Distribution<T> other(params, is_row ? wanted : row);
      for (int64_t b = 0; b < blocks;) {
        const int64_t count = std::min(blocks - b, kSumBlocks - added), i = b * kLanes;
        add_blocks<kKind>(own.log + i, own.p + i, other.log + i, other.p + i, count, sum);
        b += count;
        added += count;
        if (added == kSumBlocks) {
          add_lanes(sum, total);
          std::fill_n(sum, kLanes, T(0));
          added = 0;
        }
      }
    }
    add_lanes(sum, total);
    const double mean = mean_divergence<kKind>(fold(total, Sum()), params.neighbours);
    static_cast<T*>(params.result)[row] += T(known ? mean : kNan);
  }
}

template <class T, class S>
PYDD_HD void fill(const KnnDivergenceParams& params, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<T, S>)
    fill_rows<T>(params, begin, end);  // 16-bit rows do not come here
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
