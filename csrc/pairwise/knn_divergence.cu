// A warp a row: its classes a warp at a time, for each all neighbours, whose loads are in flight
// together.  Their probabilities are computed again: cheaper than to keep and to read them.
#include <climits>

#include "common/exp.h"
#include "common/reduce.h"
#include "common/simt.h"
#include "pairwise/knn_divergence.h"

namespace pyddfast {
namespace {

using Team = LaneTeam<32>;

template <Divergence kKind>
__global__ void __launch_bounds__(Team::kThreads)
    divergences(KnnDivergenceParams params, ExpScale scale) {
  const int64_t row = Team::row();
  if (row >= params.rows) return;
  const float* const logp = static_cast<const float*>(params.logp);
  const int64_t* const knn = params.knn + row * params.neighbours;
  double total = 0.0, mass = 0.0;
  bool known = true;
  for (int64_t c = Team::rank(); c < params.classes; c += Team::kSize) {
    const float log_p = logp[row * params.stride + c];
    const float p = exp_scaled(log_p > kHighest ? kHighest : log_p, scale);
    mass += double(p);
    float sum = 0.0f;
#pragma unroll 4
    for (int64_t j = 0; j < params.neighbours; ++j) {
      const int64_t wanted = knn[j];
      const bool is_row = wanted >= 0 && wanted < params.rows;
      known = known && is_row;
      const float log_q = logp[(is_row ? wanted : row) * params.stride + c];
      sum += divergence_term<kKind>(log_p, p, log_q, exp_scaled(log_q, scale));
    }
    total += double(sum);
  }
#pragma unroll
  for (int other = 16; other > 0; other /= 2) {
    total += __shfl_xor_sync(0xffffffffu, total, other);
    mass += __shfl_xor_sync(0xffffffffu, mass, other);
  }
  if (Team::rank() != 0) return;  // the first lane has a class, and so has seen every neighbour
  const bool sound = known && fabs(mass - 1.0) < kMassError;
  static_cast<float*>(params.result)[row] =
      sound ? float(mean_divergence<kKind>(total, params.neighbours)) : nanf("");
}

}  // namespace

int knn_divergence_cuda(const KnnDivergenceParams& params, void* stream) {
  const int64_t ctas = (params.rows + Team::kRows - 1) / Team::kRows;
  if (params.dtype != DType::kFloat32 || ctas > INT_MAX) return kInvalidValue;
  simt::LaunchConfig config;
  config.grid = dim3(unsigned(ctas));
  config.block = dim3(Team::kThreads);
  config.stream = stream;
  const ExpScale scale = exp_scale(1.0);
  switch (params.kind) {
    case Divergence::kJeffreys:
      return simt::launch(divergences<Divergence::kJeffreys>, config, params, scale);
    case Divergence::kKlNeighbourRow:
      return simt::launch(divergences<Divergence::kKlNeighbourRow>, config, params, scale);
    case Divergence::kKlRowNeighbour:
      return simt::launch(divergences<Divergence::kKlRowNeighbour>, config, params, scale);
  }
  return kInvalidValue;
}

}  // namespace pyddfast
