// Bilinear resampling of crops: which source pixels make an output pixel, and with which weights.
//
// One axis, L source pixels to S output pixels.  Output i looks at the point (i + 1/2) L / S of the
// crop.  Its filter is a triangle of half width max(1, L / S), or 1 without antialiasing (then
// points beyond the outermost pixel centres take the border pixel); what lies outside the crop is
// dropped and the rest rescaled.  In units of 1 / (2 S) of a source pixel everything is an integer:
//   point c = (2 i + 1) L,   centre of pixel p = (2 p + 1) S,   half width 2 M,  M = max(L, S) or S
//   weight of p ~ max(0, 2 M - |(2 p + 1) S - c|)
// so windows are exact and weights carry a single rounding, on the CPU and on CUDA alike.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/types.h"

namespace pyddfast {

enum class PixelType : int { kUInt8, kFloat32, kFloat16, kBFloat16, kFloat64 };

PYDD_HD float to_float(uint8_t value) { return float(value); }

// a / b rounded down, a >= 0, 0 < b < 2^31.  64-bit division is slow on GPUs and rarely needed.
PYDD_HD int64_t quotient(int64_t a, int64_t b) {
  return uint64_t(a) <= 0xffffffffu ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}

PYDD_HD int64_t at_least_0(int64_t a) { return a < 0 ? 0 : a; }
PYDD_HD int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
PYDD_HD int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

// The source pixels [first, last) of one output pixel, from the crop's start.
struct Window {
  int64_t first, last;
  int64_t offset;  // (2 first + 1) S - c
  int64_t reach;   // 2 M
  int64_t step;    // 2 S

  // Proportional to the weight of pixel p, which may lie outside the window.
  PYDD_HD int64_t weight(int64_t p) const {
    const int64_t distance = offset + (p - first) * step;
    return at_least_0(reach - (distance < 0 ? -distance : distance));
  }
  PYDD_HD int64_t total() const {
    int64_t sum = 0;
    for (int64_t p = first; p < last; ++p) sum += weight(p);
    return sum;
  }
};

struct Axis {
  int64_t length, size;  // L, S
  bool antialias;

  PYDD_HD int64_t reach() const { return 2 * (antialias ? larger(length, size) : size); }

  // Pixels that no window exceeds.
  PYDD_HD int64_t taps() const {
    return length == size ? 1 : smaller(length, (reach() + size - 1) / size);
  }

  PYDD_HD Window window(int64_t i) const {
    int64_t point = (2 * i + 1) * length;
    if (!antialias) point = larger(size, smaller(point, (2 * length - 1) * size));
    Window window;
    window.reach = reach();
    window.step = 2 * size;
    window.first = quotient(at_least_0(point - window.reach + size), window.step);
    // Where L = S the neighbours' weights are 0.
    if (length == size) window.first = i;
    window.last = length == size
                      ? i + 1
                      : smaller(length, quotient(point + window.reach + size, window.step));
    window.offset = (2 * window.first + 1) * size - point;
    return window;
  }
};

// PatchShuffle of one axis: `side` pixels cut into `factor` strips of side / factor, the last one
// with the remainder; strip order[k] stands at place k.
struct Strips {
  const int64_t* order;  // null: nothing is moved
  int64_t factor, side;
  int64_t long_place;  // where the last strip stands; -1 if `order` is not valid

  PYDD_HD Strips(const int64_t* order_, int64_t factor_, int64_t side_)
      : order(order_), factor(factor_), side(side_), long_place(-1) {
    if (order == nullptr) return;
    bool inside = true;
    for (int64_t k = 0; k < factor; ++k) {
      inside = inside && order[k] >= 0 && order[k] < factor;
      if (order[k] == factor - 1) long_place = k;
    }
    if (!inside) long_place = -1;
  }

  PYDD_HD bool valid() const { return order == nullptr || long_place >= 0; }
  PYDD_HD int64_t extent() const { return side / factor; }
  PYDD_HD int64_t start(int64_t place) const {
    return place * extent() + (place > long_place ? side - factor * extent() : 0);
  }
  PYDD_HD int64_t place_of_position(int64_t position) const {
    const int64_t rest = side - factor * extent();
    if (position < start(long_place)) return quotient(position, extent());
    if (position < start(long_place) + extent() + rest) return long_place;
    return quotient(position - rest, extent());
  }
  // The pixel that stands at `position`, and where a pixel stands.
  PYDD_HD int64_t source(int64_t position) const {
    if (order == nullptr) return position;
    const int64_t place = place_of_position(position);
    return order[place] * extent() + position - start(place);
  }
  PYDD_HD int64_t position(int64_t pixel) const {
    if (order == nullptr) return pixel;
    const int64_t strip = smaller(quotient(pixel, extent()), factor - 1);
    int64_t place = 0;
    while (place < factor - 1 && order[place] != strip) ++place;
    return start(place) + pixel - strip * extent();
  }
};

// An image in memory; strides in elements.
struct ImageView {
  const void* data;
  int64_t stride_c, stride_h, stride_w;
  int64_t height, width;
};

struct Box {
  int64_t top, left, height, width;

  PYDD_HD bool inside(const ImageView& image) const {
    return top >= 0 && left >= 0 && height >= 1 && width >= 1 && height <= image.height - top &&
           width <= image.width - left;
  }
};

// What one view is made of: strips of the image, crop and resize, flip, strips of the result.
struct View {
  ImageView image;
  Box box;
  Axis rows, cols;
  Strips image_rows, image_cols;    // before the crop
  Strips result_rows, result_cols;  // after the flip
  bool flip;
  bool valid;  // false: the whole view is NaN
};

}  // namespace pyddfast
