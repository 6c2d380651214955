// Instance norm, ReLU and 2 x 2 average pooling, with first and second derivatives: parameters and
// launchers.  The formulas are in norm_relu_pool_math.h.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace pyddfast {

// A tensor (batch, channels, ...) whose planes are contiguous; strides in elements.
struct Planes {
  const void* data;  // null: zeros, where that is allowed
  int64_t stride_n, stride_c;
};

// Vectors are in the accumulation type: fp32, or fp64 for an fp64 x.
struct NormReluPoolParams {
  Planes x;
  DType dtype;  // of x, of gradients to it and to y, and of results of their shapes
  int64_t batch, channels, height, width;
  bool relu, pool;
  double eps;
  const void* weight;  // (channels)
  const void* bias;
  void* stats;  // (batch * channels, kPlaneStats), see PlaneStats

  void* y;  // forward; contiguous, like all results

  // Backward: of the upstream gradient `grad`, like y.
  Planes grad;
  void* grad_x;
  void* grad_weight;  // (channels)
  void* grad_bias;    // (channels); null in the double backward
  void* partials;     // (batch * channels, 2), or 1 in the double backward; fp64 on the CPU

  // Double backward: cotangents of grad_x, grad_weight and grad_bias, null where 0.  grad_x and
  // grad_weight are then its results, with grad_grad.
  Planes of_x;
  const void* of_weight;
  const void* of_bias;
  void* grad_grad;

  PYDD_HD int64_t pooled_height() const { return pool ? height / 2 : height; }
  PYDD_HD int64_t pooled_width() const { return pool ? width / 2 : width; }
};

// CPU: planes [begin, end); then sums of the partials over the batch, for channels [begin, end).
void norm_relu_pool_cpu(const NormReluPoolParams& params, int64_t begin, int64_t end);
void norm_relu_pool_backward_cpu(const NormReluPoolParams& params, int64_t begin, int64_t end);
void norm_relu_pool_double_backward_cpu(const NormReluPoolParams& params, int64_t begin,
                                        int64_t end);
void norm_relu_pool_sums_cpu(const NormReluPoolParams& params, int64_t begin, int64_t end);

int norm_relu_pool_cuda(const NormReluPoolParams& params, void* stream);
int norm_relu_pool_backward_cuda(const NormReluPoolParams& params, void* stream);
int norm_relu_pool_double_backward_cuda(const NormReluPoolParams& params, void* stream);

}  // namespace pyddfast
