// The operators of the synthesis family: schemas, allocation, dispatch.
#include <algorithm>

#include "common/torch_ops.h"
#include "synthesis/crop_flip_roll.h"

namespace pyddfast {
namespace {

template <bool kCuda>
Tensor crop_flip_roll(const Tensor& in_, const Tensor& values_, int64_t height, int64_t width,
                      bool adjoint) {
  STD_TORCH_CHECK(in_.dim() == 4, "pyddfast: expected (count, channels, height, width)");
  const int64_t own_height = in_.size(2), own_width = in_.size(3);
  STD_TORCH_CHECK(std::min({own_height, own_width, height, width}) >= 1 &&
                      std::max({own_height, own_width, height, width}) <= kMaxSide,
                  "pyddfast: sides are 1 to 2^28");
  STD_TORCH_CHECK(
      values_.dim() == 1 && values_.size(0) == 7 && values_.scalar_type() == ScalarType::Long,
      "pyddfast: the parameters are int64 (7,)");
  // The CPU kernel of the adjoint adds whole rows.
  const bool copied = !kCuda && adjoint && in_.stride(3) != 1;
  const Tensor in = copied ? torch::stable::contiguous(in_) : in_;
  const Tensor values = torch::stable::contiguous(values_);
  CropFlipRollParams params{};
  params.adjoint = adjoint;
  params.count = in.size(0);
  params.channels = in.size(1);
  const Tensor out =
      new_tensor(in, {params.count, params.channels, height, width}, in.scalar_type());
  if (out.numel() == 0) return out;
  params.in = in.const_data_ptr();
  params.stride_n = in.stride(0);
  params.stride_c = in.stride(1);
  params.stride_h = in.stride(2);
  params.stride_w = in.stride(3);
  params.out = out.mutable_data_ptr();
  params.dtype = dtype_of(in);
  params.height = adjoint ? height : own_height;
  params.width = adjoint ? width : own_width;
  params.out_height = adjoint ? own_height : height;
  params.out_width = adjoint ? own_width : width;
  params.values = values.const_data_ptr<int64_t>();
  if constexpr (kCuda) {
    launch(crop_flip_roll_cuda, params, in);
  } else {
    const int64_t tasks = params.count * (adjoint ? params.channels : 1);
    torch::stable::parallel_for(
        0, tasks, grain_of(out.numel() / tasks),
        [&](int64_t begin, int64_t end) { crop_flip_roll_cpu(params, begin, end); });
  }
  return out;
}

template <bool kCuda>
void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("crop_flip_roll", TORCH_BOX(&crop_flip_roll<kCuda>));
}

}  // namespace
}  // namespace pyddfast

// height, width: of the result.  adjoint: `x` is a gradient to views, the result one to images.
STABLE_TORCH_LIBRARY_FRAGMENT(PYDDFAST_NAMESPACE, m) {
  m.def("crop_flip_roll(Tensor x, Tensor params, int height, int width, bool adjoint) -> Tensor");
}

PYDDFAST_IMPLEMENT(pyddfast::register_kernels)
