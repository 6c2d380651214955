// Formulas of gradient_distance, of a row s of the synthetic gradient and r of the real one:
//   1 - <s, r> / (|s| |r| + epsilon),
// with the gradient of_real r + of_syn s to s.  kCosine takes all rows as one.  kSquared is
// |s - r|^2, with the gradient 2 (s - r).
#pragma once

#include <cmath>

#include "common/types.h"

namespace pyddfast {

constexpr int kMatchSums = 3;  // <s, r>, <s, s>, <r, r>; or |s - r|^2 and zeros

template <class T>
struct RowMatch {
  T distance, of_real, of_syn;

  PYDD_HD RowMatch(T product, T of_squares_syn, T of_squares_real) {
    const T syn = std::sqrt(of_squares_syn), real = std::sqrt(of_squares_real);
    const T norms = syn * real + T(1e-6);  // the official code's
    distance = T(1) - product / norms;
    of_real = T(-1) / norms;
    // The norm of zeros has no gradient.
    of_syn = syn == T(0) ? T(0) : product / norms * (real / (syn * norms));
  }
};

}  // namespace pyddfast
