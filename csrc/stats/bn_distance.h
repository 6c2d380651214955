// Distances of packed batch-normalisation statistics: parameters and launchers.
// No torch, no CUDA headers.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace pyddfast {

// By value in a kernel's parameters, which hold 4 KB: more layers than any network in use (the
// deepest of torchvision has 200).
constexpr int kMaxLayers = 256;
constexpr int kMaxTargets = 4;  // in use are 1 and 2 (EDC)

// The distance of layer l is
//   r_l = sum_t target_weight_t (var_weight |target_var_t - var| + |target_mean_t - mean|)
// over the layer's channels, |.| the Euclidean norm or its square; the loss is sum_l w_l r_l.
struct BnDistanceParams {
  const void* mean;  // (channels of all layers), fp32 or, on the CPU, fp64; as are all tensors here
  const void* var;
  const void* target_mean;  // (targets, channels)
  const void* target_var;
  bool wide;  // fp64
  int layers, targets;
  int64_t channels;
  double var_weight;
  bool squared;

  void* loss;
  void* per_layer;  // (layers): r_l
  void* norms;      // (layers, targets, 2): of mean, of var; backward: an input

  const void* grad_loss;       // scalar, or null
  const void* grad_per_layer;  // (layers), or null
  void* grad_mean;             // or null
  void* grad_var;
  void* grad_target_mean;
  void* grad_target_var;

  double target_weight[kMaxTargets];
  double layer_weight[kMaxLayers];
  int begin[kMaxLayers + 1];  // first channel of each layer, and the end
};
static_assert(sizeof(BnDistanceParams) <= 4096);

// The derivative of a norm (or its square) to an element, over that element: 0 where the norm is 0.
template <class T>
PYDD_HD T bn_distance_slope(T norm, bool squared) {
  return squared ? T(2) : norm == T(0) ? T(0) : T(1) / norm;
}

void bn_distance_cpu(const BnDistanceParams& params);
void bn_distance_backward_cpu(const BnDistanceParams& params);
int bn_distance_cuda(const BnDistanceParams& params, void* stream);
int bn_distance_backward_cuda(const BnDistanceParams& params, void* stream);

}  // namespace pyddfast
