// All classes at once, two launches a pick: the gains of every candidate, a warp each, and what the
// best of them serves.  Reading a matrix anew for every pick is what the memory is fast for.
#include <algorithm>
#include <climits>

#include "common/dtypes.h"
#include "common/simt.h"
#include "select/best_kernels.h"
#include "select/facility_location.h"

namespace pyddfast {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kUnroll = 4;      // loads of a row in flight
constexpr int kMostCtas = 256;  // of a segment: the next launch's CTAs each read all partials

__global__ void __launch_bounds__(kThreads)
    location_gains(FacilityLocationParams params, int64_t step, int parts) {
  simt::grid_dependency_wait();
  __shared__ Best of_warps[kWarps];
  const int64_t s = blockIdx.x / unsigned(parts);
  const int part = int(blockIdx.x % unsigned(parts));
  const LocationSegment segment = params.segments[s];
  if (step >= segment.end - segment.begin) return;
  const float* const matrix = static_cast<const float*>(params.similarity) + segment.matrix;
  const float* const weight = static_cast<const float*>(params.weight);
  Best best{0.0, -1};
  for (int64_t v = int64_t(part) * kWarps + threadIdx.x / 32; v < segment.size;
       v += int64_t(parts) * kWarps) {
    const float* const row = matrix + v * segment.size;
    float sums[kUnroll] = {};
    for (int64_t first = threadIdx.x % 32; first < segment.size; first += 32 * kUnroll) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t i = first + 32 * u;
        if (i < segment.size) {
          const float more = fmaxf(row[i] - params.served[segment.first + i], 0.0f);
          sums[u] += weight ? weight[segment.first + i] * more : more;
        }
      }
    }
    double gain = 0.0;  // lanes have at most some hundred terms each; their sum is exact enough
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) gain += double(sums[u]);
#pragma unroll
    for (int other = 16; other > 0; other /= 2) gain += __shfl_xor_sync(0xffffffffu, gain, other);
    const Best candidate{gain, v};
    if (!params.taken[segment.first + v] && better(candidate, best)) best = candidate;
  }
  best = best_of_cta(best, of_warps);
  if (threadIdx.x == 0) params.partials[s * parts + part] = best;
}

__global__ void __launch_bounds__(kThreads)
    location_take(FacilityLocationParams params, int64_t step, int parts, int tiles) {
  simt::grid_dependency_wait();
  __shared__ Best of_warps[kWarps];
  const int64_t s = blockIdx.x / unsigned(tiles);
  const int tile = int(blockIdx.x % unsigned(tiles));
  const LocationSegment segment = params.segments[s];
  if (step >= segment.end - segment.begin) return;
  Best best{0.0, -1};
  for (int i = int(threadIdx.x); i < parts; i += kThreads) {
    const Best candidate = params.partials[s * parts + i];
    if (better(candidate, best)) best = candidate;
  }
  best = best_of_cta(best, of_warps);
  if (best.row < 0) return;
  if (tile == 0 && threadIdx.x == 0) {
    params.picks[segment.begin + step] = segment.first + best.row;
    params.gains[segment.begin + step] = best.key;
    params.taken[segment.first + best.row] = 1;
  }
  const float* const row =
      static_cast<const float*>(params.similarity) + segment.matrix + best.row * segment.size;
  const int64_t i = int64_t(tile) * kThreads + threadIdx.x;
  if (i < segment.size) {
    float& served = params.served[segment.first + i];
    served = fmaxf(served, row[i]);
  }
}

}  // namespace

int64_t facility_location_partials(int64_t largest) {
  return std::clamp<int64_t>((largest + kWarps - 1) / kWarps, 1, kMostCtas);
}

int facility_location_cuda(const FacilityLocationParams& params, void* stream) {
  const int64_t parts = facility_location_partials(params.largest);
  const int64_t tiles = std::max<int64_t>(1, (params.largest + kThreads - 1) / kThreads);
  if (params.dtype != DType::kFloat32 || params.count * std::max(parts, tiles) > INT_MAX) {
    return kInvalidValue;
  }
  simt::LaunchConfig config;
  config.block = dim3(kThreads);
  config.stream = stream;
  config.programmatic = true;
  for (int64_t step = 0; step < params.most; ++step) {
    config.grid = dim3(static_cast<unsigned>(params.count * parts));
    if (const int error = simt::launch(location_gains, config, params, step, int(parts))) {
      return error;
    }
    config.grid = dim3(static_cast<unsigned>(params.count * tiles));
    if (const int error =
            simt::launch(location_take, config, params, step, int(parts), int(tiles))) {
      return error;
    }
  }
  return 0;
}

}  // namespace pyddfast
