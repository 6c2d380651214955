// Crops of images, resized, normalised and padded: parameters and launchers.
#pragma once

#include <cstdint>

#include "common/resample_math.h"

namespace pyddfast {

// A box outside its image makes the crop NaN.
struct MultiCropParams {
  const ImageView* images;  // host memory, (count)
  PixelType pixel_type;
  int64_t count, channels;
  const int64_t* boxes;  // (count, crops, 4): top, left, height, width
  int64_t crops;

  const double* scale;  // result = resampled * scale[c] + shift[c]; host memory, (channels)
  const double* shift;
  void* out;  // (crops, count, channels, pad_to, pad_to) contiguous
  DType out_dtype;
  int64_t size, pad_to;  // the crop's centre is the result's; zeros around it
};

inline int64_t padding_before(const MultiCropParams& p) { return (p.pad_to - p.size) / 2; }

PYDD_HD View cropped_view(const ImageView& image, const int64_t* values, int64_t size) {
  const Box box{values[0], values[1], values[2], values[3]};
  const Strips still(nullptr, 1, 1);
  return View{image,
              int(box.top),
              int(box.left),
              Axis{int(box.height), int(size), true},
              Axis{int(box.width), int(size), true},
              still,
              still,
              still,
              still,
              false,
              box.inside(image)};
}

void multi_crop_cpu(const MultiCropParams& params, int64_t begin,
                    int64_t end);  // image * crops + j
int multi_crop_cuda(const MultiCropParams& params, void* stream);

}  // namespace pyddfast
