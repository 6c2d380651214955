// What this library was built with and what it dispatches to, for `pyddfast info`.
#include <cstdio>

#ifndef PYDDFAST_ARCHITECTURES
#define PYDDFAST_ARCHITECTURES ""
#endif

#ifdef __clang__
#define PYDDFAST_COMPILER __VERSION__
#else
#define PYDDFAST_COMPILER "GCC " __VERSION__
#endif

namespace {

const char* cpu_level() {
#if PYDDFAST_CLONES == 2
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4 (AVX-512)";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3 (AVX2, FMA)";
  return "x86-64 baseline";
#elif PYDDFAST_CLONES == 1
  if (__builtin_cpu_supports("avx512f")) return "skylake-avx512 (AVX-512)";
  if (__builtin_cpu_supports("avx2")) return "haswell (AVX2, FMA)";
  return "x86-64 baseline";
#else
  return "one build for all CPUs";
#endif
}

}  // namespace

// One "key=value" a line.  The pointer stays valid.
extern "C" __attribute__((visibility("default"))) const char* pyddfast_build_info() {
  static char text[512];
  std::snprintf(text, sizeof(text), "compiler=%s\ncpu=%s\ncuda_architectures=%s\n",
                PYDDFAST_COMPILER, cpu_level(), PYDDFAST_ARCHITECTURES);
  return text;
}
