#include <cmath>

#include "common/simd.h"
#include "stats/bn_distance.h"

namespace pyddfast {
namespace {

template <class T>
PYDD_HD double squared_distance(const T* a, const T* b, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < count; ++c) {
    const double difference = double(a[c]) - double(b[c]);
    sum += difference * difference;
  }
  return sum;
}

template <class T>
PYDD_HD void forward(const BnDistanceParams& params) {
  double loss = 0;
  for (int l = 0; l < params.layers; ++l) {
    const int64_t first = params.begin[l], count = params.begin[l + 1] - first;
    double distance = 0;
    for (int t = 0; t < params.targets; ++t) {
      const int64_t target = t * params.channels + first;
      double parts[2] = {
          squared_distance(static_cast<const T*>(params.mean) + first,
                           static_cast<const T*>(params.target_mean) + target, count),
          squared_distance(static_cast<const T*>(params.var) + first,
                           static_cast<const T*>(params.target_var) + target, count)};
      for (int i = 0; i < 2; ++i) {
        const double norm = std::sqrt(parts[i]);
        static_cast<T*>(params.norms)[(l * params.targets + t) * 2 + i] = T(norm);
        if (!params.squared) parts[i] = norm;
      }
      distance += params.target_weight[t] * (parts[0] + params.var_weight * parts[1]);
    }
    static_cast<T*>(params.per_layer)[l] = T(distance);
    loss += params.layer_weight[l] * distance;
  }
  *static_cast<T*>(params.loss) = T(loss);
}

template <class T>
PYDD_HD void backward(const BnDistanceParams& params) {
  const void* const values[2] = {params.mean, params.var};
  const void* const targets[2] = {params.target_mean, params.target_var};
  void* const grads[2] = {params.grad_mean, params.grad_var};
  void* const target_grads[2] = {params.grad_target_mean, params.grad_target_var};
  for (int l = 0; l < params.layers; ++l) {
    const int64_t first = params.begin[l], count = params.begin[l + 1] - first;
    double upstream = 0;
    if (params.grad_loss) {
      upstream += *static_cast<const T*>(params.grad_loss) * params.layer_weight[l];
    }
    if (params.grad_per_layer) upstream += static_cast<const T*>(params.grad_per_layer)[l];
    for (int i = 0; i < 2; ++i) {
      const T* const value = static_cast<const T*>(values[i]) + first;
      T* const grad = grads[i] ? static_cast<T*>(grads[i]) + first : nullptr;
      for (int t = 0; t < params.targets; ++t) {
        const double norm =
            double(static_cast<const T*>(params.norms)[(l * params.targets + t) * 2 + i]);
        const double slope = bn_distance_slope(norm, params.squared);
        const T factor =
            T(upstream * params.target_weight[t] * (i == 1 ? params.var_weight : 1.0) * slope);
        const T* const target = static_cast<const T*>(targets[i]) + t * params.channels + first;
        T* const target_grad = target_grads[i]
                                   ? static_cast<T*>(target_grads[i]) + t * params.channels + first
                                   : nullptr;
        for (int64_t c = 0; c < count; ++c) {
          const T gradient = factor * (value[c] - target[c]);
          if (grad) grad[c] = t == 0 ? gradient : grad[c] + gradient;
          if (target_grad) target_grad[c] = -gradient;
        }
      }
    }
  }
}

PYDD_CPU_CLONES void forward_f32(const BnDistanceParams& params) { forward<float>(params); }
PYDD_CPU_CLONES void forward_f64(const BnDistanceParams& params) { forward<double>(params); }
PYDD_CPU_CLONES void backward_f32(const BnDistanceParams& params) { backward<float>(params); }
PYDD_CPU_CLONES void backward_f64(const BnDistanceParams& params) { backward<double>(params); }

}  // namespace

void bn_distance_cpu(const BnDistanceParams& params) {
  params.wide ? forward_f64(params) : forward_f32(params);
}

void bn_distance_backward_cpu(const BnDistanceParams& params) {
  params.wide ? backward_f64(params) : backward_f32(params);
}

}  // namespace pyddfast
