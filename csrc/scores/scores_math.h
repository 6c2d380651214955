// The formulas of the sample scores: one copy, for the CPU and the CUDA kernels.
//
// Notation, for one row: z are the logits, y the label, T the temperature, p = softmax(z/T); m is
// the largest logit, n the largest of the others.  With
//   d_c = min(z_c, n) - n <= 0,  w_c = exp(d_c/T),  W = sum w_c - 1,  r = exp((n - m)/T)
// the class of m has the probability 1/(1 + r W) and any other one r w_c/(1 + r W).  Relative to n,
// nothing underflows that a score depends on, and the class of m, whose w is 1, leaves the sums by
// an exact subtraction from a number >= 2.  Then, with a = 1 - exp((z_y - m)/T),
//   1 - p_y    = (r W + a)/(1 + r W)
//   -log p_y   = log1p(r W) + (m - z_y)/T
//   |p - e_y|^2 (1 + r W)^2 = (r W + a)^2 + r^2 (sum w_c^2 - 1) + a (2 - a)
//   entropy    = log1p(r W) + r (W (m - n)/T - sum w_c d_c/T)/(1 + r W)
// are sums of terms >= 0: no score loses digits by cancellation, whatever p_y is.
#pragma once

#include <cmath>
#include <limits>

#include "common/types.h"
#include "kd/kd_math.h"

namespace pyddfast {

// The scores of a row that are numbers, in the order of SampleScores (pyddfast/ops/reference).
enum Score : int {
  kProb,          // p_y
  kOneMinusProb,  // 1 - p_y
  kNll,
  kEl2n,
  kEl2nSl,
  kMargin,
  kMarginProb,
  kTop2Margin,
  kEntropy,
  kMaxProb,
  kMaxLogit,
  kLoss,
  kGrand,
  kScores
};

// The two largest logits; second is -inf where there is only one.
template <class T>
struct TopTwo {
  T first, second;

  PYDD_HD bool alone() const { return second == -std::numeric_limits<T>::infinity(); }
  // n above; a row of one class has w = 1 and W = 0 by any finite n.
  PYDD_HD T shift() const { return alone() ? first : second; }
};

// d_c.  NaN stays NaN.
template <class T>
PYDD_HD T score_depth(T z, T shift) {
  return (shift < z ? shift : z) - shift;
}

// w_c d_c, 0 where w_c is, even if d_c is infinite.
template <class T>
PYDD_HD T score_surprise(T w, T depth) {
  constexpr T kLowest = T(-1e38);
  return w * (depth > kLowest ? depth : kLowest);
}

// Sums over all classes.
template <class T>
struct ScoreSums {
  T w, squares, depth;  // of w_c, w_c^2, w_c d_c
};

// exp(-x/T) and 1 - exp(-x/T), for x >= 0.
template <class T>
struct Decay {
  T value, lost;
};

// How a kernel computes it (`Tempered`): decay(x) of a difference that comes with its rounding
// error.

// What a row says without a label.
template <class T>
struct Prediction {
  TopTwo<T> top;
  T r, odds;          // odds: r W
  T inv_total;        // 1/(1 + r W), the largest probability
  T log_total;        // log1p(r W)
  T others, squares;  // W, sum w_c^2 - 1
  T top2_margin, entropy;
};

template <class T, class Tempered>
PYDD_HD Prediction<T> predict(TopTwo<T> top, ScoreSums<T> sums, const Tempered& tempered) {
  const TwoSum<T> gap = two_difference(top.first, top.shift());
  const Decay<T> decay = tempered.decay(gap);
  Prediction<T> out;
  out.top = top;
  out.r = decay.value;
  // No probabilities beside an infinite logit: NaN, as softmax has it.
  out.others = (sums.w - T(1)) + (top.first - top.first);
  out.squares = sums.squares - T(1);
  out.odds = out.r * out.others;
  out.inv_total = T(1) / (T(1) + out.odds);
  out.log_total = std::log1p(out.odds);
  out.top2_margin = out.inv_total * (top.alone() ? T(1) : decay.lost);
  // r first: it is 0 where the gap is too large to be multiplied.
  const T surprise = out.others * (out.r * gap.sum) - out.r * sums.depth;
  out.entropy = out.log_total + out.inv_total * (surprise * tempered.inv_temperature);
  return out;
}

// Every score of a row with a hard label whose logit is z_y; kLoss is the label's, kGrand is not
// set.  A row that holds NaN, or whose `valid` is false, is NaN throughout.
template <class T, class Tempered>
PYDD_HD void score_row(const Prediction<T>& row, T z_y, bool valid, const Tempered& tempered,
                       T (&scores)[kScores]) {
  const bool is_top = z_y == row.top.first;
  const TwoSum<T> below = two_difference(row.top.first, z_y);
  const Decay<T> decay = tempered.decay(below);
  const T a = decay.lost;
  const T p_y = row.inv_total * decay.value;
  const T others = row.odds + a;
  // A label on top may have so small an r that its square underflows.
  const T norm_top = row.r * std::sqrt(row.squares + row.others * row.others);
  const T norm_below = std::sqrt(a * (T(2) - a) + row.r * row.r * row.squares + others * others);
  const T poison = valid ? row.odds * T(0) : std::numeric_limits<T>::quiet_NaN();
  const T nll = row.log_total + below.sum * tempered.inv_temperature + poison;
  const T el2n = (is_top ? norm_top : norm_below) * row.inv_total + poison;
  scores[kProb] = p_y + poison;
  scores[kOneMinusProb] = others * row.inv_total + poison;
  scores[kNll] = nll;
  scores[kEl2n] = el2n;
  scores[kEl2nSl] = el2n * tempered.inv_temperature;
  scores[kMargin] = (is_top ? row.top.first - row.top.second : z_y - row.top.first) + poison;
  scores[kMarginProb] = (is_top ? row.top2_margin : -a * row.inv_total) + poison;
  scores[kTop2Margin] = row.top2_margin + poison;
  scores[kEntropy] = row.entropy + poison;
  scores[kMaxProb] = row.inv_total + poison;
  scores[kMaxLogit] = row.top.first + poison;
  scores[kLoss] = nll;
}

// What one class adds where the target holds probabilities q: its KL term and p - q.
template <class T>
struct SoftRow {
  T max, inv_temperature, log_total;
  T shift;      // n
  T scale;      // p_c = w_c * scale for z_c <= n
  T top, rest;  // the largest probability, and 1 minus it
};

template <class T>
PYDD_HD SoftRow<T> soft_row(const Prediction<T>& row, T inv_temperature) {
  return {row.top.first,         inv_temperature, row.log_total,           row.top.shift(),
          row.r * row.inv_total, row.inv_total,   row.odds * row.inv_total};
}

template <class T>
PYDD_HD KdTerm<T> soft_term(T z, T w, T q, T log_q, const SoftRow<T>& row) {
  const bool is_top = z > row.shift;
  const T p = is_top ? row.top : w * row.scale;
  const T d = kd_log_ratio_probs(log_q, z, row.max, row.inv_temperature, row.log_total);
  // Beside a probability near 1 the difference is that of the complements.
  return {kd_term(q, p, d).kl, is_top ? (T(1) - q) - row.rest : p - q};
}

}  // namespace pyddfast
