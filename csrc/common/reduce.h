// Reductions over the threads that share a row: some lanes of a warp, a CTA, or a cluster of CTAs.
//
// Several values are reduced together, so that their shuffles overlap and share barriers.  Every
// thread receives the result, and the same bits: each step combines two values commutatively.
#pragma once

#include "common/simt.h"

namespace pyddfast {

// An operation combines the values of two threads, value by value or, like TopTwo, together; a
// thread without elements has kIdentity throughout.
struct Sum {
  template <int N>
  __device__ __forceinline__ static void combine(float (&a)[N], const float (&b)[N]) {
#pragma unroll
    for (int n = 0; n < N; ++n) a[n] += b[n];
  }
  static constexpr float kIdentity = 0.0f;
};

// NaN operands lose, as in fmaxf: whoever needs them sees them in a later sum.
struct Max {
  template <int N>
  __device__ __forceinline__ static void combine(float (&a)[N], const float (&b)[N]) {
#pragma unroll
    for (int n = 0; n < N; ++n) a[n] = fmaxf(a[n], b[n]);
  }
  static constexpr float kIdentity = -__builtin_huge_valf();
};

// Over aligned groups of kLanes lanes; all 32 lanes of the warp take part.
template <int kLanes, class Op, int N>
__device__ __forceinline__ void reduce_lanes(float (&values)[N]) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    float others[N];
#pragma unroll
    for (int n = 0; n < N; ++n) others[n] = __shfl_xor_sync(0xffffffffu, values[n], step);
    Op::combine(values, others);
  }
}

// A team is the threads of one row: `kSize` of them, this one being number `rank()`.
// `reduce<kRound, Op>` needs another kRound for every call in a kernel: each has its own shared
// memory, which saves the barrier that a second use of it would need.

// kLanes lanes of a warp.
template <int kLanes>
struct LaneTeam {
  static constexpr int kThreads = 128;  // of a CTA
  static constexpr int kRows = kThreads / kLanes;
  static constexpr int kCluster = 1;
  static constexpr int kSize = kLanes;

  __device__ __forceinline__ static int rank() { return int(threadIdx.x) % kLanes; }
  __device__ __forceinline__ static int64_t row() {
    return int64_t(blockIdx.x) * kRows + int(threadIdx.x) / kLanes;
  }
  template <int kRound, class Op, int N>
  __device__ __forceinline__ static void reduce(float (&values)[N]) {
    reduce_lanes<kLanes, Op>(values);
  }
  __device__ __forceinline__ static void leave() {}
};

// A CTA.
template <int kBlock>
struct BlockTeam {
  static constexpr int kThreads = kBlock;
  static constexpr int kRows = 1;
  static constexpr int kCluster = 1;
  static constexpr int kSize = kThreads;
  static constexpr int kWarps = kThreads / 32;
  static_assert(kWarps <= 32 && (kWarps & (kWarps - 1)) == 0);

  __device__ __forceinline__ static int rank() { return int(threadIdx.x); }
  __device__ __forceinline__ static int64_t row() { return int64_t(blockIdx.x); }
  template <int kRound, class Op, int N>
  __device__ __forceinline__ static void reduce(float (&values)[N]) {
    __shared__ float partial[kWarps][N];
    const int lane = int(threadIdx.x) % 32;
    reduce_lanes<32, Op>(values);
    if (lane == 0) {
#pragma unroll
      for (int n = 0; n < N; ++n) partial[threadIdx.x / 32][n] = values[n];
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] = partial[lane % kWarps][n];
    reduce_lanes<kWarps, Op>(values);  // by every warp for itself
  }
  __device__ __forceinline__ static void leave() {}
};

// A cluster (sm_90): the warps' partial results are read straight from the other CTAs' shared
// memory, after the one barrier.
template <int kBlock, int kCtas>
struct ClusterTeam {
  static constexpr int kThreads = kBlock;
  static constexpr int kRows = 1;
  static constexpr int kCluster = kCtas;
  static constexpr int kSize = kThreads * kCluster;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kPartials = kWarps * kCluster;
  static_assert(kPartials % 32 == 0);

  __device__ __forceinline__ static int rank() {
    return simt::cluster_rank() * kThreads + int(threadIdx.x);
  }
  __device__ __forceinline__ static int64_t row() { return int64_t(blockIdx.x) / kCluster; }
  template <int kRound, class Op, int N>
  __device__ __forceinline__ static void reduce(float (&values)[N]) {
    __shared__ float partial[kWarps][N];
    const int lane = int(threadIdx.x) % 32;
    reduce_lanes<32, Op>(values);
    if (lane == 0) {
#pragma unroll
      for (int n = 0; n < N; ++n) partial[threadIdx.x / 32][n] = values[n];
    }
    simt::cluster_sync();
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] = Op::kIdentity;
#pragma unroll
    for (int first = 0; first < kPartials; first += 32) {
      const int i = first + lane;
      float others[N];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        others[n] = simt::cluster_load(&partial[i % kWarps][n], i / kWarps);
      }
      Op::combine(values, others);
    }
    reduce_lanes<32, Op>(values);
  }
  // Before a CTA ends: another one may still be reading from it.
  __device__ __forceinline__ static void leave() { simt::cluster_sync(); }
};

}  // namespace pyddfast
