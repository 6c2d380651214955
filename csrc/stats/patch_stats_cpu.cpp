// A plane at a time, around its channel's first element: in fp64 for the channel; for the cells in
// the accumulation type over the rows of one cell, and in fp64 from there.  Loops run over a copy
// of the plane that has zeros on both sides: what they read beyond a row is multiplied by 0 or
// dropped.
#include <algorithm>
#include <limits>
#include <vector>

#include "common/dtypes_cpu.h"
#include "common/rows_cpu.h"
#include "stats/patch_stats.h"

namespace pyddfast {
namespace {

// Elements of one task of the forward: enough to hide a thread's wake-up.
constexpr int64_t kBlockElements = 1 << 16;

template <class S>
const S* plane_of(const PatchStatsParams& params, int64_t n, int64_t c) {
  return static_cast<const S*>(params.x) + n * params.x_stride_n + c * params.x_stride_c;
}

template <class S>
double shift_of(const PatchStatsParams& params, int64_t c) {
  return double(to_float(*plane_of<S>(params, 0, c)));
}

// A plane with zeros around it.
template <class T>
struct PaddedPlane {
  Scratch<T> memory;
  T* pixels;

  // The stencil reaches a row and a pixel further, and blocks of columns go on for two vectors.
  PaddedPlane(int64_t count, int64_t width) {
    const int64_t margin = width + 1 + 2 * kLanes;
    memory = new_scratch<T>(count + 2 * margin);
    std::fill_n(&memory[0], count + 2 * margin, T(0));
    pixels = &memory[margin];
  }
};

// ---- forward -----------------------------------------------------------------------------------

// What the cells of one axis need: for each cell its pixels [begin, end), their `sum` and the
// `product` with themselves and with the next pixel; padded with zeros to whole blocks.
template <class T>
struct CellAxis {
  struct Cell {
    int64_t begin, end;
    std::vector<T> sum, own, next, before;
  };
  std::vector<Cell> cells;

  CellAxis(const Axis& axis, int cell) : cells(size_t(axis.size / cell), Cell{axis.length, 0}) {
    std::vector<CellWeights<double>> weights;
    for (int p = 0; p < axis.length; ++p) {
      weights.push_back(cell_weights<double>(axis, cell, p));
      for (int k = 0; k < 2; ++k) {
        const size_t at = size_t(weights.back().first + k);
        if (weights.back().sum[k] == 0) continue;
        cells[at].begin = std::min<int64_t>(cells[at].begin, p);
        cells[at].end = p + 1;
      }
    }
    for (size_t g = 0; g < cells.size(); ++g) {
      Cell& one = cells[g];
      const size_t count = size_t(blocks_of(one.end - one.begin) * kLanes);
      for (auto* values : {&one.sum, &one.own, &one.next, &one.before}) values->assign(count, T(0));
      for (int64_t p = one.begin; p < one.end; ++p) {
        const CellWeights<double>& w = weights[size_t(p)];
        const int k = int(int64_t(g) - w.first);
        one.sum[size_t(p - one.begin)] = T(w.sum[k]);
        one.before[size_t(p - one.begin)] = T(w.product[k][0]);
        one.own[size_t(p - one.begin)] = T(w.product[k][1]);
        one.next[size_t(p - one.begin)] = T(w.product[k][2]);
      }
    }
  }
};

// The columns' sums over the rows of one cell: weighted, of squares, and of products with the next
// column, all with G between the rows.
template <class T>
struct ColumnSums {
  Scratch<T> memory;
  T *mixed, *sum, *squares, *products;

  explicit ColumnSums(int64_t width) {
    const int64_t each = (blocks_of(width) + 2) * kLanes;
    memory = new_scratch<T>(4 * each);
    mixed = &memory[0];
    sum = mixed + each;
    squares = sum + each;
    products = squares + each;
    std::fill_n(mixed, 4 * each, T(0));
  }
};

template <class T>
PYDD_HD void add_rows(const T* plane, int64_t width, const typename CellAxis<T>::Cell& rows,
                      const ColumnSums<T>& columns) {
  const int64_t padded = blocks_of(width) * kLanes;
  T *const mixed = columns.mixed, *const sum = columns.sum, *const squares = columns.squares,
           *const products = columns.products;
  std::fill_n(sum, padded, T(0));
  std::fill_n(squares, padded, T(0));
  std::fill_n(products, padded, T(0));
  for (int64_t p = rows.begin; p < rows.end; ++p) {
    const size_t i = size_t(p - rows.begin);
    const T weight = rows.sum[i], own = rows.own[i], next = rows.next[i], before = rows.before[i];
    const T* const row = plane + p * width;
    for (int64_t b = 0; b < padded + kLanes; b += kLanes) {  // one block more: the next column
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const int64_t q = b + l;
        mixed[q] = before * row[q - width] + own * row[q] + next * row[q + width];
      }
    }
    for (int64_t b = 0; b < padded; b += kLanes) {
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const int64_t q = b + l;
        sum[q] += weight * row[q];
        squares[q] += row[q] * mixed[q];
        products[q] += row[q] * mixed[q + 1];
      }
    }
  }
}

// kLanes elements, of which the first `count` are there: their deviations from `shift`.
template <class T, class S>
PYDD_HD void load_block(const S* x, int64_t count, double shift, double (&sum)[kLanes],
                        double (&squares)[kLanes], T* deviations) {
#pragma omp simd
  for (int64_t l = 0; l < kLanes; ++l) {
    const double distance = double(T(to_float(x[l]))) - shift;
    const double d = l < count ? distance : 0.0;
    sum[l] += d;
    squares[l] += d * d;
    deviations[l] = T(d);
  }
}

template <class T, class S>
PYDD_HD void forward(const PatchStatsParams& params, int64_t begin, int64_t end) {
  const CellGrid grid(params);
  const CellAxis<T> rows(grid.rows, grid.cell), cols(grid.cols, grid.cell);
  const int64_t pixels = params.height * params.width, channels = params.channels;
  const int64_t planes = params.batch * channels, blocks = patch_stats_blocks(params);
  const int64_t outputs = channels + grid.cells();
  const double common = shift_of<S>(params, 0), count = double(grid.cell) * double(grid.cell);
  const bool one_cell = grid.cells() == 1 && !grid.resized();
  const PaddedPlane<T> padded(blocks_of(pixels) * kLanes, params.width);
  const ColumnSums<T> columns(params.width);
  for (int64_t block = begin; block < end; ++block) {
    double* const first = static_cast<double*>(params.partials) + 2 * block * outputs;
    double* const second = first + outputs;
    std::fill_n(first, 2 * outputs, 0.0);
    for (int64_t plane = planes * block / blocks; plane < planes * (block + 1) / blocks; ++plane) {
      const int64_t n = plane / channels, c = plane % channels;
      const S* const x = plane_of<S>(params, n, c);
      const double shift = shift_of<S>(params, c);
      alignas(64) double sum[kLanes] = {}, squares[kLanes] = {};
      const int64_t whole = pixels / kLanes * kLanes;
      for (int64_t b = 0; b < whole; b += kLanes) {
        load_block(x + b, kLanes, shift, sum, squares, padded.pixels + b);
      }
      if (whole < pixels) {
        S tail[kLanes] = {};
        std::copy(x + whole, x + pixels, tail);
        load_block(tail, pixels - whole, shift, sum, squares, padded.pixels + whole);
      }
      const double of_plane = fold(sum, Sum()), squares_of_plane = fold(squares, Sum());
      first[c] += of_plane;
      second[c] += squares_of_plane;
      const double step = shift - common;
      if (one_cell) {  // which is the plane
        first[channels] += of_plane + count * step;
        second[channels] += squares_of_plane + 2 * step * of_plane + count * step * step;
        continue;
      }
      for (int g = 0; g < grid.down; ++g) {
        add_rows<T>(padded.pixels, params.width, rows.cells[size_t(g)], columns);
        for (int h = 0; h < grid.across; ++h) {
          const auto& cell = cols.cells[size_t(h)];
          alignas(64) double linear[kLanes] = {}, square[kLanes] = {};
          for (int64_t b = 0; b < cell.end - cell.begin; b += kLanes) {
            const T *const weight = &cell.sum[size_t(b)], *const own = &cell.own[size_t(b)],
                           *const next = &cell.next[size_t(b)];
            const int64_t q = cell.begin + b;
#pragma omp simd
            for (int64_t l = 0; l < kLanes; ++l) {
              linear[l] += double(weight[l] * columns.sum[q + l]);
              square[l] += double(own[l] * columns.squares[q + l] +
                                  T(2) * next[l] * columns.products[q + l]);
            }
          }
          const double total = fold(linear, Sum()), total_squares = fold(square, Sum());
          const int64_t at = channels + int64_t(g) * grid.across + h;
          first[at] += total + count * step;
          second[at] += total_squares + 2 * step * total + count * step * step;
        }
      }
    }
  }
}

template <class T, class S>
void finish(const PatchStatsParams& params) {
  const CellGrid grid(params);
  const int64_t channels = params.channels, outputs = channels + grid.cells();
  const int64_t blocks = patch_stats_blocks(params);
  const double planes = double(params.batch) * double(channels);
  const double* const partials = static_cast<const double*>(params.partials);
  for (int64_t i = 0; i < outputs; ++i) {
    double first = 0, second = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      first += partials[2 * block * outputs + i];
      second += partials[(2 * block + 1) * outputs + i];
    }
    const bool channel = i < channels;
    const double count = channel ? double(params.batch) * double(params.height * params.width)
                                 : planes * double(grid.cell) * double(grid.cell);
    const double offset = first / count, spread = second / count - offset * offset;
    const T mean = T(offset + shift_of<S>(params, channel ? i : 0));
    static_cast<T*>(params.kept)[i] = mean;
    static_cast<T*>(channel ? params.mean : params.patch_mean)[channel ? i : i - channels] = mean;
    static_cast<T*>(channel ? params.var : params.patch_var)[channel ? i : i - channels] =
        T(spread < 0 ? 0.0 : spread);  // NaN passes
  }
}

// ---- backward ----------------------------------------------------------------------------------

// The coefficients of every pixel, one map after the other: constant, then the stencil row by row.
// Where nothing is resized only the stencil's centre is not 0, and only it is made.
template <class T>
struct Coefficients {
  std::vector<T> maps;

  Coefficients(const PatchStatsParams& params, const CellGrid& grid, T shift, int64_t stride)
      : maps(size_t((grid.resized() ? 10 : 2) * stride), T(0)) {
    const T inverse = T(1.0 / (double(params.batch) * double(params.channels) * double(grid.cell) *
                               double(grid.cell)));
    const T* const means = vector<T>(params.kept) + params.channels;
    const T *const of_mean = vector<T>(params.grad_patch_mean), *const of_var = vector<T>(
                                                                    params.grad_patch_var);
    std::vector<CellWeights<T>> cols;
    for (int q = 0; q < grid.cols.length; ++q) {
      cols.push_back(cell_weights<T>(grid.cols, grid.cell, q));
    }
    for (int p = 0; p < grid.rows.length; ++p) {
      const CellWeights<T> row = cell_weights<T>(grid.rows, grid.cell, p);
      for (int q = 0; q < grid.cols.length; ++q) {
        T* const at = &maps[size_t(p * params.width + q)];
        if (!grid.resized()) {
          const int64_t cell = int64_t(row.first) * grid.across + cols[size_t(q)].first;
          const CellSlope<T> slope = cell_slope(means, of_mean, of_var, inverse, shift, cell);
          at[0] = slope.constant;
          at[stride] = slope.factor;
          continue;
        }
        const PatchSlope<T> slope =
            patch_slope(row, cols[size_t(q)], grid, means, of_mean, of_var, inverse, shift);
        at[0] = slope.constant;
        for (int k = 0; k < 9; ++k) at[(k + 1) * stride] = slope.stencil[k / 3][k % 3];
      }
    }
  }
};

template <bool kGradX, class T, class S>
PYDD_HD void backward_of(const PatchStatsParams& params, int64_t begin, int64_t end) {
  const CellGrid grid(params);
  const int64_t width = params.width, pixels = params.height * width;
  const int64_t padded = blocks_of(pixels) * kLanes;
  const T* const means = vector<T>(params.kept);
  const T shift = means[params.channels];  // near all cells' means
  const Coefficients<T> coefficients(params, grid, shift, padded);
  const bool resized = grid.resized();
  const PaddedPlane<T> around(padded, width);
  const Scratch<T> sums = new_scratch<T>(padded);
  T *const sum = &sums[0], *const near = around.pixels;
  const T inverse = T(1.0 / (double(params.batch) * double(pixels)));
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / params.channels, c = plane % params.channels;
    const S* const x = plane_of<S>(params, n, c);
    const StatsSlope<T> slope =
        stats_slope(means, vector<T>(params.grad_mean), vector<T>(params.grad_var), inverse, c);
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) near[i] = T(to_float(x[i])) - shift;
    for (int64_t b = 0; b < padded; b += kLanes) {
      const T* const map = &coefficients.maps[size_t(b)];
      const T* const own = near + b;
      if (resized) {
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) {
          const T above = map[1 * padded + l] * own[l - width - 1] +
                          map[2 * padded + l] * own[l - width] +
                          map[3 * padded + l] * own[l - width + 1];
          const T here = map[4 * padded + l] * own[l - 1] + map[5 * padded + l] * own[l] +
                         map[6 * padded + l] * own[l + 1];
          const T below = map[7 * padded + l] * own[l + width - 1] +
                          map[8 * padded + l] * own[l + width] +
                          map[9 * padded + l] * own[l + width + 1];
          sum[b + l] = map[l] + (here + (above + below));
        }
      } else {
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) sum[b + l] = map[l] + map[padded + l] * own[l];
      }
    }
    const S* const grad_x =
        static_cast<const S*>(params.grad_x) + n * params.grad_stride_n + c * params.grad_stride_c;
    S* const result = static_cast<S*>(params.result) + plane * pixels;
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) {
      T gradient = sum[i] + stats_gradient(T(to_float(x[i])), slope);
      if constexpr (kGradX) gradient += T(to_float(grad_x[i]));
      result[i] = stored<S>(gradient);
    }
  }
}

template <class T, class S>
PYDD_HD void backward(const PatchStatsParams& params, int64_t begin, int64_t end) {
  params.grad_x ? backward_of<true, T, S>(params, begin, end)
                : backward_of<false, T, S>(params, begin, end);
}

}  // namespace

int64_t patch_stats_blocks(const PatchStatsParams& params) {
  const int64_t planes = params.batch * params.channels;
  // 64: more threads than that would wait for memory anyway.
  return std::clamp<int64_t>(planes * params.height * params.width / kBlockElements, 1,
                             std::min<int64_t>(64, planes));
}

PYDD_CPU_KERNEL(patch_stats_cpu, PatchStatsParams, params.dtype, forward)

void patch_stats_finish_cpu(const PatchStatsParams& params) {
  with_dtype(params.dtype, [&]<class S>() { finish<Accumulation<S>, S>(params); });
}

PYDD_CPU_KERNEL(patch_stats_backward_cpu, PatchStatsParams, params.dtype, backward)

}  // namespace pyddfast
