// Most of a tile is farther than what a row has: a vector of comparisons passes over it.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "common/dtypes_cpu.h"
#include "common/rows_cpu.h"
#include "pairwise/knn_topk.h"

namespace pyddfast {
namespace {

constexpr int64_t kSpan = 4 * kLanes;  // elements a branch

// The proposals of one row: the largest gives way.
template <class T>
struct Heap {
  T* values;
  int64_t* indices;
  int64_t size;

  PYDD_HD void replace_largest(T value, int64_t index) {
    int64_t hole = 0;
    for (int64_t child = 1; child < size; child = 2 * hole + 1) {
      if (child + 1 < size && values[child + 1] > values[child]) ++child;
      if (values[child] <= value) break;
      values[hole] = values[child];
      indices[hole] = indices[child];
      hole = child;
    }
    values[hole] = value;
    indices[hole] = index;
  }
};

template <class T>
PYDD_HD Heap<T> heap_of(const KnnProposeParams& params, int64_t row) {
  return {static_cast<T*>(params.values) + row * params.kept, params.indices + row * params.kept,
          params.kept};
}

template <class T>
PYDD_HD void propose_rows(const KnnProposeParams& params, int64_t begin, int64_t end) {
  const T* const squares = vector<T>(params.squares) + params.first_column;
  for (int64_t r = begin; r < end; ++r) {
    const T* const product = vector<T>(params.product) + r * params.columns;
    const int64_t row = params.first_row + r;
    Heap<T> heap = heap_of<T>(params, row);
    const int64_t self = params.exclude_self ? row - params.first_column : -1;
    for (int64_t first = 0; first < params.columns; first += kSpan) {
      const int64_t last = std::min(params.columns, first + kSpan);
      if (last - first == kSpan) {
        const T most = heap.values[0];
        int nearer = 0;
#pragma omp simd reduction(| : nearer)
        for (int64_t c = first; c < first + kSpan; ++c) {
          nearer |= squares[c] - T(2) * product[c] < most;
        }
        if (!nearer) continue;
      }
      for (int64_t c = first; c < last; ++c) {
        const T value = squares[c] - T(2) * product[c];
        if (value < heap.values[0] && c != self) {
          heap.replace_largest(value, params.first_column + c);
        }
      }
    }
  }
}

template <class T>
PYDD_HD void propose_columns(const KnnProposeParams& params, int64_t begin, int64_t end) {
  const T* const squares = vector<T>(params.squares) + params.first_row;
  alignas(64) T most[kSpan];
  for (int64_t first = begin; first < end; first += kSpan) {
    const int64_t count = std::min(kSpan, end - first);
    for (int64_t c = 0; c < kSpan; ++c) {
      most[c] = c < count ? heap_of<T>(params, params.first_column + first + c).values[0] : T(0);
    }
    for (int64_t r = 0; r < params.rows; ++r) {
      const T* const product = vector<T>(params.product) + r * params.columns + first;
      const T square = squares[r];
      if (count == kSpan) {
        int nearer = 0;
#pragma omp simd reduction(| : nearer)
        for (int64_t c = 0; c < kSpan; ++c) nearer |= square - T(2) * product[c] < most[c];
        if (!nearer) continue;
      }
      for (int64_t c = 0; c < count; ++c) {
        const T value = square - T(2) * product[c];
        if (value < most[c]) {
          Heap<T> heap = heap_of<T>(params, params.first_column + first + c);
          heap.replace_largest(value, params.first_row + r);
          most[c] = heap.values[0];
        }
      }
    }
  }
}

// sum (a ratio - b)^2 in fp64.  Of equal rows and a ratio of 1 it is 0, fused or not.
template <bool kScaled, class T>
PYDD_HD double square_of_difference(const T* a, double ratio, const T* b, int64_t dim) {
  const auto difference = [&](int64_t i) {
    return kScaled ? double(a[i]) * ratio - double(b[i]) : double(a[i]) - double(b[i]);
  };
  alignas(64) double total[kLanes] = {};
  const int64_t whole = dim / kLanes, rest = dim % kLanes;
  for (int64_t n = 0; n < whole; ++n) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      const double d = difference(n * kLanes + l);
      total[l] += d * d;
    }
  }
  for (int64_t l = 0; l < rest; ++l) {
    const double d = difference(whole * kLanes + l);
    total[l] += d * d;
  }
  return fold(total, Sum());
}

// |x - y|^2, or that of the unit vectors.
template <class T>
PYDD_HD double square_between(const KnnDecideParams& params, int64_t row, int64_t other) {
  const T* const a = vector<T>(params.x) + row * params.dim;
  const T* const b = vector<T>(params.x) + other * params.dim;
  if (!params.norm) return square_of_difference<false>(a, 1.0, b, params.dim);
  const double own = params.norm[row], others = params.norm[other];
  // 2 - 2 cos, and the cosine with a row of zeros is 0.
  if (own == 0 || others == 0) return 2.0;
  return square_of_difference<true>(a, others / own, b, params.dim) / (others * others);
}

template <class T>
PYDD_HD void decide(const KnnDecideParams& params, int64_t begin, int64_t end) {
  std::vector<std::pair<double, int64_t>> found(size_t(params.kept));
  for (int64_t row = begin; row < end; ++row) {
    const T* const values = vector<T>(params.values) + row * params.kept;
    const int64_t* const indices = params.indices + row * params.kept;
    bool unclear = false;
    for (int64_t j = 0; j < params.kept; ++j) {
      const bool none = indices[j] < 0 || indices[j] >= params.rows;
      unclear |= none;  // values that are not finite propose nothing
      const int64_t other = none ? row : indices[j];
      found[size_t(j)] = {std::sqrt(square_between<T>(params, row, other)), other};
    }
    std::partial_sort(found.begin(), found.begin() + params.neighbours, found.end());
    for (int64_t j = 0; j < params.neighbours; ++j) {
      params.distance[row * params.neighbours + j] = found[size_t(j)].first;
      params.nearest[row * params.neighbours + j] = found[size_t(j)].second;
    }
    if (!params.all) {
      // A row left out has at least the largest value; one as near as the last neighbour has at
      // most the norm `norm + reach`.
      const double reach = found[size_t(params.neighbours - 1)].first;
      const double square = double(vector<T>(params.squares)[row]), norm = std::sqrt(square);
      const double largest = 2 * norm + reach, error = params.error * largest * largest;
      unclear |= !(double(values[0]) + square - 2 * error > reach * reach);
    }
    params.unclear[row] = unclear;
  }
}

template <class T, class S>
PYDD_HD void rows_body(const KnnProposeParams& params, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<T, S>) propose_rows<T>(params, begin, end);  // 16 bit: not here
}

template <class T, class S>
PYDD_HD void columns_body(const KnnProposeParams& params, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<T, S>) propose_columns<T>(params, begin, end);
}

template <class T, class S>
PYDD_HD void decide_body(const KnnDecideParams& params, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<T, S>) decide<T>(params, begin, end);
}

}  // namespace

PYDD_CPU_KERNEL(knn_propose_rows_cpu, KnnProposeParams, params.dtype, rows_body)
PYDD_CPU_KERNEL(knn_propose_columns_cpu, KnnProposeParams, params.dtype, columns_body)
PYDD_CPU_KERNEL(knn_decide_cpu, KnnDecideParams, params.dtype, decide_body)

}  // namespace pyddfast
