// Rows are independent: a thread has those that begin in its share of the elements.
#include <algorithm>

#include "common/dtypes_cpu.h"
#include "common/rows_cpu.h"
#include "match/gradient_distance.h"
#include "match/gradient_distance_math.h"

namespace pyddfast {
namespace {

// Two blocks at a time: six independent sums hide the latency of an addition.
constexpr int64_t kWide = 2 * kLanes;

template <class T>
struct WideSums {
  alignas(64) T lanes[kMatchSums][kWide] = {};

  template <bool kDifference, class S>
  PYDD_HD void add(const S* syn, const S* real) {
#pragma omp simd
    for (int64_t l = 0; l < kWide; ++l) {
      const T s = T(to_float(syn[l])), r = T(to_float(real[l]));
      if constexpr (kDifference) {
        lanes[0][l] += (s - r) * (s - r);
      } else {
        lanes[0][l] += s * r;
        lanes[1][l] += s * s;
        lanes[2][l] += r * r;
      }
    }
  }

  PYDD_HD double total(int n) const {
    alignas(64) T folded[kLanes];
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) folded[l] = lanes[n][l] + lanes[n][l + kLanes];
    return double(fold(folded, Sum()));
  }
};

// In T over kSumBlocks steps, in fp64 from there.
template <bool kDifference, class T, class S>
PYDD_HD void sums_of_row(const S* syn, const S* real, int64_t size, double* sums) {
  constexpr int kSums = kDifference ? 1 : kMatchSums;
  std::fill_n(sums, kMatchSums, 0.0);
  for (int64_t start = 0; start < size; start += kWide * kSumBlocks) {
    const int64_t stop = std::min(size, start + kWide * kSumBlocks);
    WideSums<T> wide;
    int64_t i = start;
    for (; i + kWide <= stop; i += kWide) wide.template add<kDifference>(syn + i, real + i);
    if (i < stop) {
      alignas(64) T last[2][kWide];
      for (int64_t b = 0; b < kWide; b += kLanes) {
        const int64_t left = std::clamp<int64_t>(stop - i - b, 0, kLanes);
        load_block(syn + i + b, left, T(0), last[0] + b);
        load_block(real + i + b, left, T(0), last[1] + b);
      }
      wide.template add<kDifference>(last[0], last[1]);
    }
    for (int n = 0; n < kSums; ++n) sums[n] += wide.total(n);
  }
}

template <class T, class S>
PYDD_HD void forward(const GradientDistanceParams& params, int64_t begin, int64_t end) {
  const bool difference = params.metric == GradientMetric::kSquared;
  for (int64_t t = 0; t < params.count; ++t) {
    const MatchedTensor& tensor = params.tensors[t];
    const int64_t stop = tensor.row_from(end);
    for (int64_t row = tensor.row_from(begin); row < stop; ++row) {
      const S* const syn = static_cast<const S*>(tensor.syn) + row * tensor.length;
      const S* const real = static_cast<const S*>(tensor.real) + row * tensor.length;
      double* const sums =
          static_cast<double*>(params.sums) + (tensor.first_row + row) * kMatchSums;
      if (difference) {
        sums_of_row<true, T>(syn, real, tensor.size_of(row), sums);
      } else {
        sums_of_row<false, T>(syn, real, tensor.size_of(row), sums);
      }
    }
  }
}

template <class T, class S>
PYDD_HD void backward(const GradientDistanceParams& params, int64_t begin, int64_t end) {
  const T upstream = *static_cast<const T*>(params.upstream);
  const bool difference = params.metric == GradientMetric::kSquared;
  const bool by_row = params.metric == GradientMetric::kRows;
  for (int64_t t = 0; t < params.count; ++t) {
    const MatchedTensor& tensor = params.tensors[t];
    const int64_t stop = tensor.row_from(end);
    for (int64_t row = tensor.row_from(begin); row < stop; ++row) {
      const S* const syn = static_cast<const S*>(tensor.syn) + row * tensor.length;
      const S* const real = static_cast<const S*>(tensor.real) + row * tensor.length;
      S* const grad = static_cast<S*>(tensor.grad) + row * tensor.length;
      const T* const own =
          static_cast<const T*>(params.coefficients) + (by_row ? tensor.first_row + row : 0) * 2;
      const T of_real = upstream * own[0], of_syn = upstream * own[1];
      const int64_t size = tensor.size_of(row);
      if (difference) {
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
          grad[i] = stored<S>(of_syn * (T(to_float(syn[i])) - T(to_float(real[i]))));
        }
      } else {
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
          grad[i] = stored<S>(of_real * T(to_float(real[i])) + of_syn * T(to_float(syn[i])));
        }
      }
    }
  }
}

template <class T>
void finish(const GradientDistanceParams& params) {
  const double* const sums = static_cast<const double*>(params.sums);
  T* const coefficients = static_cast<T*>(params.coefficients);
  double distance = 0, total[kMatchSums] = {};
  for (int64_t row = 0; row < params.rows; ++row) {
    const double* const own = sums + row * kMatchSums;
    if (params.metric == GradientMetric::kRows) {
      const RowMatch<double> match(own[0], own[1], own[2]);
      distance += match.distance;
      coefficients[2 * row] = T(match.of_real);
      coefficients[2 * row + 1] = T(match.of_syn);
    } else {
      for (int n = 0; n < kMatchSums; ++n) total[n] += own[n];
    }
  }
  if (params.metric == GradientMetric::kCosine) {
    const RowMatch<double> match(total[0], total[1], total[2]);
    distance = match.distance;
    coefficients[0] = T(match.of_real);
    coefficients[1] = T(match.of_syn);
  } else if (params.metric == GradientMetric::kSquared) {
    distance = total[0];
    coefficients[0] = T(-2);
    coefficients[1] = T(2);
  }
  *static_cast<T*>(params.distance) = T(distance);
}

}  // namespace

PYDD_CPU_KERNEL(gradient_distance_cpu, GradientDistanceParams, params.dtype, forward)
PYDD_CPU_KERNEL(gradient_distance_backward_cpu, GradientDistanceParams, params.dtype, backward)

void gradient_distance_finish_cpu(const GradientDistanceParams& params) {
  params.dtype == DType::kFloat64 ? finish<double>(params) : finish<float>(params);
}

}  // namespace pyddfast
