// The operator of the augment family: schema, allocation, dispatch.
#include <algorithm>
#include <vector>

#include "augment/augment.h"
#include "common/resample_ops.h"

namespace pyddfast {
namespace {

// (batch, channels, height, width) in either memory format.
Tensor new_images(const Tensor& like, const int64_t (&sizes)[4], bool channels_last,
                  ScalarType type) {
  const int64_t c = sizes[1], h = sizes[2], w = sizes[3];
  const int64_t planar[4] = {c * h * w, h * w, w, 1}, last[4] = {c * h * w, 1, w * c, c};
  return new_strided_tensor(like, 4, sizes, channels_last ? last : planar, type);
}

const int64_t* long_data(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<int64_t>() : nullptr;
}

std::optional<Tensor> packed(const std::optional<Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(*tensor);
}

void check_params(const std::optional<Tensor>& tensor, int64_t numel, const char* what) {
  STD_TORCH_CHECK(
      !tensor || (tensor->numel() == numel && tensor->scalar_type() == ScalarType::Long),
      "pyddfast: ", what, " has the wrong size or dtype");
}

template <bool kCuda>
Tensor augment(const Tensor& images, const Tensor& index_, std::optional<Tensor> box_,
               std::optional<Tensor> flip_, std::optional<Tensor> row_order_,
               std::optional<Tensor> col_order_, std::optional<Tensor> partner_,
               std::optional<Tensor> mix_box_, std::vector<double> mean, std::vector<double> std,
               int64_t height, int64_t width, bool shuffle_first, bool antialias, ScalarType dtype,
               bool channels_last) {
  STD_TORCH_CHECK(images.dim() == 4 && images.scalar_type() == ScalarType::Byte,
                  "pyddfast: images are uint8 (N, C, H, W)");
  STD_TORCH_CHECK(index_.dim() == 1 && index_.scalar_type() == ScalarType::Long,
                  "pyddfast: index is int64 (B)");
  const Tensor index = torch::stable::contiguous(index_);
  const auto box = packed(box_), flip = packed(flip_), row_order = packed(row_order_),
             col_order = packed(col_order_), partner = packed(partner_), mix_box = packed(mix_box_);
  AugmentParams params{};
  params.batch = index.size(0);
  params.count = images.size(0);
  params.channels = images.size(1);
  params.height = images.size(2);
  params.width = images.size(3);
  check_params(box, 4 * params.batch, "box");
  check_params(partner, params.batch, "partner");
  check_params(mix_box, 4, "mix_box");
  STD_TORCH_CHECK(
      !flip || (flip->numel() == params.batch && flip->scalar_type() == ScalarType::Bool),
      "pyddfast: flip has the wrong size or dtype");
  STD_TORCH_CHECK(
      row_order.has_value() == col_order.has_value() && partner.has_value() == mix_box.has_value(),
      "pyddfast: a parameter lacks its partner");
  params.row_factor = row_order ? row_order->size(1) : 1;
  params.col_factor = col_order ? col_order->size(1) : 1;
  check_params(row_order, params.batch * params.row_factor, "row_order");
  check_params(col_order, params.batch * params.col_factor, "col_order");
  STD_TORCH_CHECK(int64_t(mean.size()) == params.channels && mean.size() == std.size(),
                  "pyddfast: one mean and std a channel");
  STD_TORCH_CHECK(height >= 1 && width >= 1 && params.height >= 1 && params.width >= 1,
                  "pyddfast: images have pixels");
  STD_TORCH_CHECK(std::max({height, width, params.height, params.width}) <= kMaxSide,
                  "pyddfast: images are too large");
  STD_TORCH_CHECK(box || (height == params.height && width == params.width),
                  "pyddfast: another size needs boxes");
  const int64_t rows = shuffle_first ? params.height : height;
  const int64_t cols = shuffle_first ? params.width : width;
  STD_TORCH_CHECK(params.row_factor >= 1 && params.row_factor <= rows && params.col_factor >= 1 &&
                      params.col_factor <= cols,
                  "pyddfast: strips have pixels");
  const Tensor out =
      new_images(images, {params.batch, params.channels, height, width}, channels_last, dtype);
  if (out.numel() == 0) return out;
  params.images = static_cast<const uint8_t*>(images.const_data_ptr());
  params.stride_n = images.stride(0);
  params.stride_c = images.stride(1);
  params.stride_h = images.stride(2);
  params.stride_w = images.stride(3);
  params.shuffle_first = shuffle_first;
  params.antialias = antialias;
  params.index = index.const_data_ptr<int64_t>();
  params.box = long_data(box);
  params.flip = flip ? static_cast<const bool*>(flip->const_data_ptr()) : nullptr;
  params.row_order = long_data(row_order);
  params.col_order = long_data(col_order);
  params.partner = long_data(partner);
  params.mix_box = long_data(mix_box);
  const Affine affine = normalization(mean, std, 255.0);
  params.scale = affine.scale.data();
  params.shift = affine.shift.data();
  params.out = out.mutable_data_ptr();
  params.out_dtype = dtype_of(out);
  params.out_height = height;
  params.out_width = width;
  params.out_stride_n = out.stride(0);
  params.out_stride_c = out.stride(1);
  params.out_stride_h = out.stride(2);
  params.out_stride_w = channels_last ? params.channels : 1;
  if constexpr (kCuda) {
    launch(augment_cuda, params, images);
  } else {
    torch::stable::parallel_for(
        0, params.batch, 1, [&](int64_t begin, int64_t end) { augment_cpu(params, begin, end); });
  }
  return out;
}

template <bool kCuda>
void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("augment", TORCH_BOX(&augment<kCuda>));
}

}  // namespace
}  // namespace pyddfast

STABLE_TORCH_LIBRARY_FRAGMENT(PYDDFAST_NAMESPACE, m) {
  m.def(
      "augment(Tensor images, Tensor index, Tensor? box, Tensor? flip, Tensor? row_order,"
      " Tensor? col_order, Tensor? partner, Tensor? mix_box, float[] mean, float[] std, int height,"
      " int width, bool shuffle_first, bool antialias, ScalarType dtype, bool channels_last)"
      " -> Tensor");
}

PYDDFAST_IMPLEMENT(pyddfast::register_kernels)
