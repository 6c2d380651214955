#include <algorithm>
#include <limits>

#include "common/resample_cpu.h"
#include "patches/multi_crop.h"

namespace pyddfast {
namespace {

template <class T>
PYDD_HD void crop_images(const MultiCropParams& params, int64_t begin, int64_t end) {
  Resampler<T> resampler(params.channels, params.pixel_type);
  const int64_t side = params.pad_to, plane = side * side, before = padding_before(params);
  const Rect all{0, params.size, 0, params.size};
  for (int64_t i = begin; i < end; ++i) {
    const int64_t image = i / params.crops, crop = i % params.crops;
    const int64_t first = (crop * params.count + image) * params.channels * plane;
    if (params.size < side) {  // zero has the same bits in every type
      char* const bytes = static_cast<char*>(element(params.out, params.out_dtype, first));
      std::fill_n(bytes, params.channels * plane * element_size(params.out_dtype), char(0));
    }
    const Plane out{element(params.out, params.out_dtype, first + before * (side + 1)),
                    params.out_dtype, plane, side, 1};
    const View view = cropped_view(params.images[image], params.boxes + 4 * i, params.size);
    if (view.valid) {
      resampler.render(view, all, params.scale, params.shift, out);
    } else {
      resampler.fill(all, out, std::numeric_limits<T>::quiet_NaN());
    }
  }
}

PYDD_CPU_CLONES void crop_f32(const MultiCropParams& params, int64_t begin, int64_t end) {
  crop_images<float>(params, begin, end);
}

PYDD_CPU_CLONES void crop_f64(const MultiCropParams& params, int64_t begin, int64_t end) {
  crop_images<double>(params, begin, end);
}

}  // namespace

void multi_crop_cpu(const MultiCropParams& params, int64_t begin, int64_t end) {
  if (params.out_dtype == DType::kFloat64) {
    crop_f64(params, begin, end);
  } else {
    crop_f32(params, begin, end);
  }
}

}  // namespace pyddfast
