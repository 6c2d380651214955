// Statistics a channel and a cell of the plane from one read: parameters, formulas and launchers.
//
// The plane, resized bilinearly to whole cells, is R x C^T with two sparse matrices, so what a cell
// needs of it can be said in the plane's own pixels.  With rows y and columns z of the cell,
//   sum of the cell      = sum over p, q of (sum_y R[y,p]) (sum_z C[z,q]) x[p,q]
//   sum of its squares   = sum over p, p', q, q' of G[p,p'] K[q,q'] x[p,q] x[p',q'],
//   G = R^T R and K = C^T C over the cell's rows and columns: zero but for neighbours.
// The resized plane is never made, neither for the statistics nor for their gradient, which is a
// stencil of 3 x 3 pixels whose coefficients depend on the place alone.
#pragma once

#include <cstdint>

#include "common/resample_math.h"
#include "stats/stats_math.h"

namespace pyddfast {

// Vectors are in the accumulation type (fp32; fp64 for an fp64 x), null where not given.
struct PatchStatsParams {
  const void* x;  // planes are contiguous
  int64_t x_stride_n, x_stride_c;
  DType dtype;  // of x and the gradients
  int64_t batch, channels, height, width, cell;

  void* mean;  // (channels)
  void* var;
  void* patch_mean;  // (cells), row by row
  void* patch_var;
  void* kept;      // (channels + cells): the means once more, for the backward
  void* partials;  // CPU: (blocks, 2, channels + cells) doubles; CUDA: see patch_stats.cu

  // Backward.
  const void* grad_x;  // to the view of x; planes are contiguous
  int64_t grad_stride_n, grad_stride_c;
  const void* grad_mean;
  const void* grad_var;
  const void* grad_patch_mean;
  const void* grad_patch_var;
  void* result;  // contiguous
};

// Both axes and their cells.
struct CellGrid {
  Axis rows, cols;
  int cell, down, across;  // cells a side

  PYDD_HD explicit CellGrid(const PatchStatsParams& p)
      : rows(axis(p.height, p.cell)),
        cols(axis(p.width, p.cell)),
        cell(int(p.cell)),
        down(rows.size / cell),
        across(cols.size / cell) {}

  PYDD_HD int64_t cells() const { return int64_t(down) * across; }
  PYDD_HD bool resized() const { return rows.length != rows.size || cols.length != cols.size; }

 private:
  PYDD_HD static Axis axis(int64_t length, int64_t cell) {
    return {int(length), int((length + cell - 1) / cell * cell), true};
  }
};

// A pixel's part in the cells of an axis: at most two, `first` and the next one (an axis of several
// cells is enlarged to less than twice its length, so that a pixel is in at most four results).
template <class T>
struct CellWeights {
  int first;
  T sum[2];         // over the cell's results, of the pixel's weight
  T product[2][3];  // times the weight of the pixel before, the same, the pixel behind
};

template <class T>
PYDD_HD CellWeights<T> cell_weights(const Axis& axis, int cell, int pixel) {
  const Span span = results_of(axis, pixel);
  CellWeights<T> result{};
  result.first = span.first / cell;
  for (int i = span.first; i < span.last; ++i) {
    const bool next = i / cell > result.first;
    const T inverse = T(1) / T(axis.window(i).total());
    const T weight = T(weight_of(axis, i, pixel)) * inverse;
    const T before = pixel > 0 ? T(weight_of(axis, i, pixel - 1)) * inverse : T(0);
    const T behind = pixel + 1 < axis.length ? T(weight_of(axis, i, pixel + 1)) * inverse : T(0);
    // Written out: an index known only at run time would put the result into memory.
    result.sum[0] += next ? T(0) : weight;
    result.sum[1] += next ? weight : T(0);
    result.product[0][0] += next ? T(0) : weight * before;
    result.product[1][0] += next ? weight * before : T(0);
    result.product[0][1] += next ? T(0) : weight * weight;
    result.product[1][1] += next ? weight * weight : T(0);
    result.product[0][2] += next ? T(0) : weight * behind;
    result.product[1][2] += next ? weight * behind : T(0);
  }
  return result;
}

// The gradient of one cell's statistics to its elements: constant + factor (x - shift), with
// grad_mean / n + 2 grad_var (x - mean) / n for n elements a cell.
template <class T>
struct CellSlope {
  T constant, factor;
};

template <class T>
PYDD_HD CellSlope<T> cell_slope(const T* mean, const T* grad_mean, const T* grad_var,
                                T inverse_count, T shift, int64_t cell) {
  const T of_mean = grad_mean ? grad_mean[cell] * inverse_count : T(0);
  const T factor = grad_var ? T(2) * grad_var[cell] * inverse_count : T(0);
  return {of_mean - factor * (mean[cell] - shift), factor};
}

// To a pixel of the plane that is resized: constant + stencil . (neighbours - shift).
template <class T>
struct PatchSlope {
  T constant, stencil[3][3];
};

template <class T>
PYDD_HD PatchSlope<T> patch_slope(const CellWeights<T>& row, const CellWeights<T>& col,
                                  const CellGrid& grid, const T* mean, const T* grad_mean,
                                  const T* grad_var, T inverse_count, T shift) {
  PatchSlope<T> result{};
  for (int g = 0; g < 2; ++g) {
    for (int h = 0; h < 2; ++h) {
      if (row.sum[g] == T(0) || col.sum[h] == T(0)) continue;
      const int64_t cell = int64_t(row.first + g) * grid.across + col.first + h;
      const CellSlope<T> slope = cell_slope(mean, grad_mean, grad_var, inverse_count, shift, cell);
      result.constant += row.sum[g] * col.sum[h] * slope.constant;
      for (int d = 0; d < 3; ++d) {
        for (int f = 0; f < 3; ++f) {
          result.stencil[d][f] += slope.factor * row.product[g][d] * col.product[h][f];
        }
      }
    }
  }
  return result;
}

// CPU: blocks of planes, and one finish; the backward: planes (batch * channels).
int64_t patch_stats_blocks(const PatchStatsParams& params);
void patch_stats_cpu(const PatchStatsParams& params, int64_t begin, int64_t end);
void patch_stats_finish_cpu(const PatchStatsParams& params);
void patch_stats_backward_cpu(const PatchStatsParams& params, int64_t begin, int64_t end);

// CUDA: floats that `partials` has to hold.
int64_t patch_stats_partials(const PatchStatsParams& params);
int patch_stats_cuda(const PatchStatsParams& params, void* stream);
int patch_stats_backward_cuda(const PatchStatsParams& params, void* stream);

}  // namespace pyddfast
