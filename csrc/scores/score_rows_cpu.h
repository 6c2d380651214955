// The scores of rows on the CPU, for whoever keeps them (a Sink): two sweeps over data in the L1 or
// L2 cache, the two largest logits and the sums of scores_math.h; a third one for targets that hold
// probabilities.
//
// Up to kLanes rows go through the sweeps together, so that what a sweep leaves in the lanes of
// each row is reduced for all of them at once (rows_cpu.h).
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/rows_cpu.h"
#include "common/simd.h"
#include "kd/kd_loss.h"
#include "scores/sample_scores.h"
#include "scores/scores_math.h"

namespace pyddfast {

// A row's scalars are fp64: an fp32 result would not survive fp32 arguments of exp.
struct TemperedDouble {
  double temperature, inv_temperature;

  PYDD_HD Decay<double> decay(TwoSum<double> x) const {
    // The one of the two that may be small, by its own function; the other one by subtraction.
    const double argument = -(x.sum + x.error) / temperature;
    if (argument > -0.5) {
      const double lost = -std::expm1(argument);
      return {1.0 - lost, lost};
    }
    const double value = std::exp(argument);
    return {value, 1.0 - value};
  }
};

namespace detail {

// Each lane's two largest elements, NaN passed over.
template <class T>
PYDD_HD void lane_top_two(Blocks<const T> x, int64_t blocks, T (&first)[kLanes],
                          T (&second)[kLanes]) {
  // Two blocks side by side hide the latency of comparisons.
  constexpr int64_t kChains = 2, kWide = kChains * kLanes;
  alignas(64) T high[kWide], low[kWide];
  std::fill_n(high, kWide, -std::numeric_limits<T>::infinity());
  std::fill_n(low, kWide, -std::numeric_limits<T>::infinity());
  int64_t b = 0;
  for (; b + kChains <= x.whole; b += kChains) {
#pragma omp simd
    for (int64_t l = 0; l < kWide; ++l) {
      const T value = x.body[b * kLanes + l];
      low[l] = Maximum()(low[l], Minimum()(high[l], value));
      high[l] = Maximum()(high[l], value);
    }
  }
  for (; b < blocks; ++b) {
    const T* const block = x[b];
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      low[l] = Maximum()(low[l], Minimum()(high[l], block[l]));
      high[l] = Maximum()(high[l], block[l]);
    }
  }
#pragma omp simd
  for (int64_t l = 0; l < kLanes; ++l) {
    const T smaller = Minimum()(high[l], high[l + kLanes]);
    second[l] = Maximum()(Maximum()(low[l], low[l + kLanes]), smaller);
    first[l] = Maximum()(high[l], high[l + kLanes]);
  }
}

// fold_rows for the two largest elements.
template <int64_t kRows = kLanes, class T>
PYDD_HD void fold_top_two(const T (&high)[kRows][kLanes], const T (&low)[kRows][kLanes],
                          T (&first)[kLanes], T (&second)[kLanes]) {
  constexpr int64_t kHalf = kLanes / 2, kPairs = kRows / 2;
  alignas(64) T folded[kPairs][kLanes], below[kPairs][kLanes];
  for (int64_t r = 0; r < kPairs; ++r) {
#pragma omp simd
    for (int64_t l = 0; l < kHalf; ++l) {
      const T* const high_a = high[r];
      const T* const high_b = high[r + kPairs];
      const T* const low_a = low[r];
      const T* const low_b = low[r + kPairs];
      folded[r][2 * l] = Maximum()(high_a[l], high_a[l + kHalf]);
      folded[r][2 * l + 1] = Maximum()(high_b[l], high_b[l + kHalf]);
      below[r][2 * l] =
          Maximum()(Maximum()(low_a[l], low_a[l + kHalf]), Minimum()(high_a[l], high_a[l + kHalf]));
      below[r][2 * l + 1] =
          Maximum()(Maximum()(low_b[l], low_b[l + kHalf]), Minimum()(high_b[l], high_b[l + kHalf]));
    }
  }
  if constexpr (kPairs > 1) {
    fold_top_two<kPairs>(folded, below, first, second);
  } else {
    std::copy_n(folded[0], kLanes, first);
    std::copy_n(below[0], kLanes, second);
  }
}

// Each lane's ScoreSums, and the exponentials: soft_sums needs them, and without their store GCC
// joins two blocks before it vectorises, and then does not.
template <class T>
PYDD_HD void score_sums(Blocks<const T> z, int64_t blocks, T shift, ScaledExp<T> exp, T* w,
                        double (&total)[kLanes], double (&squares)[kLanes],
                        double (&depth)[kLanes]) {
  std::fill_n(total, kLanes, 0.0);
  std::fill_n(squares, kLanes, 0.0);
  std::fill_n(depth, kLanes, 0.0);
  for (int64_t start = 0; start < blocks; start += kSumBlocks) {
    const int64_t stop = std::min(blocks, start + kSumBlocks);
    alignas(64) T sum[kLanes] = {}, sum_squares[kLanes] = {}, sum_depth[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
      const T* const block = z[b];
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const T d = score_depth(block[l], shift);
        const T value = exp(d);
        w[b * kLanes + l] = value;
        sum[l] += value;
        sum_squares[l] += value * value;
        sum_depth[l] += score_surprise(value, d);
      }
    }
    add_lanes(sum, total);
    add_lanes(sum_squares, squares);
    add_lanes(sum_depth, depth);
  }
}

// Sums of the KL terms, of (p - q)^2 and of q in each lane.
template <class T>
PYDD_HD void soft_sums(Blocks<const T> z, const T* w, Blocks<const T> target, int64_t blocks,
                       const SoftRow<T> row, double (&kl)[kLanes], double (&squares)[kLanes],
                       double (&mass)[kLanes]) {
  std::fill_n(kl, kLanes, 0.0);
  std::fill_n(squares, kLanes, 0.0);
  std::fill_n(mass, kLanes, 0.0);
  for (int64_t start = 0; start < blocks; start += kSumBlocks) {
    const int64_t stop = std::min(blocks, start + kSumBlocks);
    alignas(64) T sum_kl[kLanes] = {}, sum_squares[kLanes] = {}, sum_mass[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
      const T* const z_b = z[b];
      const T* const q_b = target[b];
      const T* const w_b = w + b * kLanes;
      // In two loops: GCC does not vectorise them as one.
      alignas(64) T log_q[kLanes];
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) log_q[l] = log_positive(q_b[l]);
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const T q = q_b[l];
        const KdTerm<T> term = soft_term(z_b[l], w_b[l], q, log_q[l], row);
        sum_kl[l] += term.kl;
        sum_squares[l] += term.e * term.e;
        sum_mass[l] += q;
      }
    }
    add_lanes(sum_kl, kl);
    add_lanes(sum_squares, squares);
    add_lanes(sum_mass, mass);
  }
}

template <class S>
PYDD_HD double squared_norm(const S* x, int64_t n) {
  alignas(64) double total[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      const double value = double(to_float(x[i + l]));
      total[l] += value * value;
    }
  }
  for (; i < n; ++i) {
    const double value = double(to_float(x[i]));
    total[i % kLanes] += value * value;
  }
  return fold(total, Sum());
}

PYDD_HD double squared_norm(const void* x, DType dtype, int64_t n) {
  switch (dtype) {
    case DType::kFloat64:
      return squared_norm(static_cast<const double*>(x), n);
    case DType::kFloat32:
      return squared_norm(static_cast<const float*>(x), n);
    case DType::kFloat16:
      return squared_norm(static_cast<const Half*>(x), n);
    case DType::kBFloat16:
      return squared_norm(static_cast<const BFloat16*>(x), n);
  }
  __builtin_unreachable();
}

}  // namespace detail

// For one range of rows.  Sink: `void operator()(int64_t row, const double (&scores)[kScores], bool
// correct)`.  Rows that may not be (a label that is no class, NaN logits) are NaN throughout, and
// the first of them is noted in `invalid_row`.
template <class T, class Sink>
class ScoreRows {
 public:
  PYDD_HD ScoreRows(const ScoreInputs& inputs, std::atomic<int64_t>& invalid_row, Sink sink)
      : inputs_(inputs),
        invalid_row_(invalid_row),
        sink_(sink),
        soft_(inputs.labels == nullptr),
        n_(inputs.classes),
        blocks_(blocks_of(inputs.classes)),
        group_(std::clamp<int64_t>(kGroupElements / (blocks_ * kLanes), 1, kLanes)),
        exp_(1.0 / inputs.temperature),
        tempered_{inputs.temperature, 1.0 / inputs.temperature},
        scratch_(new_scratch<T>(group_ * kArrays * blocks_ * kLanes)) {}

  PYDD_HD void run(int64_t begin, int64_t end) {
    for (first_ = begin; first_ < end; first_ += group_) {
      count_ = std::min(group_, end - first_);
      load();
      rank();
      sum();
      if (inputs_.teacher) compare_with_teacher();
      for (int64_t i = 0; i < count_; ++i) finish(i);
    }
  }

 private:
  static constexpr int64_t kArrays = 3;  // logits, target, exponentials
  // Logits and exponentials of a group stay in the L1 cache (32 or 48 KiB).
  static constexpr int64_t kGroupElements = 4096;

  PYDD_HD T* array(int64_t i, int64_t which) const {
    return &scratch_[(i * kArrays + which) * blocks_ * kLanes];
  }

  PYDD_HD void load() {
    for (int64_t i = 0; i < count_; ++i) {
      z_[i] = load_row(row_of(inputs_.logits, inputs_.logits_dtype, inputs_.logits_stride, i),
                       inputs_.logits_dtype, n_, -std::numeric_limits<T>::infinity(), array(i, 0));
      if (!soft_) {
        label_[i] = inputs_.labels[(first_ + i) * inputs_.label_stride];
        continue;
      }
      q_[i] = load_row(row_of(inputs_.target, inputs_.target_dtype, inputs_.target_stride, i),
                       inputs_.target_dtype, n_, T(0), array(i, 1));
      label_[i] = first_maximum(q_[i]);
    }
  }

  PYDD_HD const void* row_of(const void* base, DType dtype, int64_t stride, int64_t i) const {
    return element(base, dtype, (first_ + i) * stride);
  }

  // The largest value, block by block, then the first place that holds it.
  PYDD_HD int64_t first_maximum(Blocks<const T> x) const {
    alignas(64) T lanes[kLanes];
    std::copy_n(x[0], kLanes, lanes);
    for (int64_t b = 1; b < blocks_; ++b) {
      const T* const block = x[b];
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) lanes[l] = Maximum()(lanes[l], block[l]);
    }
    const T largest = fold(lanes, Maximum());
    for (int64_t b = 0; b < blocks_; ++b) {
      const T* const block = x[b];
      int found = 0;
#pragma omp simd reduction(| : found)
      for (int64_t l = 0; l < kLanes; ++l) found |= block[l] == largest;
      if (!found) continue;
      for (int64_t c = b * kLanes; c < n_; ++c) {
        if (x.at(c) == largest) return c;
      }
    }
    return 0;  // NaN, or only in the padding
  }

  PYDD_HD void rank() {
    for (int64_t i = 0; i < count_; ++i) {
      detail::lane_top_two(z_[i], blocks_, high_[i], low_[i]);
    }
    detail::fold_top_two(high_, low_, max_, next_);
  }

  PYDD_HD void sum() {
    for (int64_t i = 0; i < count_; ++i) {
      const T shift = TopTwo<T>{max_[i], next_[i]}.shift();
      detail::score_sums(z_[i], blocks_, shift, exp_, array(i, 2), sums_[0][i], sums_[1][i],
                         sums_[2][i]);
    }
    for (int64_t k = 0; k < 3; ++k) fold_rows(sums_[k], Sum(), totals_[k]);
  }

  // Loss and score of the teacher, by the kernel that knows how.
  PYDD_HD void compare_with_teacher() {
    KdLossParams params{};
    params.student = row_of(inputs_.logits, inputs_.logits_dtype, inputs_.logits_stride, 0);
    params.teacher = row_of(inputs_.teacher, inputs_.teacher_dtype, inputs_.teacher_stride, 0);
    params.student_dtype = inputs_.logits_dtype;
    params.teacher_dtype = inputs_.teacher_dtype;
    params.teacher_kind = TeacherKind::kLogits;
    params.rows = count_;
    params.classes = n_;
    params.student_stride = inputs_.logits_stride;
    params.teacher_stride = inputs_.teacher_stride;
    params.temperature = inputs_.temperature;
    params.scale = 1;
    params.loss_rows = teacher_loss_;
    params.score = teacher_score_;
    kd_loss_cpu(params, 0, count_);
  }

  PYDD_HD void finish(int64_t i) {
    const TopTwo<double> top{double(max_[i]), double(next_[i])};
    const int64_t label = label_[i];
    const bool valid = label >= 0 && label < n_;
    const double z_y = valid ? double(z_[i].at(label)) : top.first;
    const Prediction<double> row =
        predict(top, ScoreSums<double>{totals_[0][i], totals_[1][i], totals_[2][i]}, tempered_);
    double scores[kScores];
    score_row(row, z_y, valid, tempered_, scores);
    if (!valid || (row.odds != row.odds && holds_nan(z_[i]))) note_invalid(first_ + i);
    if (soft_) soft_scores(i, row, scores);
    if (inputs_.teacher) {
      scores[kLoss] = double(teacher_loss_[i]);
      scores[kEl2nSl] = double(teacher_score_[i]);
    }
    if (inputs_.features) {
      const void* const h =
          row_of(inputs_.features, inputs_.features_dtype, inputs_.features_stride, i);
      const double squares = detail::squared_norm(h, inputs_.features_dtype, inputs_.width);
      scores[kGrand] = scores[kEl2nSl] * std::sqrt(1.0 + squares);
    }
    bool correct = valid && z_y == top.first && row.odds == row.odds;
    if (correct && top.first == top.second) correct = is_first(z_[i], label);
    sink_(first_ + i, scores, correct);
  }

  // EL2N and loss where the target holds probabilities.
  PYDD_HD void soft_scores(int64_t i, const Prediction<double>& row,
                           double (&scores)[kScores]) const {
    const Prediction<T> narrow{{T(row.top.first), T(row.top.second)},
                               T(row.r),
                               T(row.odds),
                               T(row.inv_total),
                               T(row.log_total)};
    alignas(64) double kl[kLanes], squares[kLanes], mass[kLanes];
    detail::soft_sums(z_[i], array(i, 2), q_[i], blocks_,
                      soft_row(narrow, T(tempered_.inv_temperature)), kl, squares, mass);
    scores[kLoss] = fold(kl, Sum()) + (fold(mass, Sum()) - 1.0);
    scores[kEl2n] = std::sqrt(fold(squares, Sum()));
    scores[kEl2nSl] = scores[kEl2n] * tempered_.inv_temperature;
  }

  PYDD_HD bool is_first(Blocks<const T> z, int64_t label) const {
    for (int64_t c = 0; c < label; ++c) {
      if (z.at(c) == z.at(label)) return false;
    }
    return true;
  }

  PYDD_HD bool holds_nan(Blocks<const T> z) const {
    for (int64_t c = 0; c < n_; ++c) {
      if (z.at(c) != z.at(c)) return true;
    }
    return false;
  }

  PYDD_HD void note_invalid(int64_t row) {
    int64_t first = invalid_row_.load();
    while (row < first && !invalid_row_.compare_exchange_weak(first, row)) {
    }
  }

  const ScoreInputs& inputs_;
  std::atomic<int64_t>& invalid_row_;
  const Sink sink_;
  const bool soft_;
  const int64_t n_, blocks_, group_;
  const ScaledExp<T> exp_;
  const TemperedDouble tempered_;
  const Scratch<T> scratch_;

  int64_t first_ = 0, count_ = 0;  // the group: rows [first_, first_ + count_)
  Blocks<const T> z_[kLanes] = {}, q_[kLanes] = {};
  int64_t label_[kLanes] = {};

  // What a sweep leaves: one row of lanes a row, then one lane a row.
  alignas(64) T high_[kLanes][kLanes] = {}, low_[kLanes][kLanes] = {};
  alignas(64) T max_[kLanes] = {}, next_[kLanes] = {};
  alignas(64) double sums_[3][kLanes][kLanes] = {}, totals_[3][kLanes] = {};
  T teacher_loss_[kLanes] = {}, teacher_score_[kLanes] = {};
};

}  // namespace pyddfast
