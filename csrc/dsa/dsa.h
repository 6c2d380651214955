// Differentiable Siamese augmentation in three kernels, each with parameters an image or one row
// for all: colours, shifts with cuts and mirrors, and warps.  All are linear in the images
// (brightness adds a constant), and each goes both ways: images to views, and the views' gradient
// back.
#pragma once

#include "common/types.h"

namespace pyddfast {

struct DsaImages {
  const void* in;                                  // (count, channels, height, width)
  int64_t stride_n, stride_c, stride_h, stride_w;  // of `in`, in elements
  void* out;                                       // contiguous
  DType dtype;                                     // of both
  int64_t count, channels, height, width;
  bool shared;  // one row of parameters for all images
};

// brightness: v + b.  saturation: (v - m) g + m with the mean m of the pixel's channels.  contrast:
// the same with the mean of the image.  In this order; null: left out.  float, or double for
// double images.  Without brightness the map is its own adjoint.
struct DsaColorParams {
  DsaImages images;
  const void *brightness, *saturation, *contrast;
};

// crop: out[i, j] = in[i + s0, j + s1], 0 outside.  cutout: a rectangle around a centre becomes 0.
// flip: out[i, j] = in[i, width - 1 - j].  In this order; null: left out.
struct DsaShiftParams {
  DsaImages images;
  const int64_t *crop, *cutout;  // rows, then columns
  const bool* flip;
  int64_t cut_height, cut_width;
  bool adjoint;
};

// Bilinear sampling, zeros outside, at the centred coordinates turned by an angle in radians, or
// multiplied by two factors, x then y.
struct DsaWarpParams {
  DsaImages images;
  const void* values;  // angles or pairs of factors; float, or double for double images
  bool rotate, align_corners, adjoint;
};

// CPU: the images are independent tasks.
void dsa_color_cpu(const DsaColorParams& params, int64_t begin, int64_t end);
void dsa_shift_cpu(const DsaShiftParams& params, int64_t begin, int64_t end);
void dsa_warp_cpu(const DsaWarpParams& params, int64_t begin, int64_t end);
int dsa_color_cuda(const DsaColorParams& params, void* stream);
int dsa_shift_cuda(const DsaShiftParams& params, void* stream);
int dsa_warp_cuda(const DsaWarpParams& params, void* stream);

}  // namespace pyddfast
