// One launch a pick and no word to the host.  Every CTA first finds the pick itself, from the best
// of each CTA of the launch before, so that no second kernel and no counter is needed; then its
// warps compare rows with it.  Partials, and herding's targets, alternate between two buffers.
#include <algorithm>
#include <climits>

#include "common/dtypes.h"
#include "common/simt.h"
#include "select/best_kernels.h"
#include "select/greedy.h"

namespace pyddfast {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kWarpRows = 8;    // rows that a warp should have before there are more CTAs
constexpr int kMostCtas = 512;  // of a segment: each reads all partials, 8 KB, from the L2 cache
constexpr int kUnroll = 4;      // loads of a row in flight

__device__ __forceinline__ float sum_of_warp(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// What a row is compared with: a picked row, or herding's target, which is made as it is read.
template <class S>
struct Other {
  const S* row;  // the last pick; null before the first
  float scale;
  const double *mean, *last;  // of herding, else null; the target of the launch before

  __device__ __forceinline__ double target(int64_t i) const {
    return row ? last[i] + mean[i] - double(to_float(row[i])) : mean[i];
  }
  __device__ __forceinline__ float operator()(int64_t i) const {
    return mean ? float(target(i)) : to_float(row[i]) * scale;
  }
};

template <Form kForm>
__device__ __forceinline__ float term(float x, float c, float scale) {
  if (kForm == Form::kDot) return x * c;
  if (kForm == Form::kJeffreys) return (expf(x) - expf(c)) * (x - c);
  if (kForm == Form::kCosine) x *= scale;
  return (x - c) * (x - c);
}

// A warp's comparison of one row, the same in all lanes.
template <Form kForm, class S>
__device__ __forceinline__ float compare(const S* row, const Other<S>& other, int64_t dim,
                                         float scale) {
  float sums[kUnroll] = {};
  for (int64_t first = threadIdx.x % 32; first < dim; first += 32 * kUnroll) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = first + 32 * u;
      if (i < dim) sums[u] += term<kForm>(to_float(row[i]), other(i), scale);
    }
  }
  float sum = 0.0f;
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) sum += sums[u];
  return sum_of_warp(sum);
}

// Launch `step` of a segment with picks compares all rows with pick `step`, or with the target of
// that step; with `seeks` the pick of a step is known only in the launch after it.
template <Form kForm, class S>
__global__ void __launch_bounds__(kThreads) greedy_step(GreedyLaunch all, int64_t step, int parts) {
  simt::grid_dependency_wait();
  __shared__ Best found[kWarps], made[kWarps];
  const GreedyParams& params = all.params;
  const int64_t s = blockIdx.x / unsigned(parts);
  const int part = int(blockIdx.x % unsigned(parts));
  const Segment segment = all.segments[s];
  const int64_t picks = segment.end - segment.begin;
  if (step > picks || picks == 0) return;
  const bool seeks = params.mean != nullptr;
  Best* const mine = all.partials + ((step % 2) * all.count + s) * parts;
  const Best* const before = all.partials + ((1 - step % 2) * all.count + s) * parts;

  // The best row that the last launch left.
  Best best{0.0, -1};
  if (step > 0) {
    for (int i = int(threadIdx.x); i < parts; i += kThreads) {
      if (better(before[i], best)) best = before[i];
    }
    best = best_of_cta(best, found);
  }
  const bool leads = part == 0 && threadIdx.x == 0;
  if (step > 0 && leads) {
    if (seeks) params.picks[segment.begin + step - 1] = best.row;
    params.keys[segment.begin + step - 1] = best.row < 0 ? 0.0 : best.key;
  }
  const S* const x = static_cast<const S*>(params.x);
  const float* const scales = static_cast<const float*>(params.scale);
  const float* const factors = static_cast<const float*>(params.factor);

  int64_t pick = best.row;
  if (!seeks && step < picks) {
    // Every CTA decides alike: the entry is -1 or what is written here.
    const int64_t given = params.picks[segment.begin + step];
    pick = given < 0 ? best.row : given;
    if (leads) params.picks[segment.begin + step] = pick;
  }
  if (step == picks || (pick < 0 && !seeks)) return;

  const float pick_scale = pick >= 0 && scales ? scales[pick] : 1.0f;
  const double* const targets = all.targets + s * params.dim;
  const int64_t buffer = all.count * params.dim;
  const Other<S> other{pick >= 0 ? x + pick * params.stride : nullptr, pick_scale,
                       seeks ? params.mean + s * params.dim : nullptr,
                       seeks ? targets + (1 - step % 2) * buffer : nullptr};
  if (seeks && part == 0) {
    double* const next = all.targets + (step % 2) * buffer + s * params.dim;
    for (int64_t i = threadIdx.x; i < params.dim; i += kThreads) next[i] = other.target(i);
  }
  SimilarityMap map = params.map;
  if (params.offsets) map.offset = params.offsets[s];
  Best next{0.0, -1};
  const int64_t stride = int64_t(parts) * kWarps;
  for (int64_t row = segment.first + int64_t(part) * kWarps + threadIdx.x / 32; row < segment.last;
       row += stride) {
    const float scale = scales ? scales[row] : 1.0f;
    double value;
    if (kForm == Form::kEntry) {
      value = double(to_float(x[pick * params.stride + row]));
    } else {
      value = double(compare<kForm>(x + row * params.stride, other, params.dim, scale));
    }
    if (kForm == Form::kCosine) value = scale == 0.0f || pick_scale == 0.0f ? 1.0 : 0.5 * value;
    if (threadIdx.x % 32 != 0) continue;  // all lanes know the same
    const double state = updated(params.rule, map, params.state[row], value, row == pick);
    params.state[row] = state;
    if (row == pick) params.taken[row] = 1;
    if (params.taken[row]) continue;
    const Best candidate{key_of(state, factors ? double(factors[row]) : 1.0), row};
    if (better(candidate, next)) next = candidate;
  }
  next = best_of_cta(next, made);
  if (threadIdx.x == 0) mine[part] = next;
}

template <Form kForm, class S>
int run(const GreedyLaunch& all, void* stream) {
  const int64_t parts = greedy_partials(all.largest), ctas = parts * all.count;
  if (ctas > INT_MAX) return kInvalidValue;
  simt::LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(ctas));
  config.block = dim3(kThreads);
  config.stream = stream;
  config.programmatic = true;
  // The launch after the last pick writes what is left, and the last pick of herding.
  for (int64_t step = 0; step <= all.most; ++step) {
    if (const int error = simt::launch(greedy_step<kForm, S>, config, all, step, int(parts))) {
      return error;
    }
  }
  return 0;
}

}  // namespace

int64_t greedy_partials(int64_t largest) {
  const int64_t wanted = (largest + kWarps * kWarpRows - 1) / (kWarps * kWarpRows);
  return std::clamp<int64_t>(wanted, 1, kMostCtas);
}

int greedy_cuda(const GreedyLaunch& all, void* stream) {
  return with_device_dtype(all.params.dtype, [&]<class S>() -> int {
    switch (all.params.form) {
      case Form::kSquares:
        return run<Form::kSquares, S>(all, stream);
      case Form::kCosine:
        return run<Form::kCosine, S>(all, stream);
      case Form::kJeffreys:
        return run<Form::kJeffreys, S>(all, stream);
      case Form::kDot:
        return run<Form::kDot, S>(all, stream);
      case Form::kEntry:
        return run<Form::kEntry, S>(all, stream);
    }
    return kInvalidValue;
  });
}

}  // namespace pyddfast
