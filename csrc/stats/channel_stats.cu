// Forward: a thread holds 32 elements of a channel, takes their mean and then their deviations from
// it, so that no cancellation depends on how good the guess of the mean is; threads, tiles and then
// whole channels are merged in an order that the shape alone decides.  Backward: one pass over the
// same tiles.
#include <algorithm>
#include <climits>

#include "common/dtypes.h"
#include "common/half.h"
#include "common/simt.h"
#include "stats/channel_stats.h"
#include "stats/moments_kernels.h"

namespace pyddfast {
namespace {

constexpr int kThreads = 256;
constexpr int kHeld = 32;                // elements a thread: 128 bytes in flight, no spills
constexpr int kTile = kThreads * kHeld;  // 32 KB of fp32, as DRAM pages like it
constexpr int kTileChannels = 64;        // channels last: 256 bytes a row of fp32
constexpr int kTileRows = kTile / kTileChannels;
constexpr int kMaxRounds = 8;    // tiles of rows that one CTA goes through
constexpr int kFewTiles = 1024;  // below about 8 CTAs an SM, a tile a CTA

struct Args {
  const void* x;
  ChannelStrides x_strides;
  int batch, channels, positions;
  const float* shift;
  const float* running_mean;
  const float* running_var;
  const float* weight;
  const float* bias;
  double eps;
  Activation activation;
  void* y;
  ChannelStrides y_strides;
  Moments<float>* partials;
  int64_t tiles;

  const float* mean;
  const float* grad_mean;
  const float* grad_var;
  float inverse_count;
  const void* grad_y;
  ChannelStrides grad_y_strides;
  void* grad_x;
  ChannelStrides grad_x_strides;

  // kPlanes: a tile is `samples` whole planes, or one of `pieces` parts of `length` of a plane.
  int samples, pieces, length;
  // kRows: a CTA goes through `rounds` tiles of kTileRows rows.
  int rounds;
};

__device__ __forceinline__ int64_t offset_of(const ChannelStrides& strides, int n, int c, int p) {
  return n * strides.batch + c * strides.channel + p * strides.position;
}

__device__ __forceinline__ EvalNorm<float> norm_of(const Args& args, int c) {
  return eval_norm(args.running_mean, args.running_var, args.weight, args.bias, args.eps, c);
}

__device__ __forceinline__ StatsSlope<float> slope_of(const Args& args, int c) {
  return stats_slope(args.mean, args.grad_mean, args.grad_var, args.inverse_count, c);
}

template <class S>
__device__ __forceinline__ float shift_of(const Args& args, int c) {
  return args.shift ? args.shift[c]
                    : to_float(static_cast<const S*>(args.x)[c * args.x_strides.channel]);
}

template <int kVector, class S>
__device__ __forceinline__ void load(const void* data, int64_t offset, float (&x)[kVector]) {
  const auto packed = simt::load_vector<kVector>(static_cast<const S*>(data) + offset);
#pragma unroll
  for (int v = 0; v < kVector; ++v) x[v] = to_float(packed[v]);
}

template <int kVector, class S>
__device__ __forceinline__ void store(void* data, int64_t offset, const float (&x)[kVector]) {
  simt::Vector<S, kVector> packed;
#pragma unroll
  for (int v = 0; v < kVector; ++v) packed[v] = from_float<S>(x[v]);
  simt::store_vector(static_cast<S*>(data) + offset, packed);
}

// ---- NCHW --------------------------------------------------------------------------------------

// The part of a channel that this CTA handles; element i of it lies at sample(i), position(i).
struct PlaneTile {
  int channel, first_sample, first_position, length, count;
  int64_t tile;

  __device__ __forceinline__ explicit PlaneTile(const Args& args)
      : channel(int(blockIdx.x % unsigned(args.channels))),
        tile(blockIdx.x / unsigned(args.channels)) {
    const int piece = int(tile % args.pieces);
    first_sample = int(tile / args.pieces) * args.samples;
    first_position = piece * args.length;
    length = min(args.length, args.positions - first_position);
    count = length * min(args.samples, args.batch - first_sample);
  }
  __device__ __forceinline__ int64_t offset(const ChannelStrides& strides, int i) const {
    const int sample = i / length;
    return offset_of(strides, first_sample + sample, channel, 0) + first_position +
           (i - sample * length);
  }
};

template <class S, int kVector, bool kNorm>
__global__ void __launch_bounds__(kThreads) planes_forward(Args args) {
  const PlaneTile tile(args);
  const float shift = shift_of<S>(args, tile.channel);
  EvalNorm<float> norm{};
  if constexpr (kNorm) norm = norm_of(args, tile.channel);
  float values[kHeld];
  int held = 0;
#pragma unroll
  for (int k = 0; k < kHeld / kVector; ++k) {
    const int i = (k * kThreads + int(threadIdx.x)) * kVector;
    float x[kVector] = {};
    if (i < tile.count) {
      load<kVector, S>(args.x, tile.offset(args.x_strides, i), x);
      held += kVector;
    }
#pragma unroll
    for (int v = 0; v < kVector; ++v) values[k * kVector + v] = x[v];
  }
  if constexpr (kNorm) {
#pragma unroll
    for (int k = 0; k < kHeld / kVector; ++k) {
      const int i = (k * kThreads + int(threadIdx.x)) * kVector;
      float y[kVector];
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        y[v] = activated(normalised(values[k * kVector + v], norm), args.activation);
      }
      if (i < tile.count) store<kVector, S>(args.y, tile.offset(args.y_strides, i), y);
    }
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) values[i] -= shift;

  __shared__ Moments<float> of_warps[kThreads / 32];
  const Moments<float> of_warp = merge_lanes(moments_of(values, held));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = of_warp;
  __syncthreads();
  if (threadIdx.x == 0) {
    Moments<float> total = of_warps[0];
    for (int w = 1; w < kThreads / 32; ++w) total = merge_moments(total, of_warps[w]);
    args.partials[tile.channel * args.tiles + tile.tile] = total;
  }
}

// kBatch vectors of x and of the upstream gradient are loaded before any is used.
constexpr int kBatch = 4;

template <bool kNorm, int kVector>
__device__ __forceinline__ void element_gradients(const float (&x)[kVector],
                                                  const float (&upstream)[kVector],
                                                  const StatsSlope<float> (&slope)[kVector],
                                                  const EvalNorm<float> (&norm)[kVector],
                                                  Activation activation, float (&result)[kVector]) {
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    float factor = 1.0f;
    if constexpr (kNorm) {
      factor = norm[v].scale * activation_slope(normalised(x[v], norm[v]), activation);
    }
    result[v] = stats_gradient(x[v], slope[v]) + upstream[v] * factor;
  }
}

template <class S, int kVector, bool kNorm>
__global__ void __launch_bounds__(kThreads) planes_backward(Args args) {
  const PlaneTile tile(args);
  StatsSlope<float> slope[kVector];
  EvalNorm<float> norm[kVector];
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    slope[v] = slope_of(args, tile.channel);
    if constexpr (kNorm) norm[v] = norm_of(args, tile.channel);
  }
  for (int first = 0; first < tile.count; first += kBatch * kThreads * kVector) {
    float x[kBatch][kVector], upstream[kBatch][kVector] = {};
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int i = first + (k * kThreads + int(threadIdx.x)) * kVector;
      if (i < tile.count) {
        load<kVector, S>(args.x, tile.offset(args.x_strides, i), x[k]);
        if (args.grad_y) {
          load<kVector, S>(args.grad_y, tile.offset(args.grad_y_strides, i), upstream[k]);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int i = first + (k * kThreads + int(threadIdx.x)) * kVector;
      if (i < tile.count) {
        float result[kVector];
        element_gradients<kNorm>(x[k], upstream[k], slope, norm, args.activation, result);
        store<kVector, S>(args.grad_x, tile.offset(args.grad_x_strides, i), result);
      }
    }
  }
}

// ---- channels last -----------------------------------------------------------------------------

// This CTA's channels and rows; a thread has kVector channels and every kStep-th row.
template <int kVector>
struct RowTile {
  static constexpr int kAcross = kTileChannels / kVector;  // threads across the channels
  static constexpr int kStep = kThreads / kAcross;
  static constexpr int kRows = kTileRows / kStep;  // of a thread, in one round

  int channel, lane, groups;
  int64_t tile;

  __device__ __forceinline__ explicit RowTile(const Args& args)
      : lane(int(threadIdx.x) / kAcross), groups((args.channels - 1) / kTileChannels + 1) {
    channel =
        int(blockIdx.x % unsigned(groups)) * kTileChannels + int(threadIdx.x) % kAcross * kVector;
    tile = blockIdx.x / unsigned(groups);
  }
  __device__ __forceinline__ int row(const Args& args, int round, int k) const {
    return int(tile * args.rounds + round) * kTileRows + k * kStep + lane;
  }
  __device__ __forceinline__ int64_t offset(const Args& args, const ChannelStrides& strides,
                                            int row) const {
    const int sample = row / args.positions;
    return offset_of(strides, sample, channel, row - sample * args.positions);
  }
};

template <class S, int kVector, bool kNorm>
__global__ void __launch_bounds__(kThreads) rows_forward(Args args) {
  using Tile = RowTile<kVector>;
  const Tile tile(args);
  const int rows = args.batch * args.positions;
  const bool active = tile.channel < args.channels;
  float shift[kVector] = {};
  EvalNorm<float> norm[kVector];
  Moments<float> total[kVector] = {};
  if (active) {
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      shift[v] = shift_of<S>(args, tile.channel + v);
      if constexpr (kNorm) norm[v] = norm_of(args, tile.channel + v);
    }
  }
  for (int round = 0; round < args.rounds; ++round) {
    float values[kVector][Tile::kRows];
    int held = 0;
#pragma unroll
    for (int k = 0; k < Tile::kRows; ++k) {
      const int row = tile.row(args, round, k);
      float x[kVector] = {};
      if (active && row < rows) {
        load<kVector, S>(args.x, tile.offset(args, args.x_strides, row), x);
        ++held;
      }
#pragma unroll
      for (int v = 0; v < kVector; ++v) values[v][k] = x[v];
    }
    if constexpr (kNorm) {
#pragma unroll
      for (int k = 0; k < Tile::kRows; ++k) {
        const int row = tile.row(args, round, k);
        float y[kVector];
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
          y[v] = activated(normalised(values[v][k], norm[v]), args.activation);
        }
        if (active && row < rows) {
          store<kVector, S>(args.y, tile.offset(args, args.y_strides, row), y);
        }
      }
    }
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
#pragma unroll
      for (int k = 0; k < Tile::kRows; ++k) values[v][k] -= shift[v];
      total[v] = merge_moments(total[v], moments_of(values[v], held));
    }
  }

  __shared__ Moments<float> of_lanes[Tile::kStep][kTileChannels];
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    of_lanes[tile.lane][int(threadIdx.x) % Tile::kAcross * kVector + v] = total[v];
  }
  __syncthreads();
  const int first = int(blockIdx.x % unsigned(tile.groups)) * kTileChannels;
  const int c = int(threadIdx.x);
  if (c < kTileChannels && first + c < args.channels) {
    Moments<float> merged = of_lanes[0][c];
    for (int lane = 1; lane < Tile::kStep; ++lane) {
      merged = merge_moments(merged, of_lanes[lane][c]);
    }
    args.partials[(first + c) * args.tiles + tile.tile] = merged;
  }
}

template <class S, int kVector, bool kNorm>
__global__ void __launch_bounds__(kThreads) rows_backward(Args args) {
  using Tile = RowTile<kVector>;
  const Tile tile(args);
  const int rows = args.batch * args.positions;
  if (tile.channel >= args.channels) return;
  StatsSlope<float> slope[kVector];
  EvalNorm<float> norm[kVector];
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    slope[v] = slope_of(args, tile.channel + v);
    if constexpr (kNorm) norm[v] = norm_of(args, tile.channel + v);
  }
  for (int round = 0; round < args.rounds; ++round) {
#pragma unroll 1
    for (int first = 0; first < Tile::kRows; first += kBatch) {
      float x[kBatch][kVector], upstream[kBatch][kVector] = {};
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int row = tile.row(args, round, first + k);
        if (row < rows) {
          load<kVector, S>(args.x, tile.offset(args, args.x_strides, row), x[k]);
          if (args.grad_y) {
            load<kVector, S>(args.grad_y, tile.offset(args, args.grad_y_strides, row), upstream[k]);
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int row = tile.row(args, round, first + k);
        if (row < rows) {
          float result[kVector];
          element_gradients<kNorm>(x[k], upstream[k], slope, norm, args.activation, result);
          store<kVector, S>(args.grad_x, tile.offset(args, args.grad_x_strides, row), result);
        }
      }
    }
  }
}

// ---- all tiles of a channel --------------------------------------------------------------------

// A warp a channel.  fp64: counts beyond 2^24, and few operations.
template <class S>
__global__ void __launch_bounds__(kThreads)
    finish(Args args, float* mean, float* mean_kept, float* var) {
  simt::grid_dependency_wait();
  const int c = int(blockIdx.x) * (kThreads / 32) + int(threadIdx.x) / 32;
  if (c >= args.channels) return;
  Moments<double> total{};
  for (int64_t tile = threadIdx.x % 32; tile < args.tiles; tile += 32) {
    const Moments<float> part = args.partials[c * args.tiles + tile];
    total = merge_moments(total, Moments<double>{part.count, part.mean, part.squares});
  }
  total = merge_lanes(total);
  if (threadIdx.x % 32 == 0) {
    // Without elements there is no shift to read, and the mean is 0 / 0 as torch's.
    const double nothing = 0.0 * (1.0 / total.count);
    mean[c] = float(total.count > 0 ? total.mean + double(shift_of<S>(args, c)) : nothing);
    mean_kept[c] = mean[c];
    var[c] = float(total.squares / total.count);
  }
}

// -------------------------------------------------------------------------------------- launches

int ceil_div(int64_t a, int64_t b) { return int((a + b - 1) / b); }

void set_tiles(const ChannelStatsParams& params, Args& args) {
  const int64_t rows = params.batch * params.positions;
  if (params.layout == ChannelLayout::kPlanes) {
    args.pieces = ceil_div(std::max<int64_t>(params.positions, 1), kTile);
    args.length = ceil_div(ceil_div(params.positions, args.pieces), 4) * 4;  // whole vectors
    args.length = int(std::min<int64_t>(args.length, params.positions));
    args.samples = args.pieces > 1 ? 1 : int(kTile / std::max<int64_t>(params.positions, 1));
    args.tiles = int64_t(ceil_div(params.batch, args.samples)) * args.pieces;
  } else {
    const int64_t tiles =
        int64_t(ceil_div(rows, kTileRows)) * ceil_div(params.channels, kTileChannels);
    args.rounds = int(std::clamp<int64_t>(tiles / kFewTiles, 1, kMaxRounds));
    args.tiles = ceil_div(rows, int64_t(kTileRows) * args.rounds);
  }
}

Args args_of(const ChannelStatsParams& params) {
  Args args{};
  args.x = params.x;
  args.x_strides = params.x_strides;
  args.batch = int(params.batch);
  args.channels = int(params.channels);
  args.positions = int(params.positions);
  args.shift = static_cast<const float*>(params.shift);
  args.running_mean = static_cast<const float*>(params.running_mean);
  args.running_var = static_cast<const float*>(params.running_var);
  args.weight = static_cast<const float*>(params.weight);
  args.bias = static_cast<const float*>(params.bias);
  args.eps = params.eps;
  args.activation = params.activation;
  args.y = params.y;
  args.y_strides = params.y_strides;
  args.partials = static_cast<Moments<float>*>(params.partials);
  args.mean = static_cast<const float*>(params.mean);
  args.grad_mean = static_cast<const float*>(params.grad_mean);
  args.grad_var = static_cast<const float*>(params.grad_var);
  args.inverse_count = float(1.0 / (double(params.batch) * double(params.positions)));
  args.grad_y = params.grad_y;
  args.grad_y_strides = params.grad_y_strides;
  args.grad_x = params.grad_x;
  args.grad_x_strides = params.grad_x_strides;
  set_tiles(params, args);
  return args;
}

// Positions and channels are counted in int; offsets in int64_t.
bool countable(const ChannelStatsParams& params) {
  return params.batch * params.positions < INT_MAX - kTile && params.channels < INT_MAX;
}

// Whether vectors of four may start at every multiple of four along the contiguous dimension.
template <class S>
bool vectorised(const void* data, const ChannelStrides& strides, ChannelLayout layout) {
  if (data == nullptr) return true;
  const bool planes = layout == ChannelLayout::kPlanes;
  const int64_t other = planes ? strides.channel : strides.position;
  return reinterpret_cast<uintptr_t>(data) % (4 * sizeof(S)) == 0 && strides.batch % 4 == 0 &&
         other % 4 == 0;
}

template <class S>
bool all_vectorised(const ChannelStatsParams& params) {
  const bool planes = params.layout == ChannelLayout::kPlanes;
  return (planes ? params.positions : params.channels) % 4 == 0 &&
         vectorised<S>(params.x, params.x_strides, params.layout) &&
         vectorised<S>(params.y, params.y_strides, params.layout) &&
         vectorised<S>(params.grad_y, params.grad_y_strides, params.layout) &&
         vectorised<S>(params.grad_x, params.grad_x_strides, params.layout);
}

using Kernel = void (*)(Args);

template <class S, int kVector, bool kNorm>
Kernel kernel_of(ChannelLayout layout, bool backward) {
  if (layout == ChannelLayout::kPlanes) {
    return backward ? planes_backward<S, kVector, kNorm> : planes_forward<S, kVector, kNorm>;
  }
  return backward ? rows_backward<S, kVector, kNorm> : rows_forward<S, kVector, kNorm>;
}

template <class S>
int run(const ChannelStatsParams& params, bool backward, void* stream) {
  const Args args = args_of(params);
  const int64_t across = params.layout == ChannelLayout::kPlanes
                             ? params.channels
                             : ceil_div(params.channels, kTileChannels);
  const int64_t ctas = args.tiles * across;
  if (ctas > INT_MAX) return kInvalidValue;
  simt::LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(ctas));
  config.block = dim3(kThreads);
  config.stream = stream;
  if (ctas > 0) {
    const bool vectors = all_vectorised<S>(params), norm = params.running_var != nullptr;
    const Kernel kernel = vectors ? (norm ? kernel_of<S, 4, true>(params.layout, backward)
                                          : kernel_of<S, 4, false>(params.layout, backward))
                                  : (norm ? kernel_of<S, 1, true>(params.layout, backward)
                                          : kernel_of<S, 1, false>(params.layout, backward));
    if (const int error = simt::launch(kernel, config, args)) return error;
  }
  if (backward) return 0;
  config.grid = dim3(static_cast<unsigned>(ceil_div(params.channels, kThreads / 32)));
  config.programmatic = true;
  return simt::launch(finish<S>, config, args, static_cast<float*>(params.mean),
                      static_cast<float*>(params.mean_kept), static_cast<float*>(params.var));
}

int dispatch(const ChannelStatsParams& params, bool backward, void* stream) {
  if (!countable(params)) return kInvalidValue;
  if (params.channels == 0) return 0;
  return with_device_dtype(params.dtype,
                           [&]<class S>() { return run<S>(params, backward, stream); });
}

}  // namespace

int64_t channel_stats_tiles(const ChannelStatsParams& params) {
  Args args{};
  set_tiles(params, args);
  return args.tiles;
}

int channel_stats_cuda(const ChannelStatsParams& params, void* stream) {
  return dispatch(params, false, stream);
}

int channel_stats_backward_cuda(const ChannelStatsParams& params, void* stream) {
  return dispatch(params, true, stream);
}

}  // namespace pyddfast
