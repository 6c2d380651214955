// An image at a time, its channels while its coordinates are at hand.  The adjoint of a warp adds
// to pixels in the order of the views' pixels: one thread has the image, so the order is always the
// same.
#include <algorithm>
#include <cstring>

#include "common/dtypes_cpu.h"
#include "common/rows_cpu.h"
#include "dsa/dsa_math.h"

namespace pyddfast {
namespace {

template <class S>
const S* image_of(const DsaImages& images, int64_t n) {
  return static_cast<const S*>(images.in) + n * images.stride_n;
}

template <class S>
S* result_of(const DsaImages& images, int64_t n) {
  return static_cast<S*>(images.out) + n * images.channels * images.height * images.width;
}

// ---- colours -----------------------------------------------------------------------------------

// Each pixel's mean over its channels.
template <class T, class S>
PYDD_HD void mean_of_channels(const DsaImages& images, const S* image, int64_t rows, int64_t length,
                              T* mean) {
  const T share = T(1) / T(images.channels);
  for (int64_t i = 0; i < rows; ++i) {
    T* const to = mean + i * length;
    std::fill_n(to, length, T(0));
    for (int64_t c = 0; c < images.channels; ++c) {
      const S* const from = image + c * images.stride_c + i * images.stride_h;
#pragma omp simd
      for (int64_t j = 0; j < length; ++j) to[j] += share * T(to_float(from[j]));
    }
  }
}

template <class T, class S>
PYDD_HD void color_images(const DsaColorParams& params, int64_t begin, int64_t end) {
  const DsaImages& images = params.images;
  const int64_t channels = images.channels, plane = images.height * images.width;
  // Rows that follow each other are one.
  const bool dense = images.stride_h == images.width;
  const int64_t rows = dense ? 1 : images.height, length = dense ? plane : images.width;
  const Scratch<T> means = new_scratch<T>(plane);
  T* const mean = &means[0];
  std::fill_n(mean, plane, T(0));
  for (int64_t n = begin; n < end; ++n) {
    const Color<T> color(params, n);
    const S* const image = image_of<S>(images, n);
    T of_image = 0;
    if (color.saturates || color.contrasts) {
      mean_of_channels(images, image, rows, length, mean);
#pragma omp simd reduction(+ : of_image)
      for (int64_t p = 0; p < plane; ++p) of_image += mean[p];
      of_image /= T(plane);
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < rows; ++i) {
        const S* const from = image + c * images.stride_c + i * images.stride_h;
        const T* const of_pixel = mean + i * length;
        S* const to = result_of<S>(images, n) + c * plane + i * length;
#pragma omp simd
        for (int64_t j = 0; j < length; ++j) {
          to[j] = stored<S>(color(T(to_float(from[j])), of_pixel[j], of_image));
        }
      }
    }
  }
}

// ---- shifts ------------------------------------------------------------------------------------

// Columns [first, last) of the cropped image, in a row.
template <class S>
PYDD_HD void copy_columns(const Shift& shift, bool adjoint, const S* from, S* to, int64_t first,
                          int64_t last) {
  if (!shift.mirror) {
    if (first >= last) return;
    const int64_t source = adjoint ? first : first + shift.right;
    std::copy_n(from + source, last - first, to + (adjoint ? first + shift.right : first));
    return;
  }
  const S* const source = from + (adjoint ? shift.width - 1 : shift.right);
  S* const target = to + (adjoint ? shift.right : shift.width - 1);
  if (adjoint) {
#pragma omp simd
    for (int64_t j = first; j < last; ++j) target[j] = source[-j];
  } else {
#pragma omp simd
    for (int64_t j = first; j < last; ++j) target[-j] = source[j];
  }
}

template <class T, class S>
PYDD_HD void shift_images(const DsaShiftParams& params, int64_t begin, int64_t end) {
  const DsaImages& images = params.images;
  const int64_t height = images.height, width = images.width, plane = height * width;
  for (int64_t n = begin; n < end; ++n) {
    const Shift shift(params, n);
    // Columns of the cropped image that come from the image, before and behind the cut.
    const int64_t low = std::max<int64_t>(0, -shift.right);
    const int64_t high = std::min(width, width - shift.right);
    const bool whole = shift.down == 0 && low == 0 && high == width;
    for (int64_t c = 0; c < images.channels; ++c) {
      const S* const in = image_of<S>(images, n) + c * images.stride_c;
      S* const out = result_of<S>(images, n) + c * plane;
      if (!whole) std::fill_n(out, plane, S{});
      const int64_t first = std::max<int64_t>(0, -shift.down);
      for (int64_t i = first; i < std::min(height, height - shift.down); ++i) {
        const S* const from = in + (params.adjoint ? i : i + shift.down) * images.stride_h;
        S* const to = out + (params.adjoint ? i + shift.down : i) * width;
        const bool cut = i >= shift.top && i < shift.bottom;
        if (!cut) {
          copy_columns(shift, params.adjoint, from, to, low, high);
          continue;
        }
        if (whole) std::fill_n(to, width, S{});
        copy_columns(shift, params.adjoint, from, to, low, std::min(high, shift.left));
        copy_columns(shift, params.adjoint, from, to, std::max(low, shift.end), high);
      }
    }
  }
}

// ---- warps -------------------------------------------------------------------------------------

// Four channels of a pixel, side by side: a warp treats them alike, and one load fetches them.
constexpr int kQuad = 4;
template <class T>
struct QuadOf {
  typedef T Type __attribute__((vector_size(kQuad * sizeof(T)), may_alias));
};
template <class T>
using Quad = typename QuadOf<T>::Type;

// Two pixels that follow each other, at the alignment of one.
template <class T>
struct PairOf {
  typedef T Type
      __attribute__((vector_size(2 * kQuad * sizeof(T)), aligned(kQuad * sizeof(T)), may_alias));
};
template <class T>
using Pair = typename PairOf<T>::Type;

// Some channels of an image, with a border of one pixel: what lies outside an image is 0, or is
// dropped.  A group of channels that is not full repeats the last one.
template <class T>
struct Bordered {
  int height, width, pitch;
  Scratch<T> values;  // (height + 2, pitch, 4)

  explicit Bordered(const DsaImages& images)
      : height(int(images.height)),
        width(int(images.width)),
        pitch(width + 2),
        values(new_scratch<T>(size())) {
    clear();
  }

  int64_t size() const { return int64_t(height + 2) * pitch * kQuad; }
  void clear() { std::fill_n(&values[0], size(), T(0)); }
  PYDD_HD T* row(int64_t i) { return &values[size_t(((i + 1) * pitch + 1) * kQuad)]; }
};

// Rows of up to four channels, from `first` on, to and from one row of quads.
template <class T, class S>
PYDD_HD void interleave(const DsaImages& images, const S* row, int64_t first, T* to) {
  const int64_t last = images.channels - 1;
  const S* const a = row + first * images.stride_c;
  const S* const b = row + std::min(first + 1, last) * images.stride_c;
  const S* const c = row + std::min(first + 2, last) * images.stride_c;
  const S* const d = row + std::min(first + 3, last) * images.stride_c;
#pragma omp simd
  for (int64_t j = 0; j < images.width; ++j) {
    to[kQuad * j] = T(to_float(a[j]));
    to[kQuad * j + 1] = T(to_float(b[j]));
    to[kQuad * j + 2] = T(to_float(c[j]));
    to[kQuad * j + 3] = T(to_float(d[j]));
  }
}

template <class T, class S>
PYDD_HD void separate(const DsaImages& images, const T* from, int64_t first, S* row) {
  const int64_t last = std::min(first + kQuad, images.channels);
  for (int64_t c = first; c < last; ++c) {
    S* const to = row + c * images.height * images.width;
    const T* const own = from + (c - first);
#pragma omp simd
    for (int64_t j = 0; j < images.width; ++j) to[j] = stored<S>(own[kQuad * j]);
  }
}

// For a row of a view: where the first of four neighbours stands among bordered pixels, counted in
// values, and the shares of the right and of the lower ones.
template <class T>
struct Taps {
  Scratch<uint32_t> place;
  Scratch<T> right, lower;

  explicit Taps(int64_t width)
      : place(new_scratch<uint32_t>(width)),
        right(new_scratch<T>(width)),
        lower(new_scratch<T>(width)) {}

  PYDD_HD void find(const Warp<T>& warp, const Bordered<T>& plane, int i) {
    uint32_t* const places = &place[0];
    T *const rights = &right[0], *const lowers = &lower[0];
    const int width = plane.width, height = plane.height, pitch = plane.pitch;
#pragma omp simd
    for (int j = 0; j < width; ++j) {
      const Neighbours<T> across(j, warp.right(T(i), T(j)), width);
      const Neighbours<T> along(i, warp.down(T(i), T(j)), height);
      places[j] = uint32_t((along.first + 1) * pitch + across.first + 1) * kQuad;
      rights[j] = across.share;
      lowers[j] = along.share;
    }
  }
};

// Either way, row after row of the views.
template <class T, class S>
PYDD_HD void warp_images(const DsaWarpParams& params, int64_t begin, int64_t end) {
  const DsaImages& images = params.images;
  const int64_t width = images.width, height = images.height;
  Bordered<T> plane(images);
  Taps<T> taps(width);
  const Scratch<T> quads = new_scratch<T>(width * kQuad);  // a row of the views
  T* const row = &quads[0];
  Quad<T>* const own = reinterpret_cast<Quad<T>*>(row);
  // Neighbours stand as far from one as from the other of these.
  T* const upper = &plane.values[0];
  T* const under = upper + plane.pitch * kQuad;
  const uint32_t* const place = &taps.place[0];
  const T *const right = &taps.right[0], *const lower = &taps.lower[0];
  for (int64_t n = begin; n < end; ++n) {
    const Warp<T> warp(params, n);
    const S* const in = image_of<S>(images, n);
    S* const out = result_of<S>(images, n);
    for (int64_t first = 0; first < images.channels; first += kQuad) {
      if (params.adjoint) {
        plane.clear();
      } else {
        for (int64_t i = 0; i < height; ++i) {
          interleave(images, in + i * images.stride_h, first, plane.row(i));
        }
      }
      for (int64_t i = 0; i < height; ++i) {
        taps.find(warp, plane, int(i));
        if (params.adjoint) {
          interleave(images, in + i * images.stride_h, first, row);
          for (int64_t j = 0; j < width; ++j) {
            Quad<T>* const above = reinterpret_cast<Quad<T>*>(upper + place[j]);
            Quad<T>* const below = reinterpret_cast<Quad<T>*>(under + place[j]);
            const Quad<T> low = own[j] * lower[j], high = own[j] - low;
            const Quad<T> high_right = high * right[j], low_right = low * right[j];
            above[0] += high - high_right;
            above[1] += high_right;
            below[0] += low - low_right;
            below[1] += low_right;
          }
        } else {
#pragma GCC unroll 4
          for (int64_t j = 0; j < width; ++j) {
            const Pair<T> above = *reinterpret_cast<const Pair<T>*>(upper + place[j]);
            const Pair<T> below = *reinterpret_cast<const Pair<T>*>(under + place[j]);
            const Pair<T> blended = above + lower[j] * (below - above);
            Quad<T> halves[2];
            std::memcpy(halves, &blended, sizeof(blended));
            own[j] = halves[0] + right[j] * (halves[1] - halves[0]);
          }
          separate(images, row, first, out + i * width);
        }
      }
      if (params.adjoint) {
        for (int64_t i = 0; i < height; ++i) separate(images, plane.row(i), first, out + i * width);
      }
    }
  }
}

}  // namespace

PYDD_CPU_KERNEL(dsa_color_cpu, DsaColorParams, params.images.dtype, color_images)
PYDD_CPU_KERNEL(dsa_shift_cpu, DsaShiftParams, params.images.dtype, shift_images)
PYDD_CPU_KERNEL(dsa_warp_cpu, DsaWarpParams, params.images.dtype, warp_images)

}  // namespace pyddfast
