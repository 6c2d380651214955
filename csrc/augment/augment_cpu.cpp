#include <limits>

#include "augment/augment.h"
#include "common/resample_cpu.h"

namespace pyddfast {
namespace {

template <class T>
PYDD_HD void augment_images(const AugmentParams& params, int64_t begin, int64_t end) {
  Resampler<T> resampler(params.channels, PixelType::kUInt8);
  const int64_t height = params.out_height, width = params.out_width;
  for (int64_t b = begin; b < end; ++b) {
    const Plane out{element(params.out, params.out_dtype, b * params.out_stride_n),
                    params.out_dtype, params.out_stride_c, params.out_stride_h,
                    params.out_stride_w};
    // The own view: above and below the mixed box, and on its sides; then the partner's inside.
    Rect mixed{height, height, width, width};
    if (params.partner) {
      const int64_t* const box = params.mix_box;
      mixed.top = smaller(larger<int64_t>(0, box[0]), height);
      mixed.left = smaller(larger<int64_t>(0, box[1]), width);
      mixed.bottom = larger(mixed.top, smaller(box[2], height));
      mixed.right = larger(mixed.left, smaller(box[3], width));
    }
    const Rect rects[] = {{0, mixed.top, 0, width},
                          {mixed.bottom, height, 0, width},
                          {mixed.top, mixed.bottom, 0, mixed.left},
                          {mixed.top, mixed.bottom, mixed.right, width},
                          mixed};
    for (const Rect& rect : rects) {
      const int64_t sample = &rect == &rects[4] && params.partner ? params.partner[b] : b;
      const bool known = sample >= 0 && sample < params.batch;
      const View view = augmented_view(params, known ? sample : 0);
      if (known && view.valid) {
        resampler.render(view, rect, params.scale, params.shift, out);
      } else {
        resampler.fill(rect, out, std::numeric_limits<T>::quiet_NaN());
      }
    }
  }
}

PYDD_CPU_CLONES void augment_f32(const AugmentParams& params, int64_t begin, int64_t end) {
  augment_images<float>(params, begin, end);
}

PYDD_CPU_CLONES void augment_f64(const AugmentParams& params, int64_t begin, int64_t end) {
  augment_images<double>(params, begin, end);
}

}  // namespace

void augment_cpu(const AugmentParams& params, int64_t begin, int64_t end) {
  if (params.out_dtype == DType::kFloat64) {
    augment_f64(params, begin, end);
  } else {
    augment_f32(params, begin, end);
  }
}

}  // namespace pyddfast
