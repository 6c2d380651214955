// A CTA a row, for the tensors of a list that fit a kernel's parameters; then one for all rows.
#include <algorithm>

#include "common/dtypes.h"
#include "common/reduce.h"
#include "common/simt.h"
#include "match/gradient_distance.h"
#include "match/gradient_distance_math.h"

namespace pyddfast {
namespace {

using RowTeam = BlockTeam<128>;   // rows have 27 (3 x 3 x 3) to some thousand elements
using ListTeam = BlockTeam<512>;  // and a network has some hundred to some thousand rows

// By value in a kernel's parameters, which hold 4 KB.
constexpr int kMaxMatched = 64;

struct MatchedTensors {
  GradientDistanceParams params;
  int count;
  MatchedTensor tensors[kMaxMatched];
};
static_assert(sizeof(MatchedTensors) <= 4096);

// The row of a CTA.
struct OwnRow {
  const MatchedTensor* tensor;
  int64_t row, offset, size;

  __device__ __forceinline__ explicit OwnRow(const MatchedTensors& list) {
    const int64_t wanted = list.tensors[0].first_row + int64_t(blockIdx.x);
    int t = 0;
    while (t + 1 < list.count && list.tensors[t + 1].first_row <= wanted) ++t;
    tensor = &list.tensors[t];
    row = wanted;
    offset = (wanted - tensor->first_row) * tensor->length;
    size = tensor->size_of(wanted - tensor->first_row);
  }
};

template <class S>
__global__ void __launch_bounds__(RowTeam::kThreads) row_sums(MatchedTensors list) {
  const OwnRow own(list);
  const S* const syn = static_cast<const S*>(own.tensor->syn) + own.offset;
  const S* const real = static_cast<const S*>(own.tensor->real) + own.offset;
  const bool difference = list.params.metric == GradientMetric::kSquared;
  float sums[kMatchSums] = {};
  for (int64_t i = RowTeam::rank(); i < own.size; i += RowTeam::kSize) {
    const float s = to_float(syn[i]), r = to_float(real[i]);
    if (difference) {
      sums[0] += (s - r) * (s - r);
    } else {
      sums[0] += s * r;
      sums[1] += s * s;
      sums[2] += r * r;
    }
  }
  RowTeam::reduce<0, Sum>(sums);
  if (RowTeam::rank() == 0) {
    float* const out = static_cast<float*>(list.params.sums) + own.row * kMatchSums;
#pragma unroll
    for (int n = 0; n < kMatchSums; ++n) out[n] = sums[n];
  }
}

__device__ __forceinline__ void store_coefficients(const GradientDistanceParams& params,
                                                   int64_t row, float of_real, float of_syn) {
  float* const out = static_cast<float*>(params.coefficients) + 2 * row;
  out[0] = of_real;
  out[1] = of_syn;
}

__global__ void __launch_bounds__(ListTeam::kThreads) finish(GradientDistanceParams params) {
  const float* const sums = static_cast<const float*>(params.sums);
  float total[kMatchSums] = {};  // of the rows' distances, or of their sums
  for (int64_t row = ListTeam::rank(); row < params.rows; row += ListTeam::kSize) {
    const float* const own = sums + row * kMatchSums;
    if (params.metric == GradientMetric::kRows) {
      const RowMatch<float> match(own[0], own[1], own[2]);
      total[0] += match.distance;
      store_coefficients(params, row, match.of_real, match.of_syn);
    } else {
#pragma unroll
      for (int n = 0; n < kMatchSums; ++n) total[n] += own[n];
    }
  }
  ListTeam::reduce<0, Sum>(total);
  if (ListTeam::rank() != 0) return;
  float distance = total[0];
  if (params.metric == GradientMetric::kCosine) {
    const RowMatch<float> match(total[0], total[1], total[2]);
    distance = match.distance;
    store_coefficients(params, 0, match.of_real, match.of_syn);
  } else if (params.metric == GradientMetric::kSquared) {
    store_coefficients(params, 0, -2.0f, 2.0f);
  }
  *static_cast<float*>(params.distance) = distance;
}

template <class S>
__global__ void __launch_bounds__(RowTeam::kThreads) gradients(MatchedTensors list) {
  const OwnRow own(list);
  const S* const syn = static_cast<const S*>(own.tensor->syn) + own.offset;
  const S* const real = static_cast<const S*>(own.tensor->real) + own.offset;
  S* const grad = static_cast<S*>(own.tensor->grad) + own.offset;
  const bool by_row = list.params.metric == GradientMetric::kRows;
  const bool difference = list.params.metric == GradientMetric::kSquared;
  const float upstream = *static_cast<const float*>(list.params.upstream);
  const float* const coefficients =
      static_cast<const float*>(list.params.coefficients) + (by_row ? 2 * own.row : 0);
  const float of_real = upstream * coefficients[0], of_syn = upstream * coefficients[1];
  for (int64_t i = RowTeam::rank(); i < own.size; i += RowTeam::kSize) {
    const float s = to_float(syn[i]), r = to_float(real[i]);
    grad[i] = from_float<S>(difference ? of_syn * (s - r) : of_real * r + of_syn * s);
  }
}

// Launches of a kernel of MatchedTensors over the whole list.
int launch_rows(void (*kernel)(MatchedTensors), const GradientDistanceParams& params,
                void* stream) {
  for (int64_t first = 0; first < params.count; first += kMaxMatched) {
    MatchedTensors list{};
    list.params = params;
    list.count = int(std::min<int64_t>(kMaxMatched, params.count - first));
    std::copy_n(params.tensors + first, list.count, list.tensors);
    const MatchedTensor& last = list.tensors[list.count - 1];
    simt::LaunchConfig config;
    config.grid = dim3(unsigned(last.first_row + last.rows() - list.tensors[0].first_row));
    config.block = dim3(RowTeam::kThreads);
    config.stream = stream;
    if (const int error = simt::launch(kernel, config, list)) return error;
  }
  return 0;
}

}  // namespace

int gradient_distance_cuda(const GradientDistanceParams& params, void* stream) {
  const int error = with_device_dtype(
      params.dtype, [&]<class S>() { return launch_rows(row_sums<S>, params, stream); });
  if (error) return error;
  simt::LaunchConfig config;
  config.grid = dim3(1);
  config.block = dim3(ListTeam::kThreads);
  config.stream = stream;
  return simt::launch(finish, config, params);
}

int gradient_distance_backward_cuda(const GradientDistanceParams& params, void* stream) {
  return with_device_dtype(params.dtype,
                           [&]<class S>() { return launch_rows(gradients<S>, params, stream); });
}

}  // namespace pyddfast
