// The formulas of the kd family: one copy, for the CPU and the CUDA kernels.
//
// Notation, for one row: s, t are the student's and the teacher's logits, T the temperature,
//   p = softmax(s/T),  q = softmax(t/T),  d_i = log q_i - log p_i.
//
// KL(q||p) = sum q_i phi(d_i) with phi(d) = d + exp(-d) - 1 >= 0, which has no cancellation.
// Computed from fp32 logits, every d_i of a row carries the same small error delta (that of the
// log ratio of the two normalisers).  It shows up as S = sum q_i expm1(-d_i) = expm1(-delta), which
// would be 0 exactly, so it can be taken out again:
//   KL           = sum q_i phi(d_i) - phi(delta),  delta = -log1p(S)
//   (p - q)_i    = (e_i - q_i S) / (1 + S),        e_i = q_i expm1(-d_i)
// This holds a relative error of a few 1e-7 in loss, gradient and score down to KL = 1e-10, where
// F.kl_div has lost every digit.
#pragma once

#include <cmath>

#include "common/types.h"

namespace pyddfast {

// The sum of two numbers and, exactly, its rounding error (Knuth).
template <class T>
struct TwoSum {
  T sum, error;
};

// An infinite operand makes the error NaN; the difference alone is then the answer.
template <class T>
PYDD_HD TwoSum<T> two_difference(T a, T b) {
  const T difference = a - b;
  const T b_rounded = a - difference;
  const T a_rounded = difference + b_rounded;
  const T error = (a - a_rounded) - (b - b_rounded);
  return {difference, error == error ? error : T(0)};
}

// phi(d) = d + exp(-d) - 1 and expm1(-d), for |d| < 1.
template <class T>
struct PhiExpm1 {
  T phi, expm1_neg;
};

PYDD_HD PhiExpm1<float> phi_expm1(float d) {
  // Minimax polynomial of phi(d)/d^2 on [-1, 1], relative error 1.2e-7 with these fp32
  // coefficients.
  float g = 0x1.a845p-16f;
  g = g * d - 0x1.aa54b6p-13f;
  g = g * d + 0x1.6c0660p-10f;
  g = g * d - 0x1.10fc8ap-7f;
  g = g * d + 0x1.555566p-5f;
  g = g * d - 0x1.55557ep-3f;
  g = g * d + 0.5f;
  const float phi = d * d * g;
  return {phi, phi - d};
}

PYDD_HD PhiExpm1<double> phi_expm1(double d) {
  // phi(d) = d^2/2 (1 - d/3 (1 - d/4 (...))); what is left out is below 2/20! = 8e-19.
  constexpr int kLast = 19;
  double tail = 1.0;
#pragma GCC unroll 32
  for (int k = kLast; k > 2; --k) tail = 1.0 - d * (1.0 / k) * tail;
  const double phi = 0.5 * d * d * tail;
  return {phi, phi - d};
}

// What one element gives: its KL term q*phi(d) and its centred difference e = q*expm1(-d) = p - q.
template <class T>
struct KdTerm {
  T kl, e;
};

// q, p >= 0 are the probabilities, d their log ratio.
//
// Where q = 0 the term is its limit p, even if d is infinite or NaN there (-inf logits).  A NaN
// anywhere else reaches the result.
template <class T>
PYDD_HD KdTerm<T> kd_term(T q, T p, T d) {
  const PhiExpm1<T> small = phi_expm1(d);
  const bool is_small = d < T(1) && d > T(-1);
  const T e_large = p - q;
  const T e = is_small ? q * small.expm1_neg : e_large;
  const T kl = is_small ? q * small.phi : q * d + e_large;
  const bool empty = q == T(0);
  return {empty ? p : kl, empty ? p : e};
}

// phi(delta) for the row's common error delta = -log1p(S); |S| is about 1e-7 in fp32.
template <class T>
PYDD_HD T kd_common_error(T S) {
  return S * S * (T(0.5) - S / T(3));  // phi(-log1p(S)) = S - log1p(S)
}

// Everything about a row that its gradient needs again; kept by the forward for the backward.
//   p_i = exp((s_i - max_s)/T) * inv_sum_s        (likewise q_i for a logits teacher)
//   d_i = ((s,t difference) - shift_hi - shift_lo)/T + log_ratio        (kd_log_ratio)
template <class T>
struct KdRow {
  T max_s, inv_sum_s;
  T max_t, inv_sum_t;  // 0 and 1 for a teacher that holds probabilities
  T log_ratio;         // logits: log(sum_s/sum_t); else the student's logsumexp, see below
  T common;            // S above; 0 for a teacher that holds probabilities
  T mass;              // Q = sum q_i; 1 for logits
  T kl;                // the row's KL, without weight, T^2 or reduction
};
constexpr int kKdRowSize = 8;  // scalars in a KdRow

// (t_i - s_i) - (max_t - max_s).  t - s and shift = two_difference(max_t, max_s) carry their
// rounding errors, so that neither a common offset of the two rows nor close logits cost accuracy.
template <class T>
PYDD_HD T kd_logit_gap(T s, T t, TwoSum<T> shift) {
  const TwoSum<T> diff = two_difference(t, s);
  return (diff.sum - shift.sum) + (diff.error - shift.error);
}

// d_i for a logits teacher.
template <class T>
PYDD_HD T kd_log_ratio(T s, T t, TwoSum<T> shift, T inv_temperature, T log_ratio) {
  return kd_logit_gap(s, t, shift) * inv_temperature + log_ratio;
}

// d_i for a teacher that holds probabilities: log q_i - (s_i - max_s)/T + log(sum_s).
template <class T>
PYDD_HD T kd_log_ratio_probs(T log_q, T s, T max_s, T inv_temperature, T log_sum_s) {
  return log_q - (s - max_s) * inv_temperature + log_sum_s;
}

// p_i - Q-weighted form of the gradient: dKL/ds_i = kd_gradient(...)/T.
// logits: (e - qS)/(1+S);  probabilities: Q p - q, written as e + (Q-1) p.
template <class T>
PYDD_HD T kd_centred(T e, T q, T common) {
  return (e - q * common) / (T(1) + common);
}

}  // namespace pyddfast
