// Kernels that test the emulator, right ones and ones with a planted bug.  Plain CUDA: nvcc
// compiles this file too.  All pointers are the device's.
#include "common/simt.h"
#include "selftest.h"

namespace pyddfast::simt::selftest {
namespace {

constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  return value;
}

// Column sums of (rows, blockDim.x) for each block's own matrix, added to every thread's output:
// one buffer serves all rows, so that each of the two barriers is needed.
__global__ void __launch_bounds__(1024)
    block_sum(const float* __restrict__ in, float* out, int rows, int bug) {
  __shared__ float partial[32];
  const int thread = int(threadIdx.x), warps = int(blockDim.x) / 32;
  float total = 0.0f;
  for (int row = 0; row < rows; ++row) {
    const float sum = warp_sum(in[(blockIdx.x * rows + row) * blockDim.x + thread]);
    if (thread % 32 == 0) partial[thread / 32] = sum;
    if (bug != kMissingBarrier) __syncthreads();
    float block = 0.0f;
    for (int w = 0; w < warps; ++w) block += partial[w];
    total += float(row + 1) * block;
    if (bug != kMissingReuseBarrier) __syncthreads();
  }
  out[blockIdx.x * blockDim.x + thread] = total;
}

// Neighbours exchange through shared memory, warp by warp.
__global__ void warp_exchange(const float* in, float* out, int bug) {
  __shared__ float values[1024];
  const int thread = int(threadIdx.x);
  values[thread] = in[thread];
  if (bug != kMissingBarrier) __syncwarp();
  out[thread] = values[thread ^ 1];
}

// The sum over a cluster's CTAs, for every thread.
__global__ void cluster_sum(const float* in, float* out, int bug) {
  __shared__ float mine;
  float* copies = dynamic_shared<float>();  // one value a thread
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  copies[threadIdx.x] = in[i];
  if (threadIdx.x == 0) mine = float(blockIdx.x);
  if (bug != kMissingBarrier) cluster_sync();
  float sum = 0.0f;
  for (int rank = 0; rank < cluster_size(); ++rank) {
    sum += cluster_load(copies + threadIdx.x, rank) + 1000.0f * cluster_load(&mine, rank);
  }
  if (bug != kMissingReuseBarrier) cluster_sync();  // nobody leaves while it is read from
  out[i] = sum + 0.25f * float(cluster_rank());
}

__global__ void uninitialised_read(float* out, int dynamic) {
  __shared__ float values[32];
  const float* source = dynamic ? dynamic_shared<float>() : values;
  if (threadIdx.x != 7) const_cast<float*>(source)[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = source[threadIdx.x];
}

// Each `bug` is one way to go wrong; `out` shows that a kernel without one runs to its end.
__global__ void misbehave(float* out, int bug, int zero) {
  __shared__ float values[64];
  const int thread = int(threadIdx.x);
  float value = float(thread);
  values[thread] = value;
  __syncthreads();
  switch (bug) {
    case kDivergentShuffle:
      if (thread < 16) {
        value = __shfl_xor_sync(kAll, value, 1);
      } else {
        value = __shfl_xor_sync(kAll, value, 1);
      }
      break;
    case kShuffleMasksDiffer:
      value = __shfl_xor_sync(thread % 32 == 5 ? 0x0000ffffu : kAll, value, 1);
      break;
    case kShuffleOutsideMask:
      value = __shfl_sync(0x000000ffu, value, 0);
      break;
    case kShuffleFromOutside:
      if (thread % 32 < 8) value = __shfl_sync(0x000000ffu, value, 9);
      break;
    case kShuffleWithEnded:
      if (thread == 3) return;
      value = __shfl_xor_sync(kAll, value, 1);
      break;
    case kShuffleWidth:
      value = __shfl_sync(kAll, value, 0, 12);
      break;
    case kDivergentBarrier:
      if (thread < 16) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case kBarrierWithEnded:
      if (thread == 40) return;
      __syncthreads();
      break;
    case kDeadlock:
      if (thread % 32 < 16) {
        __syncthreads();
      } else {
        value = __shfl_xor_sync(kAll, value, 1);
      }
      break;
    case kDivergentClusterBarrier:
      if (thread < 16) {
        cluster_sync();
      } else {
        cluster_sync();
      }
      break;
    case kActiveMask:
      value = float(__activemask());
      break;
    case kTrap:
      if (thread == 9) __trap();
      break;
    case kOutOfBounds:
      value = values[thread + 1 + zero];
      break;
    case kClusterRank:
      value = cluster_load(values + thread, cluster_size() + zero);
      break;
    case kClusterGlobal:
      value = cluster_load(out + thread, 0);
      break;
    default:
      break;
  }
  out[thread] = value;
}

// Reads and writes at base + offset bytes, in one of several ways.
__global__ void access(const unsigned char* in, unsigned char* out, int offset, int how) {
  in += offset;
  out += offset;
  switch (how) {
    case kLoadVector:
      store_vector(reinterpret_cast<float*>(out - offset),
                   load_vector<4>(reinterpret_cast<const float*>(in)));
      break;
    case kStoreVector:
      store_vector(reinterpret_cast<float*>(out),
                   load_vector<4>(reinterpret_cast<const float*>(in - offset)));
      break;
    case kFloat4:
      *reinterpret_cast<float4*>(out - offset) = *reinterpret_cast<const float4*>(in);
      break;
    case kFloat4Store:
      *reinterpret_cast<float4*>(out) = make_float4(1.0f, 2.0f, 3.0f, 4.0f);
      break;
    case kLdg:
      *reinterpret_cast<float2*>(out - offset) = __ldg(reinterpret_cast<const float2*>(in));
      break;
    default:
      *reinterpret_cast<float*>(out - offset) = *reinterpret_cast<const float*>(in);
      break;
  }
}

// Row `op` of `out` is what its shuffle or vote gives each of 32 lanes.
__global__ void warp_ops(const float* in, float* out, int operand, int width) {
  const int lane = int(threadIdx.x);
  const float value = in[lane];
  const double wide = double(value) + 0.5;
  out[0 * 32 + lane] = __shfl_sync(kAll, value, operand, width);
  out[1 * 32 + lane] = __shfl_up_sync(kAll, value, unsigned(operand), width);
  out[2 * 32 + lane] = __shfl_down_sync(kAll, value, unsigned(operand), width);
  out[3 * 32 + lane] = __shfl_xor_sync(kAll, value, operand, width);
  out[4 * 32 + lane] = float(__shfl_xor_sync(kAll, wide, operand, width));
  const unsigned ballot = __ballot_sync(kAll, value > 0.0f);
  out[5 * 32 + lane] = float(ballot & 0xffffu);
  out[6 * 32 + lane] = float(ballot >> 16);
  out[7 * 32 + lane] = float(__any_sync(kAll, value > 2.0f));
  out[8 * 32 + lane] = float(__all_sync(kAll, value < 2.0f));
  // Halves of a warp on their own.
  out[9 * 32 + lane] =
      lane < 16 ? __shfl_xor_sync(0x0000ffffu, value, 3) : __shfl_xor_sync(0xffff0000u, -value, 3);
}

// Where each thread is: (x, y, z) of block and thread, at its global linear position.
__global__ void indices(int* out) {
  const int thread = int((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
  const int block = int((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
  int* at = out + 6 * (block * int(blockDim.x * blockDim.y * blockDim.z) + thread);
  at[0] = int(blockIdx.x), at[1] = int(blockIdx.y), at[2] = int(blockIdx.z);
  at[3] = int(threadIdx.x), at[4] = int(threadIdx.y), at[5] = int(threadIdx.z);
}

__global__ void intrinsics(const float* in, float* out, int n) {
  const int i = int(threadIdx.x);
  const float x = in[i];
  const float results[] = {__expf(x),
                           exp2f(x),
                           __logf(x),
                           __log2f(x),
                           __frcp_rn(x),
                           __fdividef(1.0f, x),
                           rsqrtf(x),
                           __fsqrt_rn(x),
                           fmaf(x, x, -x),
                           __saturatef(x),
                           min(x, 1.0f),
                           max(x, 1.0f),
                           __uint_as_float(__float_as_uint(x) ^ 0x80000000u),
                           float(__popc(__float_as_uint(x))),
                           float(__clz(int(x))),
                           float(__ffs(int(x)))};
  for (int k = 0; k < int(sizeof(results) / sizeof(float)); ++k) out[k * n + i] = results[k];
}

__global__ void dependent(float* out, int waiting) {
  if (int(threadIdx.x) < waiting) grid_dependency_wait();
  out[threadIdx.x] = 1.0f;
  grid_dependency_launch();
}

// Many barriers, for timing.
__global__ void barriers(float* out, int count) {
  float value = 0.0f;
  for (int i = 0; i < count; ++i) {
    value += 1.0f;
    __syncthreads();
  }
  out[threadIdx.x] = value;
}

}  // namespace

int launch_block_sum(const float* in, float* out, int blocks, int threads, int rows, int bug) {
  return launch(block_sum, {.grid = unsigned(blocks), .block = unsigned(threads)}, in, out, rows,
                bug);
}
int launch_warp_exchange(const float* in, float* out, int threads, int bug) {
  return launch(warp_exchange, {.grid = 1, .block = unsigned(threads)}, in, out, bug);
}
int launch_cluster_sum(const float* in, float* out, int blocks, int threads, int cluster, int bug) {
  return launch(cluster_sum,
                {.grid = unsigned(blocks),
                 .block = unsigned(threads),
                 .shared_bytes = size_t(threads) * sizeof(float),
                 .cluster = cluster},
                in, out, bug);
}
int launch_uninitialised_read(float* out, bool dynamic) {
  return launch(uninitialised_read, {.grid = 1, .block = 32, .shared_bytes = 128}, out,
                int(dynamic));
}
int launch_misbehave(float* out, int bug) {
  return launch(misbehave, {.grid = 1, .block = 64}, out, bug, 0);
}
int launch_access(const unsigned char* in, unsigned char* out, int offset, int how) {
  return launch(access, {.grid = 1, .block = 1}, in, out, offset, how);
}
int launch_warp_ops(const float* in, float* out, int operand, int width) {
  return launch(warp_ops, {.grid = 1, .block = 32}, in, out, operand, width);
}
int launch_indices(int* out, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, size_t shared_bytes, int cluster) {
  return launch(indices,
                {.grid = dim3(gx, gy, gz),
                 .block = dim3(bx, by, bz),
                 .shared_bytes = shared_bytes,
                 .cluster = cluster},
                out);
}
int launch_intrinsics(const float* in, float* out, int n) {
  return launch(intrinsics, {.grid = 1, .block = unsigned(n)}, in, out, n);
}
int launch_dependent(float* out, int waiting) {
  return launch(dependent, {.grid = 1, .block = 32, .programmatic = true}, out, waiting);
}
int launch_barriers(float* out, int blocks, int threads, int count) {
  return launch(barriers, {.grid = unsigned(blocks), .block = unsigned(threads)}, out, count);
}

}  // namespace pyddfast::simt::selftest
