// A plane has the lanes of a warp, a warp or a CTA; each thread holds tiles of 2 x 4 elements,
// whose two windows it pools alone, in registers: every tensor is read once and written once.
// Planes beyond kLargest are read again, mostly from the caches, for each look at them.
#include <climits>

#include "block/norm_relu_pool.h"
#include "block/norm_relu_pool_math.h"
#include "common/dtypes.h"
#include "common/half.h"
#include "common/reduce.h"
#include "common/simt.h"

namespace pyddfast {
namespace {

constexpr int kTileRows = 2, kTileCols = 4;
constexpr int kTile = kTileRows * kTileCols;

// The tiles of a plane, row by row.
struct Tiling {
  int height, width, across, count;
  bool pool;

  __device__ __forceinline__ explicit Tiling(const NormReluPoolParams& params)
      : height(int(params.height)),
        width(int(params.width)),
        across((width + kTileCols - 1) / kTileCols),
        count((height + kTileRows - 1) / kTileRows * across),
        pool(params.pool) {}

  __device__ __forceinline__ int row(int t) const { return t / across * kTileRows; }
  __device__ __forceinline__ int col(int t) const { return t % across * kTileCols; }
};

// ---------------------------------------------------------------------------------------- memory

// N elements of which the first `count` are there.
template <int N, class S>
__device__ __forceinline__ void load_run(const S* from, int count, float fill, float* values) {
  if (count >= N && reinterpret_cast<uintptr_t>(from) % (N * sizeof(S)) == 0) {
    const simt::Vector<S, N> run = simt::load_vector<N>(from);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = to_float(run[i]);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = i < count ? to_float(from[i]) : fill;
  }
}

template <int N, class S>
__device__ __forceinline__ void store_run(S* to, int count, const float* values) {
  simt::Vector<S, N> run;
#pragma unroll
  for (int i = 0; i < N; ++i) run[i] = from_float<S>(values[i]);
  if (count >= N && reinterpret_cast<uintptr_t>(to) % (N * sizeof(S)) == 0) {
    simt::store_vector(to, run);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i < count) to[i] = run[i];
    }
  }
}

template <class S>
__device__ __forceinline__ void load_tile(const S* plane, const Tiling& tiling, int t, float fill,
                                          float (&values)[kTile]) {
  const int row = tiling.row(t), col = tiling.col(t);
#pragma unroll
  for (int r = 0; r < kTileRows; ++r) {
    const int count = row + r < tiling.height ? tiling.width - col : 0;
    load_run<kTileCols>(plane + int64_t(row + r) * tiling.width + col, count, fill,
                        values + r * kTileCols);
  }
}

template <class S>
__device__ __forceinline__ void store_tile(S* plane, const Tiling& tiling, int t,
                                           const float (&values)[kTile]) {
  const int row = tiling.row(t), col = tiling.col(t);
#pragma unroll
  for (int r = 0; r < kTileRows; ++r) {
    const int count = row + r < tiling.height ? tiling.width - col : 0;
    store_run<kTileCols>(plane + int64_t(row + r) * tiling.width + col, count,
                         values + r * kTileCols);
  }
}

// How many of a tile's two windows are whole, and where their results lie.
struct Windows {
  int64_t place;
  int count;

  __device__ __forceinline__ Windows(const Tiling& tiling, int t) {
    const int row = tiling.row(t) / 2, col = tiling.col(t) / 2, pooled = tiling.width / 2;
    place = int64_t(row) * pooled + col;
    count = row < tiling.height / 2 ? pooled - col : 0;
  }
};

// The results of a tile of values.
template <class S>
__device__ __forceinline__ void store_pooled(S* plane, const Tiling& tiling, int t,
                                             const float (&values)[kTile]) {
  if (!tiling.pool) return store_tile(plane, tiling, t, values);
  const Windows windows(tiling, t);
  const float pooled[2] = {0.25f * ((values[0] + values[4]) + (values[1] + values[5])),
                           0.25f * ((values[2] + values[6]) + (values[3] + values[7]))};
  store_run<2>(plane + windows.place, windows.count, pooled);
}

// The adjoint.
template <class S>
__device__ __forceinline__ void load_unpooled(const S* plane, const Tiling& tiling, int t,
                                              float (&values)[kTile]) {
  if (!tiling.pool) return load_tile(plane, tiling, t, 0.0f, values);
  const Windows windows(tiling, t);
  float grads[2];
  load_run<2>(plane + windows.place, windows.count, 0.0f, grads);
#pragma unroll
  for (int i = 0; i < kTile; ++i) values[i] = 0.25f * grads[i % kTileCols / 2];
}

// ----------------------------------------------------------------------------------------- tiles

// h or x, u and V of a tile; what a kernel does not use costs no registers.
struct Tile {
  float h[kTile], u[kTile], v[kTile];
};

// The tiles of one thread: K of them in registers, or, for K = 0, any number that are loaded again
// for each look.
template <class Team, int K, class Load>
struct ThreadTiles {
  const Load& load;
  int count;
  Tile tiles[K > 0 ? K : 1];

  __device__ __forceinline__ ThreadTiles(const Load& load_, int count_)
      : load(load_), count(count_) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int t = Team::rank() + k * Team::kSize;
      if (t < count) load(t, tiles[k]);
    }
  }

  template <class Look>
  __device__ __forceinline__ void each(const Look& look) {
    if constexpr (K > 0) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int t = Team::rank() + k * Team::kSize;
        if (t < count) look(t, tiles[k]);
      }
    } else {
      for (int t = Team::rank(); t < count; t += Team::kSize) {
        load(t, tiles[0]);
        look(t, tiles[0]);
      }
    }
  }
};

// The plane of a team.  A team beyond the last one goes along without tiles: its warp's shuffles
// need all lanes.
template <class Team>
struct Place {
  int64_t plane, n, c;
  bool active;

  __device__ __forceinline__ explicit Place(const NormReluPoolParams& params) {
    active = Team::row() < params.batch * params.channels;
    plane = active ? Team::row() : 0;
    n = plane / params.channels;
    c = plane % params.channels;
  }
  template <class S>
  __device__ __forceinline__ const S* of(const Planes& planes) const {
    return static_cast<const S*>(planes.data) + n * planes.stride_n + c * planes.stride_c;
  }
  __device__ __forceinline__ bool writes() const { return active && Team::rank() == 0; }
};

__device__ __forceinline__ float at(const void* vector, int64_t c) {
  return vector ? static_cast<const float*>(vector)[c] : 0.0f;
}

// --------------------------------------------------------------------------------------- kernels

template <class S, class Team, int K>
__global__ void __launch_bounds__(Team::kThreads) block_forward(NormReluPoolParams params) {
  const Tiling tiling(params);
  const Place<Team> place(params);
  const S* const x = place.template of<S>(params.x);
  const float inverse = 1.0f / (float(tiling.height) * float(tiling.width));
  const auto load = [&](int t, Tile& tile) { load_tile(x, tiling, t, 0.0f, tile.h); };
  ThreadTiles<Team, K, decltype(load)> mine(load, place.active ? tiling.count : 0);

  float sum[1] = {};
  mine.each([&](int, const Tile& tile) {
#pragma unroll
    for (int i = 0; i < kTile; ++i) sum[0] += tile.h[i];
  });
  Team::template reduce<0, Sum>(sum);
  const float mean = sum[0] * inverse;

  float moments[2] = {};
  mine.each([&](int t, const Tile& tile) {
    const int rows = tiling.height - tiling.row(t), cols = tiling.width - tiling.col(t);
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      const bool inside = i / kTileCols < rows && i % kTileCols < cols;
      const float d = inside ? tile.h[i] - mean : 0.0f;
      moments[0] += d;
      moments[1] += d * d;
    }
  });
  Team::template reduce<1, Sum>(moments);
  const float rest = moments[0] * inverse;
  const float spread = moments[1] * inverse - rest * rest;
  const float var = spread < 0.0f ? 0.0f : spread;  // NaN passes
  const PlaneStats<float> stats{mean, rest, 1.0f / sqrtf(var + float(params.eps))};
  if (place.writes()) static_cast<PlaneStats<float>*>(params.stats)[place.plane] = stats;

  const PlaneNorm<float> norm(stats, at(params.weight, place.c), at(params.bias, place.c),
                              params.relu);
  const int64_t results = params.pooled_height() * params.pooled_width();
  S* const y = static_cast<S*>(params.y) + place.plane * results;
  mine.each([&](int t, Tile& tile) {
#pragma unroll
    for (int i = 0; i < kTile; ++i) tile.h[i] = norm.activated(norm.normalised(tile.h[i]));
    store_pooled(y, tiling, t, tile.h);
  });
}

// h and u of a tile.  Elements beyond the plane are finite in h and 0 in u.
template <class S>
__device__ __forceinline__ void load_state(const S* x, const S* grad, const Tiling& tiling, int t,
                                           const PlaneNorm<float>& norm, Tile& tile) {
  load_tile(x, tiling, t, norm.mean, tile.h);
  load_unpooled(grad, tiling, t, tile.u);
  const int rows = tiling.height - tiling.row(t), cols = tiling.width - tiling.col(t);
#pragma unroll
  for (int i = 0; i < kTile; ++i) {
    const bool inside = i / kTileCols < rows && i % kTileCols < cols;
    tile.h[i] = norm.normalised(tile.h[i]);
    tile.u[i] = inside ? norm.gated(tile.h[i], tile.u[i]) : 0.0f;
  }
}

template <class Team>
__device__ __forceinline__ PlaneNorm<float> norm_of(const NormReluPoolParams& params,
                                                    const Place<Team>& place) {
  return PlaneNorm<float>(static_cast<const PlaneStats<float>*>(params.stats)[place.plane],
                          at(params.weight, place.c), at(params.bias, place.c), params.relu);
}

template <class S, class Team, int K>
__global__ void __launch_bounds__(Team::kThreads) block_backward(NormReluPoolParams params) {
  const Tiling tiling(params);
  const Place<Team> place(params);
  const S *const x = place.template of<S>(params.x), *const grad =
                                                         place.template of<S>(params.grad);
  const float inverse = 1.0f / (float(tiling.height) * float(tiling.width));
  const PlaneNorm<float> norm = norm_of(params, place);
  const auto load = [&](int t, Tile& tile) { load_state(x, grad, tiling, t, norm, tile); };
  ThreadTiles<Team, K, decltype(load)> mine(load, place.active ? tiling.count : 0);

  float sums[2] = {};
  mine.each([&](int, const Tile& tile) {
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      sums[0] += tile.u[i] * tile.h[i];
      sums[1] += tile.u[i];
    }
  });
  Team::template reduce<0, Sum>(sums);
  if (place.writes()) {
    float* const partial = static_cast<float*>(params.partials) + 2 * place.plane;
    partial[0] = sums[0];
    partial[1] = sums[1];
  }
  simt::grid_dependency_launch();

  const Projection<float> project{sums[1] * inverse, sums[0] * inverse};
  const float scale = norm.weight * norm.rstd;
  const int64_t pixels = int64_t(tiling.height) * tiling.width;
  S* const target = static_cast<S*>(params.grad_x) + place.plane * pixels;
  mine.each([&](int t, Tile& tile) {
#pragma unroll
    for (int i = 0; i < kTile; ++i) tile.u[i] = scale * project(tile.u[i], tile.h[i]);
    store_tile(target, tiling, t, tile.u);
  });
}

template <class S, class Team, int K>
__global__ void __launch_bounds__(Team::kThreads) block_double_backward(NormReluPoolParams params) {
  const Tiling tiling(params);
  const Place<Team> place(params);
  const S *const x = place.template of<S>(params.x), *const grad =
                                                         place.template of<S>(params.grad);
  const S* const of_x = params.of_x.data ? place.template of<S>(params.of_x) : nullptr;
  const float pixels = float(tiling.height) * float(tiling.width), inverse = 1.0f / pixels;
  const PlaneNorm<float> norm = norm_of(params, place);
  const auto load = [&](int t, Tile& tile) {
    load_state(x, grad, tiling, t, norm, tile);
    if (of_x) {
      load_tile(of_x, tiling, t, 0.0f, tile.v);
    } else {
#pragma unroll
      for (int i = 0; i < kTile; ++i) tile.v[i] = 0.0f;
    }
  };
  ThreadTiles<Team, K, decltype(load)> mine(load, place.active ? tiling.count : 0);

  float sums[4] = {};
  mine.each([&](int, const Tile& tile) {
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      sums[0] += tile.u[i];
      sums[1] += tile.u[i] * tile.h[i];
      sums[2] += tile.v[i];
      sums[3] += tile.v[i] * tile.h[i];
    }
  });
  Team::template reduce<0, Sum>(sums);
  const Projection<float> of_u{sums[0] * inverse, sums[1] * inverse};
  const Projection<float> of_v{sums[2] * inverse, sums[3] * inverse};
  const float scale = norm.weight * norm.rstd;
  const float of_weight = at(params.of_weight, place.c), of_bias = at(params.of_bias, place.c);

  const int64_t results = params.pooled_height() * params.pooled_width();
  S* const grad_grad = static_cast<S*>(params.grad_grad) + place.plane * results;
  float product[1] = {};
  mine.each([&](int t, const Tile& tile) {
    float to_u[kTile];
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      const float projected = of_v(tile.v[i], tile.h[i]);
      product[0] += projected * tile.u[i];
      to_u[i] = norm.gated(tile.h[i], scale * projected + (of_weight * tile.h[i] + of_bias));
    }
    store_pooled(grad_grad, tiling, t, to_u);
  });
  Team::template reduce<1, Sum>(product);
  if (place.writes()) static_cast<float*>(params.partials)[place.plane] = norm.rstd * product[0];
  simt::grid_dependency_launch();

  const SecondSlope<float> slope(norm, of_u, of_v, of_weight, product[0] * inverse);
  S* const target = static_cast<S*>(params.grad_x) + place.plane * params.height * params.width;
  mine.each([&](int t, const Tile& tile) {
    float values[kTile];
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      values[i] = slope.of_u * of_u(tile.u[i], tile.h[i]) +
                  slope.of_v * of_v(tile.v[i], tile.h[i]) + slope.of_h * tile.h[i];
    }
    store_tile(target, tiling, t, values);
  });
}

// A warp a channel.
constexpr int kSumThreads = 128;

template <int kNumbers>
__global__ void __launch_bounds__(kSumThreads) sum_partials(NormReluPoolParams params) {
  simt::grid_dependency_wait();
  const int64_t c = int64_t(blockIdx.x) * (kSumThreads / 32) + threadIdx.x / 32;
  if (c >= params.channels) return;
  const float* const partials = static_cast<const float*>(params.partials);
  float sums[kNumbers] = {};
  for (int64_t n = threadIdx.x % 32; n < params.batch; n += 32) {
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) {
      sums[k] += partials[(n * params.channels + c) * kNumbers + k];
    }
  }
  reduce_lanes<32, Sum>(sums);
  if (threadIdx.x % 32 == 0) {
    static_cast<float*>(params.grad_weight)[c] = sums[0];
    if constexpr (kNumbers == 2) static_cast<float*>(params.grad_bias)[c] = sums[1];
  }
}

// -------------------------------------------------------------------------------------- launches

constexpr int kLargest = 512;  // tiles of a plane in registers: 64 x 64 elements

enum class Part { kForward, kBackward, kDoubleBackward };

template <Part kPart, class S, class Team, int K>
int launch_team(const NormReluPoolParams& params, void* stream) {
  const int64_t planes = params.batch * params.channels;
  const int64_t ctas = (planes + Team::kRows - 1) / Team::kRows;
  if (ctas > INT_MAX) return kInvalidValue;
  simt::LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(ctas));
  config.block = dim3(Team::kThreads);
  config.stream = stream;
  if constexpr (kPart == Part::kForward) {
    return simt::launch(block_forward<S, Team, K>, config, params);
  } else if constexpr (kPart == Part::kBackward) {
    return simt::launch(block_backward<S, Team, K>, config, params);
  } else {
    return simt::launch(block_double_backward<S, Team, K>, config, params);
  }
}

template <Part kPart, class S>
int launch_planes(const NormReluPoolParams& params, void* stream) {
  const int64_t tiles =
      ((params.height + kTileRows - 1) / kTileRows) * ((params.width + kTileCols - 1) / kTileCols);
  if (params.batch * params.channels == 0) return 0;
  if (tiles > INT_MAX / kTile) return kInvalidValue;
  if (tiles <= 8) return launch_team<kPart, S, LaneTeam<8>, 1>(params, stream);
  if (tiles <= 32) return launch_team<kPart, S, LaneTeam<32>, 1>(params, stream);
  if (tiles <= 128) return launch_team<kPart, S, LaneTeam<32>, 4>(params, stream);
  if (tiles <= kLargest) return launch_team<kPart, S, BlockTeam<128>, 4>(params, stream);
  return launch_team<kPart, S, BlockTeam<256>, 0>(params, stream);
}

template <Part kPart>
int launch_part(const NormReluPoolParams& params, void* stream) {
  return with_device_dtype(params.dtype,
                           [&]<class S>() { return launch_planes<kPart, S>(params, stream); });
}

template <int kNumbers>
int launch_sums(const NormReluPoolParams& params, void* stream) {
  constexpr int kChannels = kSumThreads / 32;
  simt::LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>((params.channels + kChannels - 1) / kChannels));
  config.block = dim3(kSumThreads);
  config.programmatic = true;
  config.stream = stream;
  return simt::launch(sum_partials<kNumbers>, config, params);
}

}  // namespace

int norm_relu_pool_cuda(const NormReluPoolParams& params, void* stream) {
  return launch_part<Part::kForward>(params, stream);
}

int norm_relu_pool_backward_cuda(const NormReluPoolParams& params, void* stream) {
  if (const int error = launch_part<Part::kBackward>(params, stream)) return error;
  return launch_sums<2>(params, stream);
}

int norm_relu_pool_double_backward_cuda(const NormReluPoolParams& params, void* stream) {
  if (const int error = launch_part<Part::kDoubleBackward>(params, stream)) return error;
  return launch_sums<1>(params, stream);
}

}  // namespace pyddfast
