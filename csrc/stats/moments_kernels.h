// Moments of values in registers, and of a warp.
#pragma once

#include "common/simt.h"
#include "stats/stats_math.h"

namespace pyddfast {

// Mean and squared deviations of the first `count` values.
template <int N>
__device__ __forceinline__ Moments<float> moments_of(const float (&values)[N], int count) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += i < count ? values[i] : 0.0f;
  const float mean = count > 0 ? sum / float(count) : 0.0f;
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float deviation = i < count ? values[i] - mean : 0.0f;
    squares += deviation * deviation;
  }
  return {float(count), mean, squares};
}

template <class T>
__device__ __forceinline__ Moments<T> merge_lanes(Moments<T> moments) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const Moments<T> other{__shfl_xor_sync(0xffffffffu, moments.count, step),
                           __shfl_xor_sync(0xffffffffu, moments.mean, step),
                           __shfl_xor_sync(0xffffffffu, moments.squares, step)};
    moments = merge_moments(moments, other);
  }
  return moments;
}

}  // namespace pyddfast
