// CUDA's own names for a host compiler: what csrc/common/simt.h includes instead of the CUDA
// headers.  The runtime behind it is simt_emulator.cpp; docs/simt.md says how to use it.
//
// Every operation at which threads meet takes the place of its call (Site) as a default argument,
// so that kernels stay plain CUDA and every error names a line.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
// One variable a kernel's module and OS thread; the runtime refills it with NaN before every block
// and exchanges it between the CTAs of a cluster.
#define __shared__ static thread_local

// ------------------------------------------------------------------------------------- runtime

struct dim3;

namespace pyddfast::simt::emulator {

struct Site {
  const char* file;
  int line;
  const char* function;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE(),
                             const char* function = __builtin_FUNCTION()) {
    return {file, line, function};
  }
};

// The CUDA error codes that the emulator returns.
enum Error : int {
  kSuccess = 0,
  kInvalidValue = 1,          // shared memory above the limit
  kInvalidConfiguration = 9,  // grid or block
  kIllegalAddress = 700,
  kMisalignedAddress = 716,
  kLaunchFailure = 719,  // everything else that goes wrong inside a kernel
  kInvalidClusterSize = 912,
};

// Host side.
struct Request;
int run_erased(const Request& request, void (*body)(const void*), const void* context);
const char* last_error();
int compute_capability();
int multiprocessors();
int shared_limit();

// Control, for tests.
void set_seed(uint64_t seed);  // restarts the sequence of launches
void set_compute_capability(int value);
void set_multiprocessors(int value);
bool drop_barrier(const char* site);  // "file:line", or null for none; false: no such barrier yet
// Calls back with (site, kind, threads that arrived since reset()) for each barrier that was hit.
void visit_barriers(void (*visit)(void*, const char*, const char*, uint64_t), void* context);
// Calls back with the mangled name of each kernel that this process has launched without an error.
void visit_kernels(void (*visit)(void*, const char*), void* context);
void reset();

// Device side.
enum class WarpOp : int { kSync, kShfl, kShflXor, kShflUp, kShflDown, kBallot, kAny, kAll };
void block_barrier(Site site);
void cluster_barrier(Site site);
void warp_barrier(unsigned mask, Site site);
uint64_t warp_shuffle(WarpOp op, unsigned mask, uint64_t value, int operand, int width, Site site);
unsigned warp_vote(WarpOp op, unsigned mask, bool predicate, Site site);
void* dynamic_shared();
int cluster_rank();
int cluster_size();
void cluster_read(void* result, const void* address, size_t bytes, int rank, Site site);
void grid_dependency_wait();
[[noreturn]] void misaligned(const void* address, size_t alignment, const char* what, Site site);
[[noreturn]] void trap(const char* what, Site site);

inline void check_aligned(const void* address, size_t alignment, const char* what, Site site) {
  // The asm hides where the address comes from: a compiler may take a T* for aligned.
  auto bits = reinterpret_cast<uintptr_t>(address);
  asm volatile("" : "+r"(bits)::"memory");
  if (bits % alignment != 0) misaligned(address, alignment, what, site);
}

// Shows the runtime where the thread-local block of the calling module lies.
inline thread_local char anchor __attribute__((visibility("hidden")));
__attribute__((visibility("hidden"))) inline void* module_anchor() { return &anchor; }

}  // namespace pyddfast::simt::emulator

// ------------------------------------------------------------------------------- vector types

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// Vectors that one instruction moves: copies check the alignment of both sides, as the GPU does.
#define PYDDFAST_SIMT_VECTOR2(name, T)                                      \
  struct alignas(2 * sizeof(T)) name {                                      \
    T x, y;                                                                 \
    name() = default;                                                       \
    name(T x, T y) : x(x), y(y) {}                                          \
    name(const name& other) { *this = other; }                              \
    name& operator=(const name& other) {                                    \
      using namespace pyddfast::simt::emulator;                             \
      check_aligned(&other, alignof(name), "read of " #name, Site::here()); \
      check_aligned(this, alignof(name), "write of " #name, Site::here());  \
      x = other.x, y = other.y;                                             \
      return *this;                                                         \
    }                                                                       \
  };                                                                        \
  inline name make_##name(T x, T y) { return {x, y}; }
#define PYDDFAST_SIMT_VECTOR4(name, T)                                      \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name {            \
    T x, y, z, w;                                                           \
    name() = default;                                                       \
    name(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}                    \
    name(const name& other) { *this = other; }                              \
    name& operator=(const name& other) {                                    \
      using namespace pyddfast::simt::emulator;                             \
      check_aligned(&other, alignof(name), "read of " #name, Site::here()); \
      check_aligned(this, alignof(name), "write of " #name, Site::here());  \
      x = other.x, y = other.y, z = other.z, w = other.w;                   \
      return *this;                                                         \
    }                                                                       \
  };                                                                        \
  inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }

PYDDFAST_SIMT_VECTOR2(float2, float)
PYDDFAST_SIMT_VECTOR2(double2, double)
PYDDFAST_SIMT_VECTOR2(int2, int)
PYDDFAST_SIMT_VECTOR2(uint2, unsigned)
PYDDFAST_SIMT_VECTOR4(float4, float)
PYDDFAST_SIMT_VECTOR4(int4, int)
PYDDFAST_SIMT_VECTOR4(uint4, unsigned)
PYDDFAST_SIMT_VECTOR4(ushort4, unsigned short)
PYDDFAST_SIMT_VECTOR4(uchar4, unsigned char)
#undef PYDDFAST_SIMT_VECTOR2
#undef PYDDFAST_SIMT_VECTOR4

// ------------------------------------------------------------------- launch and kernel built-ins

namespace pyddfast::simt::emulator {

struct Request {
  dim3 grid, block;
  size_t shared_bytes;
  int cluster;
  bool programmatic;
  const void* kernel;
  void* (*anchor)();
};

template <class Body>
int run(const Request& request, const Body& body) {
  return run_erased(
      request, [](const void* context) { (*static_cast<const Body*>(context))(); }, &body);
}

// Those of the thread that runs now; one thread runs at a time in the whole process.
extern uint3 current_thread_idx, current_block_idx;
extern dim3 current_block_dim, current_grid_dim;

template <class T>
constexpr bool kShuffles = std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);

template <class T>
T shuffle(WarpOp op, unsigned mask, T value, int operand, int width, Site site) {
  static_assert(kShuffles<T>, "CUDA shuffles 4- and 8-byte numbers");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_shuffle(op, mask, bits, operand, width, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace pyddfast::simt::emulator

using pyddfast::simt::emulator::WarpOp;
inline constexpr int warpSize = 32;
inline constexpr const uint3& threadIdx = pyddfast::simt::emulator::current_thread_idx;
inline constexpr const uint3& blockIdx = pyddfast::simt::emulator::current_block_idx;
inline constexpr const dim3& blockDim = pyddfast::simt::emulator::current_block_dim;
inline constexpr const dim3& gridDim = pyddfast::simt::emulator::current_grid_dim;

#define PYDDFAST_SIMT_SITE \
  ::pyddfast::simt::emulator::Site site = ::pyddfast::simt::emulator::Site::here()

inline void __syncthreads(PYDDFAST_SIMT_SITE) { pyddfast::simt::emulator::block_barrier(site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, PYDDFAST_SIMT_SITE) {
  pyddfast::simt::emulator::warp_barrier(mask, site);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, PYDDFAST_SIMT_SITE) {
  return pyddfast::simt::emulator::shuffle(WarpOp::kShfl, mask, value, lane, width, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, PYDDFAST_SIMT_SITE) {
  return pyddfast::simt::emulator::shuffle(WarpOp::kShflXor, mask, value, bits, width, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, PYDDFAST_SIMT_SITE) {
  return pyddfast::simt::emulator::shuffle(WarpOp::kShflUp, mask, value, int(delta), width, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, PYDDFAST_SIMT_SITE) {
  return pyddfast::simt::emulator::shuffle(WarpOp::kShflDown, mask, value, int(delta), width, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, PYDDFAST_SIMT_SITE) {
  return pyddfast::simt::emulator::warp_vote(WarpOp::kBallot, mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, PYDDFAST_SIMT_SITE) {
  return int(pyddfast::simt::emulator::warp_vote(WarpOp::kAny, mask, predicate != 0, site));
}
inline int __all_sync(unsigned mask, int predicate, PYDDFAST_SIMT_SITE) {
  return int(pyddfast::simt::emulator::warp_vote(WarpOp::kAll, mask, predicate != 0, site));
}
inline unsigned __activemask(PYDDFAST_SIMT_SITE) {
  // Which lanes happen to run together is the scheduler's choice: no mask may depend on it.
  pyddfast::simt::emulator::trap("__activemask is not allowed: pass an explicit mask", site);
}
[[noreturn]] inline void __trap(PYDDFAST_SIMT_SITE) {
  pyddfast::simt::emulator::trap("__trap", site);
}
// One thread runs at a time and memory is sequentially consistent.
inline void __threadfence_block() {}
inline void __threadfence() {}

template <class T>
T __ldg(const T* address, PYDDFAST_SIMT_SITE) {
  pyddfast::simt::emulator::check_aligned(address, alignof(T), "__ldg", site);
  return *address;
}

#undef PYDDFAST_SIMT_SITE

// ---------------------------------------------------------------------------------- arithmetic

// CUDA's overloads of min and max; NaN loses against a number, as in fmin and fmax.
#define PYDDFAST_SIMT_MINMAX(R, A, B)                                                     \
  inline R min(A a, B b) {                                                                \
    return static_cast<R>(a) < static_cast<R>(b) ? static_cast<R>(a) : static_cast<R>(b); \
  }                                                                                       \
  inline R max(A a, B b) {                                                                \
    return static_cast<R>(a) > static_cast<R>(b) ? static_cast<R>(a) : static_cast<R>(b); \
  }
PYDDFAST_SIMT_MINMAX(int, int, int)
PYDDFAST_SIMT_MINMAX(unsigned, unsigned, unsigned)
PYDDFAST_SIMT_MINMAX(unsigned, int, unsigned)
PYDDFAST_SIMT_MINMAX(unsigned, unsigned, int)
PYDDFAST_SIMT_MINMAX(long, long, long)
PYDDFAST_SIMT_MINMAX(unsigned long, unsigned long, unsigned long)
PYDDFAST_SIMT_MINMAX(unsigned long, long, unsigned long)
PYDDFAST_SIMT_MINMAX(unsigned long, unsigned long, long)
PYDDFAST_SIMT_MINMAX(long long, long long, long long)
PYDDFAST_SIMT_MINMAX(unsigned long long, unsigned long long, unsigned long long)
#undef PYDDFAST_SIMT_MINMAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

// The fast intrinsics, here correctly rounded: computed in double, rounded once.  (Macros, since
// glibc declares some of these names itself.)  Their error on a GPU has to be covered by the
// tolerance of a test, not by the emulator.
#define PYDDFAST_SIMT_ROUND(expression) (static_cast<float>(expression))
#define __expf(x) PYDDFAST_SIMT_ROUND(std::exp(static_cast<double>(x)))
#define __exp10f(x) PYDDFAST_SIMT_ROUND(std::pow(10.0, static_cast<double>(x)))
#define __logf(x) PYDDFAST_SIMT_ROUND(std::log(static_cast<double>(x)))
#define __log2f(x) PYDDFAST_SIMT_ROUND(std::log2(static_cast<double>(x)))
#define __log10f(x) PYDDFAST_SIMT_ROUND(std::log10(static_cast<double>(x)))
#define __powf(x, y) PYDDFAST_SIMT_ROUND(std::pow(static_cast<double>(x), static_cast<double>(y)))
#define __sinf(x) PYDDFAST_SIMT_ROUND(std::sin(static_cast<double>(x)))
#define __cosf(x) PYDDFAST_SIMT_ROUND(std::cos(static_cast<double>(x)))
#define rsqrtf(x) PYDDFAST_SIMT_ROUND(1.0 / std::sqrt(static_cast<double>(x)))
#define rsqrt(x) (1.0 / std::sqrt(static_cast<double>(x)))
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frsqrt_rn(float a) { return rsqrtf(a); }
// CUDA: a NaN saturates to 0.
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }

template <class To, class From>
To pyddfast_simt_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
inline float __uint_as_float(unsigned a) { return pyddfast_simt_bits<float>(a); }
inline float __int_as_float(int a) { return pyddfast_simt_bits<float>(a); }
inline unsigned __float_as_uint(float a) { return pyddfast_simt_bits<unsigned>(a); }
inline int __float_as_int(float a) { return pyddfast_simt_bits<int>(a); }
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __clz(int a) { return a == 0 ? 32 : __builtin_clz(static_cast<unsigned>(a)); }
inline int __ffs(int a) { return __builtin_ffs(a); }
