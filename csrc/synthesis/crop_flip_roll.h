// One crop, resize, flip and roll for all images of a batch, and the adjoint map, which takes the
// gradient to the views back to the images: parameters, geometry and launchers.
#pragma once

#include <cstdint>

#include "common/resample_math.h"

namespace pyddfast {

struct CropFlipRollParams {
  bool adjoint;    // false: images to views; true: the views' gradient to the images'
  const void* in;  // (count, channels, ...)
  int64_t stride_n, stride_c, stride_h, stride_w;  // of `in`, in elements
  void* out;                                       // contiguous
  DType dtype;                                     // of both
  int64_t count, channels;
  int64_t height, width;          // of an image
  int64_t out_height, out_width;  // of a view
  // top, left, height and width of the box, flip, roll down, roll to the right; on the device.  A
  // box that leaves the images makes the result NaN.
  const int64_t* values;
};

PYDD_HD int64_t modulo(int64_t a, int64_t n) {
  const int64_t rest = a % n;
  return rest < 0 ? rest + n : rest;
}

// The seven numbers for one image, whose pixels lie at `data`.
struct RolledView {
  View view;
  int down, right;  // less than a whole turn

  PYDD_HD RolledView(const CropFlipRollParams& p, const void* data)
      : RolledView(p, Box{p.values[0], p.values[1], p.values[2], p.values[3]},
                   ImageView{data, p.stride_c, p.stride_h, p.stride_w, int(p.height), int(p.width)},
                   Strips(nullptr, 1, 1)) {}

  // Where row i and column j of the resized crop stand in the result.
  PYDD_HD int row(int i) const { return turned(i + down, view.rows.size); }
  PYDD_HD int column(int j) const {
    return turned((view.flip ? view.cols.size - 1 - j : j) + right, view.cols.size);
  }

 private:
  PYDD_HD RolledView(const CropFlipRollParams& p, const Box& box, const ImageView& image,
                     const Strips& still)
      : view{image,
             int(box.top),
             int(box.left),
             Axis{int(box.height), int(p.out_height), true},
             Axis{int(box.width), int(p.out_width), true},
             still,
             still,
             still,
             still,
             p.values[4] != 0,
             box.inside(image)},
        down(int(modulo(p.values[5], p.out_height))),
        right(int(modulo(p.values[6], p.out_width))) {}

  PYDD_HD static int turned(int place, int size) { return place < size ? place : place - size; }
};

// CPU: the images, or for the adjoint the planes (count * channels), are independent tasks.
void crop_flip_roll_cpu(const CropFlipRollParams& params, int64_t begin, int64_t end);
int crop_flip_roll_cuda(const CropFlipRollParams& params, void* stream);

}  // namespace pyddfast
