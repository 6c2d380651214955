// Colours: a CTA an image, whose mean it takes first.  Shifts and warps: a thread a pixel and its
// channels.  Both ways a pixel gathers what belongs to it, in a fixed order: no atomics, the same
// bits every time.
#include <climits>

#include "common/dtypes.h"
#include "common/reduce.h"
#include "common/simt.h"
#include "dsa/dsa_math.h"

namespace pyddfast {
namespace {

constexpr int kThreads = 256;
constexpr int kHeld = 4;  // channels of a pixel whose sums a thread has at once: all of a picture's

template <class S>
__device__ __forceinline__ const S* image_of(const DsaImages& images, int64_t n) {
  return static_cast<const S*>(images.in) + n * images.stride_n;
}

// A pixel of an image: where it is read or written, without its channel.
struct Pixel {
  int64_t n;
  int i, j;

  __device__ __forceinline__ Pixel(const DsaImages& images, int64_t index) {
    const int64_t plane = images.height * images.width, rest = index % plane;
    n = index / plane;
    i = int(rest / images.width);
    j = int(rest % images.width);
  }
  __device__ __forceinline__ int64_t source(const DsaImages& images) const {
    return i * images.stride_h + j * images.stride_w;
  }
  __device__ __forceinline__ int64_t target(const DsaImages& images) const {
    return (n * images.channels * images.height + i) * images.width + j;
  }
};

__device__ __forceinline__ int64_t own_index() {
  return int64_t(blockIdx.x) * kThreads + threadIdx.x;
}

// ---- colours -----------------------------------------------------------------------------------

// Sum over the channels of a pixel.
template <class S>
__device__ __forceinline__ float sum_of(const S* pixel, int channels, int64_t stride) {
  float sum = 0.0f;
  for (int c = 0; c < channels; ++c) sum += to_float(pixel[c * stride]);
  return sum;
}

template <class S>
__global__ void __launch_bounds__(kThreads) color_kernel(DsaColorParams params) {
  const DsaImages& images = params.images;
  const int width = int(images.width), plane = int(images.height) * width;
  const int channels = int(images.channels);
  const Color<float> color(params, blockIdx.x);
  const S* const image = image_of<S>(images, blockIdx.x);
  float of_image[1] = {0.0f};
  if (color.contrasts) {
    for (int p = int(threadIdx.x); p < plane; p += kThreads) {
      const S* const pixel = image + p / width * images.stride_h + p % width * images.stride_w;
      of_image[0] += sum_of(pixel, channels, images.stride_c);
    }
    BlockTeam<kThreads>::reduce<0, Sum>(of_image);
    of_image[0] /= float(images.channels) * float(plane);
  }
  S* const out = static_cast<S*>(images.out) + int64_t(blockIdx.x) * images.channels * plane;
  for (int p = int(threadIdx.x); p < plane; p += kThreads) {
    const S* pixel = image + p / width * images.stride_h + p % width * images.stride_w;
    const float of_pixel =
        color.saturates ? sum_of(pixel, channels, images.stride_c) / float(channels) : 0.0f;
    S* to = out + p;
    for (int c = 0; c < channels; ++c, pixel += images.stride_c, to += plane) {
      *to = from_float<S>(color(to_float(*pixel), of_pixel, of_image[0]));
    }
  }
}

// ---- shifts ------------------------------------------------------------------------------------

// `pixels`: of all images.
template <class S>
__global__ void __launch_bounds__(kThreads) shift_kernel(DsaShiftParams params, int64_t pixels) {
  const int64_t index = own_index();
  if (index >= pixels) return;
  const DsaImages& images = params.images;
  const Pixel pixel(images, index);
  const Shift shift(params, pixel.n);
  // Of the cropped image; where the value comes from.
  const int64_t i = params.adjoint ? pixel.i - shift.down : pixel.i;
  const int64_t j = params.adjoint ? pixel.j - shift.right : shift.mirrored(pixel.j);
  const int64_t row = params.adjoint ? i : i + shift.down;
  const int64_t column = params.adjoint ? shift.mirrored(j) : j + shift.right;
  const bool kept =
      row >= 0 && row < images.height && column >= 0 && column < images.width && !shift.cut(i, j);
  const int64_t from = row * images.stride_h + column * images.stride_w, to = pixel.target(images);
  const S* const image = image_of<S>(images, pixel.n);
  for (int64_t c = 0; c < images.channels; ++c) {
    static_cast<S*>(images.out)[to + c * images.height * images.width] =
        kept ? image[from + c * images.stride_c] : S{};
  }
}

// ---- warps -------------------------------------------------------------------------------------

template <class S>
__global__ void __launch_bounds__(kThreads) sample_kernel(DsaWarpParams params, int64_t pixels) {
  const int64_t index = own_index();
  if (index >= pixels) return;
  const DsaImages& images = params.images;
  const Pixel pixel(images, index);
  const Warp<float> warp(params, pixel.n);
  const float i = float(pixel.i), j = float(pixel.j);
  const int height = int(images.height), width = int(images.width);
  const Neighbours<float> across(pixel.j, warp.right(i, j), width);
  const Neighbours<float> along(pixel.i, warp.down(i, j), height);
  const bool left = across.first >= 0, right = across.first + 1 < width;
  const bool upper = along.first >= 0, lower = along.first + 1 < height;
  const S* const image =
      image_of<S>(images, pixel.n) + along.first * images.stride_h + across.first * images.stride_w;
  S* const out = static_cast<S*>(images.out) + pixel.target(images);
  for (int64_t c = 0; c < images.channels; ++c) {
    const S* const at = image + c * images.stride_c;
    const S* const below = at + images.stride_h;
    const float a = upper && left ? to_float(at[0]) : 0.0f;
    const float b = upper && right ? to_float(at[images.stride_w]) : 0.0f;
    const float d = lower && left ? to_float(below[0]) : 0.0f;
    const float e = lower && right ? to_float(below[images.stride_w]) : 0.0f;
    const float top = a + across.share * (b - a), bottom = d + across.share * (e - d);
    out[c * images.height * images.width] = from_float<S>(top + along.share * (bottom - top));
  }
}

// The pixels of a view that a pixel of the image has a share in lie where the inverse map takes the
// square of two by two pixels around it.
struct Reach {
  int first_i, last_i, first_j, last_j;  // both included

  __device__ __forceinline__ Reach(const Warp<float>& warp, const Pixel& pixel, int height,
                                   int width) {
    const float a = 1.0f + warp.xx, d = 1.0f + warp.yy;
    const float inverse = 1.0f / (a * d - warp.xy * warp.yx);
    const float x = float(pixel.j) - warp.centre_x, y = float(pixel.i) - warp.centre_y;
    span(warp.centre_x + (d * x - warp.xy * y) * inverse,
         (fabsf(d) + fabsf(warp.xy)) * fabsf(inverse), width, first_j, last_j);
    span(warp.centre_y + (a * y - warp.yx * x) * inverse,
         (fabsf(a) + fabsf(warp.yx)) * fabsf(inverse), height, first_i, last_i);
  }

 private:
  // A thousandth more than needed, for rounding; everything where the map has no inverse.
  __device__ __forceinline__ static void span(float centre, float half, int size, int& first,
                                              int& last) {
    const float margin = 1e-3f + 1e-5f * (fabsf(centre) + half);
    const float low = ceilf(centre - half - margin), high = floorf(centre + half + margin);
    first = low > 0.0f && low < 1e9f ? int(low) : low >= 1e9f ? size : 0;
    last = high < float(size - 1) && high > -1e9f ? int(high) : high <= -1e9f ? -1 : size - 1;
  }
};

// The share that pixel `own` has of the neighbours of position `at` + `distance`.
__device__ __forceinline__ float share_of(int own, int at, float distance) {
  const float share = 1.0f - fabsf(float(at - own) + distance);
  return share > 0.0f ? share : 0.0f;
}

template <class S>
__global__ void __launch_bounds__(kThreads) gather_kernel(DsaWarpParams params, int64_t pixels) {
  const int64_t index = own_index();
  if (index >= pixels) return;
  const DsaImages& images = params.images;
  const Pixel pixel(images, index);
  const Warp<float> warp(params, pixel.n);
  const Reach reach(warp, pixel, int(images.height), int(images.width));
  const S* const gradient = image_of<S>(images, pixel.n);
  S* const out = static_cast<S*>(images.out) + pixel.target(images);
  for (int64_t first = 0; first < images.channels; first += kHeld) {
    const int64_t left = images.channels - first;
    const int held = left < kHeld ? int(left) : kHeld;
    float sum[kHeld] = {};
    for (int i = reach.first_i; i <= reach.last_i; ++i) {
      for (int j = reach.first_j; j <= reach.last_j; ++j) {
        const float share = share_of(pixel.j, j, warp.right(float(i), float(j))) *
                            share_of(pixel.i, i, warp.down(float(i), float(j)));
        if (share == 0.0f) continue;
        const S* const at =
            gradient + first * images.stride_c + i * images.stride_h + j * images.stride_w;
#pragma unroll
        for (int c = 0; c < kHeld; ++c) {
          if (c < held) sum[c] += share * to_float(at[c * images.stride_c]);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kHeld; ++c) {
      if (c < held) out[(first + c) * images.height * images.width] = from_float<S>(sum[c]);
    }
  }
}

// ---- launches ----------------------------------------------------------------------------------

// A CTA an image, or a thread a pixel of all images.
int launch_config(const DsaImages& images, bool by_image, void* stream, simt::LaunchConfig& config,
                  int64_t& pixels) {
  pixels = images.count * images.height * images.width;
  const int64_t ctas = by_image ? images.count : (pixels + kThreads - 1) / kThreads;
  if (ctas > INT_MAX) return kInvalidValue;
  config.grid = dim3(static_cast<unsigned>(ctas));
  config.block = dim3(kThreads);
  config.stream = stream;
  return 0;
}

}  // namespace

int dsa_color_cuda(const DsaColorParams& params, void* stream) {
  simt::LaunchConfig config;
  int64_t pixels;
  if (const int error = launch_config(params.images, true, stream, config, pixels)) return error;
  return with_device_dtype(params.images.dtype, [&]<class S>() {
    return simt::launch(color_kernel<S>, config, params);
  });
}

int dsa_shift_cuda(const DsaShiftParams& params, void* stream) {
  simt::LaunchConfig config;
  int64_t pixels;
  if (const int error = launch_config(params.images, false, stream, config, pixels)) return error;
  return with_device_dtype(params.images.dtype, [&]<class S>() {
    return simt::launch(shift_kernel<S>, config, params, pixels);
  });
}

int dsa_warp_cuda(const DsaWarpParams& params, void* stream) {
  simt::LaunchConfig config;
  int64_t pixels;
  if (const int error = launch_config(params.images, false, stream, config, pixels)) return error;
  return with_device_dtype(params.images.dtype, [&]<class S>() {
    if (params.adjoint) return simt::launch(gather_kernel<S>, config, params, pixels);
    return simt::launch(sample_kernel<S>, config, params, pixels);
  });
}

}  // namespace pyddfast
