// Sums in fp64 around a guess of the mean: exact to about 1e-14 (k^2 + 1) for a guess k standard
// deviations off, and as fast as fp32 sums, because memory is what the loops wait for.
#include <algorithm>
#include <limits>

#include "common/dtypes_cpu.h"
#include "common/rows_cpu.h"
#include "stats/channel_stats.h"

namespace pyddfast {
namespace {

// Elements of one task of the forward: enough to hide a thread's wake-up, few enough that the
// partial sums (16 bytes a channel and piece) stay small beside them.
constexpr int64_t kPieceElements = 1 << 16;
// Rows that add to a block of channels before its sums go back to the L1 cache.
constexpr int64_t kRowGroup = 8;

template <class S>
const S* at(const void* data, const ChannelStrides& strides, int64_t n, int64_t c, int64_t p) {
  return static_cast<const S*>(data) + n * strides.batch + c * strides.channel +
         p * strides.position;
}

template <class S>
S* at(void* data, const ChannelStrides& strides, int64_t n, int64_t c, int64_t p) {
  return const_cast<S*>(at<S>(static_cast<const void*>(data), strides, n, c, p));
}

template <class T, class S>
double shift_of(const ChannelStatsParams& params, int64_t c) {
  if (params.shift) return double(vector<T>(params.shift)[c]);
  if (params.batch * params.positions == 0) return 0.0;
  return double(to_float(*at<S>(params.x, params.x_strides, 0, c, 0)));
}

int64_t split(int64_t count, int64_t pieces, int64_t piece) { return count * piece / pieces; }

template <class T>
EvalNorm<T> norm_of(const ChannelStatsParams& params, int64_t c) {
  return eval_norm(vector<T>(params.running_mean), vector<T>(params.running_var),
                   vector<T>(params.weight), vector<T>(params.bias), params.eps, c);
}

// ---- forward, NCHW -----------------------------------------------------------------------------

// One block of kLanes elements, without the first `skipped`; the sums stay in registers.
template <class T, class S>
PYDD_HD void add_block(const S* x, int64_t skipped, double shift, double (&first)[kLanes],
                       double (&second)[kLanes]) {
#pragma omp simd
  for (int64_t l = 0; l < kLanes; ++l) {
    const double distance = double(T(to_float(x[l]))) - shift;
    const double d = l >= skipped ? distance : 0.0;
    first[l] += d;
    second[l] += d * d;
  }
}

// The last block of a plane: kLanes elements that end where the plane does, of which the first ones
// belong to other blocks, or to none (copied then, so that nothing outside the plane is read).
template <class S>
PYDD_HD const S* last_block(const S* x, int64_t count, S (&copy)[kLanes]) {
  if (count >= kLanes) return x + count - kLanes;
  std::copy_n(x, count, copy + kLanes - count);
  return copy;
}

template <class T, class S>
PYDD_HD void normalise_plane(const S* x, int64_t count, const EvalNorm<T>& norm,
                             Activation activation, S* y) {
#pragma omp simd
  for (int64_t p = 0; p < count; ++p) {
    y[p] = stored<S>(activated(normalised(T(to_float(x[p])), norm), activation));
  }
}

template <bool kNorm, class T, class S>
PYDD_HD void planes_forward(const ChannelStatsParams& params, int64_t begin, int64_t end) {
  const int64_t pieces = channel_stats_pieces(params);
  const int64_t whole = params.positions / kLanes * kLanes, rest = params.positions - whole;
  double* const partials = static_cast<double*>(params.partials);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t piece = task / params.channels, c = task % params.channels;
    const double shift = shift_of<T, S>(params, c);
    EvalNorm<T> norm{};
    if constexpr (kNorm) norm = norm_of<T>(params, c);
    alignas(64) double first[kLanes] = {}, second[kLanes] = {};
    const int64_t stop = split(params.batch, pieces, piece + 1);
    for (int64_t n = split(params.batch, pieces, piece); n < stop; ++n) {
      const S* const x = at<S>(params.x, params.x_strides, n, c, 0);
      for (int64_t p = 0; p < whole; p += kLanes) add_block<T>(x + p, 0, shift, first, second);
      if (rest) {
        S copy[kLanes] = {};
        add_block<T>(last_block(x, params.positions, copy), kLanes - rest, shift, first, second);
      }
      if constexpr (kNorm) {  // the plane is in the cache now
        normalise_plane(x, params.positions, norm, params.activation,
                        at<S>(params.y, params.y_strides, n, c, 0));
      }
    }
    partials[(2 * piece) * params.channels + c] = fold(first, Sum());
    partials[(2 * piece + 1) * params.channels + c] = fold(second, Sum());
  }
}

// ---- forward, channels last --------------------------------------------------------------------

// kGroup rows, `stride` elements apart.
template <int64_t kGroup, bool kNorm, class T, class S>
PYDD_HD void add_rows(const S* x, int64_t stride, int64_t channels, const double* shift,
                      double* first, double* second, const T* norm_mean, const T* norm_scale,
                      const T* norm_bias, Activation activation, S* y, int64_t y_stride) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    double sum = first[c], squares = second[c];
    for (int64_t r = 0; r < kGroup; ++r) {
      const T value = T(to_float(x[r * stride + c]));
      const double d = double(value) - shift[c];
      sum += d;
      squares += d * d;
      if constexpr (kNorm) {
        const EvalNorm<T> norm{norm_mean[c], norm_scale[c], norm_bias[c]};
        y[r * y_stride + c] = stored<S>(activated(normalised(value, norm), activation));
      }
    }
    first[c] = sum;
    second[c] = squares;
  }
}

template <class T>
struct NormVectors {
  Scratch<T> values;
  T *mean, *scale, *bias;

  explicit NormVectors(const ChannelStatsParams& params)
      : values(new_scratch<T>(3 * params.channels)),
        mean(&values[0]),
        scale(mean + params.channels),
        bias(scale + params.channels) {
    for (int64_t c = 0; params.running_var && c < params.channels; ++c) {
      const EvalNorm<T> norm = norm_of<T>(params, c);
      mean[c] = norm.mean;
      scale[c] = norm.scale;
      bias[c] = norm.bias;
    }
  }
};

template <bool kNorm, class T, class S>
PYDD_HD void rows_forward(const ChannelStatsParams& params, int64_t begin, int64_t end) {
  const int64_t pieces = channel_stats_pieces(params), channels = params.channels;
  const int64_t rows = params.batch * params.positions;
  const Scratch<double> shift = new_scratch<double>(channels);
  for (int64_t c = 0; c < channels; ++c) shift[c] = shift_of<T, S>(params, c);
  const NormVectors<T> norm(params);
  for (int64_t piece = begin; piece < end; ++piece) {
    double* const first = static_cast<double*>(params.partials) + 2 * piece * channels;
    double* const second = first + channels;
    std::fill_n(first, 2 * channels, 0.0);
    const int64_t stop = split(rows, pieces, piece + 1);
    for (int64_t row = split(rows, pieces, piece); row < stop;) {
      const int64_t n = row / params.positions, p = row % params.positions;
      const S* const x = at<S>(params.x, params.x_strides, n, 0, p);
      S* const y = kNorm ? at<S>(params.y, params.y_strides, n, 0, p) : nullptr;
      const bool group = row + kRowGroup <= stop && p + kRowGroup <= params.positions;
      if (group) {
        add_rows<kRowGroup, kNorm>(x, params.x_strides.position, channels, &shift[0], first, second,
                                   norm.mean, norm.scale, norm.bias, params.activation, y,
                                   params.y_strides.position);
      } else {
        add_rows<1, kNorm>(x, 0, channels, &shift[0], first, second, norm.mean, norm.scale,
                           norm.bias, params.activation, y, 0);
      }
      row += group ? kRowGroup : 1;
    }
  }
}

// ---- finish ------------------------------------------------------------------------------------

template <class T, class S>
void finish(const ChannelStatsParams& params) {
  const double count = double(params.batch) * double(params.positions);
  const int64_t pieces = channel_stats_pieces(params), channels = params.channels;
  const double* const partials = static_cast<const double*>(params.partials);
  for (int64_t c = 0; c < channels; ++c) {
    double first = 0, second = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      first += partials[2 * piece * channels + c];
      second += partials[(2 * piece + 1) * channels + c];
    }
    // No elements: 0 / 0, as torch.  NaN passes the bound at 0.
    const double offset = first / count, spread = second / count - offset * offset;
    const T mean = T(offset + shift_of<T, S>(params, c));
    static_cast<T*>(params.mean)[c] = mean;
    static_cast<T*>(params.mean_kept)[c] = mean;
    static_cast<T*>(params.var)[c] = T(spread < 0 ? 0.0 : spread);
  }
}

// ---- backward ----------------------------------------------------------------------------------

template <bool kNorm, bool kGradY, class T, class S>
PYDD_HD T element_gradient(S x, const S* grad_y, int64_t i, const StatsSlope<T>& slope,
                           const EvalNorm<T>& norm, Activation activation) {
  const T value = T(to_float(x));
  T gradient = stats_gradient(value, slope);
  if constexpr (kGradY) {
    T upstream = T(to_float(grad_y[i]));
    if constexpr (kNorm) {
      upstream *= norm.scale * activation_slope(normalised(value, norm), activation);
    }
    gradient += upstream;
  }
  return gradient;
}

template <class T>
StatsSlope<T> slope_of(const ChannelStatsParams& params, int64_t c) {
  return stats_slope(vector<T>(params.mean), vector<T>(params.grad_mean),
                     vector<T>(params.grad_var),
                     T(1.0 / (double(params.batch) * double(params.positions))), c);
}

template <bool kNorm, bool kGradY, class T, class S>
PYDD_HD void planes_backward(const ChannelStatsParams& params, int64_t begin, int64_t end) {
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / params.channels, c = plane % params.channels;
    const StatsSlope<T> slope = slope_of<T>(params, c);
    EvalNorm<T> norm{};
    if constexpr (kNorm) norm = norm_of<T>(params, c);
    const S* const x = at<S>(params.x, params.x_strides, n, c, 0);
    const S* const grad_y = kGradY ? at<S>(params.grad_y, params.grad_y_strides, n, c, 0) : nullptr;
    S* const grad_x = at<S>(params.grad_x, params.grad_x_strides, n, c, 0);
#pragma omp simd
    for (int64_t p = 0; p < params.positions; ++p) {
      grad_x[p] = stored<S>(
          element_gradient<kNorm, kGradY, T, S>(x[p], grad_y, p, slope, norm, params.activation));
    }
  }
}

template <bool kNorm, bool kGradY, class T, class S>
PYDD_HD void rows_backward(const ChannelStatsParams& params, int64_t begin, int64_t end) {
  const int64_t channels = params.channels;
  const Scratch<T> slopes = new_scratch<T>(3 * channels);
  T *const mean = &slopes[0], *const of_mean = mean + channels, *const of_var = of_mean + channels;
  for (int64_t c = 0; c < channels; ++c) {
    const StatsSlope<T> slope = slope_of<T>(params, c);
    mean[c] = slope.mean;
    of_mean[c] = slope.of_mean;
    of_var[c] = slope.of_var;
  }
  const NormVectors<T> norm(params);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / params.positions, p = row % params.positions;
    const S* const x = at<S>(params.x, params.x_strides, n, 0, p);
    const S* const grad_y = kGradY ? at<S>(params.grad_y, params.grad_y_strides, n, 0, p) : nullptr;
    S* const grad_x = at<S>(params.grad_x, params.grad_x_strides, n, 0, p);
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const StatsSlope<T> slope{mean[c], of_mean[c], of_var[c]};
      EvalNorm<T> one{};
      if constexpr (kNorm) one = {norm.mean[c], norm.scale[c], norm.bias[c]};
      grad_x[c] = stored<S>(
          element_gradient<kNorm, kGradY, T, S>(x[c], grad_y, c, slope, one, params.activation));
    }
  }
}

// ---- dispatch ----------------------------------------------------------------------------------

template <class T, class S>
PYDD_HD void forward(const ChannelStatsParams& params, int64_t begin, int64_t end) {
  const bool planes = params.layout == ChannelLayout::kPlanes;
  if (params.running_var) {
    planes ? planes_forward<true, T, S>(params, begin, end)
           : rows_forward<true, T, S>(params, begin, end);
  } else {
    planes ? planes_forward<false, T, S>(params, begin, end)
           : rows_forward<false, T, S>(params, begin, end);
  }
}

template <bool kNorm, bool kGradY, class T, class S>
PYDD_HD void backward_of(const ChannelStatsParams& params, int64_t begin, int64_t end) {
  params.layout == ChannelLayout::kPlanes ? planes_backward<kNorm, kGradY, T, S>(params, begin, end)
                                          : rows_backward<kNorm, kGradY, T, S>(params, begin, end);
}

template <class T, class S>
PYDD_HD void backward(const ChannelStatsParams& params, int64_t begin, int64_t end) {
  if (params.grad_y == nullptr) {
    backward_of<false, false, T, S>(params, begin, end);
  } else if (params.running_var) {
    backward_of<true, true, T, S>(params, begin, end);
  } else {
    backward_of<false, true, T, S>(params, begin, end);
  }
}

}  // namespace

int64_t channel_stats_pieces(const ChannelStatsParams& params) {
  const int64_t elements = params.batch * params.positions;
  const bool planes = params.layout == ChannelLayout::kPlanes;
  const int64_t wanted = (planes ? elements : elements * params.channels) / kPieceElements;
  // 64: more threads than that would wait for memory anyway.
  return std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, std::min<int64_t>(64, params.batch)));
}

int64_t channel_stats_tasks(const ChannelStatsParams& params) {
  const int64_t pieces = channel_stats_pieces(params);
  return params.layout == ChannelLayout::kPlanes ? pieces * params.channels : pieces;
}

PYDD_CPU_KERNEL(channel_stats_cpu, ChannelStatsParams, params.dtype, forward)

void channel_stats_finish_cpu(const ChannelStatsParams& params) {
  with_dtype(params.dtype, [&]<class S>() { finish<Accumulation<S>, S>(params); });
}

PYDD_CPU_KERNEL(channel_stats_backward_cpu, ChannelStatsParams, params.dtype, backward)

}  // namespace pyddfast
