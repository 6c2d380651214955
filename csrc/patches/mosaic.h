// Images tiled from ranked patches: parameters and launchers.  No torch, no CUDA headers.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace pyddfast {

enum class Quantize : int { kNone, kRound, kTruncate };

struct MosaicParams {
  const void* patches;  // (images * factor^2, channels, height, width), best first
  DType dtype;
  int64_t stride_k, stride_c, stride_h, stride_w;  // elements
  int64_t images, channels, height, width;
  int64_t size, factor;
  bool bilinear;       // else nearest
  const double* mean;  // with std, undoes the normalisation: x * std + mean; host memory,
  const double* std;   // (channels), or both null
  Quantize quantize;   // to bytes: x * 255, clamped, rounded or cut off
  void* out;           // (images, channels, size, size) contiguous: `dtype`, or bytes
};

void mosaic_cpu(const MosaicParams& params, int64_t begin, int64_t end);  // rows of all planes
int mosaic_cuda(const MosaicParams& params, void* stream);

}  // namespace pyddfast
