// What the operators on images share on the side that sees torch.
#pragma once

#include <vector>

#include "common/torch_ops.h"

namespace pyddfast {

inline Tensor new_strided_tensor(const Tensor& like, int64_t dims, const int64_t* sizes,
                                 const int64_t* strides, ScalarType type) {
  int32_t device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dims, sizes, strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
      device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

// (x / range - mean) / std as x * scale + shift.
struct Affine {
  std::vector<double> scale, shift;
};

inline Affine normalization(const std::vector<double>& mean, const std::vector<double>& std,
                            double range) {
  Affine affine;
  for (size_t c = 0; c < mean.size(); ++c) {
    affine.scale.push_back(1.0 / (range * std[c]));
    affine.shift.push_back(-mean[c] / std[c]);
  }
  return affine;
}

}  // namespace pyddfast
