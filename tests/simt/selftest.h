// Launchers of selftest.cu.  Each returns a cudaError_t.
#pragma once

#include <cstddef>

namespace pyddfast::simt::selftest {

// What a kernel does wrong; 0 is nothing.
enum Bug : int {
  kNone,
  kMissingBarrier,
  kMissingReuseBarrier,
  kDivergentShuffle,
  kShuffleMasksDiffer,
  kShuffleOutsideMask,
  kShuffleFromOutside,
  kShuffleWithEnded,
  kShuffleWidth,
  kDivergentBarrier,
  kBarrierWithEnded,
  kDeadlock,
  kDivergentClusterBarrier,
  kActiveMask,
  kTrap,
  kOutOfBounds,
  kClusterRank,
  kClusterGlobal,
};

enum Access : int { kLoadVector, kStoreVector, kFloat4, kFloat4Store, kLdg, kScalar };

int launch_block_sum(const float* in, float* out, int blocks, int threads, int rows, int bug);
int launch_warp_exchange(const float* in, float* out, int threads, int bug);
int launch_cluster_sum(const float* in, float* out, int blocks, int threads, int cluster, int bug);
int launch_uninitialised_read(float* out, bool dynamic);
int launch_misbehave(float* out, int bug);
int launch_access(const unsigned char* in, unsigned char* out, int offset, int how);
int launch_warp_ops(const float* in, float* out, int operand, int width);
int launch_indices(int* out, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, size_t shared_bytes, int cluster);
int launch_intrinsics(const float* in, float* out, int n);
int launch_dependent(float* out, int waiting);  // threads that wait, of 32
int launch_barriers(float* out, int blocks, int threads, int count);

}  // namespace pyddfast::simt::selftest
