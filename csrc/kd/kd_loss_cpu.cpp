// KL, score and gradient of a row in four sweeps over data that stays in the L1 or L2 cache:
// maxima; exponentials and normalisers; KL terms and centred differences; gradient and its norm.
#include <algorithm>
#include <cmath>
#include <memory>

#include "common/rows_cpu.h"
#include "common/softmax_cpu.h"
#include "kd/kd_loss.h"
#include "kd/kd_math.h"

namespace pyddfast {
namespace {

// One row while it is worked on, in whole blocks; passed by value, so that loops keep it in
// registers.  p and q hold the exponentials, then e = p - q and q.
template <class T>
struct Row {
  const T* s;
  const T* t;
  T* p;
  T* q;
  T* d;  // log ratios, only for a teacher that holds probabilities
  int64_t blocks;
  T inv_temperature;
  KdRow<T> stats;
};

// Probabilities and their logarithms from whichever of them the teacher holds; their sum.
template <class T>
PYDD_HD double probabilities(const T* t, bool is_log, int64_t blocks, T* q, T* log_q) {
  const ScaledExp<T> exp(1.0);
  double total = 0;
  for (int64_t start = 0; start < blocks; start += kSumBlocks) {
    const int64_t stop = std::min(blocks, start + kSumBlocks);
    alignas(64) T sum[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const int64_t i = b * kLanes + l;
        // A log-probability is above 0 by rounding at most, where exp(x) = 1 + x.
        const T above = t[i] > T(0) ? t[i] : T(0);
        q[i] = is_log ? exp(t[i] - above) * (T(1) + above) : t[i];
        log_q[i] = is_log ? t[i] : log_positive(t[i]);
        sum[l] += q[i];
      }
    }
    total += lane_sum(sum);
  }
  return total;
}

struct TermSums {
  double kl = 0, e = 0;
};

// Replaces the exponentials by e and q.
template <bool kGuarded, class T>
PYDD_HD TermSums terms(const Row<T> row) {
  TermSums total;
  const KdRow<T> stats = row.stats;
  const TwoSum<T> shift = two_difference(stats.max_t, stats.max_s);
  for (int64_t start = 0; start < row.blocks; start += kSumBlocks) {
    const int64_t stop = std::min(row.blocks, start + kSumBlocks);
    alignas(64) T sum_kl[kLanes] = {}, sum_e[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const int64_t i = b * kLanes + l;
        const T d =
            kd_log_ratio<kGuarded>(row.s[i], row.t[i], shift, row.inv_temperature, stats.log_ratio);
        const T q = row.q[i] * stats.inv_sum_t;
        const KdTerm<T> term = kd_term<kGuarded>(q, row.p[i] * stats.inv_sum_s, d);
        row.q[i] = q;
        row.p[i] = term.e;
        sum_kl[l] += term.kl;
        sum_e[l] += term.e;
      }
    }
    total.kl += lane_sum(sum_kl);
    total.e += lane_sum(sum_e);
  }
  return total;
}

// The same for a teacher that holds probabilities; d is kept for the teacher's gradient.
template <class T>
PYDD_HD double terms_of_probabilities(const Row<T> row) {
  double total = 0;
  const KdRow<T> stats = row.stats;
  for (int64_t start = 0; start < row.blocks; start += kSumBlocks) {
    const int64_t stop = std::min(row.blocks, start + kSumBlocks);
    alignas(64) T sum_kl[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const int64_t i = b * kLanes + l;
        const T d = kd_log_ratio_probs(row.d[i], row.s[i], stats.max_s, row.inv_temperature,
                                       stats.log_ratio);
        const T p = row.p[i] * stats.inv_sum_s;
        sum_kl[l] += kd_term(row.q[i], p, d).kl;
        row.p[i] = p - row.q[i];  // as exact as the probabilities that were given
        row.d[i] = d;
      }
    }
    total += lane_sum(sum_kl);
  }
  return total;
}

// Squared norm of p - q; the gradient with respect to the student, times `factor`, if wanted.
// kMass: whether the teacher's mass Q is not 1.
template <bool kGradient, bool kMass, class T>
PYDD_HD double norm_and_gradient(const Row<T> row, T factor, T* gradient) {
  double total = 0;
  const T common = row.stats.common;
  const T inv = T(1) / (T(1) + common);
  const T extra_mass = row.stats.mass - T(1);
  const T scaled = factor * inv;
  for (int64_t start = 0; start < row.blocks; start += kSumBlocks) {
    const int64_t stop = std::min(row.blocks, start + kSumBlocks);
    alignas(64) T sum[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const int64_t i = b * kLanes + l;
        const T centred = row.p[i] - row.q[i] * common;
        sum[l] += centred * centred;
        if constexpr (kGradient) {
          // Q p - q = (p - q) + (Q - 1) p
          gradient[i] = (kMass ? centred + extra_mass * (centred + row.q[i]) : centred) * scaled;
        }
      }
    }
    total += lane_sum(sum);
  }
  return total * double(inv) * double(inv);
}

// dKL/dt: logits q (d - KL)/T, probabilities d + 1, log-probabilities q (d + 1); 0 where q = 0.
template <class T>
PYDD_HD void teacher_gradient(const Row<T> row, TeacherKind kind, T factor, T* gradient) {
  const KdRow<T> stats = row.stats;
  const TwoSum<T> shift = two_difference(stats.max_t, stats.max_s);
  const bool logits = kind == TeacherKind::kLogits;
  const T center = logits ? stats.kl - std::log1p(stats.common) : T(-1);
  const T scale = logits ? factor * row.inv_temperature : factor;
  const bool times_q = kind != TeacherKind::kProbs;
  for (int64_t b = 0; b < row.blocks; ++b) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      const int64_t i = b * kLanes + l;
      const T d =
          logits ? kd_log_ratio(row.s[i], row.t[i], shift, row.inv_temperature, stats.log_ratio)
                 : row.d[i];
      const T value = (d - center) * (times_q ? row.q[i] : T(1)) * scale;
      gradient[i] = row.q[i] == T(0) ? T(0) : value;
    }
  }
}

// Where a row's inputs and outputs are.
template <class T>
struct RowPlace {
  const KdLossParams& params;
  int64_t r;

  PYDD_HD const T* student(T* scratch) const {
    return load_row(element(params.student, params.student_dtype, r * params.student_stride),
                    params.student_dtype, params.classes, kPadding<T>, scratch);
  }
  PYDD_HD const T* teacher(T* scratch) const {
    const T fill = params.teacher_kind == TeacherKind::kProbs ? T(0) : kPadding<T>;
    return load_row(element(params.teacher, params.teacher_dtype, r * params.teacher_stride),
                    params.teacher_dtype, params.classes, fill, scratch);
  }
  PYDD_HD void* grad_student() const {
    return params.grad_student ? element(params.grad_student, params.grad_dtype, r * params.classes)
                               : nullptr;
  }
  // scale * weight: what multiplies the loss, and the gradient besides the upstream one.
  PYDD_HD double factor() const {
    return params.scale * (params.weight ? double(static_cast<const T*>(params.weight)[r]) : 1.0);
  }
  PYDD_HD double upstream() const {
    return params.upstream
               ? double(static_cast<const T*>(params.upstream)[r * params.upstream_stride])
               : 1.0;
  }
  PYDD_HD void store(double divergence, double squared_norm, const KdRow<T>& stats) const {
    if (params.loss_rows) static_cast<T*>(params.loss_rows)[r] = T(divergence * factor());
    if (params.score) {
      static_cast<T*>(params.score)[r] = T(std::sqrt(squared_norm) / params.temperature);
    }
    if (params.row_stats) static_cast<KdRow<T>*>(params.row_stats)[r] = stats;
  }
};

// Maxima, exponentials, normalisers.
template <class T>
PYDD_HD double normalise(Row<T>& row, TeacherKind kind, ScaledExp<T> exp) {
  KdRow<T>& stats = row.stats;
  stats.max_s = row_maximum(row.s, row.blocks);
  const double sum_s = row_exponentials(row.s, row.blocks, stats.max_s, exp, row.p);
  stats.inv_sum_s = T(1.0 / sum_s);
  stats.common = 0;
  if (kind == TeacherKind::kLogits) {
    stats.max_t = row_maximum(row.t, row.blocks);
    const double sum_t = row_exponentials(row.t, row.blocks, stats.max_t, exp, row.q);
    stats.inv_sum_t = T(1.0 / sum_t);
    stats.log_ratio = log_positive(T(sum_s / sum_t));  // its error is common to the row
    stats.mass = 1;
    return 1;
  }
  const double mass =
      probabilities(row.t, kind == TeacherKind::kLogProbs, row.blocks, row.q, row.d);
  stats.max_t = 0;
  stats.inv_sum_t = 1;
  stats.log_ratio = T(std::log(sum_s));
  stats.mass = T(mass);
  return mass;
}

// KL from the normalised row, which it turns into e and q.
template <class T>
PYDD_HD double divergence_of(Row<T>& row, TeacherKind kind, double mass, ScaledExp<T> exp) {
  if (kind != TeacherKind::kLogits) return terms_of_probabilities(row) + (mass - 1.0);
  TermSums sums = terms<false>(row);
  if (!(sums.kl == sums.kl)) {  // -inf logits, or a NaN: again with the guards
    normalise(row, kind, exp);
    sums = terms<true>(row);
  }
  row.stats.common = T(sums.e);
  return sums.kl - kd_common_error(sums.e);
}

// A row and what its stages hand on.
template <class T>
struct Job {
  Row<T> row;
  double mass, divergence;
};

constexpr int64_t kArrays = 5;                           // s, t, p, q, d
constexpr int64_t kMaxGroup = 8, kGroupElements = 1024;  // a group stays in the L1 cache

// Rows go through each stage in small groups: the stages of short rows are chains of dependent
// instructions, which the processor overlaps with those of the next row.
template <class T>
PYDD_HD void kd_loss_rows(const KdLossParams& params, int64_t begin, int64_t end) {
  const TeacherKind kind = params.teacher_kind;
  const int64_t n = params.classes;
  const int64_t blocks = blocks_of(n), width = blocks * kLanes;
  const int64_t group = std::clamp<int64_t>(kGroupElements / width, 1, kMaxGroup);
  const std::unique_ptr<T[]> scratch(new T[size_t(group * kArrays * width)]);
  const std::unique_ptr<T[]> spare(params.grad_teacher ? new T[size_t(width)] : nullptr);
  const ScaledExp<T> exp(1.0 / params.temperature);
  Job<T> jobs[kMaxGroup];

  for (int64_t first = begin; first < end; first += group) {
    const int64_t count = std::min(group, end - first);
    for (int64_t i = 0; i < count; ++i) {
      const RowPlace<T> place{params, first + i};
      Row<T>& row = jobs[i].row;
      T* const arrays = &scratch[i * kArrays * width];
      row.s = place.student(arrays);
      row.t = place.teacher(arrays + width);
      row.p = arrays + 2 * width;
      row.q = arrays + 3 * width;
      row.d = arrays + 4 * width;
      row.blocks = blocks;
      row.inv_temperature = T(1.0 / params.temperature);
      jobs[i].mass = normalise(row, kind, exp);
    }
    for (int64_t i = 0; i < count; ++i) {
      jobs[i].divergence = divergence_of(jobs[i].row, kind, jobs[i].mass, exp);
      jobs[i].row.stats.kl = T(jobs[i].divergence);
    }
    for (int64_t i = 0; i < count; ++i) {
      const RowPlace<T> place{params, first + i};
      const Row<T>& row = jobs[i].row;
      const double factor = place.factor() * place.upstream();
      if (params.grad_teacher) {
        void* const target = element(params.grad_teacher, params.teacher_dtype, (first + i) * n);
        T* const values = result_row(target, params.teacher_dtype, n, spare.get());
        teacher_gradient(row, kind, T(factor), values);
        store_row(values, n, target, params.teacher_dtype);
      }
      double squared_norm = 0;
      if (params.grad_student) {
        void* const target = place.grad_student();
        T* const values = result_row(target, params.grad_dtype, n, row.p);
        const T scale = T(factor / params.temperature);
        squared_norm = kind == TeacherKind::kLogits
                           ? norm_and_gradient<true, false>(row, scale, values)
                           : norm_and_gradient<true, true>(row, scale, values);
        store_row(values, n, target, params.grad_dtype);
      } else if (params.score) {
        squared_norm = norm_and_gradient<false, false>(row, T(0), static_cast<T*>(nullptr));
      }
      place.store(jobs[i].divergence, squared_norm, row.stats);
    }
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
