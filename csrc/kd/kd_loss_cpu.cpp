// KL, score and gradient in four sweeps over data that stays in the L1 or L2 cache: maxima;
// exponentials and logit gaps; KL terms and centred differences; gradient and its norm.
//
// A row is close if all |d_i| < 1, the usual case at distillation temperatures.  It needs no
// exponentials of the student: with -sum q_i gap_i/T in place of log(sum_s/sum_t), every d_i is off
// by the same delta, which kd_math.h takes out whatever its cause, and p_i - q_i comes from q_i and
// d_i alone.
//
// Up to kLanes rows go through the sweeps together.  A sweep leaves sums in the lanes of each row;
// reduced together (fold_rows), they become vectors with one lane a row, and so the scalars of a
// row (normalisers, logarithms, ...) are computed for all rows at once.  For short rows that is
// most of the work.
#include <algorithm>
#include <cmath>
#include <limits>

#include "common/rows_cpu.h"
#include "common/softmax_cpu.h"
#include "kd/kd_loss.h"
#include "kd/kd_math.h"

namespace pyddfast {
namespace {

// Memory that a later sweep will read or write, asked for a block at a time while this one
// computes.
struct Ahead {
  const void* row;
  int64_t block_bytes;

  template <bool kWrite>
  PYDD_HD void fetch(int64_t b) const {
    constexpr int kIntoL2 = 2;
    __builtin_prefetch(static_cast<const char*>(row) + b * block_bytes, kWrite, kIntoL2);
  }
};

// One row while it is worked on; passed by value, so that loops keep it in registers.
template <class T>
struct Row {
  Blocks<const T> s, t;
  T* e;  // logit gaps, then e = p - q
  T* q;  // exponentials of the teacher, then q
  T* d;  // exponentials of the student; for a teacher that holds probabilities log ratios
  int64_t blocks;
  T inv_temperature;
  Ahead next_s, next_t, gradient;
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
        const T small = exp(-std::abs(t[l]));  // rows of log_q need not sum to one: some are > 0
        q[l] = !is_log ? t[l] : t[l] > T(0) ? T(1) / small : small;
        log_q[l] = is_log ? t[l] : log_positive(t[l]);
        sum[l] += q[l];
      }
    }
    add_lanes(sum, mass);
  }
}

// What the second sweep leaves in each lane: sums of the teacher's exponentials and of their
// product with the gaps, and the range of the gaps.
template <class T>
struct GapLanes {
  double (&sum_t)[kLanes], (&sum_gap)[kLanes];
  T (&least)[kLanes], (&greatest)[kLanes];
};

// Exponentials of the teacher, and the logit gaps.  kAhead: asks for memory, too.
template <bool kAhead, class T>
PYDD_HD void compare(const Row<T> row, const KdRow<T> stats, ScaledExp<T> exp, GapLanes<T> out) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  std::fill_n(out.sum_t, kLanes, 0.0);
  std::fill_n(out.sum_gap, kLanes, 0.0);
  alignas(64) T least[kLanes], greatest[kLanes];
  std::fill_n(least, kLanes, kInfinity);
  std::fill_n(greatest, kLanes, -kInfinity);
  const TwoSum<T> shift = two_difference(stats.max_t, stats.max_s);
  for (int64_t start = 0; start < row.blocks; start += kSumBlocks) {
    const int64_t stop = std::min(row.blocks, start + kSumBlocks);
    alignas(64) T sum_t[kLanes] = {}, sum_gap[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
      const T* const s = row.s[b];
      const T* const t = row.t[b];
      T* const e = row.e + b * kLanes;
      T* const q = row.q + b * kLanes;
      if constexpr (kAhead) {
        row.next_s.template fetch<false>(b);
        row.next_t.template fetch<false>(b);
        row.gradient.template fetch<true>(b);
      }
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const T q_l = exp(t[l] - stats.max_t);
        const T gap = kd_logit_gap(s[l], t[l], shift);
        q[l] = q_l;
        e[l] = gap;
        sum_t[l] += q_l;
        sum_gap[l] += q_l * gap;
        least[l] = Minimum()(least[l], gap);
        greatest[l] = Maximum()(greatest[l], gap);
      }
    }
    add_lanes(sum_t, out.sum_t);
    add_lanes(sum_gap, out.sum_gap);
  }
  std::copy_n(least, kLanes, out.least);
  std::copy_n(greatest, kLanes, out.greatest);
}

// kd_term where |d| < 1.
template <class T>
PYDD_HD KdTerm<T> close_term(T q, T d) {
  const PhiExpm1<T> small = phi_expm1(d);
  return {q * small.phi, q * small.expm1_neg};
}

// Replaces gaps and exponentials by e and q; sums of the KL terms and of e.
template <bool kClose, class T>
PYDD_HD void terms(const Row<T> row, const KdRow<T> stats, double (&kl)[kLanes],
                   double (&e)[kLanes]) {
  std::fill_n(kl, kLanes, 0.0);
  std::fill_n(e, kLanes, 0.0);
  for (int64_t start = 0; start < row.blocks; start += kSumBlocks) {
    const int64_t stop = std::min(row.blocks, start + kSumBlocks);
    alignas(64) T sum_kl[kLanes] = {}, sum_e[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
      T* const gap = row.e + b * kLanes;
      T* const q = row.q + b * kLanes;
      T* const p = row.d + b * kLanes;
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const T d = gap[l] * row.inv_temperature + stats.log_ratio;
        const T q_l = q[l] * stats.inv_sum_t;
        const KdTerm<T> term =
            kClose ? close_term(q_l, d) : kd_term(q_l, p[l] * stats.inv_sum_s, d);
        // Without this store GCC reads p only where it is needed, in a branch.
        if constexpr (!kClose) p[l] = d;
        q[l] = q_l;
        gap[l] = term.e;
        sum_kl[l] += term.kl;
        sum_e[l] += term.e;
      }
    }
    add_lanes(sum_kl, kl);
    add_lanes(sum_e, e);
  }
}

// The same for a teacher that holds probabilities, from exponentials of the student in e; d is kept
// for the teacher's gradient.
template <class T>
PYDD_HD void terms_of_probabilities(const Row<T> row, const KdRow<T> stats, double (&kl)[kLanes]) {
  std::fill_n(kl, kLanes, 0.0);
  for (int64_t start = 0; start < row.blocks; start += kSumBlocks) {
    const int64_t stop = std::min(row.blocks, start + kSumBlocks);
    alignas(64) T sum_kl[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
      const T* const s = row.s[b];
      T* const e = row.e + b * kLanes;
      T* const q = row.q + b * kLanes;
      T* const d = row.d + b * kLanes;
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const T d_l =
            kd_log_ratio_probs(d[l], s[l], stats.max_s, row.inv_temperature, stats.log_ratio);
        const T p_l = e[l] * stats.inv_sum_s;
        sum_kl[l] += kd_term(q[l], p_l, d_l).kl;
        e[l] = p_l - q[l];  // as exact as the probabilities that were given
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
      const T* const e = row.e + b * kLanes;
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

// phi(delta) = S - log1p(S) for 0 <= S < cosh(1) - 1, where S of a close row lies, or S near 0:
// log1p(S) = 2 atanh(u), u = S/(2 + S), whose first term leaves S u.  Beyond these terms of the
// series it changes by less than an fp64 rounding.
PYDD_HD double common_error(double S) {
  constexpr int kTerms = 11;
  const double u = S / (2.0 + S), u2 = u * u;
  double tail = 0;
  for (int k = kTerms; k > 0; --k) tail = tail * u2 + 1.0 / (2 * k + 1);
  return S * u - 2.0 * u * u2 * tail;
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
    end_ = end;
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
  static constexpr int64_t kArrays = 5;  // s, t, e, q, d
  // e, q and the inputs of a group stay in the L1 cache (32 or 48 KiB) where rows are short; long
  // rows stay in the L2 cache.
  static constexpr int64_t kGroupElements = 4096;

  PYDD_HD void load() {
    const int64_t width = blocks_ * kLanes;
    const T padding = kind_ == TeacherKind::kProbs ? T(0) : kNoClass<T>;
    for (int64_t i = 0; i < count_; ++i) {
      T* const arrays = &scratch_[i * kArrays * width];
      Row<T>& row = rows_[i];
      row.s = load_row(student(first_ + i), params_.student_dtype, n_, kNoClass<T>, arrays);
      row.t = load_row(teacher(first_ + i), params_.teacher_dtype, n_, padding, arrays + width);
      row.e = arrays + 2 * width;
      row.q = arrays + 3 * width;
      row.d = arrays + 4 * width;
      row.blocks = blocks_;
      row.inv_temperature = T(1.0 / params_.temperature);
    }
    if (group_ == 1) look_ahead();
  }

  // The inputs of a long row are read from memory once and then from the cache; meanwhile those of
  // the next one and the place of the gradient can come.  Short rows come by the hardware's own
  // prefetching, which this would disturb.
  PYDD_HD void look_ahead() {
    const int64_t next = std::min(first_ + 1, end_ - 1);
    Row<T>& row = rows_[0];
    row.next_s = {student(next), kLanes * element_size(params_.student_dtype)};
    row.next_t = {teacher(next), kLanes * element_size(params_.teacher_dtype)};
    row.gradient = {row.e, int64_t(sizeof(T)) * kLanes};
    if (params_.grad_student) {
      row.gradient = {element(params_.grad_student, params_.grad_dtype, first_ * n_),
                      kLanes * element_size(params_.grad_dtype)};
    }
  }

  PYDD_HD const void* student(int64_t r) const {
    return element(params_.student, params_.student_dtype, r * params_.student_stride);
  }

  PYDD_HD const void* teacher(int64_t r) const {
    return element(params_.teacher, params_.teacher_dtype, r * params_.teacher_stride);
  }

  // Maxima, gaps, normalisers.
  PYDD_HD void normalise() {
    for (int64_t i = 0; i < count_; ++i) {
      row_maximum(rows_[i].s, blocks_, lanes_[0][i]);
      row_maximum(rows_[i].t, blocks_, lanes_[1][i]);
    }
    fold_rows(lanes_[0], Maximum(), max_s_);
    fold_rows(lanes_[1], Maximum(), max_t_);
    pad_below_maxima();
    for (int64_t i = 0; i < count_; ++i) {
      const GapLanes<T> out{sums_[0][i], sums_[1][i], lanes_[0][i], lanes_[1][i]};
      if (group_ == 1) {
        compare<true>(rows_[i], stats(i), exp_, out);
      } else {
        compare<false>(rows_[i], stats(i), exp_, out);
      }
    }
    alignas(64) double sum_gap[kLanes];
    alignas(64) T least[kLanes], greatest[kLanes];
    fold_rows(sums_[0], Sum(), sum_t_);
    fold_rows(sums_[1], Sum(), sum_gap);
    fold_rows(lanes_[0], Minimum(), least);
    fold_rows(lanes_[1], Maximum(), greatest);
    const T inv_temperature = T(1.0 / params_.temperature);
    int64_t far = 0;
#pragma omp simd reduction(+ : far)
    for (int64_t i = 0; i < kLanes; ++i) {
      const T mean = T(sum_gap[i] / sum_t_[i]);
      const bool close = (greatest[i] - mean) * inv_temperature < T(1) &&
                         (mean - least[i]) * inv_temperature < T(1);  // not so if there is a NaN
      inv_sum_t_[i] = T(1.0 / sum_t_[i]);
      log_ratio_[i] = -mean * inv_temperature;
      mass_[i] = 1;
      is_far_[i] = i < count_ && !close ? 1 : 0;
      far += is_far_[i];
    }
    if (far) normalise_far();
  }

  // Puts the padding where its gap is about 0, so that it does not make a close row a far one, and
  // so deep below the maxima that it has no probability.  (Where that overflows to -inf the row
  // is far, and as exact.)
  PYDD_HD void pad_below_maxima() {
    const int64_t rest = n_ % kLanes;
    if (rest == 0) return;
    alignas(64) T depth[kLanes];
#pragma omp simd
    for (int64_t i = 0; i < kLanes; ++i) {
      // exp(-128) is 0 beside any normaliser; more where 128 T drowns in the rounding of a maximum.
      const T largest = Maximum()(std::abs(max_s_[i]), std::abs(max_t_[i]));
      depth[i] = Maximum()(T(128 * params_.temperature), largest / T(1024));
    }
    for (int64_t i = 0; i < count_; ++i) {
      T* const tails = &scratch_[(i * kArrays * blocks_ + blocks_ - 1) * kLanes];
      pad_block(tails, rest, max_s_[i] - depth[i]);
      pad_block(tails + blocks_ * kLanes, rest, max_t_[i] - depth[i]);
    }
  }

  // Exponentials of the student where they are needed, and the ratio of the normalisers from them.
  PYDD_HD void normalise_far() {
    for (int64_t i = 0; i < count_; ++i) {
      if (!is_far_[i]) continue;
      row_exponentials(rows_[i].s, blocks_, max_s_[i], exp_, rows_[i].d, sums_[0][i]);
    }
    alignas(64) double sum_s[kLanes];
    fold_rows(sums_[0], Sum(), sum_s);
#pragma omp simd
    for (int64_t i = 0; i < kLanes; ++i) {
      const T log_ratio = log_positive(T(sum_s[i] / sum_t_[i]));  // its error is common to the row
      inv_sum_s_[i] = T(1.0 / sum_s[i]);
      log_ratio_[i] = is_far_[i] ? log_ratio : log_ratio_[i];
    }
  }

  PYDD_HD void normalise_student() {
    for (int64_t i = 0; i < count_; ++i) row_maximum(rows_[i].s, blocks_, lanes_[0][i]);
    fold_rows(lanes_[0], Maximum(), max_s_);
    for (int64_t i = 0; i < count_; ++i) {
      row_exponentials(rows_[i].s, blocks_, max_s_[i], exp_, rows_[i].e, sums_[0][i]);
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
      if (is_far_[i]) {
        terms<false>(rows_[i], stats(i), sums_[0][i], sums_[1][i]);
      } else {
        terms<true>(rows_[i], stats(i), sums_[0][i], sums_[1][i]);
      }
    }
    alignas(64) double sum_e[kLanes];
    fold_rows(sums_[0], Sum(), divergence_);
    fold_rows(sums_[1], Sum(), sum_e);
#pragma omp simd
    for (int64_t i = 0; i < kLanes; ++i) {
      common_[i] = T(sum_e[i]);
      divergence_[i] -= common_error(sum_e[i]);
      kl_[i] = T(divergence_[i]);
    }
    if (params_.row_stats) complete_stats();
  }

  // The student's normaliser for those who read row_stats; close rows went without.
  PYDD_HD void complete_stats() {
    for (int64_t i = 0; i < count_; ++i) {
      if (is_far_[i]) continue;
      inv_sum_s_[i] = inv_sum_t_[i] * std::exp(-log_ratio_[i]) / (T(1) + common_[i]);
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
    const Blocks<T> values = result_row(target, params_.grad_dtype, n_, rows_[i].e);
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
    return params_.scale * factor_at<T>(params_.weight, first_ + i);
  }

  PYDD_HD double upstream(int64_t i) const {
    return factor_at<T>(params_.upstream, (first_ + i) * params_.upstream_stride);
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

  int64_t first_ = 0, count_ = 0, end_ = 0;  // the group: rows [first_, first_ + count_), to end_
  Row<T> rows_[kLanes] = {};

  // What a sweep leaves: one row of lanes a row.
  alignas(64) T lanes_[2][kLanes][kLanes] = {};
  alignas(64) double sums_[2][kLanes][kLanes] = {};

  // One lane a row: KdRow, and what is not kept for the backward.
  alignas(64) T max_s_[kLanes] = {}, inv_sum_s_[kLanes] = {}, max_t_[kLanes] = {};
  alignas(64) T inv_sum_t_[kLanes] = {}, log_ratio_[kLanes] = {}, common_[kLanes] = {};
  alignas(64) T mass_[kLanes] = {}, kl_[kLanes] = {}, score_[kLanes] = {};
  alignas(64) double sum_t_[kLanes] = {}, divergence_[kLanes] = {}, total_mass_[kLanes] = {};
  alignas(64) T is_far_[kLanes] = {};  // 1 or 0, as wide as what it is compared with
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
