// Where an output pixel of a mosaic comes from.
#pragma once

#include <cstdint>

#include "common/resample_math.h"

namespace pyddfast {

// Tiles along one side: the first size % factor of them are a pixel longer.
struct Tiling {
  int64_t size, factor;

  PYDD_HD int64_t extent(int64_t tile) const { return size / factor + (tile < size % factor); }
  PYDD_HD int64_t start(int64_t tile) const {
    return tile * (size / factor) + smaller(tile, size % factor);
  }
  PYDD_HD int64_t tile(int64_t position) const {
    const int64_t extent = size / factor, longer = size % factor * (extent + 1);
    return position < longer ? position / (extent + 1)
                             : size % factor + (position - longer) / extent;
  }
};

// The source pixel of "nearest" as torch's interpolate finds it, in fp32: pixel i of `to` from one
// of `from`.
PYDD_HD int64_t nearest(int64_t i, int64_t from, int64_t to) {
  if (from == to) return i;
  if (to == 2 * from) return i / 2;
  const float scale = float(from) / float(to);
  return smaller(int64_t(float(i) * scale), from - 1);
}

}  // namespace pyddfast
