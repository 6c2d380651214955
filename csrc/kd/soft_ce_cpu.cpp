#include <algorithm>
#include <cmath>

#include "common/rows_cpu.h"
#include "common/softmax_cpu.h"
#include "kd/soft_ce.h"
#include "kd/soft_ce_math.h"

namespace pyddfast {
namespace {

// Loss of a row whose student is normalised, and the mass of its target.
struct SoftCeSums {
  double loss, mass;
};

template <class T>
PYDD_HD SoftCeSums soft_ce_sums(Blocks<const T> s, Blocks<const T> q, int64_t blocks,
                                SoftCeRow<T> stats, T inv_temperature) {
  alignas(64) double total_loss[kLanes] = {}, total_mass[kLanes] = {};
  for (int64_t start = 0; start < blocks; start += kSumBlocks) {
    const int64_t stop = std::min(blocks, start + kSumBlocks);
    alignas(64) T loss[kLanes] = {}, mass[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
      const T* const s_b = s[b];
      const T* const q_b = q[b];
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const T surprise = soft_ce_surprise(s_b[l], stats.max_s, inv_temperature, stats.log_sum_s);
        loss[l] += soft_ce_term(q_b[l], surprise);
        mass[l] += q_b[l];
      }
    }
    add_lanes(loss, total_loss);
    add_lanes(mass, total_mass);
  }
  return {fold(total_loss, Sum()), fold(total_mass, Sum())};
}

template <class T>
PYDD_HD void soft_ce_rows(const SoftCeParams& params, int64_t begin, int64_t end) {
  const int64_t n = params.classes;
  const int64_t blocks = blocks_of(n), width = blocks * kLanes;
  const Scratch<T> scratch = new_scratch<T>(3 * width);  // s, q, p
  const ScaledExp<T> exp(1.0 / params.temperature);
  const T inv_temperature = T(1.0 / params.temperature);

  for (int64_t r = begin; r < end; ++r) {
    const Blocks<const T> s =
        load_row(element(params.student, params.student_dtype, r * params.student_stride),
                 params.student_dtype, n, kNoClass<T>, &scratch[0]);
    const Blocks<const T> q =
        load_row(element(params.target, params.target_dtype, r * params.target_stride),
                 params.target_dtype, n, T(0), &scratch[width]);
    T* const p = &scratch[2 * width];

    SoftCeRow<T> stats;
    const double sum = row_softmax(s, blocks, exp, p, stats.max_s);
    stats.inv_sum_s = T(1.0 / sum);
    stats.log_sum_s = T(std::log(sum));
    const SoftCeSums sums = soft_ce_sums(s, q, blocks, stats, inv_temperature);
    stats.mass = T(sums.mass);

    const double loss_factor = params.scale * factor_at<T>(params.weight, r);
    const double factor = loss_factor * factor_at<T>(params.upstream, r * params.upstream_stride);
    if (params.loss_rows) {
      static_cast<T*>(params.loss_rows)[r] = T(sums.loss * loss_factor);
    }
    if (params.row_stats) static_cast<SoftCeRow<T>*>(params.row_stats)[r] = stats;
    if (params.grad_student) {
      void* const target = element(params.grad_student, params.grad_dtype, r * n);
      const Blocks<T> values = result_row(target, params.grad_dtype, n, p);
      const T mass_over_sum = T(sums.mass / sum);
      const T scale = T(factor / params.temperature);
      for (int64_t b = 0; b < blocks; ++b) {
        const T* const p_b = p + b * kLanes;
        const T* const q_b = q[b];
        T* const out = values[b];
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) out[l] = (p_b[l] * mass_over_sum - q_b[l]) * scale;
      }
      store_row(values, n, target, params.grad_dtype);
    }
    if (params.grad_target) {
      void* const target = element(params.grad_target, params.target_dtype, r * n);
      const Blocks<T> values = result_row(target, params.target_dtype, n, p);
      const T scale = T(factor);
      for (int64_t b = 0; b < blocks; ++b) {
        const T* const s_b = s[b];
        T* const out = values[b];
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) {
          out[l] = soft_ce_surprise(s_b[l], stats.max_s, inv_temperature, stats.log_sum_s) * scale;
        }
      }
      store_row(values, n, target, params.target_dtype);
    }
  }
}

PYDD_CPU_CLONES void soft_ce_rows_f32(const SoftCeParams& params, int64_t begin, int64_t end) {
  soft_ce_rows<float>(params, begin, end);
}

PYDD_CPU_CLONES void soft_ce_rows_f64(const SoftCeParams& params, int64_t begin, int64_t end) {
  soft_ce_rows<double>(params, begin, end);
}

}  // namespace

void soft_ce_cpu(const SoftCeParams& params, int64_t begin, int64_t end) {
  if (params.student_dtype == DType::kFloat64) {
    soft_ce_rows_f64(params, begin, end);
  } else {
    soft_ce_rows_f32(params, begin, end);
  }
}

}  // namespace pyddfast
