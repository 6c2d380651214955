// Crop, resize, flip and strips on CUDA: one CTA a tile of one view.
//
// A tile is laid out over the resized crop, before flip and strips, so that it needs one run of
// source rows; where its pixels end up is looked up when they are written.  The source rows are
// resampled horizontally into shared memory, some at a time, and from there vertically: a shrunk
// crop costs its two filter widths added, not multiplied.
#pragma once

#include <climits>

#include "common/half.h"
#include "common/resample_math.h"
#include "common/simt.h"

namespace pyddfast {

constexpr int kTileX = 32;        // a warp writes 128 B of an fp32 row
constexpr int kTileThreadsY = 8;  // 256 threads
constexpr int kTileRows = 2;      // output rows a thread: 16 a tile need at most 17 source rows
constexpr int kTileY = kTileThreadsY * kTileRows;  // where a crop is enlarged
constexpr int kStripRows = 32;                     // source rows in shared memory: 4 KiB
constexpr int kMaxChannels = 16;  // of one launch: factors travel as kernel arguments

struct ChannelAffine {
  int64_t first;  // channel of the image
  int count;
  float scale[kMaxChannels], shift[kMaxChannels];
};

inline ChannelAffine channel_affine(const double* scale, const double* shift, int64_t first,
                                    int64_t channels) {
  ChannelAffine affine{};
  affine.first = first;
  affine.count = int(smaller<int64_t>(kMaxChannels, channels - first));
  for (int c = 0; c < affine.count; ++c) {
    affine.scale[c] = float(scale[first + c]);
    affine.shift[c] = float(shift[first + c]);
  }
  return affine;
}

// Tiles of a plane.
struct Tiles {
  int64_t x, y;
  Tiles(int64_t height, int64_t width)
      : x((width + kTileX - 1) / kTileX), y((height + kTileY - 1) / kTileY) {}
  int64_t count() const { return x * y; }
};

// A pixel of the window sum at `p`, relative weight included.
template <class In>
__device__ __forceinline__ float resample_across(const View& view, const Window& window,
                                                 const In* row, float inverse) {
  float sum = 0.0f;
  for (int p = window.first; p < window.last; ++p) {
    const int64_t column = view.image_cols.source(view.left + p);
    sum += float(window.weight(p)) * to_float(row[column * view.image.stride_w]);
  }
  return sum * inverse;
}

// Renders tile (tile_x, tile_y) of `view`; the first one starts `margin` pixels before the resized
// crop.  `write(c, y, x, value)` gets every pixel of the tile, for channels 0 .. affine.count - 1;
// those beside the crop, y or x negative or beyond its size, are 0.  All threads of the CTA take
// part.
template <class In, class Write>
__device__ __forceinline__ void render_tile(const View& view, const ChannelAffine& affine,
                                            int tile_x, int tile_y, int margin,
                                            const Write& write) {
  __shared__ float strip[kStripRows][kTileX];
  const int tx = int(threadIdx.x), ty = int(threadIdx.y);
  const int x = tile_x * kTileX + tx - margin;
  const int y0 = tile_y * kTileY - margin;
  const bool x_inside = x >= 0 && x < view.cols.size;
  Window across{}, down[kTileRows] = {};
  float across_inverse = 0.0f, down_inverse[kTileRows];
  bool inside[kTileRows];
  int first = 0, last = 0;  // source rows of the tile
  if (view.valid) {
    if (x_inside) {
      across = view.cols.window(x);
      across_inverse = 1.0f / float(across.total());
    }
    const int top = larger(y0, 0), bottom = smaller(y0 + kTileY, view.rows.size) - 1;
    if (top <= bottom) {
      first = view.rows.window(top).first;
      last = view.rows.window(bottom).last;
    }
  }
#pragma unroll
  for (int k = 0; k < kTileRows; ++k) {
    const int y = y0 + ty + k * kTileThreadsY;
    inside[k] = x_inside && y >= 0 && y < view.rows.size;
    down_inverse[k] = 0.0f;
    if (view.valid && inside[k]) {
      down[k] = view.rows.window(y);
      down_inverse[k] = 1.0f / float(down[k].total());
    }
  }
  const In* const image = static_cast<const In*>(view.image.data);
  for (int c = 0; c < affine.count; ++c) {
    float sum[kTileRows] = {};
    for (int start = first; start < last; start += kStripRows) {
      const int stop = smaller(last, start + kStripRows);
      for (int p = start + ty; p < stop; p += kTileThreadsY) {
        const In* const row = image + (affine.first + c) * view.image.stride_c +
                              view.image_rows.source(view.top + p) * view.image.stride_h;
        strip[p - start][tx] = resample_across(view, across, row, across_inverse);
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kTileRows; ++k) {
        const int end = smaller(stop, down[k].last);
        for (int p = larger(start, down[k].first); p < end; ++p) {
          sum[k] += float(down[k].weight(p)) * strip[p - start][tx];
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < kTileRows; ++k) {
      const float value = view.valid ? sum[k] * down_inverse[k] * affine.scale[c] + affine.shift[c]
                                     : __builtin_nanf("");
      write(c, y0 + ty + k * kTileThreadsY, x, inside[k] ? value : 0.0f);
    }
  }
}

}  // namespace pyddfast
