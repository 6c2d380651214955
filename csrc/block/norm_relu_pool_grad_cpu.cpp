// The derivatives of norm_relu_pool, a plane at a time, which stays in the cache: h, u and P(V) of
// norm_relu_pool_math.h are made once in scratch memory, in whole blocks.  Elements that pad the
// last block are 0 in u and V, and finite in h, so that they add nothing to a sum.
#include <algorithm>

#include "block/norm_relu_pool.h"
#include "block/norm_relu_pool_math.h"
#include "block/planes_cpu.h"

namespace pyddfast {
namespace {

// The adjoint: a gradient of results to one of values.
template <int64_t kWidth, class T, class S>
PYDD_HD void unpool_rows(const NormReluPoolParams& params, const S* grad, T* values) {
  const int64_t width = kWidth ? kWidth : params.width, pooled = width / 2;
  for (int64_t i = 0; i < params.height / 2; ++i) {
    T* const upper = values + 2 * i * width;
#pragma omp simd
    for (int64_t j = 0; j < pooled; ++j) {
      const T share = T(0.25) * T(to_float(grad[i * pooled + j]));
      upper[2 * j] = share;
      upper[2 * j + 1] = share;
    }
    if (width % 2) upper[width - 1] = T(0);
    std::copy_n(upper, width, upper + width);
  }
}

template <class T, class S>
PYDD_HD void unpool_plane(const NormReluPoolParams& params, const S* grad, T* values) {
  const int64_t pixels = params.height * params.width;
  int64_t filled = pixels;
  if (params.pool) {
    switch (params.width) {
      case 8:
        unpool_rows<8>(params, grad, values);
        break;
      case 16:
        unpool_rows<16>(params, grad, values);
        break;
      default:
        unpool_rows<0>(params, grad, values);
    }
    filled = params.height / 2 * 2 * params.width;
  } else {
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) values[i] = T(to_float(grad[i]));
  }
  std::fill(values + filled, values + blocks_of(pixels) * kLanes, T(0));
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
  const double inverse = 1.0 / double(pixels);
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
    const double mean = sums.mean(0, inverse), slope = sums.mean(1, inverse);
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
  const double inverse = 1.0 / double(pixels);
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
    const Projection<T> of_u{T(sums.mean(0, inverse)), T(sums.mean(1, inverse))};
    const Projection<T> of_v{T(sums.mean(2, inverse)), T(sums.mean(3, inverse))};
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
    pool_plane(params.height, params.width, params.pool, to_u, &row[0],
               static_cast<S*>(params.grad_grad) + plane * results);
    const double product = products.mean(0, inverse);
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

PYDD_CPU_KERNEL(norm_relu_pool_backward_cpu, NormReluPoolParams, params.dtype, backward)
PYDD_CPU_KERNEL(norm_relu_pool_double_backward_cpu, NormReluPoolParams, params.dtype,
                double_backward)

void norm_relu_pool_sums_cpu(const NormReluPoolParams& params, int64_t begin, int64_t end) {
  params.dtype == DType::kFloat64 ? sum_partials<double>(params, begin, end)
                                  : sum_partials<float>(params, begin, end);
}

}  // namespace pyddfast
