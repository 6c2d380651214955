// KL, score and gradient in four sweeps over data that stays in the L1 or L2 cache: maxima;
// exponentials and normalisers; KL terms and centred differences; gradient and its norm.
//
// Up to kLanes rows go through the sweeps together.  A sweep leaves sums in the lanes of each row;
// reduced together (fold_rows), they become vectors with one lane a row, and so the scalars of a
// row (normalisers, the logarithm of their ratio, ...) are computed for all rows at once.  For
// short rows that is most of the work.
#include <algorithm>
#include <cmath>

#include "common/rows_cpu.h"
#include "common/softmax_cpu.h"
#include "kd/kd_loss.h"
#include "kd/kd_math.h"

namespace pyddfast {
namespace {

// One row while it is worked on; passed by value, so that loops keep it in registers.
// p and q hold the exponentials, then e = p - q and q.
template <class T>
struct Row {
  Blocks<const T> s, t;
  T* p;
  T* q;
  T* d;  // log ratios, only for a teacher that holds probabilities
  int64_t blocks;
  T inv_temperature;
};

// Probabilities and their logarithms from whichever of them the teacher holds; their sum.
template <class T>
PYDD_HD void probabilities(const Row<T> row, bool is_log, double (&mass)[kLanes]) {
  const ScaledExp<T> exp(1.0);
  std::fill_n(mass, kLanes, 0.0);
  for (int64_t start = 0; start < row.blocks; start += kSumBlocks) {
    const int64_t stop = std::min(row.blocks, start + kSumBlocks);
    alignas(64) T sum[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
      const T* const t = row.t[b];
      T* const q = row.q + b * kLanes;
      T* const log_q = row.d + b * kLanes;
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        // A log-probability is above 0 by rounding at most, where exp(x) = 1 + x.
        const T above = t[l] > T(0) ? t[l] : T(0);
        q[l] = is_log ? exp(t[l] - above) * (T(1) + above) : t[l];
        log_q[l] = is_log ? t[l] : log_positive(t[l]);
        sum[l] += q[l];
      }
    }
    add_lanes(sum, mass);
  }
}

// Replaces the exponentials by e and q; sums of the KL terms and of e.
template <bool kGuarded, class T>
PYDD_HD void terms(const Row<T> row, const KdRow<T> stats, double (&kl)[kLanes],
                   double (&e)[kLanes]) {
  std::fill_n(kl, kLanes, 0.0);
  std::fill_n(e, kLanes, 0.0);
  const TwoSum<T> shift = two_difference(stats.max_t, stats.max_s);
  for (int64_t start = 0; start < row.blocks; start += kSumBlocks) {
    const int64_t stop = std::min(row.blocks, start + kSumBlocks);
    alignas(64) T sum_kl[kLanes] = {}, sum_e[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
      const T* const s = row.s[b];
      const T* const t = row.t[b];
      T* const p = row.p + b * kLanes;
      T* const q = row.q + b * kLanes;
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const T d = kd_log_ratio<kGuarded>(s[l], t[l], shift, row.inv_temperature, stats.log_ratio);
        const T q_l = q[l] * stats.inv_sum_t;
        const KdTerm<T> term = kd_term<kGuarded>(q_l, p[l] * stats.inv_sum_s, d);
        q[l] = q_l;
        p[l] = term.e;
        sum_kl[l] += term.kl;
        sum_e[l] += term.e;
      }
    }
    add_lanes(sum_kl, kl);
    add_lanes(sum_e, e);
  }
}

// The same for a teacher that holds probabilities; d is kept for the teacher's gradient.
template <class T>
PYDD_HD void terms_of_probabilities(const Row<T> row, const KdRow<T> stats, double (&kl)[kLanes]) {
  std::fill_n(kl, kLanes, 0.0);
  for (int64_t start = 0; start < row.blocks; start += kSumBlocks) {
    const int64_t stop = std::min(row.blocks, start + kSumBlocks);
    alignas(64) T sum_kl[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
      const T* const s = row.s[b];
      T* const p = row.p + b * kLanes;
      T* const q = row.q + b * kLanes;
      T* const d = row.d + b * kLanes;
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const T d_l =
            kd_log_ratio_probs(d[l], s[l], stats.max_s, row.inv_temperature, stats.log_ratio);
        const T p_l = p[l] * stats.inv_sum_s;
        sum_kl[l] += kd_term(q[l], p_l, d_l).kl;
        p[l] = p_l - q[l];  // as exact as the probabilities that were given
        d[l] = d_l;
      }
    }
    add_lanes(sum_kl, kl);
  }
}

// Sums of (p - q)^2 (1 + S)^2; the gradient with respect to the student, times `factor`, if wanted.
// kMass: whether the teacher's mass Q is not 1.
template <bool kGradient, bool kMass, class T>
PYDD_HD void norm_and_gradient(const Row<T> row, const KdRow<T> stats, T factor, Blocks<T> gradient,
                               double (&total)[kLanes]) {
  std::fill_n(total, kLanes, 0.0);
  const T common = stats.common;
  const T extra_mass = stats.mass - T(1);
  const T scaled = factor / (T(1) + common);
  for (int64_t start = 0; start < row.blocks; start += kSumBlocks) {
    const int64_t stop = std::min(row.blocks, start + kSumBlocks);
    alignas(64) T sum[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
      const T* const e = row.p + b * kLanes;
      const T* const q = row.q + b * kLanes;
      T* const out = kGradient ? gradient[b] : nullptr;
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const T centred = e[l] - q[l] * common;
        sum[l] += centred * centred;
        if constexpr (kGradient) {
          // Q p - q = (p - q) + (Q - 1) p
          out[l] = (kMass ? centred + extra_mass * (centred + q[l]) : centred) * scaled;
        }
      }
    }
    add_lanes(sum, total);
  }
}

// dKL/dt: logits q (d - KL)/T, probabilities d + 1, log-probabilities q (d + 1); 0 where q = 0.
template <class T>
PYDD_HD void teacher_gradient(const Row<T> row, const KdRow<T> stats, TeacherKind kind, T factor,
                              Blocks<T> gradient) {
  const TwoSum<T> shift = two_difference(stats.max_t, stats.max_s);
  const bool logits = kind == TeacherKind::kLogits;
  const T center = logits ? stats.kl - std::log1p(stats.common) : T(-1);
  const T scale = logits ? factor * row.inv_temperature : factor;
  const bool times_q = kind != TeacherKind::kProbs;
  for (int64_t b = 0; b < row.blocks; ++b) {
    const T* const s = row.s[b];
    const T* const t = row.t[b];
    const T* const q = row.q + b * kLanes;
    const T* const log_ratio = row.d + b * kLanes;
    T* const out = gradient[b];
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      const T d = logits ? kd_log_ratio(s[l], t[l], shift, row.inv_temperature, stats.log_ratio)
                         : log_ratio[l];
      const T value = (d - center) * (times_q ? q[l] : T(1)) * scale;
      out[l] = q[l] == T(0) ? T(0) : value;
    }
  }
}

template <class T>
PYDD_HD void fold_maxima(const T (&lanes)[kLanes][kLanes], T (&maximum)[kLanes]) {
  fold_rows(lanes, Maximum(), maximum);
#pragma omp simd
  for (int64_t i = 0; i < kLanes; ++i) maximum[i] = above_padding(maximum[i]);
}

template <class T>
PYDD_HD bool has_nan(const T (&lanes)[kLanes]) {
  int64_t count = 0;
#pragma omp simd reduction(+ : count)
  for (int64_t l = 0; l < kLanes; ++l) count += lanes[l] == lanes[l] ? 0 : 1;
  return count > 0;
}

// The kernel for one range of rows: the sweeps over a group of rows, and what they hand on.
template <class T>
class KdLossRows {
 public:
  PYDD_HD explicit KdLossRows(const KdLossParams& params)
      : params_(params),
        kind_(params.teacher_kind),
        n_(params.classes),
        blocks_(blocks_of(params.classes)),
        group_(std::clamp<int64_t>(kGroupElements / (blocks_ * kLanes), 1, kLanes)),
        exp_(1.0 / params.temperature),
        scratch_(new_scratch<T>(group_ * kArrays * blocks_ * kLanes)) {}

  PYDD_HD void run(int64_t begin, int64_t end) {
    for (first_ = begin; first_ < end; first_ += group_) {
      count_ = std::min(group_, end - first_);
      load();
      if (kind_ == TeacherKind::kLogits) {
        normalise();
        diverge();
      } else {
        normalise_student();
        diverge_from_probabilities();
      }
      if (params_.grad_teacher) teacher_gradients();
      if (params_.grad_student || params_.score) student_gradients();
      store();
    }
  }

 private:
  static constexpr int64_t kArrays = 5;  // s, t, p, q, d
  // p, q and the inputs of a group stay in the L1 cache (32 or 48 KiB) where rows are short; long
  // rows stay in the L2 cache.
  static constexpr int64_t kGroupElements = 4096;

  PYDD_HD void load() {
    const int64_t width = blocks_ * kLanes;
    const T padding = kind_ == TeacherKind::kProbs ? T(0) : kPadding<T>;
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t r = first_ + i;
      T* const arrays = &scratch_[i * kArrays * width];
      rows_[i].s =
          load_row(element(params_.student, params_.student_dtype, r * params_.student_stride),
                   params_.student_dtype, n_, kPadding<T>, arrays);
      rows_[i].t =
          load_row(element(params_.teacher, params_.teacher_dtype, r * params_.teacher_stride),
                   params_.teacher_dtype, n_, padding, arrays + width);
      rows_[i].p = arrays + 2 * width;
      rows_[i].q = arrays + 3 * width;
      rows_[i].d = arrays + 4 * width;
      rows_[i].blocks = blocks_;
      rows_[i].inv_temperature = T(1.0 / params_.temperature);
    }
  }

  // Maxima, exponentials and normalisers of student and teacher.
  PYDD_HD void normalise() {
    for (int64_t i = 0; i < count_; ++i) {
      row_maximum(rows_[i].s, blocks_, maxima_s_[i]);
      row_maximum(rows_[i].t, blocks_, maxima_t_[i]);
    }
    fold_maxima(maxima_s_, max_s_);
    fold_maxima(maxima_t_, max_t_);
    for (int64_t i = 0; i < count_; ++i) exponentials(i);
    alignas(64) double sum_s[kLanes], sum_t[kLanes];
    fold_rows(sums_[0], Sum(), sum_s);
    fold_rows(sums_[1], Sum(), sum_t);
#pragma omp simd
    for (int64_t i = 0; i < kLanes; ++i) {
      inv_sum_s_[i] = T(1.0 / sum_s[i]);
      inv_sum_t_[i] = T(1.0 / sum_t[i]);
      log_ratio_[i] = log_positive(T(sum_s[i] / sum_t[i]));  // its error is common to the row
      mass_[i] = 1;
    }
  }

  PYDD_HD void exponentials(int64_t i) {
    row_exponentials(rows_[i].s, blocks_, max_s_[i], exp_, rows_[i].p, sums_[0][i]);
    row_exponentials(rows_[i].t, blocks_, max_t_[i], exp_, rows_[i].q, sums_[1][i]);
  }

  PYDD_HD void normalise_student() {
    for (int64_t i = 0; i < count_; ++i) row_maximum(rows_[i].s, blocks_, maxima_s_[i]);
    fold_maxima(maxima_s_, max_s_);
    for (int64_t i = 0; i < count_; ++i) {
      row_exponentials(rows_[i].s, blocks_, max_s_[i], exp_, rows_[i].p, sums_[0][i]);
      probabilities(rows_[i], kind_ == TeacherKind::kLogProbs, sums_[1][i]);
    }
    alignas(64) double sum_s[kLanes];
    fold_rows(sums_[0], Sum(), sum_s);
    fold_rows(sums_[1], Sum(), total_mass_);
    for (int64_t i = 0; i < kLanes; ++i) {
      max_t_[i] = 0;
      inv_sum_s_[i] = T(1.0 / sum_s[i]);
      inv_sum_t_[i] = 1;
      log_ratio_[i] = T(std::log(sum_s[i]));
      mass_[i] = T(total_mass_[i]);
    }
  }

  // KL from the normalised rows, which it turns into e and q.
  PYDD_HD void diverge() {
    for (int64_t i = 0; i < count_; ++i) {
      terms<false>(rows_[i], stats(i), sums_[0][i], sums_[1][i]);
    }
    fold_rows(sums_[0], Sum(), divergence_);
    if (has_nan(divergence_)) {  // -inf logits, or a NaN: these rows again with the guards
      for (int64_t i = 0; i < count_; ++i) {
        if (divergence_[i] == divergence_[i]) continue;
        exponentials(i);
        terms<true>(rows_[i], stats(i), sums_[0][i], sums_[1][i]);
      }
      fold_rows(sums_[0], Sum(), divergence_);
    }
    alignas(64) double sum_e[kLanes];
    fold_rows(sums_[1], Sum(), sum_e);
#pragma omp simd
    for (int64_t i = 0; i < kLanes; ++i) {
      common_[i] = T(sum_e[i]);
      divergence_[i] -= kd_common_error(sum_e[i]);
      kl_[i] = T(divergence_[i]);
    }
  }

  PYDD_HD void diverge_from_probabilities() {
    for (int64_t i = 0; i < count_; ++i) {
      terms_of_probabilities(rows_[i], stats(i), sums_[0][i]);
    }
    fold_rows(sums_[0], Sum(), divergence_);
#pragma omp simd
    for (int64_t i = 0; i < kLanes; ++i) {
      common_[i] = 0;
      divergence_[i] += total_mass_[i] - 1.0;
      kl_[i] = T(divergence_[i]);
    }
  }

  PYDD_HD void teacher_gradients() {
    const Scratch<T> spare = new_scratch<T>(blocks_ * kLanes);
    for (int64_t i = 0; i < count_; ++i) {
      void* const target = element(params_.grad_teacher, params_.teacher_dtype, (first_ + i) * n_);
      const Blocks<T> values = result_row(target, params_.teacher_dtype, n_, spare.get());
      teacher_gradient(rows_[i], stats(i), kind_, T(loss_factor(i) * upstream(i)), values);
      store_row(values, n_, target, params_.teacher_dtype);
    }
  }

  // The student's gradient if wanted, and the score.
  PYDD_HD void student_gradients() {
    for (int64_t i = 0; i < count_; ++i) {
      if (params_.grad_student) {
        student_gradient(i);
      } else {
        norm_and_gradient<false, false>(rows_[i], stats(i), T(0), Blocks<T>{}, sums_[0][i]);
      }
    }
    alignas(64) double squares[kLanes];
    fold_rows(sums_[0], Sum(), squares);
#pragma omp simd
    for (int64_t i = 0; i < kLanes; ++i) {
      score_[i] = T(std::sqrt(squares[i]) / ((1.0 + double(common_[i])) * params_.temperature));
    }
  }

  PYDD_HD void student_gradient(int64_t i) {
    void* const target = element(params_.grad_student, params_.grad_dtype, (first_ + i) * n_);
    const Blocks<T> values = result_row(target, params_.grad_dtype, n_, rows_[i].p);
    const T factor = T(loss_factor(i) * upstream(i) / params_.temperature);
    if (kind_ == TeacherKind::kLogits) {
      norm_and_gradient<true, false>(rows_[i], stats(i), factor, values, sums_[0][i]);
    } else {
      norm_and_gradient<true, true>(rows_[i], stats(i), factor, values, sums_[0][i]);
    }
    store_row(values, n_, target, params_.grad_dtype);
  }

  PYDD_HD void store() const {
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t r = first_ + i;
      if (params_.loss_rows) {
        static_cast<T*>(params_.loss_rows)[r] = T(divergence_[i] * loss_factor(i));
      }
      if (params_.score) static_cast<T*>(params_.score)[r] = score_[i];
      if (params_.row_stats) static_cast<KdRow<T>*>(params_.row_stats)[r] = stats(i);
    }
  }

  // scale * weight: what multiplies the loss, and the gradient besides the upstream one.
  PYDD_HD double loss_factor(int64_t i) const {
    if (!params_.weight) return params_.scale;
    return params_.scale * double(static_cast<const T*>(params_.weight)[first_ + i]);
  }

  PYDD_HD double upstream(int64_t i) const {
    if (!params_.upstream) return 1.0;
    return double(static_cast<const T*>(params_.upstream)[(first_ + i) * params_.upstream_stride]);
  }

  PYDD_HD KdRow<T> stats(int64_t i) const {
    return {max_s_[i],     inv_sum_s_[i], max_t_[i], inv_sum_t_[i],
            log_ratio_[i], common_[i],    mass_[i],  kl_[i]};
  }

  const KdLossParams& params_;
  const TeacherKind kind_;
  const int64_t n_, blocks_, group_;
  const ScaledExp<T> exp_;
  const Scratch<T> scratch_;

  int64_t first_ = 0, count_ = 0;  // the group: rows [first_, first_ + count_)
  Row<T> rows_[kLanes] = {};

  // What a sweep leaves: one row of lanes a row.
  alignas(64) T maxima_s_[kLanes][kLanes] = {}, maxima_t_[kLanes][kLanes] = {};
  alignas(64) double sums_[2][kLanes][kLanes] = {};

  // One lane a row: KdRow, and what is not kept for the backward.
  alignas(64) T max_s_[kLanes] = {}, inv_sum_s_[kLanes] = {}, max_t_[kLanes] = {};
  alignas(64) T inv_sum_t_[kLanes] = {}, log_ratio_[kLanes] = {}, common_[kLanes] = {};
  alignas(64) T mass_[kLanes] = {}, kl_[kLanes] = {}, score_[kLanes] = {};
  alignas(64) double divergence_[kLanes] = {}, total_mass_[kLanes] = {};
};

PYDD_CPU_CLONES void kd_loss_rows_f32(const KdLossParams& params, int64_t begin, int64_t end) {
  KdLossRows<float>(params).run(begin, end);
}

PYDD_CPU_CLONES void kd_loss_rows_f64(const KdLossParams& params, int64_t begin, int64_t end) {
  KdLossRows<double>(params).run(begin, end);
}

}  // namespace

void kd_loss_cpu(const KdLossParams& params, int64_t begin, int64_t end) {
  if (params.student_dtype == DType::kFloat64) {
    kd_loss_rows_f64(params, begin, end);
  } else {
    kd_loss_rows_f32(params, begin, end);
  }
}

}  // namespace pyddfast
