// A CTA a tile of an image's view, or, for the adjoint, of an image's gradient.  Both ways a pixel
// gathers what belongs to it, in a fixed order: no atomics, the same bits every time.
#include "common/dtypes.h"
#include "common/resample_kernels.h"
#include "synthesis/crop_flip_roll.h"

namespace pyddfast {
namespace {

template <class S>
__device__ __forceinline__ const S* image_of(const CropFlipRollParams& params, int64_t n) {
  return static_cast<const S*>(params.in) + n * params.stride_n;
}

template <class S>
struct WriteRolled {
  const RolledView& rolled;
  S* image;

  __device__ __forceinline__ void operator()(int c, int y, int x, float value) const {
    const int64_t height = rolled.view.rows.size, width = rolled.view.cols.size;
    if (y < height && x < width) {
      image[(c * height + rolled.row(y)) * width + rolled.column(x)] = from_float<S>(value);
    }
  }
};

// Three CTAs an SM, as multi_crop_kernel.
template <class S>
__global__ void __launch_bounds__(kTileX* kTileThreadsY, 3)
    roll_kernel(CropFlipRollParams params, ChannelAffine same, int64_t tiles_x, int64_t tiles) {
  const int64_t n = int64_t(blockIdx.x) / tiles, tile = int64_t(blockIdx.x) % tiles;
  const RolledView rolled(params, image_of<S>(params, n));
  const int64_t first = (n * params.channels + same.first) * params.out_height * params.out_width;
  render_tile<S>(rolled.view, same, int(tile % tiles_x), int(tile / tiles_x), 0,
                 WriteRolled<S>{rolled, static_cast<S*>(params.out) + first});
}

// render_tile, transposed: rows of the views' gradient are gathered horizontally into shared
// memory, some at a time, and from there vertically.
template <class S>
__global__ void __launch_bounds__(kTileX* kTileThreadsY)
    adjoint_kernel(CropFlipRollParams params, int64_t tiles_x, int64_t tiles) {
  constexpr int kOwnRows = kStripRows / kTileThreadsY;              // of a strip, a thread's
  __shared__ float strip[kStripRows][kTileX], inverse[kStripRows];  // of the rows' totals
  const int64_t n = int64_t(blockIdx.x) / tiles, tile = int64_t(blockIdx.x) % tiles;
  const RolledView rolled(params, nullptr);
  const View& view = rolled.view;
  const int tx = int(threadIdx.x), ty = int(threadIdx.y);
  const int left = int(tile % tiles_x) * kTileX, top = int(tile / tiles_x) * kTileY;
  const int x = left + tx - view.left, y0 = top - view.top;  // in the crop
  Span across{}, down[kTileRows] = {};
  int first = 0, last = 0;  // rows of the resized crop that the tile needs
  if (view.valid) {
    if (x >= 0 && x < view.cols.length) across = results_of(view.cols, x);
    const int low = larger(y0, 0), high = smaller(y0 + kTileY, view.rows.length) - 1;
    if (low <= high) {
      first = results_of(view.rows, low).first;
      last = results_of(view.rows, high).last;
    }
#pragma unroll
    for (int k = 0; k < kTileRows; ++k) {
      const int y = y0 + ty + k * kTileThreadsY;
      if (y >= 0 && y < view.rows.length) down[k] = results_of(view.rows, y);
    }
  }
  for (int64_t c = 0; c < params.channels; ++c) {
    const S* const gradient = image_of<S>(params, n) + c * params.stride_c;
    float sum[kTileRows] = {};
    for (int start = first; start < last; start += kStripRows) {
      const int stop = smaller(last, start + kStripRows);
      const int counted = start + ty * kTileX + tx;
      if (counted < stop) {
        inverse[counted - start] = 1.0f / float(view.rows.window(counted).total());
      }
      float part[kOwnRows] = {};
      for (int j = across.first; j < across.last; ++j) {
        const float share = float(weight_of(view.cols, j, x)) / float(view.cols.window(j).total());
        const S* const column = gradient + rolled.column(j) * params.stride_w;
#pragma unroll
        for (int r = 0; r < kOwnRows; ++r) {
          const int i = start + ty + r * kTileThreadsY;
          if (i < stop) part[r] += share * to_float(column[rolled.row(i) * params.stride_h]);
        }
      }
#pragma unroll
      for (int r = 0; r < kOwnRows; ++r) strip[ty + r * kTileThreadsY][tx] = part[r];
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kTileRows; ++k) {
        const int y = y0 + ty + k * kTileThreadsY;
        const int end = smaller(stop, down[k].last);
        for (int i = larger(start, down[k].first); i < end; ++i) {
          sum[k] += float(weight_of(view.rows, i, y)) * inverse[i - start] * strip[i - start][tx];
        }
      }
      __syncthreads();
    }
    S* const image =
        static_cast<S*>(params.out) + (n * params.channels + c) * params.height * params.width;
#pragma unroll
    for (int k = 0; k < kTileRows; ++k) {
      const int row = top + ty + k * kTileThreadsY;
      if (row < params.height && left + tx < params.width) {
        image[row * params.width + left + tx] =
            from_float<S>(view.valid ? sum[k] : __builtin_nanf(""));
      }
    }
  }
}

template <class S>
int run(const CropFlipRollParams& params, void* stream) {
  const Tiles tiles = params.adjoint ? Tiles(params.height, params.width)
                                     : Tiles(params.out_height, params.out_width);
  const int64_t ctas = params.count * tiles.count();
  if (ctas > INT_MAX) return kInvalidValue;
  simt::LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(ctas));
  config.block = dim3(kTileX, kTileThreadsY);
  config.stream = stream;
  if (params.adjoint)
    return simt::launch(adjoint_kernel<S>, config, params, tiles.x, tiles.count());
  for (int64_t c = 0; c < params.channels; c += kMaxChannels) {
    ChannelAffine same{};
    same.first = c;
    same.count = int(smaller<int64_t>(kMaxChannels, params.channels - c));
    for (float& scale : same.scale) scale = 1.0f;
    const int error = simt::launch(roll_kernel<S>, config, params, same, tiles.x, tiles.count());
    if (error) return error;
  }
  return 0;
}

}  // namespace

int crop_flip_roll_cuda(const CropFlipRollParams& params, void* stream) {
  return with_device_dtype(params.dtype, [&]<class S>() { return run<S>(params, stream); });
}

}  // namespace pyddfast
