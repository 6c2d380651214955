// KL, score and gradient of a row in four sweeps over data that stays in the L1 or L2 cache:
// maxima; exponentials and normalisers; KL terms and centred differences; gradient and its norm.
#include <algorithm>
#include <cmath>
#include <vector>

#include "common/rows_cpu.h"
#include "common/softmax_cpu.h"
#include "kd/kd_loss.h"
#include "kd/kd_math.h"

namespace pyddfast {
namespace {

// One row while it is worked on.  p and q hold the exponentials, then e = p - q and q.
template <class T>
struct Row {
  const T* s;
  const T* t;
  T* p;
  T* q;
  T* d;  // log ratios, only for a teacher that holds probabilities
  int64_t n;
  T inv_temperature;
  KdRow<T> stats;
};

// Probabilities and their logarithms from whichever of them the teacher holds; their sum.
template <class T>
PYDD_HD double probabilities(const T* t, bool is_log, int64_t n, T* q, T* log_q) {
  double total = 0;
  for (int64_t start = 0; start < n; start += kSumBlock) {
    const int64_t stop = std::min(n, start + kSumBlock);
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = start; i < stop; ++i) {
      // A log-probability is above 0 by rounding at most, where exp(x) = 1 + x.
      const T above = t[i] > T(0) ? t[i] : T(0);
      q[i] = is_log ? exp_nonpositive(t[i] - above) * (T(1) + above) : t[i];
      log_q[i] = is_log ? t[i] : log_positive(t[i]);
      sum += q[i];
    }
    total += sum;
  }
  return total;
}

struct TermSums {
  double kl = 0, e = 0;
};

template <class T>
PYDD_HD TermSums terms(const Row<T>& row) {
  TermSums total;
  const KdRow<T> stats = row.stats;
  const TwoSum<T> shift = two_difference(stats.max_t, stats.max_s);
  for (int64_t start = 0; start < row.n; start += kSumBlock) {
    const int64_t stop = std::min(row.n, start + kSumBlock);
    T sum_kl = 0, sum_e = 0;
#pragma omp simd reduction(+ : sum_kl, sum_e)
    for (int64_t i = start; i < stop; ++i) {
      const T d = kd_log_ratio(row.s[i], row.t[i], shift, row.inv_temperature, stats.log_ratio);
      const T q = row.q[i] * stats.inv_sum_t;
      const KdTerm<T> term = kd_term(q, row.p[i] * stats.inv_sum_s, d);
      row.q[i] = q;
      row.p[i] = term.e;
      sum_kl += term.kl;
      sum_e += term.e;
    }
    total.kl += sum_kl;
    total.e += sum_e;
  }
  return total;
}

template <class T>
PYDD_HD TermSums terms_of_probabilities(const Row<T>& row) {
  TermSums total;
  const KdRow<T> stats = row.stats;
  for (int64_t start = 0; start < row.n; start += kSumBlock) {
    const int64_t stop = std::min(row.n, start + kSumBlock);
    T sum_kl = 0;
#pragma omp simd reduction(+ : sum_kl)
    for (int64_t i = start; i < stop; ++i) {
      const T d =
          kd_log_ratio_probs(row.d[i], row.s[i], stats.max_s, row.inv_temperature, stats.log_ratio);
      const T p = row.p[i] * stats.inv_sum_s;
      sum_kl += kd_term(row.q[i], p, d).kl;
      row.p[i] = p - row.q[i];  // as exact as the probabilities that were given
      row.d[i] = d;
    }
    total.kl += sum_kl;
  }
  return total;
}

// Squared norm of p - q; the gradient with respect to the student, times `factor`, if wanted.
template <class T>
PYDD_HD double norm_and_gradient(const Row<T>& row, T factor, T* gradient) {
  double total = 0;
  const T common = row.stats.common;
  const T inv = T(1) / (T(1) + common);
  const T extra_mass = row.stats.mass - T(1);
  for (int64_t start = 0; start < row.n; start += kSumBlock) {
    const int64_t stop = std::min(row.n, start + kSumBlock);
    T sum = 0;
    if (gradient == nullptr) {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = start; i < stop; ++i) {
        const T centred = (row.p[i] - row.q[i] * common) * inv;
        sum += centred * centred;
      }
    } else {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = start; i < stop; ++i) {
        const T centred = (row.p[i] - row.q[i] * common) * inv;
        sum += centred * centred;
        // Q p - q = (p - q) + (Q - 1) p
        gradient[i] = (centred + extra_mass * (centred + row.q[i])) * factor;
      }
    }
    total += sum;
  }
  return total;
}

// dKL/dt: logits q (d - KL)/T, probabilities d + 1, log-probabilities q (d + 1); 0 where q = 0.
template <class T>
PYDD_HD void teacher_gradient(const Row<T>& row, TeacherKind kind, T factor, T* gradient) {
  const KdRow<T> stats = row.stats;
  const TwoSum<T> shift = two_difference(stats.max_t, stats.max_s);
  const bool logits = kind == TeacherKind::kLogits;
  const T center = logits ? stats.kl - std::log1p(stats.common) : T(-1);
  const T scale = logits ? factor * row.inv_temperature : factor;
  const bool times_q = kind != TeacherKind::kProbs;
#pragma omp simd
  for (int64_t i = 0; i < row.n; ++i) {
    const T d = logits
                    ? kd_log_ratio(row.s[i], row.t[i], shift, row.inv_temperature, stats.log_ratio)
                    : row.d[i];
    const T value = (d - center) * (times_q ? row.q[i] : T(1)) * scale;
    gradient[i] = row.q[i] == T(0) ? T(0) : value;
  }
}

template <class T>
PYDD_HD void kd_loss_rows(const KdLossParams& params, int64_t begin, int64_t end) {
  const bool logits = params.teacher_kind == TeacherKind::kLogits;
  const bool is_log = params.teacher_kind == TeacherKind::kLogProbs;
  const int64_t n = params.classes;
  // s, t, p, q, d and the teacher's gradient; some stay unused where rows serve in place.
  std::vector<T> scratch(static_cast<size_t>(6 * n));
  Row<T> row{};
  row.n = n;
  row.q = scratch.data() + 3 * n;
  row.d = scratch.data() + 4 * n;
  row.inv_temperature = T(1.0 / params.temperature);

  for (int64_t r = begin; r < end; ++r) {
    row.s = load_row(element(params.student, params.student_dtype, r * params.student_stride),
                     params.student_dtype, n, scratch.data());
    row.t = load_row(element(params.teacher, params.teacher_dtype, r * params.teacher_stride),
                     params.teacher_dtype, n, scratch.data() + n);
    T* const spare = scratch.data() + 2 * n;
    void* const gradient_row =
        params.grad_student ? element(params.grad_student, params.grad_dtype, r * n) : nullptr;
    // The gradient's own memory holds the exponentials until then.
    T* const gradient = gradient_row ? result_row(gradient_row, params.grad_dtype, spare)
                                     : static_cast<T*>(nullptr);
    row.p = gradient ? gradient : spare;

    KdRow<T>& stats = row.stats;
    stats.max_s = row_maximum(row.s, n);
    stats.max_t = logits ? row_maximum(row.t, n) : T(0);
    const double sum_s = row_exponentials(row.s, n, stats.max_s, row.inv_temperature, row.p);
    stats.inv_sum_s = T(1.0 / sum_s);
    TermSums sums;
    double divergence;
    if (logits) {
      const double sum_t = row_exponentials(row.t, n, stats.max_t, row.inv_temperature, row.q);
      stats.inv_sum_t = T(1.0 / sum_t);
      stats.log_ratio = T(std::log(sum_s / sum_t));
      stats.mass = 1;
      sums = terms(row);
      stats.common = T(sums.e);
      divergence = sums.kl - kd_common_error(sums.e);
    } else {
      const double mass = probabilities(row.t, is_log, n, row.q, row.d);
      stats.inv_sum_t = 1;
      stats.log_ratio = T(std::log(sum_s));
      stats.mass = T(mass);
      stats.common = 0;
      sums = terms_of_probabilities(row);
      divergence = sums.kl + (mass - 1.0);
    }
    stats.kl = T(divergence);

    const double weight = params.weight ? double(static_cast<const T*>(params.weight)[r]) : 1.0;
    const double upstream =
        params.upstream ? double(static_cast<const T*>(params.upstream)[r * params.upstream_stride])
                        : 1.0;
    const double factor = params.scale * weight * upstream;
    if (params.loss_rows) {
      static_cast<T*>(params.loss_rows)[r] = T(divergence * params.scale * weight);
    }
    if (params.row_stats) static_cast<KdRow<T>*>(params.row_stats)[r] = stats;
    if (params.grad_teacher) {
      void* const target = element(params.grad_teacher, params.teacher_dtype, r * n);
      T* const teacher_row = result_row(target, params.teacher_dtype, scratch.data() + 5 * n);
      teacher_gradient(row, params.teacher_kind, T(factor), teacher_row);
      store_row(teacher_row, n, target, params.teacher_dtype);
    }
    if (params.score || gradient) {
      const double squared = norm_and_gradient(row, T(factor / params.temperature), gradient);
      if (params.score) {
        static_cast<T*>(params.score)[r] = T(std::sqrt(squared) / params.temperature);
      }
    }
    if (gradient) store_row(gradient, n, gradient_row, params.grad_dtype);
  }
}

PYDD_CPU_CLONES void kd_loss_rows_f32(const KdLossParams& params, int64_t begin, int64_t end) {
  kd_loss_rows<float>(params, begin, end);
}

PYDD_CPU_CLONES void kd_loss_rows_f64(const KdLossParams& params, int64_t begin, int64_t end) {
  kd_loss_rows<double>(params, begin, end);
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
