// The kernels of an op that reduces rows: each input element is read from memory once, and stays in
// registers for every further look at it.
//
// An op (kd/kd_loss.cu is one) is a class with
//   Args                      derives from RowArgs; a kernel's parameter
//   kInputs                   1 (a below alone) or 2
//   kRounds                   reductions over the row
//   Op(args, row)             what a thread knows about its row
//   visit(Round<r>, a, b, c, i, sums)
//                             looks at elements i .. i+3 in round r; may overwrite the first input
//                             a, the second b, and scratch c for later rounds; adds to `sums`.  It
//                             has to do the same whether or not `sums` are used.
//   start<Team>(Round<r>, args, row, sums)
//                             optional: what a thread adds to the sums beside its elements
//   finish(Round<r>, sums)    takes the sums of the row
//   write(args, row)          one thread of the row: results of the row
//   restore(args, row)        instead of rounds: takes the results that write() left, for a
//   backward gradient(Output<o>, a, b, c, i, result)
//                             elements i .. i+3 of the gradient with respect to input o, after the
//                             first kGradientRounds[o] visits (all of them for o = 0); an op
//                             without kGradientRounds has no gradients, nor a restore()
// where Sums<r> gives operation and number of the sums of round r.
#pragma once

#include <climits>
#include <type_traits>

#include "common/reduce.h"
#include "common/row_chunks.h"

namespace pyddfast {

struct RowArgs {
  int64_t rows;
  int classes;
  RowInput inputs[2];
  RowOutput gradients[2];
  // Upstream gradient: element upstream[row * upstream_stride]; null is 1.
  const float* upstream;
  int64_t upstream_stride;
  const float* weight;  // (rows), or null: 1
  float scale;
};

// weight * upstream * scale of a row.
__device__ __forceinline__ float row_factor(const RowArgs& args, int64_t row) {
  const float weight = args.weight ? args.weight[row] : 1.0f;
  const float upstream = args.upstream ? args.upstream[row * args.upstream_stride] : 1.0f;
  return args.scale * weight * upstream;
}

// Sums over a chunk, in the order in which every op adds.
__device__ __forceinline__ float sum4(const float (&x)[kChunk]) {
  return (x[0] + x[1]) + (x[2] + x[3]);
}
__device__ __forceinline__ float dot4(const float (&x)[kChunk], const float (&y)[kChunk]) {
  return fmaf(x[0], y[0], x[1] * y[1]) + fmaf(x[2], y[2], x[3] * y[3]);
}

template <int r>
struct Round {};
template <int o>
struct Output {};

// Sums of a round: `using Sums = Reduced<Sum, 2>`, say.
template <class Operation, int N>
struct Reduced {
  using Op = Operation;
  static constexpr int kSize = N;
};

namespace detail {

template <class Op>
concept Differentiable = requires { Op::kGradientRounds; };

template <class Team, int r, class Op, int N>
__device__ __forceinline__ void start_sums(const Op& op, const typename Op::Args& args, int64_t row,
                                           float (&sums)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) sums[n] = Op::template Sums<r>::Op::kIdentity;
  if constexpr (requires { op.template start<Team>(Round<r>{}, args, row, sums); }) {
    op.template start<Team>(Round<r>{}, args, row, sums);
  }
}

// Visits K chunks in rounds [kFrom, kTo), without using the sums.
template <int kFrom, int kTo, class Op, int K>
__device__ __forceinline__ void revisit(Op& op, int first, int step, float (&a)[K][kChunk],
                                        float (&b)[K][kChunk], float (&c)[K][kChunk]) {
  if constexpr (kFrom < kTo) {
    float unused[Op::template Sums<kFrom>::kSize] = {};
#pragma unroll
    for (int k = 0; k < K; ++k) {
      op.visit(Round<kFrom>{}, a[k], b[k], c[k], (first + k * step) * kChunk, unused);
    }
    revisit<kFrom + 1, kTo>(op, first, step, a, b, c);
  }
}

template <class Op, int K>
__device__ __forceinline__ void load_both(const RowArgs& args, int64_t row, int n, int first,
                                          int step, float (&a)[K][kChunk], float (&b)[K][kChunk]) {
  load_row(args.inputs[0], row, n, first, step, a);
  if constexpr (Op::kInputs == 2) load_row(args.inputs[1], row, n, first, step, b);
  unpack_row(args.inputs[0].dtype, a);
  if constexpr (Op::kInputs == 2) unpack_row(args.inputs[1].dtype, b);
}

template <int o, class Op, int K>
__device__ __forceinline__ void store_gradient(Op& op, const RowArgs& args, int64_t row, int n,
                                               int first, int step, float (&a)[K][kChunk],
                                               float (&b)[K][kChunk], float (&c)[K][kChunk]) {
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int chunk = first + k * step;
    if (chunk * kChunk < n) {
      float result[kChunk];
      op.gradient(Output<o>{}, a[k], b[k], c[k], chunk * kChunk, result);
      store_chunk(args.gradients[o], row, n, chunk, result);
    }
  }
}

template <class Team, int r, class Op, int K>
__device__ __forceinline__ void resident_rounds(Op& op, const typename Op::Args& args, int64_t row,
                                                float (&a)[K][kChunk], float (&b)[K][kChunk],
                                                float (&c)[K][kChunk]) {
  if constexpr (r < Op::kRounds) {
    using Sums = typename Op::template Sums<r>;
    float sums[Sums::kSize];
    start_sums<Team, r>(op, args, row, sums);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      op.visit(Round<r>{}, a[k], b[k], c[k], (Team::rank() + k * Team::kSize) * kChunk, sums);
    }
    Team::template reduce<r, typename Sums::Op>(sums);
    op.finish(Round<r>{}, sums);
    resident_rounds<Team, r + 1>(op, args, row, a, b, c);
  }
}

template <class Team, int r, class Op>
__device__ __forceinline__ void looped_rounds(Op& op, const typename Op::Args& args, int64_t row,
                                              int n) {
  if constexpr (r < Op::kRounds) {
    using Sums = typename Op::template Sums<r>;
    float sums[Sums::kSize];
    start_sums<Team, r>(op, args, row, sums);
    for (int first = Team::rank(); first * kChunk < n; first += Team::kSize) {
      float a[1][kChunk], b[1][kChunk], c[1][kChunk];
      load_both<Op>(args, row, n, first, 0, a, b);
      revisit<0, r>(op, first, 0, a, b, c);
      op.visit(Round<r>{}, a[0], b[0], c[0], first * kChunk, sums);
    }
    Team::template reduce<r, typename Sums::Op>(sums);
    op.finish(Round<r>{}, sums);
    looped_rounds<Team, r + 1>(op, args, row, n);
  }
}

}  // namespace detail

// One row per team of threads, K chunks per thread: up to Team::kSize * K * kChunk classes.
template <class Op, class Team, int K>
__global__ void __launch_bounds__(Team::kThreads) row_forward(typename Op::Args args) {
  const int64_t row = Team::row();
  // A team beyond the last row goes along without elements: its warp's shuffles need all lanes.
  const bool active = row < args.rows;
  const int n = active ? args.classes : 0;
  Op op(args, active ? row : 0);
  float a[K][kChunk], b[K][kChunk], c[K][kChunk];
  detail::load_both<Op>(args, row, n, Team::rank(), Team::kSize, a, b);
  detail::resident_rounds<Team, 0>(op, args, active ? row : 0, a, b, c);
  if (active && Team::rank() == 0) op.write(args, row);
  simt::grid_dependency_launch();
  if constexpr (detail::Differentiable<Op>) {
    if (active && args.gradients[0].data) {
      detail::store_gradient<0>(op, args, row, n, Team::rank(), Team::kSize, a, b, c);
    }
  }
  Team::leave();
}

// Rows of any length: read again, mostly from the L2 cache, in each round.
// (At two CTAs an SM: ptxas would otherwise spill to fit three on sm_80.)
template <class Op, class Team>
__global__ void __launch_bounds__(Team::kThreads, 2) row_forward_looped(typename Op::Args args) {
  const int64_t row = Team::row();
  const int n = args.classes;
  Op op(args, row);
  detail::looped_rounds<Team, 0>(op, args, row, n);
  if (Team::rank() == 0) op.write(args, row);
  simt::grid_dependency_launch();
  if constexpr (detail::Differentiable<Op>) {
    if (!args.gradients[0].data) return;
    for (int first = Team::rank(); first * kChunk < n; first += Team::kSize) {
      float a[1][kChunk], b[1][kChunk], c[1][kChunk];
      detail::load_both<Op>(args, row, n, first, 0, a, b);
      detail::revisit<0, Op::kRounds>(op, first, 0, a, b, c);
      detail::store_gradient<0>(op, args, row, n, first, 0, a, b, c);
    }
  }
}

// Gradients from the results of a forward; no reductions.  2^lane_bits threads with K chunks each
// cover a row or, with more of them along y, a part of it.
template <class Op, int kThreads, int K>
__global__ void __launch_bounds__(kThreads) row_backward(typename Op::Args args, int lane_bits) {
  const int lanes = 1 << lane_bits;
  const int64_t row = int64_t(blockIdx.x) * (kThreads >> lane_bits) + (threadIdx.x >> lane_bits);
  if (row >= args.rows) return;
  const int n = args.classes;
  const int first = int(blockIdx.y) * lanes * K + (int(threadIdx.x) & (lanes - 1));
  Op op(args, row);
  op.restore(args, row);
  float a[K][kChunk], b[K][kChunk], c[K][kChunk];
  detail::load_both<Op>(args, row, n, first, lanes, a, b);
  constexpr int kRounds = Op::kRounds, kEarly = Op::kGradientRounds[1];
  static_assert(Op::kGradientRounds[0] == kRounds);
  detail::revisit<0, kEarly>(op, first, lanes, a, b, c);
  if (args.gradients[1].data) detail::store_gradient<1>(op, args, row, n, first, lanes, a, b, c);
  detail::revisit<kEarly, kRounds>(op, first, lanes, a, b, c);
  if (args.gradients[0].data) detail::store_gradient<0>(op, args, row, n, first, lanes, a, b, c);
}

// The sum of `rows` values by one CTA, in an order that depends on `rows` alone.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(const float* values, int64_t rows, float* total) {
  simt::grid_dependency_wait();
  // Four sums a thread: their loads are in flight together, and long sums lose fewer bits.
  constexpr int kUnroll = 4;
  float sums[kUnroll] = {};
  for (int64_t first = int(threadIdx.x); first < rows; first += kUnroll * kThreads) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = first + u * kThreads;
      if (i < rows) sums[u] += values[i];
    }
  }
  float sum[1] = {(sums[0] + sums[1]) + (sums[2] + sums[3])};
  BlockTeam<kThreads>::template reduce<0, Sum>(sum);
  if (threadIdx.x == 0) *total = sum[0];
}

// -------------------------------------------------------------------------------------- launches

// Columns are counted in int; everything else in int64_t.
inline bool valid_rows(int64_t rows, int64_t classes) {
  return rows >= 0 && classes >= 1 && classes <= INT_MAX / 2;
}

// `total`, if not null, after the kernel that writes `values`: the launch overlaps that kernel's
// tail.  The sum of no rows is 0.
inline int launch_sum_rows(const float* values, int64_t rows, float* total, void* stream) {
  if (total == nullptr) return 0;
  if (rows > 0 && values == nullptr) return kInvalidValue;
  // One CTA with as many loads in flight as an SM takes.
  constexpr int kThreads = 1024;
  simt::LaunchConfig config;
  config.grid = dim3(1);
  config.block = dim3(kThreads);
  config.programmatic = true;
  config.stream = stream;
  return simt::launch(sum_rows_kernel<kThreads>, config, values, rows, total);
}

namespace detail {

template <class Op, class Team, int K>
int launch_resident(const typename Op::Args& args, void* stream) {
  simt::LaunchConfig config;
  const int64_t ctas = (args.rows + Team::kRows - 1) / Team::kRows * Team::kCluster;
  if (ctas > INT_MAX) return kInvalidValue;
  config.grid = dim3(static_cast<unsigned>(ctas));
  config.block = dim3(Team::kThreads);
  config.cluster = Team::kCluster;
  config.stream = stream;
  return simt::launch(row_forward<Op, Team, K>, config, args);
}

template <class Op>
int launch_looped(const typename Op::Args& args, void* stream) {
  using Team = BlockTeam<512>;
  if (args.rows > INT_MAX) return kInvalidValue;
  simt::LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(args.rows));
  config.block = dim3(Team::kThreads);
  config.stream = stream;
  return simt::launch(row_forward_looped<Op, Team>, config, args);
}

}  // namespace detail

// The forward kernel for this number of classes.  Threads hold at most 8 chunks: 3 arrays of 32
// values fit in registers with room for two or three CTAs on an SM.  Longer rows than
// kLongestCluster (24576 or 65536) are read again in each round.
template <class Op, int kLongestCluster = 65536>
int launch_row_forward(const typename Op::Args& args, void* stream) {
  const int n = args.classes;
  using detail::launch_resident;
  if (args.rows == 0) return 0;
  if (n <= 16) return launch_resident<Op, LaneTeam<4>, 1>(args, stream);
  if (n <= 64) return launch_resident<Op, LaneTeam<16>, 1>(args, stream);
  if (n <= 128) return launch_resident<Op, LaneTeam<16>, 2>(args, stream);
  if (n <= 256) return launch_resident<Op, LaneTeam<32>, 2>(args, stream);
  if (n <= 512) return launch_resident<Op, LaneTeam<32>, 4>(args, stream);
  if (n <= 1024) return launch_resident<Op, LaneTeam<32>, 8>(args, stream);
  if (n <= 2048) return launch_resident<Op, BlockTeam<256>, 2>(args, stream);
  if (n <= 4096) return launch_resident<Op, BlockTeam<256>, 4>(args, stream);
  if (n <= 8192) return launch_resident<Op, BlockTeam<512>, 4>(args, stream);
  if (n <= kLongestCluster && simt::device_compute_capability() >= 90) {
    // Several small CTAs an SM: while one waits at a barrier, another one loads.
    if (n <= 16384) return launch_resident<Op, ClusterTeam<256, 4>, 4>(args, stream);
    if (n <= 24576) return launch_resident<Op, ClusterTeam<256, 4>, 6>(args, stream);
    if constexpr (kLongestCluster > 24576) {
      return launch_resident<Op, ClusterTeam<256, 8>, 8>(args, stream);
    }
  }
  return detail::launch_looped<Op>(args, stream);
}

template <class Op>
int launch_row_backward(const typename Op::Args& args, void* stream) {
  constexpr int kThreads = 256;
  constexpr int kChunks = 2;  // a thread's loads in flight, for each input
  if (args.rows == 0) return 0;
  const int chunks = (args.classes + kChunk - 1) / kChunk;
  int lane_bits = 0;
  while ((1 << lane_bits) < kThreads && (kChunks << lane_bits) < chunks) ++lane_bits;
  const int64_t rows_per_cta = kThreads >> lane_bits;
  const int64_t ctas = (args.rows + rows_per_cta - 1) / rows_per_cta;
  const int tiles = (chunks - 1) / (kChunks << lane_bits) + 1;
  constexpr int kMaxGridY = 65535;  // covers 134 million classes
  if (ctas > INT_MAX || tiles > kMaxGridY) return kInvalidValue;
  simt::LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(ctas), static_cast<unsigned>(tiles));
  config.block = dim3(kThreads);
  config.stream = stream;
  return simt::launch(row_backward<Op, kThreads, kChunks>, config, args, lane_bits);
}

}  // namespace pyddfast
