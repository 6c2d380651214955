// Mosaics: a thread an output pixel.
#include <climits>

#include "common/dtypes.h"
#include "common/half.h"
#include "common/simt.h"
#include "patches/mosaic.h"
#include "patches/mosaic_math.h"

namespace pyddfast {
namespace {

constexpr int kBlockX = 32, kBlockY = 8;  // a warp writes one run of a row
constexpr int kMaxChannels = 16;          // of one launch: factors travel as kernel arguments

struct ChannelFactors {
  int64_t first;
  int count;
  float mean[kMaxChannels], std[kMaxChannels];
};

// One axis: the source pixel, the next one and its share.
struct Point {
  int64_t here, next;
  float share;
};

__device__ __forceinline__ Point point(int64_t i, int64_t from, int64_t to, bool bilinear) {
  if (!bilinear) {
    const int64_t source = nearest(i, from, to);
    return {source, source, 0.0f};
  }
  const Window window = Axis{int(from), int(to), false}.window(int(i));
  if (window.last - window.first < 2) return {window.first, window.first, 0.0f};
  const float share = float(window.weight(window.first + 1)) / float(window.total());
  return {window.first, window.first + 1, share};
}

template <class S, class Out>
__global__ void __launch_bounds__(kBlockX* kBlockY)
    mosaic_kernel(MosaicParams p, ChannelFactors factors, int64_t tiles_x, int64_t tiles) {
  const int64_t unit = int64_t(blockIdx.x) / tiles, tile = int64_t(blockIdx.x) % tiles;
  const int64_t image = unit / factors.count;
  const int local = int(unit % factors.count);
  const int64_t c = factors.first + local;
  const int64_t x = tile % tiles_x * kBlockX + int(threadIdx.x);
  const int64_t y = tile / tiles_x * kBlockY + int(threadIdx.y);
  if (x >= p.size || y >= p.size) return;
  const Tiling tiling{p.size, p.factor};
  const int64_t tile_x = tiling.tile(x), tile_y = tiling.tile(y);
  const Point col = point(x - tiling.start(tile_x), p.width, tiling.extent(tile_x), p.bilinear);
  const Point row = point(y - tiling.start(tile_y), p.height, tiling.extent(tile_y), p.bilinear);
  const int64_t rank = (tile_y * p.factor + tile_x) * p.images + image;
  const S* const plane = static_cast<const S*>(p.patches) + rank * p.stride_k + c * p.stride_c;
  const S* const first = plane + row.here * p.stride_h;
  float value = to_float(first[col.here * p.stride_w]);
  if (p.bilinear) {
    const S* const second = plane + row.next * p.stride_h;
    const float top =
        (1.0f - col.share) * value + col.share * to_float(first[col.next * p.stride_w]);
    const float bottom = (1.0f - col.share) * to_float(second[col.here * p.stride_w]) +
                         col.share * to_float(second[col.next * p.stride_w]);
    value = (1.0f - row.share) * top + row.share * bottom;
  }
  // Rounded one by one, as in torch, so that bytes that are cut off agree.
  if (p.std) value = __fadd_rn(__fmul_rn(value, factors.std[local]), factors.mean[local]);
  Out* const out = static_cast<Out*>(p.out) + ((image * p.channels + c) * p.size + y) * p.size + x;
  if constexpr (sizeof(Out) == 1) {
    const float scaled = __fmul_rn(value, 255.0f);
    const float kept = scaled > 0.0f ? (scaled < 255.0f ? scaled : 255.0f) : 0.0f;
    *out = Out(int(p.quantize == Quantize::kRound ? rintf(kept) : kept));
  } else {
    *out = from_float<Out>(value);
  }
}

template <class S, class Out>
int launch_mosaic(const MosaicParams& params, void* stream) {
  const int64_t tiles_x = (params.size + kBlockX - 1) / kBlockX;
  const int64_t tiles = tiles_x * ((params.size + kBlockY - 1) / kBlockY);
  simt::LaunchConfig config;
  config.block = dim3(kBlockX, kBlockY);
  config.stream = stream;
  for (int64_t c = 0; c < params.channels; c += kMaxChannels) {
    ChannelFactors factors{};
    factors.first = c;
    factors.count = int(smaller<int64_t>(kMaxChannels, params.channels - c));
    for (int i = 0; params.std && i < factors.count; ++i) {
      factors.mean[i] = float(params.mean[c + i]);
      factors.std[i] = float(params.std[c + i]);
    }
    const int64_t ctas = params.images * factors.count * tiles;
    if (ctas > INT_MAX) return kInvalidValue;
    config.grid = dim3(static_cast<unsigned>(ctas));
    const int error = simt::launch(mosaic_kernel<S, Out>, config, params, factors, tiles_x, tiles);
    if (error) return error;
  }
  return 0;
}

template <class S>
int launch_mosaic_of(const MosaicParams& params, void* stream) {
  return params.quantize == Quantize::kNone ? launch_mosaic<S, S>(params, stream)
                                            : launch_mosaic<S, uint8_t>(params, stream);
}

}  // namespace

int mosaic_cuda(const MosaicParams& params, void* stream) {
  return with_device_dtype(params.dtype,
                           [&]<class S>() { return launch_mosaic_of<S>(params, stream); });
}

}  // namespace pyddfast
