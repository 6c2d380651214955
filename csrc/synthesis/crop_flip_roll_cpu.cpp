// What is only rolled is copied.  Forward: the shared resampler, in the up to four parts that a
// roll cuts a view into.  Adjoint: the same two steps transposed, the vertical one first, each a
// sum over what a pixel has contributed to.
#include <algorithm>
#include <limits>
#include <vector>

#include "common/dtypes_cpu.h"
#include "common/resample_cpu.h"
#include "synthesis/crop_flip_roll.h"

namespace pyddfast {
namespace {

PixelType pixel_type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return PixelType::kFloat32;
    case DType::kFloat16:
      return PixelType::kFloat16;
    case DType::kBFloat16:
      return PixelType::kBFloat16;
    case DType::kFloat64:
      break;
  }
  return PixelType::kFloat64;
}

// ---- only rolled -------------------------------------------------------------------------------

// Whether the views are boxes as they are, rolled: the bits of their rows are copied.
bool only_rolled(const CropFlipRollParams& params, const View& view) {
  return view.valid && !view.flip && view.rows.length == view.rows.size &&
         view.cols.length == view.cols.size && params.stride_w == 1;
}

// Of a plane of the result.
void copy_rows(const CropFlipRollParams& params, const RolledView& rolled, int64_t plane) {
  const View& view = rolled.view;
  const int64_t bytes = element_size(params.dtype), width = view.cols.size;
  const int64_t n = plane / params.channels, c = plane % params.channels;
  const auto* const in =
      static_cast<const char*>(params.in) + (n * params.stride_n + c * params.stride_c) * bytes;
  const int64_t pixels = params.adjoint ? params.height * params.width : width * view.rows.size;
  auto* const out = static_cast<char*>(params.out) + plane * pixels * bytes;
  if (params.adjoint) std::fill_n(out, pixels * bytes, char(0));  // zero in every type
  const int64_t right = rolled.right, rest = width - right;
  for (int i = 0; i < view.rows.size; ++i) {
    const int64_t box = view.top + i, turned = rolled.row(i);
    if (params.adjoint) {
      const char* const from = in + turned * params.stride_h * bytes;
      char* const to = out + (box * params.width + view.left) * bytes;
      std::copy_n(from + right * bytes, rest * bytes, to);
      std::copy_n(from, right * bytes, to + rest * bytes);
    } else {
      const char* const from = in + (box * params.stride_h + view.left) * bytes;
      char* const to = out + turned * width * bytes;
      std::copy_n(from, rest * bytes, to + right * bytes);
      std::copy_n(from + rest * bytes, right * bytes, to);
    }
  }
}

// ---- forward -----------------------------------------------------------------------------------

template <class T>
PYDD_HD void roll_images(const CropFlipRollParams& params, int64_t begin, int64_t end) {
  Resampler<T> resampler(params.channels, pixel_type_of(params.dtype));
  const std::vector<double> one(size_t(params.channels), 1.0), zero(size_t(params.channels), 0.0);
  const int64_t height = params.out_height, width = params.out_width, plane = height * width;
  for (int64_t n = begin; n < end; ++n) {
    const char* const image =
        static_cast<const char*>(params.in) + n * params.stride_n * element_size(params.dtype);
    const RolledView rolled(params, image);
    const int64_t first = n * params.channels * plane;
    for (const int64_t down : {int64_t(rolled.down), rolled.down - height}) {
      for (const int64_t right : {int64_t(rolled.right), rolled.right - width}) {
        // The part that stands `down` rows and `right` columns from where it was.
        const Rect part{std::max<int64_t>(0, -down), std::min(height, height - down),
                        std::max<int64_t>(0, -right), std::min(width, width - right)};
        const Plane out{element(params.out, params.dtype, first + down * width + right),
                        params.dtype, plane, width, 1};
        if (rolled.view.valid) {
          resampler.render(rolled.view, part, one.data(), zero.data(), out);
        } else {
          resampler.fill(part, out, std::numeric_limits<T>::quiet_NaN());
        }
      }
    }
  }
}

// ---- adjoint -----------------------------------------------------------------------------------

// For every pixel of an axis of the crop: the places in the view that it has contributed to.
template <class T>
struct Uses {
  int64_t pixels, most;        // the most places that a pixel has
  std::vector<int32_t> place;  // (most, pixels)
  std::vector<T> weight;       // 0 beyond a pixel's own

  template <class Place>
  Uses(const Axis& axis, const Place& place_of) : pixels(axis.length), most(0) {
    for (int p = 0; p < axis.length; ++p) {
      const Span span = results_of(axis, p);
      most = std::max<int64_t>(most, span.last - span.first);
    }
    place.assign(size_t(most * pixels), 0);
    weight.assign(size_t(most * pixels), T(0));
    for (int p = 0; p < axis.length; ++p) {
      const Span span = results_of(axis, p);
      for (int i = span.first; i < span.last; ++i) {
        const size_t at = size_t((i - span.first) * pixels + p);
        place[at] = int32_t(place_of(i));
        weight[at] = T(weight_of(axis, i, p)) / T(axis.window(i).total());
      }
    }
  }
};

template <class T, class S>
PYDD_HD void adjoint_planes(const CropFlipRollParams& params, int64_t begin, int64_t end) {
  const RolledView rolled(params, nullptr);
  const View& view = rolled.view;
  const int64_t pixels = params.height * params.width, width = params.out_width;
  if (!view.valid) {
    S* const out = static_cast<S*>(params.out);
    std::fill(out + begin * pixels, out + end * pixels,
              stored<S>(std::numeric_limits<T>::quiet_NaN()));
    return;
  }
  const Uses<T> rows(view.rows, [&](int i) { return rolled.row(i); });
  const Uses<T> columns(view.cols, [&](int j) { return rolled.column(j); });
  const Scratch<T> sums = new_scratch<T>(width), results = new_scratch<T>(columns.pixels);
  T *const sum = &sums[0], *const result = &results[0];
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / params.channels, c = plane % params.channels;
    const S* const gradient =
        static_cast<const S*>(params.in) + n * params.stride_n + c * params.stride_c;
    S* const image = static_cast<S*>(params.out) + plane * pixels;
    std::fill_n(image, pixels, stored<S>(T(0)));
    for (int64_t p = 0; p < rows.pixels; ++p) {
      for (int64_t t = 0; t < rows.most; ++t) {
        const T weight = rows.weight[size_t(t * rows.pixels + p)];
        if (t > 0 && weight == T(0)) continue;  // beyond its own
        const S* const row = gradient + rows.place[size_t(t * rows.pixels + p)] * params.stride_h;
        if (t == 0) {
#pragma omp simd
          for (int64_t j = 0; j < width; ++j) sum[j] = weight * T(to_float(row[j]));
        } else {
#pragma omp simd
          for (int64_t j = 0; j < width; ++j) sum[j] += weight * T(to_float(row[j]));
        }
      }
      for (int64_t t = 0; t < columns.most; ++t) {
        const T* const weight = &columns.weight[size_t(t * columns.pixels)];
        const int32_t* const place = &columns.place[size_t(t * columns.pixels)];
        if (t == 0) {
#pragma omp simd
          for (int64_t q = 0; q < columns.pixels; ++q) result[q] = weight[q] * sum[place[q]];
        } else {
#pragma omp simd
          for (int64_t q = 0; q < columns.pixels; ++q) result[q] += weight[q] * sum[place[q]];
        }
      }
      S* const out = image + (view.top + p) * params.width + view.left;
#pragma omp simd
      for (int64_t q = 0; q < columns.pixels; ++q) out[q] = stored<S>(result[q]);
    }
  }
}

#define PYDD_ROLL_CLONES(name, T)                                                            \
  PYDD_CPU_CLONES void roll_##name(const CropFlipRollParams& params, int64_t b, int64_t e) { \
    roll_images<T>(params, b, e);                                                            \
  }
PYDD_ROLL_CLONES(f32, float)
PYDD_ROLL_CLONES(f64, double)
#undef PYDD_ROLL_CLONES

PYDD_CPU_KERNEL(adjoint, CropFlipRollParams, params.dtype, adjoint_planes)

}  // namespace

void crop_flip_roll_cpu(const CropFlipRollParams& params, int64_t begin, int64_t end) {
  const RolledView rolled(params, nullptr);
  if (only_rolled(params, rolled.view)) {
    const int64_t each = params.adjoint ? 1 : params.channels;
    for (int64_t plane = begin * each; plane < end * each; ++plane) {
      copy_rows(params, rolled, plane);
    }
    return;
  }
  if (!params.adjoint) {
    return params.dtype == DType::kFloat64 ? roll_f64(params, begin, end)
                                           : roll_f32(params, begin, end);
  }
  adjoint(params, begin, end);
}

}  // namespace pyddfast
