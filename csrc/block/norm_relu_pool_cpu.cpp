// A plane at a time, which stays in the cache: h, u and P(V) of norm_relu_pool_math.h are made once
// in scratch memory, in whole blocks.  Elements that pad the last block are 0 in u and V, and
// finite in h, so that they add nothing to a sum.
#include <algorithm>

#include "block/norm_relu_pool.h"
#include "block/norm_relu_pool_math.h"
#include "common/dtypes_cpu.h"
#include "common/rows_cpu.h"

namespace pyddfast {
namespace {

// N sums over a plane's blocks: lanes in T over kSumBlocks blocks, in fp64 from there.
template <class T, int N>
struct PlaneSums {
  alignas(64) T lanes[N][kLanes] = {};
  alignas(64) double totals[N][kLanes] = {};

  PYDD_HD void close() {
    for (int n = 0; n < N; ++n) {
      add_lanes(lanes[n], totals[n]);
      std::fill_n(lanes[n], kLanes, T(0));
    }
  }
  PYDD_HD double mean(int n, int64_t count) { return fold(totals[n], Sum()) / double(count); }
};

// Scratch planes, padded to whole blocks.
template <class T>
struct ScratchPlanes {
  Scratch<T> memory;
  int64_t each;

  ScratchPlanes(int64_t count, int64_t pixels)
      : memory(new_scratch<T>(count * blocks_of(pixels) * kLanes)),
        each(blocks_of(pixels) * kLanes) {}
  T* operator[](int64_t i) const { return &memory[i * each]; }
};

template <class S>
const S* plane_of(const Planes& planes, int64_t n, int64_t c) {
  return static_cast<const S*>(planes.data) + n * planes.stride_n + c * planes.stride_c;
}

template <class T, class S>
PYDD_HD void store_plane(const T* values, int64_t count, S* target) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) target[i] = stored<S>(values[i]);
}

// A plane of values to one of results; `row` is scratch.
template <class T, class S>
PYDD_HD void pool_plane(const NormReluPoolParams& params, const T* values, T* row, S* target) {
  const int64_t width = params.width, pooled = params.pooled_width();
  if (!params.pool) return store_plane(values, params.height * width, target);
  for (int64_t i = 0; i < params.pooled_height(); ++i) {
    const T* const upper = values + 2 * i * width;
    const T* const lower = upper + width;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) row[j] = upper[j] + lower[j];
#pragma omp simd
    for (int64_t j = 0; j < pooled; ++j) {
      target[i * pooled + j] = stored<S>(T(0.25) * (row[2 * j] + row[2 * j + 1]));
    }
  }
}

// The adjoint: a gradient of results to one of values.
template <class T, class S>
PYDD_HD void unpool_plane(const NormReluPoolParams& params, const S* grad, T* values) {
  const int64_t width = params.width, pooled = params.pooled_width();
  const int64_t pixels = params.height * width, padded = blocks_of(pixels) * kLanes;
  if (!params.pool) {
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) values[i] = T(to_float(grad[i]));
    std::fill(values + pixels, values + padded, T(0));
    return;
  }
  const bool odd = width % 2;
  for (int64_t i = 0; i < params.pooled_height(); ++i) {
    T* const upper = values + 2 * i * width;
#pragma omp simd
    for (int64_t j = 0; j < pooled; ++j) {
      const T share = T(0.25) * T(to_float(grad[i * pooled + j]));
      upper[2 * j] = share;
      upper[2 * j + 1] = share;
    }
    if (odd) upper[width - 1] = T(0);
    std::copy_n(upper, width, upper + width);
  }
  std::fill(values + 2 * params.pooled_height() * width, values + padded, T(0));
}

// ---- forward -----------------------------------------------------------------------------------

template <class T, class S>
PYDD_HD PlaneStats<T> plane_stats(const Blocks<const T>& x, T* tail, int64_t pixels, double eps) {
  const int64_t blocks = blocks_of(pixels), rest = pixels % kLanes;
  PlaneSums<T, 1> first;
  for (int64_t start = 0; start < blocks; start += kSumBlocks) {
    for (int64_t b = start; b < std::min(blocks, start + kSumBlocks); ++b) {
      const T* const block = x[b];
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) first.lanes[0][l] += block[l];
    }
    first.close();
  }
  const T mean = T(first.mean(0, pixels));
  if (rest) pad_block(tail, rest, mean);
  PlaneSums<T, 2> second;
  for (int64_t start = 0; start < blocks; start += kSumBlocks) {
    for (int64_t b = start; b < std::min(blocks, start + kSumBlocks); ++b) {
      const T* const block = x[b];
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const T d = block[l] - mean;
        second.lanes[0][l] += d;
        second.lanes[1][l] += d * d;
      }
    }
    second.close();
  }
  const double off = second.mean(0, pixels);
  const double var = second.mean(1, pixels) - off * off;
  return {mean, T(off), T(1.0 / std::sqrt((var < 0 ? 0.0 : var) + eps))};  // NaN passes
}

template <class T, class S>
PYDD_HD void forward(const NormReluPoolParams& params, int64_t begin, int64_t end) {
  const int64_t pixels = params.height * params.width, blocks = blocks_of(pixels);
  const int64_t results = params.pooled_height() * params.pooled_width();
  const ScratchPlanes<T> scratch(2, pixels);
  const Scratch<T> row = new_scratch<T>(params.width);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t c = plane % params.channels;
    const S* const x = plane_of<S>(params.x, plane / params.channels, c);
    const Blocks<const T> values = load_row(x, pixels, T(0), scratch[0]);
    const PlaneStats<T> stats =
        plane_stats<T, S>(values, const_cast<T*>(values.tail), pixels, params.eps);
    static_cast<PlaneStats<T>*>(params.stats)[plane] = stats;
    const PlaneNorm<T> norm(stats, vector<T>(params.weight)[c], vector<T>(params.bias)[c],
                            params.relu);
    T* const out = scratch[1];
    for (int64_t b = 0; b < blocks; ++b) {
      const T* const block = values[b];
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        out[b * kLanes + l] = norm.activated(norm.normalised(block[l]));
      }
    }
    pool_plane(params, out, &row[0], static_cast<S*>(params.y) + plane * results);
  }
}

// ---- backward ----------------------------------------------------------------------------------

// What both backwards know of a plane.
template <class T, class S>
struct Plane {
  PlaneNorm<T> norm;
  Blocks<const T> x;

  PYDD_HD Plane(const NormReluPoolParams& params, int64_t plane, T* scratch)
      : norm(static_cast<const PlaneStats<T>*>(params.stats)[plane],
             vector<T>(params.weight)[plane % params.channels],
             vector<T>(params.bias)[plane % params.channels], params.relu),
        x(load_row(plane_of<S>(params.x, plane / params.channels, plane % params.channels),
                   params.height * params.width, norm.mean, scratch)) {}
};

template <class T, class S>
PYDD_HD void backward(const NormReluPoolParams& params, int64_t begin, int64_t end) {
  const int64_t pixels = params.height * params.width, blocks = blocks_of(pixels);
  const ScratchPlanes<T> scratch(3, pixels);
  T *const h = scratch[1], *const u = scratch[2];
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / params.channels, c = plane % params.channels;
    const Plane<T, S> own(params, plane, scratch[0]);
    const PlaneNorm<T> norm = own.norm;
    unpool_plane(params, plane_of<S>(params.grad, n, c), u);
    PlaneSums<T, 2> sums;
    for (int64_t start = 0; start < blocks; start += kSumBlocks) {
      for (int64_t b = start; b < std::min(blocks, start + kSumBlocks); ++b) {
        const T* const block = own.x[b];
        T *const h_block = h + b * kLanes, *const u_block = u + b * kLanes;
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) {
          const T one = norm.normalised(block[l]);
          const T value = norm.gated(one, u_block[l]);
          h_block[l] = one;
          u_block[l] = value;
          sums.lanes[0][l] += value;
          sums.lanes[1][l] += value * one;
        }
      }
      sums.close();
    }
    const double mean = sums.mean(0, pixels), slope = sums.mean(1, pixels);
    double* const partial = static_cast<double*>(params.partials) + 2 * plane;
    partial[0] = slope * double(pixels);
    partial[1] = mean * double(pixels);
    const Projection<T> project{T(mean), T(slope)};
    const T scale = norm.weight * norm.rstd;
    S* const target = static_cast<S*>(params.grad_x) + plane * pixels;
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) target[i] = stored<S>(scale * project(u[i], h[i]));
  }
}

// ---- double backward ---------------------------------------------------------------------------

template <class T, class S>
PYDD_HD void double_backward(const NormReluPoolParams& params, int64_t begin, int64_t end) {
  const int64_t pixels = params.height * params.width, blocks = blocks_of(pixels);
  const int64_t results = params.pooled_height() * params.pooled_width();
  const ScratchPlanes<T> scratch(6, pixels);
  const Scratch<T> row = new_scratch<T>(params.width);
  T *const h = scratch[2], *const u = scratch[3], *const p = scratch[4], *const to_u = scratch[5];
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / params.channels, c = plane % params.channels;
    const Plane<T, S> own(params, plane, scratch[0]);
    const PlaneNorm<T> norm = own.norm;
    Blocks<const T> v{scratch[1], scratch[1], blocks};
    if (params.of_x.data) {
      v = load_row(plane_of<S>(params.of_x, n, c), pixels, T(0), scratch[1]);
    } else if (plane == begin) {
      std::fill_n(scratch[1], blocks * kLanes, T(0));
    }
    unpool_plane(params, plane_of<S>(params.grad, n, c), u);
    PlaneSums<T, 4> sums;
    for (int64_t start = 0; start < blocks; start += kSumBlocks) {
      for (int64_t b = start; b < std::min(blocks, start + kSumBlocks); ++b) {
        const T *const block = own.x[b], *const v_block = v[b];
        T *const h_block = h + b * kLanes, *const u_block = u + b * kLanes;
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) {
          const T one = norm.normalised(block[l]);
          const T value = norm.gated(one, u_block[l]);
          h_block[l] = one;
          u_block[l] = value;
          sums.lanes[0][l] += value;
          sums.lanes[1][l] += value * one;
          sums.lanes[2][l] += v_block[l];
          sums.lanes[3][l] += v_block[l] * one;
        }
      }
      sums.close();
    }
    const Projection<T> of_u{T(sums.mean(0, pixels)), T(sums.mean(1, pixels))};
    const Projection<T> of_v{T(sums.mean(2, pixels)), T(sums.mean(3, pixels))};
    const T scale = norm.weight * norm.rstd;
    const T of_weight = params.of_weight ? vector<T>(params.of_weight)[c] : T(0);
    const T of_bias = params.of_bias ? vector<T>(params.of_bias)[c] : T(0);
    PlaneSums<T, 1> products;
    for (int64_t start = 0; start < blocks; start += kSumBlocks) {
      for (int64_t b = start; b < std::min(blocks, start + kSumBlocks); ++b) {
        const T* const v_block = v[b];
        const int64_t at = b * kLanes;
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) {
          const T one = h[at + l], projected = of_v(v_block[l], one);
          p[at + l] = projected;
          to_u[at + l] = norm.gated(one, scale * projected + (of_weight * one + of_bias));
          products.lanes[0][l] += projected * u[at + l];
        }
      }
      products.close();
    }
    pool_plane(params, to_u, &row[0], static_cast<S*>(params.grad_grad) + plane * results);
    const double product = products.mean(0, pixels);
    static_cast<double*>(params.partials)[plane] = double(norm.rstd) * double(pixels) * product;
    const SecondSlope<T> slope(norm, of_u, of_v, of_weight, T(product));
    S* const target = static_cast<S*>(params.grad_x) + plane * pixels;
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) {
      target[i] = stored<S>(slope.of_u * of_u(u[i], h[i]) + slope.of_v * p[i] + slope.of_h * h[i]);
    }
  }
}

// ---- sums over the batch -----------------------------------------------------------------------

template <class T>
void sum_partials(const NormReluPoolParams& params, int64_t begin, int64_t end) {
  const int64_t numbers = params.grad_bias ? 2 : 1;
  const double* const partials = static_cast<const double*>(params.partials);
  for (int64_t c = begin; c < end; ++c) {
    double sums[2] = {};
    for (int64_t n = 0; n < params.batch; ++n) {
      const double* const own = partials + (n * params.channels + c) * numbers;
      for (int64_t k = 0; k < numbers; ++k) sums[k] += own[k];
    }
    static_cast<T*>(params.grad_weight)[c] = T(sums[0]);
    if (params.grad_bias) static_cast<T*>(params.grad_bias)[c] = T(sums[1]);
  }
}

}  // namespace

PYDD_CPU_KERNEL(norm_relu_pool_cpu, NormReluPoolParams, params.dtype, forward)
PYDD_CPU_KERNEL(norm_relu_pool_backward_cpu, NormReluPoolParams, params.dtype, backward)
PYDD_CPU_KERNEL(norm_relu_pool_double_backward_cpu, NormReluPoolParams, params.dtype,
                double_backward)

void norm_relu_pool_sums_cpu(const NormReluPoolParams& params, int64_t begin, int64_t end) {
  params.dtype == DType::kFloat64 ? sum_partials<double>(params, begin, end)
                                  : sum_partials<float>(params, begin, end);
}

}  // namespace pyddfast
