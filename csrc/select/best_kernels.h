// The best row of a CTA.
#pragma once

#include "common/simt.h"
#include "select/select_math.h"

namespace pyddfast {

// All threads have the result.  Each call in a kernel needs shared memory of its own, which saves
// the barrier before a second use.
template <int kWarps>
__device__ __forceinline__ Best best_of_cta(Best best, Best (&of_warps)[kWarps]) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const Best other{__shfl_xor_sync(0xffffffffu, best.key, step),
                     __shfl_xor_sync(0xffffffffu, best.row, step)};
    if (better(other, best)) best = other;
  }
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = best;
  __syncthreads();
  best = of_warps[0];
  for (int w = 1; w < kWarps; ++w) {
    if (better(of_warps[w], best)) best = of_warps[w];
  }
  return best;
}

}  // namespace pyddfast
