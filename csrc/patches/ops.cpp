// The operators of the patches family: schemas, allocation, dispatch.
#include <algorithm>
#include <vector>

#include "common/resample_ops.h"
#include "patches/mosaic.h"
#include "patches/multi_crop.h"

namespace pyddfast {
namespace {

PixelType pixel_type_of(const Tensor& image) {
  switch (image.scalar_type()) {
    case ScalarType::Byte:
      return PixelType::kUInt8;
    case ScalarType::Float:
      return PixelType::kFloat32;
    case ScalarType::Half:
      return PixelType::kFloat16;
    case ScalarType::BFloat16:
      return PixelType::kBFloat16;
    case ScalarType::Double:
      return PixelType::kFloat64;
    default:
      STD_TORCH_CHECK(false, "pyddfast: images are uint8 or floating point");
  }
}

// The images of one (N, C, H, W) tensor, or of a list of (C, H, W).
std::vector<ImageView> image_views(const std::vector<Tensor>& images, int64_t channels) {
  std::vector<ImageView> views;
  for (const Tensor& tensor : images) {
    const int64_t dim = tensor.dim();
    STD_TORCH_CHECK((dim == 3 || (dim == 4 && images.size() == 1)) &&
                        tensor.size(dim - 3) == channels &&
                        tensor.scalar_type() == images[0].scalar_type(),
                    "pyddfast: images are (C, H, W) of one dtype");
    STD_TORCH_CHECK(std::max(tensor.size(dim - 2), tensor.size(dim - 1)) <= kMaxSide,
                    "pyddfast: images are too large");
    const int64_t count = dim == 4 ? tensor.size(0) : 1, step = dim == 4 ? tensor.stride(0) : 0;
    const char* const data = static_cast<const char*>(tensor.const_data_ptr());
    for (int64_t i = 0; i < count; ++i) {
      views.push_back({data + i * step * int64_t(tensor.element_size()), tensor.stride(dim - 3),
                       tensor.stride(dim - 2), tensor.stride(dim - 1), int(tensor.size(dim - 2)),
                       int(tensor.size(dim - 1))});
    }
  }
  return views;
}

template <bool kCuda>
Tensor multi_crop(std::vector<Tensor> images, const Tensor& boxes_, int64_t size, int64_t pad_to,
                  std::vector<double> mean, std::vector<double> std, ScalarType dtype) {
  STD_TORCH_CHECK(!images.empty() && mean.size() == std.size() && !mean.empty(),
                  "pyddfast: images, and one mean and std a channel, are needed");
  STD_TORCH_CHECK(size >= 1 && size <= pad_to && pad_to <= kMaxSide,
                  "pyddfast: 1 <= size <= pad_to");
  const Tensor boxes = torch::stable::contiguous(boxes_);
  const auto channels = int64_t(mean.size());
  const std::vector<ImageView> views = image_views(images, channels);
  const auto count = int64_t(views.size());
  STD_TORCH_CHECK(boxes.dim() == 3 && boxes.size(0) == count && boxes.size(2) == 4 &&
                      boxes.scalar_type() == ScalarType::Long,
                  "pyddfast: boxes are int64 (N, m, 4)");
  MultiCropParams params{};
  params.crops = boxes.size(1);
  const Tensor out = new_tensor(images[0], {params.crops, count, channels, pad_to, pad_to}, dtype);
  if (out.numel() == 0) return out;
  params.images = views.data();
  params.pixel_type = pixel_type_of(images[0]);
  params.count = count;
  params.channels = channels;
  params.boxes = boxes.const_data_ptr<int64_t>();
  const Affine affine =
      normalization(mean, std, params.pixel_type == PixelType::kUInt8 ? 255.0 : 1.0);
  params.scale = affine.scale.data();
  params.shift = affine.shift.data();
  params.out = out.mutable_data_ptr();
  params.out_dtype = dtype_of(out);
  params.size = size;
  params.pad_to = pad_to;
  if constexpr (kCuda) {
    launch(multi_crop_cuda, params, images[0]);
  } else {
    torch::stable::parallel_for(0, count * params.crops, 1, [&](int64_t begin, int64_t end) {
      multi_crop_cpu(params, begin, end);
    });
  }
  return out;
}

template <bool kCuda>
Tensor mosaic(const Tensor& patches, int64_t size, int64_t factor, bool bilinear,
              std::vector<double> mean, std::vector<double> std, int64_t quantize) {
  STD_TORCH_CHECK(patches.dim() == 4 && factor >= 1 && factor <= size &&
                      patches.size(0) % (factor * factor) == 0 && patches.size(2) >= 1 &&
                      patches.size(3) >= 1 &&
                      std::max({size, patches.size(2), patches.size(3)}) <= kMaxSide,
                  "pyddfast: patches are (n * factor^2, C, h, w)");
  STD_TORCH_CHECK(
      mean.size() == std.size() && (mean.empty() || int64_t(mean.size()) == patches.size(1)),
      "pyddfast: one mean and std a channel");
  MosaicParams params{};
  params.patches = patches.const_data_ptr();
  params.dtype = dtype_of(patches);
  params.stride_k = patches.stride(0);
  params.stride_c = patches.stride(1);
  params.stride_h = patches.stride(2);
  params.stride_w = patches.stride(3);
  params.images = patches.size(0) / (factor * factor);
  params.channels = patches.size(1);
  params.height = patches.size(2);
  params.width = patches.size(3);
  params.size = size;
  params.factor = factor;
  params.bilinear = bilinear;
  params.mean = mean.empty() ? nullptr : mean.data();
  params.std = std.empty() ? nullptr : std.data();
  params.quantize = Quantize(quantize);
  const Tensor out =
      new_tensor(patches, {params.images, params.channels, size, size},
                 params.quantize == Quantize::kNone ? patches.scalar_type() : ScalarType::Byte);
  if (out.numel() == 0) return out;
  params.out = out.mutable_data_ptr();
  if constexpr (kCuda) {
    launch(mosaic_cuda, params, patches);
  } else {
    torch::stable::parallel_for(
        0, params.images * params.channels * size, grain_of(size),
        [&](int64_t begin, int64_t end) { mosaic_cpu(params, begin, end); });
  }
  return out;
}

template <bool kCuda>
void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("multi_crop", TORCH_BOX(&multi_crop<kCuda>));
  m.impl("mosaic", TORCH_BOX(&mosaic<kCuda>));
}

}  // namespace
}  // namespace pyddfast

// quantize: 0 none, 1 round, 2 truncate.  No mean and std: the patches' values are kept.
STABLE_TORCH_LIBRARY_FRAGMENT(PYDDFAST_NAMESPACE, m) {
  m.def(
      "multi_crop(Tensor[] images, Tensor boxes, int size, int pad_to, float[] mean, float[] std,"
      " ScalarType dtype) -> Tensor");
  m.def(
      "mosaic(Tensor patches, int size, int factor, bool bilinear, float[] mean, float[] std,"
      " int quantize) -> Tensor");
}

PYDDFAST_IMPLEMENT(pyddfast::register_kernels)
