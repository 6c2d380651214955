// What an image's row of parameters means, for host and device.
#pragma once

#include <cmath>

#include "common/half.h"
#include "dsa/dsa.h"

namespace pyddfast {

// Where the parameters of image n stand.
PYDD_HD int64_t row_of(const DsaImages& images, int64_t n) { return images.shared ? 0 : n; }

template <class T>
struct Color {
  T brightness, saturation, contrast;
  bool shifts, saturates, contrasts;

  PYDD_HD Color(const DsaColorParams& p, int64_t n)
      : brightness(value(p.brightness, p, n)),
        saturation(value(p.saturation, p, n)),
        contrast(value(p.contrast, p, n)),
        shifts(p.brightness != nullptr),
        saturates(p.saturation != nullptr),
        contrasts(p.contrast != nullptr) {}

  // A value of a pixel whose channels have the mean `pixel`, in an image with the mean `image`,
  // both of the values that come in.  Saturation leaves both means as they are.
  PYDD_HD T operator()(T v, T pixel, T image) const {
    if (shifts) v += brightness;
    if (saturates) {
      const T mean = shifts ? pixel + brightness : pixel;
      v = (v - mean) * saturation + mean;
    }
    if (contrasts) {
      const T mean = shifts ? image + brightness : image;
      v = (v - mean) * contrast + mean;
    }
    return v;
  }

 private:
  PYDD_HD static T value(const void* values, const DsaColorParams& p, int64_t n) {
    return values ? static_cast<const T*>(values)[row_of(p.images, n)] : T(0);
  }
};

// crop, cutout and flip of one image.  (i, j) counts the pixels of the cropped image; in the view
// they stand in row i, column mirrored(j), in the image in row i + down, column j + right.
struct Shift {
  int64_t down, right, top, bottom, left, end;  // cut: rows [top, bottom), columns [left, end)
  int64_t width;
  bool mirror;

  PYDD_HD Shift(const DsaShiftParams& p, int64_t n)
      : down(0), right(0), top(0), bottom(0), left(0), end(0), width(p.images.width) {
    const int64_t row = row_of(p.images, n);
    mirror = p.flip && p.flip[row];
    if (p.crop) {
      down = p.crop[2 * row];
      right = p.crop[2 * row + 1];
    }
    if (p.cutout && p.cut_height > 0 && p.cut_width > 0) {
      span(p.cutout[2 * row], p.cut_height, p.images.height, top, bottom);
      span(p.cutout[2 * row + 1], p.cut_width, width, left, end);
    }
  }

  PYDD_HD int64_t mirrored(int64_t j) const { return mirror ? width - 1 - j : j; }
  PYDD_HD bool cut(int64_t i, int64_t j) const {
    return i >= top && i < bottom && j >= left && j < end;
  }

 private:
  PYDD_HD static int64_t inside(int64_t at, int64_t size) {
    return at < 0 ? 0 : at >= size ? size - 1 : at;
  }
  // The official code moves what leaves the image to its border, which is cut then.
  PYDD_HD static void span(int64_t centre, int64_t length, int64_t size, int64_t& first,
                           int64_t& stop) {
    const int64_t start = centre - length / 2;
    first = inside(start, size);
    stop = inside(start + length - 1, size) + 1;
  }
};

// Pixel (i, j) of a view is sampled at column j + right(i, j) and row i + down(i, j): distances,
// which are small, have small rounding errors, and whole pixels are exact.
template <class T>
struct Warp {
  T xx, xy, yx, yy;  // of the map from centred pixels to distances
  T centre_x, centre_y;

  PYDD_HD Warp(const DsaWarpParams& p, int64_t n)
      : xy(0), yx(0), centre_x(T(p.images.width - 1) / 2), centre_y(T(p.images.height - 1) / 2) {
    const T* const values =
        static_cast<const T*>(p.values) + row_of(p.images, n) * (p.rotate ? 1 : 2);
    if (!p.rotate) {
      xx = values[0] - T(1);
      yy = values[1] - T(1);
      return;
    }
    // Angles are those of a square: normalised coordinates run from -1 to 1 on both axes.
    const T across = T(p.align_corners ? p.images.width - 1 : p.images.width);
    const T along = T(p.align_corners ? p.images.height - 1 : p.images.height);
    const T half = std::sin(values[0] / 2), turn = std::sin(values[0]);
    xx = yy = -2 * half * half;  // cos - 1 without cancellation
    if (along > 0) xy = -turn * across / along;
    if (across > 0) yx = turn * along / across;
  }

  PYDD_HD T right(T i, T j) const { return bounded(xx * (j - centre_x) + xy * (i - centre_y)); }
  PYDD_HD T down(T i, T j) const { return bounded(yx * (j - centre_x) + yy * (i - centre_y)); }

 private:
  // So that a whole number of pixels fits an int; farther than any side, and NaN too.
  PYDD_HD static T bounded(T distance) {
    constexpr T kFar = T(1 << 29);
    distance = distance > -kFar ? distance : -kFar;
    return distance < kFar ? distance : kFar;
  }
};

// Two neighbouring pixels of an axis, -1 to size, and the share of the second: of position
// `at` + `distance`.  Pixels -1 and `size` are 0.
template <class T>
struct Neighbours {
  int first;
  T share;

  PYDD_HD Neighbours(int at, T distance, int size) {
    const T whole = std::floor(distance);
    const int unbounded = at + int(whole);
    first = unbounded < -1 ? -1 : unbounded > size - 1 ? size - 1 : unbounded;
    share = unbounded < -1 ? T(0) : unbounded > size - 1 ? T(1) : distance - whole;
  }
};

}  // namespace pyddfast
