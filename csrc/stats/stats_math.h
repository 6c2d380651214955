// Formulas of the stats family.  With N elements a channel, mean m and biased variance v:
//   dm/dx = 1/N,   dv/dx = 2 (x - m) / N.
// Eval-mode batch normalisation is y = act((x - running_mean) scale + bias) with
// scale = weight / sqrt(running_var + eps).
#pragma once

#include <cmath>

#include "common/types.h"

namespace pyddfast {

enum class Activation : int { kNone, kRelu, kRelu6 };

// Count, mean and sum of squared deviations of a set, merged by Chan, Golub and LeVeque (1983).
template <class T>
struct Moments {
  T count, mean, squares;
};

template <class T>
PYDD_HD Moments<T> merge_moments(const Moments<T>& a, const Moments<T>& b) {
  const T count = a.count + b.count;
  const T share = count > T(0) ? b.count / count : T(0);
  const T step = b.mean - a.mean;
  return {count, a.mean + step * share, a.squares + b.squares + step * step * (a.count * share)};
}

// One channel of an eval-mode batch normalisation.
template <class T>
struct EvalNorm {
  T mean, scale, bias;
};

template <class T>
PYDD_HD EvalNorm<T> eval_norm(const T* running_mean, const T* running_var, const T* weight,
                              const T* bias, double eps, int64_t c) {
  const T scale = (weight ? weight[c] : T(1)) / std::sqrt(running_var[c] + T(eps));
  return {running_mean[c], scale, bias ? bias[c] : T(0)};
}

template <class T>
PYDD_HD T normalised(T x, const EvalNorm<T>& norm) {
  return (x - norm.mean) * norm.scale + norm.bias;
}

// NaN passes, as it does through torch's.
template <class T>
PYDD_HD T activated(T y, Activation activation) {
  if (activation == Activation::kNone) return y;
  y = y < T(0) ? T(0) : y;
  return activation == Activation::kRelu6 && y > T(6) ? T(6) : y;
}

// The factor that the activation puts on the gradient, from its input: 0 at the bounds, as torch.
template <class T>
PYDD_HD T activation_slope(T y, Activation activation) {
  if (activation == Activation::kNone) return T(1);
  return y <= T(0) || (activation == Activation::kRelu6 && y >= T(6)) ? T(0) : T(1);
}

// The gradient of one channel's statistics to its elements: of_mean + of_var * (x - mean).
template <class T>
struct StatsSlope {
  T mean, of_mean, of_var;
};

template <class T>
PYDD_HD StatsSlope<T> stats_slope(const T* mean, const T* grad_mean, const T* grad_var,
                                  T inverse_count, int64_t c) {
  const T of_mean = grad_mean ? grad_mean[c] * inverse_count : T(0);
  const T of_var = grad_var ? T(2) * grad_var[c] * inverse_count : T(0);
  return {mean[c], of_mean, of_var};
}

template <class T>
PYDD_HD T stats_gradient(T x, const StatsSlope<T>& slope) {
  return slope.of_mean + slope.of_var * (x - slope.mean);
}

}  // namespace pyddfast
