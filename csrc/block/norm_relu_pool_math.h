// Formulas of norm_relu_pool.  A plane has M elements x, m() is a mean over them, and
//   r = (var + eps)^-1/2,  h = (x - mean) r,  z = gamma h + beta,  y = pool(relu(z)).
// With the upstream gradient G of y, u = up(G) where the ReLU is open and 0 elsewhere, up() giving
// each of a window's four elements a quarter of its gradient:
//   grad_x = gamma r P(u),  grad_gamma = sum u h,  grad_beta = sum u,
//   P(v) = v - m(v) - h m(v h).
// grad_x is linear in u, so that for cotangents V of grad_x, s of grad_gamma and t of grad_beta the
// second derivatives are, with K = m(P(V) u),
//   to G:      pool(gamma r P(V) + s h + t where the ReLU is open)
//   to x:      r P(q) - gamma r^2 K h,  q = gamma r (-m(V h) u - m(u h) V) + s u
//   to gamma:  r M K
//   to beta:   0.
// P is linear: P(q) = (s - gamma r m(V h)) P(u) - gamma r m(u h) P(V).
#pragma once

#include "common/types.h"

namespace pyddfast {

constexpr int kPlaneStats = 3;

// The mean as a sum of two numbers: x - mean is then exact however far the mean lies from 0.
template <class T>
struct PlaneStats {
  T mean, rest, rstd;
};

// One plane's norm and ReLU.
template <class T>
struct PlaneNorm {
  T mean, shift, rstd;  // h = (x - mean) rstd - shift
  T weight, bias;
  bool relu;

  PYDD_HD PlaneNorm(const PlaneStats<T>& stats, T weight_, T bias_, bool relu_)
      : mean(stats.mean),
        shift(stats.rest * stats.rstd),
        rstd(stats.rstd),
        weight(weight_),
        bias(bias_),
        relu(relu_) {}

  PYDD_HD T normalised(T x) const { return (x - mean) * rstd - shift; }
  PYDD_HD T scaled(T h) const { return h * weight + bias; }
  // NaN passes, as it does through torch's.
  PYDD_HD T activated(T h) const {
    const T z = scaled(h);
    return relu && z < T(0) ? T(0) : z;
  }
  // The value where the ReLU is open, else 0: closed at 0, as torch.
  PYDD_HD T gated(T h, T value) const { return relu && scaled(h) <= T(0) ? T(0) : value; }
};

// P() of a field whose mean and mean with h are known.
template <class T>
struct Projection {
  T mean, slope;
  PYDD_HD T operator()(T value, T h) const { return value - mean - h * slope; }
};

// The coefficients of the second derivative to x: of_u P(u) + of_v P(V) + of_h h.
template <class T>
struct SecondSlope {
  T of_u, of_v, of_h;

  PYDD_HD SecondSlope(const PlaneNorm<T>& norm, const Projection<T>& u, const Projection<T>& v,
                      T of_weight, T mean_product) {
    const T scale = norm.weight * norm.rstd;
    of_u = norm.rstd * (of_weight - scale * v.slope);
    of_v = -norm.rstd * scale * u.slope;
    of_h = -scale * norm.rstd * mean_product;
  }
};

}  // namespace pyddfast
