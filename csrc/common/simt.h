// What a kernel file needs beside CUDA's own names, on CUDA and on the emulator.
//
// A kernel is plain CUDA without an #ifdef.  nvcc compiles it against the CUDA headers; a host
// compiler with -DPYDDFAST_SIMT compiles the same file against tests/simt/simt_emulator.h, which
// runs it on fibers (docs/simt.md).  This is the only file that includes CUDA headers.
//
// Namespace pyddfast::simt:
//   host    LaunchConfig, launch, last_error, error_string, device_compute_capability,
//           device_multiprocessors, device_shared_bytes
//   device  Vector, load_vector, store_vector, dynamic_shared,
//           cluster_rank, cluster_size, cluster_sync, cluster_load,
//           grid_dependency_wait, grid_dependency_launch
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#elif defined(PYDDFAST_SIMT)
#include "simt_emulator.h"
#else
#error "kernels are compiled by nvcc, or by a host compiler with -DPYDDFAST_SIMT (docs/simt.md)"
#endif

namespace pyddfast::simt {

struct LaunchConfig {
  dim3 grid, block;
  size_t shared_bytes = 0;    // dynamic shared memory, beside the kernel's __shared__ arrays
  int cluster = 1;            // CTAs of a cluster, along x: 1 = none; 2, 4 or 8 need sm_90
  bool programmatic = false;  // may start before the previous kernel of the stream has ended: the
                              // kernel must call grid_dependency_wait()
  void* stream = nullptr;     // a cudaStream_t
};

// N elements that one memory instruction moves: N * sizeof(T) is 2, 4, 8 or 16 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  static_assert(sizeof(T) * N == 2 || sizeof(T) * N == 4 || sizeof(T) * N == 8 ||
                sizeof(T) * N == 16);
  T values[N];
  __host__ __device__ T& operator[](int i) { return values[i]; }
  __host__ __device__ const T& operator[](int i) const { return values[i]; }
};

#if defined(__CUDACC__)

// ---------------------------------------------------------------------------------------- host

namespace detail {
inline int& last_code() {
  static thread_local int code = cudaSuccess;
  return code;
}
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}
}  // namespace detail

// Launches `kernel` on config.stream.  Returns a cudaError_t, 0 for success; an error is taken off
// CUDA's per-thread error state, so that no later, unrelated check reports it.
template <class... Params, class... Args>
int launch(void (*kernel)(Params...), const LaunchConfig& config, Args&&... args) {
  constexpr size_t kDefaultSharedBytes = 48 * 1024;  // above it CUDA wants an opt-in by kernel
  cudaError_t error = cudaSuccess;
  if (config.shared_bytes > kDefaultSharedBytes) {
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(config.shared_bytes));
  }
  if (error == cudaSuccess) {
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t cuda_config = {};
    cuda_config.gridDim = config.grid;
    cuda_config.blockDim = config.block;
    cuda_config.dynamicSmemBytes = config.shared_bytes;
    cuda_config.stream = static_cast<cudaStream_t>(config.stream);
    cuda_config.attrs = attributes;
    if (config.cluster != 1) {
      cudaLaunchAttribute& attribute = attributes[cuda_config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = static_cast<unsigned>(config.cluster);
      attribute.val.clusterDim.y = 1;
      attribute.val.clusterDim.z = 1;
    }
    if (config.programmatic && detail::device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9) {
      cudaLaunchAttribute& attribute = attributes[cuda_config.numAttrs++];
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    error = cudaLaunchKernelEx(&cuda_config, kernel, static_cast<Args&&>(args)...);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();
    detail::last_code() = error;
  }
  return error;
}

// The text of this thread's last launch that failed.
inline const char* last_error() {
  return cudaGetErrorString(static_cast<cudaError_t>(detail::last_code()));
}

// The text of an error code, whether a launch gave it or a check before one.
inline const char* error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

// Of the current device: 10 * major + minor; its SMs; shared bytes that one CTA can have.
inline int device_compute_capability() {
  return 10 * detail::device_attribute(cudaDevAttrComputeCapabilityMajor) +
         detail::device_attribute(cudaDevAttrComputeCapabilityMinor);
}
inline int device_multiprocessors() {
  return detail::device_attribute(cudaDevAttrMultiProcessorCount);
}
inline int device_shared_bytes() {
  return detail::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

// -------------------------------------------------------------------------------------- device

// Reads N elements with one instruction, past the L1 cache and through the read-only path: for
// global memory that no thread writes while this kernel runs, read once.  `address` is a multiple
// of N * sizeof(T).
template <int N, class T>
__device__ __forceinline__ Vector<T, N> load_vector(const T* address) {
  Vector<T, N> result;
  if constexpr (sizeof(result) == 16) {
    uint4 raw;
    asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
                 : "l"(address));
    memcpy(&result, &raw, sizeof(result));
  } else if constexpr (sizeof(result) == 8) {
    uint2 raw;
    asm volatile("ld.global.nc.L1::no_allocate.v2.b32 {%0, %1}, [%2];"
                 : "=r"(raw.x), "=r"(raw.y)
                 : "l"(address));
    memcpy(&result, &raw, sizeof(result));
  } else if constexpr (sizeof(result) == 4) {
    uint32_t raw;
    asm volatile("ld.global.nc.L1::no_allocate.b32 %0, [%1];" : "=r"(raw) : "l"(address));
    memcpy(&result, &raw, sizeof(result));
  } else {
    uint16_t raw;
    asm volatile("ld.global.nc.L1::no_allocate.b16 %0, [%1];" : "=h"(raw) : "l"(address));
    memcpy(&result, &raw, sizeof(result));
  }
  return result;
}

// Writes N elements with one instruction.  `address` is a multiple of N * sizeof(T).
template <int N, class T>
__device__ __forceinline__ void store_vector(T* address, const Vector<T, N>& vector) {
  *reinterpret_cast<Vector<T, N>*>(address) = vector;
}

// LaunchConfig::shared_bytes of memory, aligned to 16 bytes, shared by the CTA.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char pyddfast_dynamic_shared[];
  return reinterpret_cast<T*>(pyddfast_dynamic_shared);
}

// Clusters (sm_90).  Below, a cluster is one CTA.
__device__ __forceinline__ int cluster_rank() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

__device__ __forceinline__ int cluster_size() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  int size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#else
  return 1;
#endif
}

// A barrier of all threads of the cluster; called by all of them, like __syncthreads().
__device__ __forceinline__ void cluster_sync() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n\t"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
#else
  __syncthreads();
#endif
}

// The value at `address`, a shared variable of the calling CTA, in CTA `rank` of its cluster.
// T has 4, 8 or 16 bytes.  No CTA may leave while another one still reads from it.
template <class T>
__device__ __forceinline__ T cluster_load(const T* address, int rank) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const uint32_t local = static_cast<uint32_t>(__cvta_generic_to_shared(address));
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
  T result;
  if constexpr (sizeof(T) == 16) {
    uint4 raw;
    asm volatile("ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
                 : "r"(remote)
                 : "memory");
    memcpy(&result, &raw, sizeof(result));
  } else if constexpr (sizeof(T) == 8) {
    uint2 raw;
    asm volatile("ld.shared::cluster.v2.b32 {%0, %1}, [%2];"
                 : "=r"(raw.x), "=r"(raw.y)
                 : "r"(remote)
                 : "memory");
    memcpy(&result, &raw, sizeof(result));
  } else {
    uint32_t raw;
    asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(raw) : "r"(remote) : "memory");
    memcpy(&result, &raw, sizeof(result));
  }
  return result;
#else
  return *address;
#endif
}

// Programmatic dependent launch (sm_90).  wait: until the previous kernel has ended and its writes
// are visible; nothing that it writes may be read, and nothing that it reads may be written,
// before.  launch: the next kernel may start (a hint; it still has to wait for our end).
__device__ __forceinline__ void grid_dependency_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void grid_dependency_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#else  // the emulator: the same functions, in the same order

template <class... Params, class... Args>
int launch(void (*kernel)(Params...), const LaunchConfig& config, Args&&... args) {
  // Converted once and copied for each thread, as CUDA does with kernel parameters.
  const std::tuple<Params...> params(static_cast<Args&&>(args)...);
  const auto body = [&] { std::apply([&](auto... copies) { kernel(copies...); }, params); };
  return emulator::run(
      {config.grid, config.block, config.shared_bytes, config.cluster, config.programmatic,
       reinterpret_cast<const void*>(kernel), &emulator::module_anchor},
      body);
}

inline const char* last_error() { return emulator::last_error(); }
inline const char* error_string(int) {
  return *last_error() != '\0' ? last_error() : "refused before a launch";
}
inline int device_compute_capability() { return emulator::compute_capability(); }
inline int device_multiprocessors() { return emulator::multiprocessors(); }
inline int device_shared_bytes() { return emulator::shared_limit(); }

template <int N, class T>
Vector<T, N> load_vector(const T* address, emulator::Site site = emulator::Site::here()) {
  emulator::check_aligned(address, sizeof(T) * N, "load_vector", site);
  Vector<T, N> result;
  std::memcpy(&result, address, sizeof(result));
  return result;
}

template <int N, class T>
void store_vector(T* address, const Vector<T, N>& vector,
                  emulator::Site site = emulator::Site::here()) {
  emulator::check_aligned(address, sizeof(T) * N, "store_vector", site);
  std::memcpy(address, &vector, sizeof(vector));
}

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(emulator::dynamic_shared());
}

inline int cluster_rank() { return emulator::cluster_rank(); }
inline int cluster_size() { return emulator::cluster_size(); }
inline void cluster_sync(emulator::Site site = emulator::Site::here()) {
  emulator::cluster_barrier(site);
}

template <class T>
T cluster_load(const T* address, int rank, emulator::Site site = emulator::Site::here()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  T result;
  emulator::cluster_read(&result, address, sizeof(T), rank, site);
  return result;
}

inline void grid_dependency_wait() { emulator::grid_dependency_wait(); }
inline void grid_dependency_launch() {}

#endif

}  // namespace pyddfast::simt
