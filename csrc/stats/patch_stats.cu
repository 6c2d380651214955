// Forward: a CTA has one channel, one cell and some samples.  A thread makes one of the cell's
// resized pixels of every sample from at most four of the plane's, and reads one of the pixels that
// lie in the cell for the channel: in DRAM's eyes one read, as the two are the same few lines.
// Moments are merged in an order that the shape alone decides.  Backward: a thread has one place of
// the plane, whose coefficients it makes once, and goes through planes.
#include <algorithm>
#include <climits>

#include "common/dtypes.h"
#include "common/half.h"
#include "common/simt.h"
#include "stats/moments_kernels.h"
#include "stats/patch_stats.h"

namespace pyddfast {
namespace {

constexpr int kThreads = 256;   // the pixels of a cell of 16 x 16
constexpr int kHeld = 8;        // samples whose loads are in flight before any is used
constexpr int kFewCtas = 1024;  // below about 8 CTAs an SM the samples are divided
constexpr int kPlanes = 32;     // of a thread: what its coefficients cost is divided by this

// Partials: for each channel (cells, parts), then for each cell (channels, parts).
struct Layout {
  int parts, samples;  // parts of the batch, of so many samples
  int64_t cells;

  __host__ __device__ explicit Layout(const PatchStatsParams& params)
      : cells(CellGrid(params).cells()) {
    const int64_t wanted = (kFewCtas + params.channels * cells - 1) / (params.channels * cells);
    const int most = int((params.batch + kHeld - 1) / kHeld);
    const int64_t chosen = wanted < most ? wanted : most;
    samples = int((params.batch + chosen - 1) / chosen);
    parts = int((params.batch + samples - 1) / samples);
  }
  __host__ __device__ int64_t of_channels(const PatchStatsParams& p) const {
    return p.channels * cells * parts;
  }
};

template <class S>
__device__ __forceinline__ const S* plane_of(const PatchStatsParams& params, int64_t n, int64_t c) {
  return static_cast<const S*>(params.x) + n * params.x_stride_n + c * params.x_stride_c;
}

// The two pixels of an axis that a result is made of, and the second one's share.
struct Taps {
  int first, second;
  float share;

  __device__ __forceinline__ Taps(const Axis& axis, int i) {
    const Window window = axis.window(i);
    first = window.first;
    second = window.last - 1;
    share = second > first ? float(window.weight(second)) / float(window.total()) : 0.0f;
  }
};

// The pixels of the plane that count as cell g's of an axis: each belongs to one.
__device__ __forceinline__ int first_pixel(const Axis& axis, int cell, int g) {
  return int((int64_t(g) * cell * axis.length + axis.size - 1) / axis.size);
}

// Merges the moments of all threads; thread 0 has the result.
__device__ __forceinline__ Moments<float> merge_threads(Moments<float> moments,
                                                        Moments<float> (&of_warps)[kThreads / 32]) {
  moments = merge_lanes(moments);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = moments;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kThreads / 32; ++w) moments = merge_moments(moments, of_warps[w]);
  }
  return moments;
}

template <class S>
__global__ void __launch_bounds__(kThreads) patch_forward(PatchStatsParams params, Layout layout) {
  const CellGrid grid(params);
  const int part = int(blockIdx.x % unsigned(layout.parts));
  const int64_t at = blockIdx.x / unsigned(layout.parts);
  const int cell = int(at % layout.cells);
  const int64_t c = at / layout.cells;
  const int g = cell / grid.across, h = cell % grid.across;
  const int first = part * layout.samples;
  const int samples = min(layout.samples, int(params.batch) - first);
  const S* const plane = plane_of<S>(params, first, c);
  const float shift = to_float(*plane_of<S>(params, 0, c));
  const int width = grid.cols.length;

  Moments<float> of_cell{}, of_channel{};
  for (int i = int(threadIdx.x); i < grid.cell * grid.cell; i += kThreads) {
    const Taps down(grid.rows, g * grid.cell + i / grid.cell);
    const Taps across(grid.cols, h * grid.cell + i % grid.cell);
    const int64_t above = int64_t(down.first) * width, below = int64_t(down.second) * width;
    for (int n = 0; n < samples; n += kHeld) {
      float values[kHeld];
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const S* const x = plane + int64_t(min(n + k, samples - 1)) * params.x_stride_n;
        const float a = to_float(x[above + across.first]) - shift;
        const float b = to_float(x[above + across.second]) - shift;
        const float d = to_float(x[below + across.first]) - shift;
        const float e = to_float(x[below + across.second]) - shift;
        const float top = a + across.share * (b - a), bottom = d + across.share * (e - d);
        values[k] = top + down.share * (bottom - top);
      }
      of_cell = merge_moments(of_cell, moments_of(values, min(kHeld, samples - n)));
    }
  }
  const int row0 = first_pixel(grid.rows, grid.cell, g);
  const int rows = first_pixel(grid.rows, grid.cell, g + 1) - row0;
  const int col0 = first_pixel(grid.cols, grid.cell, h);
  const int cols = first_pixel(grid.cols, grid.cell, h + 1) - col0;
  for (int i = int(threadIdx.x); i < rows * cols; i += kThreads) {
    const int64_t pixel = int64_t(row0 + i / cols) * width + col0 + i % cols;
    for (int n = 0; n < samples; n += kHeld) {
      float values[kHeld];
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const int64_t sample = min(n + k, samples - 1);
        values[k] = to_float(plane[sample * params.x_stride_n + pixel]) - shift;
      }
      of_channel = merge_moments(of_channel, moments_of(values, min(kHeld, samples - n)));
    }
  }

  __shared__ Moments<float> cell_warps[kThreads / 32], channel_warps[kThreads / 32];
  of_cell = merge_threads(of_cell, cell_warps);
  of_channel = merge_threads(of_channel, channel_warps);
  if (threadIdx.x == 0) {
    Moments<float>* const partials = static_cast<Moments<float>*>(params.partials);
    partials[(c * layout.cells + cell) * layout.parts + part] = of_channel;
    partials[layout.of_channels(params) + (cell * params.channels + c) * layout.parts + part] =
        of_cell;
  }
}

// A warp a channel, then a warp a cell.  fp64: counts beyond 2^24, and few operations.
template <class S>
__global__ void __launch_bounds__(kThreads) patch_finish(PatchStatsParams params, Layout layout) {
  simt::grid_dependency_wait();
  const int64_t i = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (i >= params.channels + layout.cells) return;
  const bool channel = i < params.channels;
  const int64_t own = channel ? i : i - params.channels;
  const int64_t count = (channel ? layout.cells : params.channels) * layout.parts;
  const Moments<float>* const partials = static_cast<const Moments<float>*>(params.partials) +
                                         (channel ? 0 : layout.of_channels(params)) + own * count;
  Moments<double> total{};
  for (int64_t t = threadIdx.x % 32; t < count; t += 32) {
    const Moments<float> part = partials[t];
    // Around the shift of its channel; a part of a channel may have no pixel.
    const int64_t c = channel ? own : t / layout.parts;
    const double shift = double(to_float(*plane_of<S>(params, 0, c)));
    total = merge_moments(total, Moments<double>{part.count, part.mean + shift, part.squares});
  }
  total = merge_lanes(total);
  if (threadIdx.x % 32 == 0) {
    const float mean = float(total.mean), var = float(total.squares / total.count);
    static_cast<float*>(params.kept)[i] = mean;
    static_cast<float*>(channel ? params.mean : params.patch_mean)[own] = mean;
    static_cast<float*>(channel ? params.var : params.patch_var)[own] = var;
  }
}

template <class S, bool kResized>
__global__ void __launch_bounds__(kThreads)
    patch_backward(PatchStatsParams params, int64_t tiles, float inverse_cell, float inverse) {
  const CellGrid grid(params);
  const int width = grid.cols.length;
  const int64_t pixels = int64_t(grid.rows.length) * width;
  const int64_t i = int64_t(blockIdx.x % unsigned(tiles)) * kThreads + threadIdx.x;
  const int64_t first = int64_t(blockIdx.x / unsigned(tiles)) * kPlanes;
  if (i >= pixels) return;
  const int p = int(i / width), q = int(i % width);
  const float* const means = static_cast<const float*>(params.kept);
  const float* const patch_means = means + params.channels;
  const float* const of_mean = static_cast<const float*>(params.grad_patch_mean);
  const float* const of_var = static_cast<const float*>(params.grad_patch_var);

  // Neighbours that are not there have the coefficient 0; the pixel itself is read for them.
  const CellWeights<float> row = cell_weights<float>(grid.rows, grid.cell, p);
  const CellWeights<float> col = cell_weights<float>(grid.cols, grid.cell, q);
  const int64_t cell = int64_t(row.first) * grid.across + col.first;
  const float shift = patch_means[cell];
  PatchSlope<float> slope{};
  int64_t neighbours[3][3] = {};
  if constexpr (kResized) {
    slope = patch_slope(row, col, grid, patch_means, of_mean, of_var, inverse_cell, shift);
#pragma unroll
    for (int d = 0; d < 3; ++d) {
#pragma unroll
      for (int f = 0; f < 3; ++f) {
        const int y = p + d - 1, x = q + f - 1;
        const bool there = y >= 0 && y < grid.rows.length && x >= 0 && x < width;
        neighbours[d][f] = there ? int64_t(y) * width + x : i;
      }
    }
  } else {
    const CellSlope<float> one =
        cell_slope(patch_means, of_mean, of_var, inverse_cell, shift, cell);
    slope.constant = one.constant;
    slope.stencil[1][1] = one.factor;
  }

  const int64_t planes = params.batch * params.channels;
  const int64_t last = first + kPlanes < planes ? first + kPlanes : planes;
  for (int64_t plane = first; plane < last; ++plane) {
    const int64_t n = plane / params.channels, c = plane % params.channels;
    const S* const x = plane_of<S>(params, n, c);
    const float own = to_float(x[i]);
    float sum = slope.constant;
    if constexpr (kResized) {
#pragma unroll
      for (int d = 0; d < 3; ++d) {
#pragma unroll
        for (int f = 0; f < 3; ++f) {
          sum += slope.stencil[d][f] * (to_float(x[neighbours[d][f]]) - shift);
        }
      }
    } else {
      sum += slope.stencil[1][1] * (own - shift);
    }
    sum += stats_gradient(own, stats_slope(means, static_cast<const float*>(params.grad_mean),
                                           static_cast<const float*>(params.grad_var), inverse, c));
    if (params.grad_x) {
      sum += to_float(static_cast<const S*>(
          params.grad_x)[n * params.grad_stride_n + c * params.grad_stride_c + i]);
    }
    static_cast<S*>(params.result)[plane * pixels + i] = from_float<S>(sum);
  }
}

// -------------------------------------------------------------------------------------- launches

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class S>
int run_forward(const PatchStatsParams& params, void* stream) {
  const Layout layout(params);
  const int64_t ctas = layout.of_channels(params);
  if (ctas > INT_MAX || params.batch > INT_MAX) return kInvalidValue;
  simt::LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(ctas));
  config.block = dim3(kThreads);
  config.stream = stream;
  if (const int error = simt::launch(patch_forward<S>, config, params, layout)) return error;
  const int64_t outputs = params.channels + layout.cells;
  config.grid = dim3(static_cast<unsigned>(ceil_div(outputs, kThreads / 32)));
  config.programmatic = true;
  return simt::launch(patch_finish<S>, config, params, layout);
}

template <class S>
int run_backward(const PatchStatsParams& params, void* stream) {
  const CellGrid grid(params);
  const int64_t pixels = params.height * params.width, planes = params.batch * params.channels;
  const int64_t tiles = ceil_div(pixels, kThreads), ctas = tiles * ceil_div(planes, kPlanes);
  if (ctas > INT_MAX) return kInvalidValue;
  simt::LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(ctas));
  config.block = dim3(kThreads);
  config.stream = stream;
  const double elements = double(planes) * double(grid.cell) * double(grid.cell);
  const float inverse_cell = float(1.0 / elements);
  const float inverse = float(1.0 / (double(params.batch) * double(pixels)));
  return grid.resized()
             ? simt::launch(patch_backward<S, true>, config, params, tiles, inverse_cell, inverse)
             : simt::launch(patch_backward<S, false>, config, params, tiles, inverse_cell, inverse);
}

template <class S>
int run(const PatchStatsParams& params, bool backward, void* stream) {
  return backward ? run_backward<S>(params, stream) : run_forward<S>(params, stream);
}

int dispatch(const PatchStatsParams& params, bool backward, void* stream) {
  return with_device_dtype(params.dtype,
                           [&]<class S>() { return run<S>(params, backward, stream); });
}

}  // namespace

int64_t patch_stats_partials(const PatchStatsParams& params) {
  return 2 * Layout(params).of_channels(params) * int64_t(sizeof(Moments<float>) / sizeof(float));
}

int patch_stats_cuda(const PatchStatsParams& params, void* stream) {
  return dispatch(params, false, stream);
}

int patch_stats_backward_cuda(const PatchStatsParams& params, void* stream) {
  return dispatch(params, true, stream);
}

}  // namespace pyddfast
