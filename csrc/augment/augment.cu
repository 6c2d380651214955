// Training views: a CTA a tile.  With CutMix a second one renders the same tile of the partner's
// view; each writes the pixels on its side of the mixed box, and one that has none ends at once.
#include "augment/augment.h"
#include "common/dtypes.h"
#include "common/resample_kernels.h"

namespace pyddfast {
namespace {

template <class Out>
struct WriteView {
  const AugmentParams& p;
  const View& view;
  Out* image;
  int64_t y0, x0, y1, x1;  // the mixed box
  bool partner;            // write inside of it, else outside

  __device__ __forceinline__ void operator()(int c, int y, int x, float value) const {
    if (y >= view.rows.size || x >= view.cols.size) return;
    const int row = view.result_rows.position(y);
    const int col = view.result_cols.position(view.flip ? view.cols.size - 1 - x : x);
    const bool inside = row >= y0 && row < y1 && col >= x0 && col < x1;
    if (inside != partner) return;
    image[c * p.out_stride_c + row * p.out_stride_h + col * p.out_stride_w] =
        from_float<Out>(value);
  }
};

template <class Out>
__global__ void __launch_bounds__(kTileX* kTileThreadsY)
    augment_kernel(AugmentParams p, ChannelAffine affine, int64_t tiles_x, int64_t tiles) {
  const bool mixes = p.partner != nullptr;
  const int64_t unit = int64_t(blockIdx.x) / tiles, tile = int64_t(blockIdx.x) % tiles;
  const int64_t b = mixes ? unit / 2 : unit;
  const bool partner = mixes && unit % 2 == 1;
  const int64_t sample = partner ? p.partner[b] : b;
  const bool known = sample >= 0 && sample < p.batch;
  View view = augmented_view(p, known ? sample : 0);
  view.valid = view.valid && known;
  if (!view.valid) {  // NaN everywhere; the strips may not be used
    view.result_rows.order = nullptr;
    view.result_cols.order = nullptr;
  }
  const int tile_y = int(tile / tiles_x), tile_x = int(tile % tiles_x);
  int64_t y0 = 0, x0 = 0, y1 = 0, x1 = 0;
  if (mixes) {
    y0 = p.mix_box[0];
    x0 = p.mix_box[1];
    y1 = p.mix_box[2];
    x1 = p.mix_box[3];
    if (view.result_rows.order == nullptr) {  // the tile is a rectangle of the result
      const int top = tile_y * kTileY, left = tile_x * kTileX;
      const int bottom = smaller(top + kTileY, view.rows.size);
      const int right = smaller(left + kTileX, view.cols.size);
      const int from = view.flip ? view.cols.size - right : left;
      const int to = view.flip ? view.cols.size - left : right;
      const bool apart =
          bottom <= y0 || top >= y1 || to <= x0 || from >= x1 || y0 >= y1 || x0 >= x1;
      const bool within = top >= y0 && bottom <= y1 && from >= x0 && to <= x1;
      if (partner ? apart : within) return;
    }
  }
  Out* const image = static_cast<Out*>(p.out) + b * p.out_stride_n + affine.first * p.out_stride_c;
  const WriteView<Out> write{p, view, image, y0, x0, y1, x1, partner};
  render_tile<uint8_t>(view, affine, tile_x, tile_y, 0, write);
}

template <class Out>
int launch_augment(const AugmentParams& params, void* stream) {
  const Tiles tiles(params.out_height, params.out_width);
  const int64_t ctas = params.batch * (params.partner ? 2 : 1) * tiles.count();
  if (ctas > INT_MAX) return kInvalidValue;
  simt::LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(ctas));
  config.block = dim3(kTileX, kTileThreadsY);
  config.stream = stream;
  for (int64_t c = 0; c < params.channels; c += kMaxChannels) {
    const ChannelAffine affine = channel_affine(params.scale, params.shift, c, params.channels);
    const int error =
        simt::launch(augment_kernel<Out>, config, params, affine, tiles.x, tiles.count());
    if (error) return error;
  }
  return 0;
}

}  // namespace

int augment_cuda(const AugmentParams& params, void* stream) {
  return with_device_dtype(params.out_dtype,
                           [&]<class S>() { return launch_augment<S>(params, stream); });
}

}  // namespace pyddfast
