// Crops: a CTA a tile of the padded result.  Images have any sizes, so their descriptions travel
// as kernel arguments, some at a time: no copy to the device, nothing to keep alive.
#include "common/dtypes.h"
#include "common/resample_kernels.h"
#include "patches/multi_crop.h"

namespace pyddfast {
namespace {

constexpr int kImages = 64;  // of one launch: 3 KiB of the 4 KiB that arguments may have

struct CropArgs {
  ImageView images[kImages];
  const int64_t* boxes;  // of the first of these images
  int64_t crops, count, first;
  int64_t channels, size, pad_to, before;
  void* out;
};

template <class Out>
struct WriteCrop {
  Out* image;
  int64_t side, before;

  __device__ __forceinline__ void operator()(int c, int y, int x, float value) const {
    const int64_t row = y + before, col = x + before;
    if (row < side && col < side) {
      image[(c * side + row) * side + col] = from_float<Out>(value);
    }
  }
};

// Three CTAs an SM: what fits into registers without a spill, and hides loads better than two.
template <class In, class Out>
__global__ void __launch_bounds__(kTileX* kTileThreadsY, 3)
    multi_crop_kernel(CropArgs args, ChannelAffine affine, int64_t tiles_x, int64_t tiles) {
  const int64_t i = int64_t(blockIdx.x) / tiles, tile = int64_t(blockIdx.x) % tiles;
  const int64_t image = i / args.crops, crop = i % args.crops;
  const View view = cropped_view(args.images[image], args.boxes + 4 * i, args.size);
  const int64_t plane = (crop * args.count + args.first + image) * args.channels + affine.first;
  Out* const out = static_cast<Out*>(args.out) + plane * args.pad_to * args.pad_to;
  render_tile<In>(view, affine, int(tile % tiles_x), int(tile / tiles_x), int(args.before),
                  WriteCrop<Out>{out, args.pad_to, args.before});
}

template <class In, class Out>
int launch_crops(const MultiCropParams& params, void* stream) {
  const Tiles tiles(params.pad_to, params.pad_to);
  CropArgs args;
  args.crops = params.crops;
  args.count = params.count;
  args.channels = params.channels;
  args.size = params.size;
  args.pad_to = params.pad_to;
  args.before = padding_before(params);
  args.out = params.out;
  simt::LaunchConfig config;
  config.block = dim3(kTileX, kTileThreadsY);
  config.stream = stream;
  for (int64_t first = 0; first < params.count; first += kImages) {
    const int64_t count = smaller<int64_t>(kImages, params.count - first);
    for (int64_t i = 0; i < count; ++i) args.images[i] = params.images[first + i];
    args.boxes = params.boxes + 4 * first * params.crops;
    args.first = first;
    const int64_t ctas = count * params.crops * tiles.count();
    if (ctas > INT_MAX) return kInvalidValue;
    config.grid = dim3(static_cast<unsigned>(ctas));
    for (int64_t c = 0; c < params.channels; c += kMaxChannels) {
      const ChannelAffine affine = channel_affine(params.scale, params.shift, c, params.channels);
      const int error =
          simt::launch(multi_crop_kernel<In, Out>, config, args, affine, tiles.x, tiles.count());
      if (error) return error;
    }
  }
  return 0;
}

template <class In>
int launch_crops_of(const MultiCropParams& params, void* stream) {
  return with_device_dtype(params.out_dtype,
                           [&]<class S>() { return launch_crops<In, S>(params, stream); });
}

}  // namespace

int multi_crop_cuda(const MultiCropParams& params, void* stream) {
  switch (params.pixel_type) {
    case PixelType::kUInt8:
      return launch_crops_of<uint8_t>(params, stream);
    case PixelType::kFloat32:
      return launch_crops_of<float>(params, stream);
    case PixelType::kFloat16:
      return launch_crops_of<Half>(params, stream);
    case PixelType::kBFloat16:
      return launch_crops_of<BFloat16>(params, stream);
    default:
      return kInvalidValue;
  }
}

}  // namespace pyddfast
