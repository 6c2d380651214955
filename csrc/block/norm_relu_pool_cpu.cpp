// The forward of norm_relu_pool: a plane at a time, which stays in the cache, or several small
// ones.
#include <algorithm>

#include "block/norm_relu_pool.h"
#include "block/norm_relu_pool_math.h"
#include "block/planes_cpu.h"

namespace pyddfast {
namespace {

// The next addition to a lane waits four cycles for this one: four blocks at a time fill them.
constexpr int64_t kWide = 4 * kLanes;

template <int64_t kWidth, class T>
PYDD_HD void add_values(const T* x, PlaneSums<T, 1, kWide>& sums) {
#pragma omp simd
  for (int64_t l = 0; l < kWidth; ++l) sums.lanes[0][l] += x[l];
}

template <int64_t kWidth, class T>
PYDD_HD void add_deviations(const T* x, T mean, PlaneSums<T, 2, kWide>& sums) {
#pragma omp simd
  for (int64_t l = 0; l < kWidth; ++l) {
    const T d = x[l] - mean;
    sums.lanes[0][l] += d;
    sums.lanes[1][l] += d * d;
  }
}

template <class T>
PYDD_HD PlaneStats<T> plane_stats(const Blocks<const T>& x, T* tail, int64_t pixels, double eps) {
  constexpr int64_t kStep = kWide / kLanes;
  const int64_t blocks = blocks_of(pixels), rest = pixels % kLanes, wide = x.whole / kStep * kStep;
  const double inverse = 1.0 / double(pixels);
  PlaneSums<T, 1, kWide> first;
  for (int64_t start = 0; start < wide; start += kStep * kSumBlocks) {
    for (int64_t b = start; b < std::min(wide, start + kStep * kSumBlocks); b += kStep) {
      add_values<kWide>(x[b], first);
    }
    if (start + kStep * kSumBlocks < wide) first.close();
  }
  for (int64_t b = wide; b < blocks; ++b) add_values<kLanes>(x[b], first);
  first.close();
  const T mean = T(first.mean(0, inverse));
  if (rest) pad_block(tail, rest, mean);
  PlaneSums<T, 2, kWide> second;
  for (int64_t start = 0; start < wide; start += kStep * kSumBlocks) {
    for (int64_t b = start; b < std::min(wide, start + kStep * kSumBlocks); b += kStep) {
      add_deviations<kWide>(x[b], mean, second);
    }
    if (start + kStep * kSumBlocks < wide) second.close();
  }
  for (int64_t b = wide; b < blocks; ++b) add_deviations<kLanes>(x[b], mean, second);
  second.close();
  const double off = second.mean(0, inverse);
  const double var = second.mean(1, inverse) - off * off;
  return {mean, T(off), T(1) / std::sqrt(T((var < 0 ? 0.0 : var) + eps))};  // NaN passes
}

// Any planes, one at a time.
template <class T, class S>
PYDD_HD void forward_planes(const NormReluPoolParams& params, int64_t begin, int64_t end) {
  const int64_t pixels = params.height * params.width, blocks = blocks_of(pixels);
  const int64_t results = params.pooled_height() * params.pooled_width();
  const ScratchPlanes<T> scratch(2, pixels);
  const Scratch<T> row = new_scratch<T>(params.width);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t c = plane % params.channels;
    const S* const x = plane_of<S>(params.x, plane / params.channels, c);
    const Blocks<const T> values = load_row(x, pixels, T(0), scratch[0]);
    const PlaneStats<T> stats =
        plane_stats(values, const_cast<T*>(values.tail), pixels, params.eps);
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
    S* const target = static_cast<S*>(params.y) + plane * results;
    pool_plane(params.height, params.width, params.pool, out, &row[0], target);
  }
}

// Planes of kSide x kSide elements, whole blocks, kLanes planes side by side: what is one number a
// plane (folds, roots, indices) costs as much as the plane itself, and is vectors here.  The last
// planes of a task are filled up with copies of its last one.
template <int64_t kSide, class T, class S>
PYDD_HD void forward_squares(const NormReluPoolParams& params, int64_t begin, int64_t end) {
  constexpr int64_t kPixels = kSide * kSide, kBlocks = kPixels / kLanes;
  static_assert(kPixels % kLanes == 0 && kBlocks <= kSumBlocks);
  const double inverse = 1.0 / double(kPixels);
  const Scratch<T> scratch = new_scratch<T>((2 * kPixels + kPixels / 2) * kLanes);
  T *const loaded = &scratch[0], *const out = loaded + kLanes * kPixels;
  T* const rows = out + kLanes * kPixels;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t count = std::min(kLanes, end - first);
    const T* x[kLanes];
    alignas(64) T sums[kLanes][kLanes], squares[kLanes][kLanes];
    alignas(64) T mean[kLanes], of_sums[kLanes], of_squares[kLanes], rest[kLanes], rstd[kLanes];
    for (int64_t p = 0; p < kLanes; ++p) {
      const int64_t plane = first + std::min(p, count - 1);
      const S* const from = plane_of<S>(params.x, plane / params.channels, plane % params.channels);
      x[p] = load_row(from, kPixels, T(0), loaded + p * kPixels).body;
      alignas(64) T sum[kLanes] = {};
      for (int64_t b = 0; b < kBlocks; ++b) {
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) sum[l] += x[p][b * kLanes + l];
      }
      std::copy_n(sum, kLanes, sums[p]);
    }
    fold_rows(sums, Sum(), of_sums);
#pragma omp simd
    for (int64_t p = 0; p < kLanes; ++p) mean[p] = T(double(of_sums[p]) * inverse);
    for (int64_t p = 0; p < kLanes; ++p) {
      const T own = mean[p];
      alignas(64) T sum[kLanes] = {}, square[kLanes] = {};
      for (int64_t b = 0; b < kBlocks; ++b) {
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) {
          const T d = x[p][b * kLanes + l] - own;
          sum[l] += d;
          square[l] += d * d;
        }
      }
      std::copy_n(sum, kLanes, sums[p]);
      std::copy_n(square, kLanes, squares[p]);
    }
    fold_rows(sums, Sum(), of_sums);
    fold_rows(squares, Sum(), of_squares);
#pragma omp simd
    for (int64_t p = 0; p < kLanes; ++p) {
      const double off = double(of_sums[p]) * inverse;
      const double var = double(of_squares[p]) * inverse - off * off;
      rest[p] = T(off);
      rstd[p] = T(1) / std::sqrt(T((var < 0 ? 0.0 : var) + params.eps));  // NaN passes
    }
    for (int64_t p = 0; p < count; ++p) {
      const int64_t plane = first + p, c = plane % params.channels;
      const PlaneStats<T> stats{mean[p], rest[p], rstd[p]};
      static_cast<PlaneStats<T>*>(params.stats)[plane] = stats;
      const PlaneNorm<T> norm(stats, vector<T>(params.weight)[c], vector<T>(params.bias)[c],
                              params.relu);
      for (int64_t b = 0; b < kBlocks; ++b) {
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) {
          out[p * kPixels + b * kLanes + l] = norm.activated(norm.normalised(x[p][b * kLanes + l]));
        }
      }
    }
    // Results of planes that follow each other do so too.
    if (!params.pool) {
      store_plane(out, count * kPixels, static_cast<S*>(params.y) + first * kPixels);
      continue;
    }
    for (int64_t i = 0; i < count * kSide / 2; ++i) {
#pragma omp simd
      for (int64_t j = 0; j < kSide; ++j) {
        rows[i * kSide + j] = out[2 * i * kSide + j] + out[(2 * i + 1) * kSide + j];
      }
    }
    S* const target = static_cast<S*>(params.y) + first * kPixels / 4;
#pragma omp simd
    for (int64_t i = 0; i < count * kPixels / 4; ++i) {
      target[i] = stored<S>(T(0.25) * (rows[2 * i] + rows[2 * i + 1]));
    }
  }
}

template <class T, class S>
PYDD_HD void forward(const NormReluPoolParams& params, int64_t begin, int64_t end) {
  const bool square = params.height == params.width;
  if (square && params.width == 8) {
    forward_squares<8, T, S>(params, begin, end);
  } else if (square && params.width == 16) {
    forward_squares<16, T, S>(params, begin, end);
  } else {
    forward_planes<T, S>(params, begin, end);
  }
}

}  // namespace

PYDD_CPU_KERNEL(norm_relu_pool_cpu, NormReluPoolParams, params.dtype, forward)

}  // namespace pyddfast
