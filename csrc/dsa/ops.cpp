// The operators of the dsa family: schemas, allocation, dispatch.
#include "common/torch_ops.h"
#include "dsa/dsa.h"

namespace pyddfast {
namespace {

using Optional = std::optional<Tensor>;

// Images and a result of their shape.  The CPU kernels read whole rows.
template <bool kCuda>
DsaImages describe(Tensor& in, Tensor& out) {
  STD_TORCH_CHECK(in.dim() == 4, "pyddfast: expected (count, channels, height, width)");
  // A pixel's place in a plane with a border fits an int.
  constexpr int64_t kMaxSide = 1 << 28, kMaxPlane = 1 << 30;
  STD_TORCH_CHECK(in.size(2) <= kMaxSide && in.size(3) <= kMaxSide &&
                      (in.size(2) + 2) * (in.size(3) + 2) <= kMaxPlane,
                  "pyddfast: images are to 2^30 pixels");
  if (!kCuda && in.stride(3) != 1) in = torch::stable::contiguous(in);
  out = new_tensor(in, {in.size(0), in.size(1), in.size(2), in.size(3)}, in.scalar_type());
  DsaImages images{};
  images.in = in.const_data_ptr();
  images.stride_n = in.stride(0);
  images.stride_c = in.stride(1);
  images.stride_h = in.stride(2);
  images.stride_w = in.stride(3);
  images.out = out.mutable_data_ptr();
  images.dtype = dtype_of(in);
  images.count = in.size(0);
  images.channels = in.size(1);
  images.height = in.size(2);
  images.width = in.size(3);
  return images;
}

// Parameters as contiguous rows of `width` numbers of `type`: one an image, or one for all, which
// then holds for all parameters of the call.
Optional rows_of(const Optional& values, DsaImages& images, int64_t width, ScalarType type) {
  if (!values) return std::nullopt;
  const int64_t rows = values->numel() / width;
  images.shared = rows == 1;
  STD_TORCH_CHECK(values->numel() == rows * width && (rows == 1 || rows == images.count),
                  "pyddfast: one row of parameters an image, or one for all");
  const Tensor cast = values->scalar_type() == type ? *values : torch::stable::to(*values, type);
  return torch::stable::contiguous(cast);
}

template <class T = void>
const T* data_of(const Optional& values) {
  return values ? static_cast<const T*>(values->const_data_ptr()) : nullptr;
}

// The two kernels of an operator; a build refers only to those that it has.
struct ColorKernels {
  static constexpr auto cpu = dsa_color_cpu;
  static constexpr auto cuda = dsa_color_cuda;
};
struct ShiftKernels {
  static constexpr auto cpu = dsa_shift_cpu;
  static constexpr auto cuda = dsa_shift_cuda;
};
struct WarpKernels {
  static constexpr auto cpu = dsa_warp_cpu;
  static constexpr auto cuda = dsa_warp_cuda;
};

template <bool kCuda, class Kernels, class Params>
Tensor run(const Tensor& in, const Tensor& out, const Params& params) {
  if (out.numel() == 0) return out;
  if constexpr (kCuda) {
    launch<Params>(Kernels::cuda, params, in);
  } else {
    const int64_t each = out.numel() / params.images.count;
    torch::stable::parallel_for(
        0, params.images.count, grain_of(each),
        [&](int64_t begin, int64_t end) { Kernels::cpu(params, begin, end); });
  }
  return out;
}

template <bool kCuda>
Tensor dsa_color(const Tensor& in_, const Optional& brightness_, const Optional& saturation_,
                 const Optional& contrast_) {
  Tensor in = in_, out;
  DsaColorParams params{};
  params.images = describe<kCuda>(in, out);
  const ScalarType type = accumulation_type(in);
  const Optional brightness = rows_of(brightness_, params.images, 1, type);
  const Optional saturation = rows_of(saturation_, params.images, 1, type);
  const Optional contrast = rows_of(contrast_, params.images, 1, type);
  params.brightness = data_of(brightness);
  params.saturation = data_of(saturation);
  params.contrast = data_of(contrast);
  return run<kCuda, ColorKernels>(in, out, params);
}

template <bool kCuda>
Tensor dsa_shift(const Tensor& in_, const Optional& crop_, const Optional& cutout_,
                 const Optional& flip_, int64_t cut_height, int64_t cut_width, bool adjoint) {
  Tensor in = in_, out;
  DsaShiftParams params{};
  params.images = describe<kCuda>(in, out);
  const Optional crop = rows_of(crop_, params.images, 2, ScalarType::Long);
  const Optional cutout = rows_of(cutout_, params.images, 2, ScalarType::Long);
  const Optional flip = rows_of(flip_, params.images, 1, ScalarType::Bool);
  params.crop = data_of<int64_t>(crop);
  params.cutout = data_of<int64_t>(cutout);
  params.flip = data_of<bool>(flip);
  params.cut_height = cut_height;
  params.cut_width = cut_width;
  params.adjoint = adjoint;
  return run<kCuda, ShiftKernels>(in, out, params);
}

template <bool kCuda>
Tensor dsa_warp(const Tensor& in_, const Tensor& values_, bool rotate, bool align_corners,
                bool adjoint) {
  Tensor in = in_, out;
  DsaWarpParams params{};
  params.images = describe<kCuda>(in, out);
  const Optional values = rows_of(values_, params.images, rotate ? 1 : 2, accumulation_type(in));
  params.values = data_of(values);
  params.rotate = rotate;
  params.align_corners = align_corners;
  params.adjoint = adjoint;
  return run<kCuda, WarpKernels>(in, out, params);
}

template <bool kCuda>
void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("dsa_color", TORCH_BOX(&dsa_color<kCuda>));
  m.impl("dsa_shift", TORCH_BOX(&dsa_shift<kCuda>));
  m.impl("dsa_warp", TORCH_BOX(&dsa_warp<kCuda>));
}

}  // namespace
}  // namespace pyddfast

// values: factors (rows, 2) of scale, or angles (rows,) where rotate.  adjoint: `x` is a gradient
// to views, the result one to images; dsa_color without brightness is its own adjoint.
STABLE_TORCH_LIBRARY_FRAGMENT(PYDDFAST_NAMESPACE, m) {
  m.def("dsa_color(Tensor x, Tensor? brightness, Tensor? saturation, Tensor? contrast) -> Tensor");
  m.def(
      "dsa_shift(Tensor x, Tensor? crop, Tensor? cutout, Tensor? flip, int cut_height, "
      "int cut_width, bool adjoint) -> Tensor");
  m.def(
      "dsa_warp(Tensor x, Tensor values, bool rotate, bool align_corners, bool adjoint) -> Tensor");
}

PYDDFAST_IMPLEMENT(pyddfast::register_kernels)
