// Formulas of soft_ce.  With p = softmax(s/T), q the target and Q its sum:
//   loss = -sum q_i log p_i,   dloss/ds_i = (Q p_i - q_i)/T,   dloss/dq_i = -log p_i.
#pragma once

#include "common/types.h"

namespace pyddfast {

template <class T>
struct SoftCeRow {
  T max_s, inv_sum_s, log_sum_s, mass;
};
constexpr int kSoftCeRowSize = 4;

// -log p_i >= 0
template <class T>
PYDD_HD T soft_ce_surprise(T s, T max_s, T inv_temperature, T log_sum_s) {
  return (max_s - s) * inv_temperature + log_sum_s;
}

// q * surprise, where 0 * inf is 0 (-inf logits of classes without mass).
template <class T>
PYDD_HD T soft_ce_term(T q, T surprise) {
  return q == T(0) ? T(0) : q * surprise;
}

}  // namespace pyddfast
