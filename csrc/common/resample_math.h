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

// a / b rounded down, a >= 0, b > 0.  64-bit division is slow on GPUs and rarely needed.
PYDD_HD int quotient(int64_t a, int b) {
  return uint64_t(a) <= 0xffffffffu ? int(uint32_t(a) / uint32_t(b)) : int(a / b);
}

template <class T>
PYDD_HD T smaller(T a, T b) {
  return a < b ? a : b;
}
template <class T>
PYDD_HD T larger(T a, T b) {
  return a < b ? b : a;
}

// Sides of images and results: 32 bits then hold what a window needs (at most 4 times as much).
constexpr int64_t kMaxSide = int64_t(1) << 28;

// The source pixels [first, last) of one output pixel, from the crop's start.
struct Window {
  int first, last;
  int offset;  // (2 first + 1) S - c
  int reach;   // 2 M
  int step;    // 2 S

  // Proportional to the weight of pixel p, at most a window's length away.
  PYDD_HD int weight(int p) const {
    const int distance = offset + (p - first) * step;
    return larger(0, reach - (distance < 0 ? -distance : distance));
  }
  PYDD_HD int64_t total() const {
    int64_t sum = 0;
    for (int p = first; p < last; ++p) sum += weight(p);
    return sum;
  }
};

struct Axis {
  int length, size;  // L, S
  bool antialias;

  PYDD_HD int reach() const { return 2 * (antialias ? larger(length, size) : size); }

  // Pixels that no window exceeds.
  PYDD_HD int taps() const {
    return length == size ? 1 : smaller(length, (reach() + size - 1) / size);
  }

  PYDD_HD Window window(int i) const {
    Window window;
    window.reach = reach();
    window.step = 2 * size;
    if (length == size) {  // the neighbours' weights are 0
      window.first = i;
      window.last = i + 1;
      window.offset = 0;
      return window;
    }
    int64_t point = (2 * int64_t(i) + 1) * length;
    if (!antialias) {
      point = larger<int64_t>(size, smaller(point, (2 * int64_t(length) - 1) * size));
    }
    window.first = quotient(larger<int64_t>(0, point - window.reach + size), window.step);
    window.last = smaller(length, quotient(point + window.reach + size, window.step));
    window.offset = int((2 * int64_t(window.first) + 1) * size - point);
    return window;
  }
};

// The other way round: the results [first, last) whose windows hold a pixel of the crop, on an
// antialiased axis (which one that enlarges always may be).
struct Span {
  int first, last;
};

PYDD_HD Span results_of(const Axis& axis, int pixel) {
  // |(2 pixel + 1) S - (2 i + 1) L| < reach
  const int64_t centre = (2 * int64_t(pixel) + 1) * axis.size - axis.length;
  const int64_t low = centre - axis.reach(), high = centre + axis.reach();
  const int step = 2 * axis.length;
  return {low < 0 ? 0 : quotient(low, step) + 1,
          smaller(axis.size, quotient(high + step - 1, step))};
}

// What result i of an axis takes of a pixel: weight_of / axis.window(i).total().
PYDD_HD int64_t weight_of(const Axis& axis, int i, int pixel) {
  const int64_t distance =
      (2 * int64_t(pixel) + 1) * axis.size - (2 * int64_t(i) + 1) * axis.length;
  return larger<int64_t>(0, axis.reach() - (distance < 0 ? -distance : distance));
}

// PatchShuffle of one axis: `side` pixels cut into `factor` strips of side / factor, the last one
// with the remainder; strip order[k] stands at place k.
struct Strips {
  const int64_t* order;  // null: nothing is moved
  int factor, extent, rest;
  int long_place;  // where the last strip stands; -1 if `order` is not valid

  PYDD_HD Strips(const int64_t* order_, int factor_, int side)
      : order(order_), factor(factor_), extent(side), rest(0), long_place(-1) {
    if (order == nullptr) return;
    extent = side / factor;
    rest = side - factor * extent;
    bool inside = true;
    for (int k = 0; k < factor; ++k) {
      inside = inside && order[k] >= 0 && order[k] < factor;
      if (order[k] == factor - 1) long_place = k;
    }
    if (!inside) long_place = -1;
  }

  PYDD_HD bool valid() const { return order == nullptr || long_place >= 0; }
  PYDD_HD int start(int place) const { return place * extent + (place > long_place ? rest : 0); }
  PYDD_HD int end(int place) const {
    return start(place) + extent + (place == long_place ? rest : 0);
  }
  PYDD_HD int place_of_position(int position) const {
    if (position < start(long_place)) return position / extent;
    return position < end(long_place) ? long_place : (position - rest) / extent;
  }
  // The pixel that stands at `position`, and where a pixel stands.
  PYDD_HD int source(int position) const {
    if (order == nullptr) return position;
    const int place = place_of_position(position);
    return int(order[place]) * extent + position - start(place);
  }
  PYDD_HD int position(int pixel) const {
    if (order == nullptr) return pixel;
    const int strip = smaller(pixel / extent, factor - 1);
    int place = 0;
    while (place < factor - 1 && order[place] != strip) ++place;
    return start(place) + pixel - strip * extent;
  }
};

// An image in memory; strides in elements.
struct ImageView {
  const void* data;
  int64_t stride_c, stride_h, stride_w;
  int height, width;
};

// As given: any values.
struct Box {
  int64_t top, left, height, width;

  PYDD_HD bool inside(const ImageView& image) const {
    return top >= 0 && left >= 0 && height >= 1 && width >= 1 && top <= image.height &&
           left <= image.width && height <= image.height - top && width <= image.width - left;
  }
};

// What one view is made of: strips of the image, crop and resize, flip, strips of the result.
struct View {
  ImageView image;
  int top, left;                    // of the crop
  Axis rows, cols;                  // its resize
  Strips image_rows, image_cols;    // before the crop
  Strips result_rows, result_cols;  // after the flip
  bool flip;
  bool valid;  // false: the whole view is NaN
};

}  // namespace pyddfast
