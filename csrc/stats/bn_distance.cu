// A few thousand channels: one CTA for the distances of all layers, a warp a layer; one CTA a layer
// for their gradients.
#include "common/reduce.h"
#include "common/simt.h"
#include "stats/bn_distance.h"

namespace pyddfast {
namespace {

constexpr int kForwardThreads = 1024;
constexpr int kBackwardThreads = 256;

__global__ void __launch_bounds__(kForwardThreads) distances(BnDistanceParams params) {
  __shared__ float of_layers[kMaxLayers];
  const int lane = int(threadIdx.x) % 32;
  const float* const mean = static_cast<const float*>(params.mean);
  const float* const var = static_cast<const float*>(params.var);
  float* const norms = static_cast<float*>(params.norms);
  for (int l = int(threadIdx.x) / 32; l < params.layers; l += kForwardThreads / 32) {
    float distance = 0.0f;
    for (int t = 0; t < params.targets; ++t) {
      const int64_t offset = t * params.channels;
      const float* const target_mean = static_cast<const float*>(params.target_mean) + offset;
      const float* const target_var = static_cast<const float*>(params.target_var) + offset;
      float sums[2] = {};
      for (int c = params.begin[l] + lane; c < params.begin[l + 1]; c += 32) {
        const float of_mean = mean[c] - target_mean[c], of_var = var[c] - target_var[c];
        sums[0] += of_mean * of_mean;
        sums[1] += of_var * of_var;
      }
      reduce_lanes<32, Sum>(sums);
      const float roots[2] = {sqrtf(sums[0]), sqrtf(sums[1])};
      if (lane < 2) norms[(l * params.targets + t) * 2 + lane] = lane == 0 ? roots[0] : roots[1];
      const float of_mean = params.squared ? sums[0] : roots[0];
      const float of_var = params.squared ? sums[1] : roots[1];
      distance += float(params.target_weight[t]) * (of_mean + float(params.var_weight) * of_var);
    }
    if (lane == 0) {
      static_cast<float*>(params.per_layer)[l] = distance;
      of_layers[l] = float(params.layer_weight[l]) * distance;
    }
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    float loss[1] = {};
    for (int l = lane; l < params.layers; l += 32) loss[0] += of_layers[l];
    reduce_lanes<32, Sum>(loss);
    if (lane == 0) *static_cast<float*>(params.loss) = loss[0];
  }
}

// Layer blockIdx.x of the means (blockIdx.y = 0) or of the variances.
__global__ void __launch_bounds__(kBackwardThreads) gradients(BnDistanceParams params) {
  const int l = int(blockIdx.x);
  const bool of_var = blockIdx.y == 1;
  const float* const value = static_cast<const float*>(of_var ? params.var : params.mean);
  const float* const targets =
      static_cast<const float*>(of_var ? params.target_var : params.target_mean);
  float* const grad = static_cast<float*>(of_var ? params.grad_var : params.grad_mean);
  float* const grad_targets =
      static_cast<float*>(of_var ? params.grad_target_var : params.grad_target_mean);
  float upstream = 0.0f;
  if (params.grad_loss) {
    upstream = *static_cast<const float*>(params.grad_loss) * float(params.layer_weight[l]);
  }
  if (params.grad_per_layer) upstream += static_cast<const float*>(params.grad_per_layer)[l];
  if (of_var) upstream *= float(params.var_weight);
  const float* const norms =
      static_cast<const float*>(params.norms) + 2 * l * params.targets + (of_var ? 1 : 0);
  for (int c = params.begin[l] + int(threadIdx.x); c < params.begin[l + 1]; c += kBackwardThreads) {
    float sum = 0.0f;
    for (int t = 0; t < params.targets; ++t) {
      const float slope = bn_distance_slope(norms[2 * t], params.squared);
      const float gradient = upstream * float(params.target_weight[t]) * slope *
                             (value[c] - targets[t * params.channels + c]);
      sum += gradient;
      if (grad_targets) grad_targets[t * params.channels + c] = -gradient;
    }
    if (grad) grad[c] = sum;
  }
}

}  // namespace

int bn_distance_cuda(const BnDistanceParams& params, void* stream) {
  if (params.wide) return kInvalidValue;  // the twin's
  simt::LaunchConfig config;
  config.grid = dim3(1);
  config.block = dim3(kForwardThreads);
  config.stream = stream;
  return simt::launch(distances, config, params);
}

int bn_distance_backward_cuda(const BnDistanceParams& params, void* stream) {
  if (params.wide) return kInvalidValue;
  simt::LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(params.layers), 2);
  config.block = dim3(kBackwardThreads);
  config.stream = stream;
  return params.layers == 0 ? 0 : simt::launch(gradients, config, params);
}

}  // namespace pyddfast
