#include "kd/soft_ce.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/rows_cpu.h"
#include "common/softmax_cpu.h"
#include "kd/soft_ce_math.h"

namespace pyddfast {
namespace {

template <class T>
PYDD_HD void soft_ce_rows(const SoftCeParams& params, int64_t begin, int64_t end) {
  const int64_t n = params.classes;
  // s, q, p and the target's gradient; some stay unused where rows serve in place.
  std::vector<T> scratch(static_cast<size_t>(4 * n));
  const T inv_temperature = T(1.0 / params.temperature);

  for (int64_t r = begin; r < end; ++r) {
    const T* const s =
        load_row(element(params.student, params.student_dtype, r * params.student_stride),
                 params.student_dtype, n, scratch.data());
    const T* const q =
        load_row(element(params.target, params.target_dtype, r * params.target_stride),
                 params.target_dtype, n, scratch.data() + n);
    T* const spare = scratch.data() + 2 * n;
    void* const gradient_row =
        params.grad_student ? element(params.grad_student, params.grad_dtype, r * n) : nullptr;
    T* const p = gradient_row ? result_row(gradient_row, params.grad_dtype, spare) : spare;

    SoftCeRow<T> stats;
    stats.max_s = row_maximum(s, n);
    const double sum = row_exponentials(s, n, stats.max_s, inv_temperature, p);
    stats.inv_sum_s = T(1.0 / sum);
    stats.log_sum_s = T(std::log(sum));

    double loss = 0, mass = 0;
    for (int64_t start = 0; start < n; start += kSumBlock) {
      const int64_t stop = std::min(n, start + kSumBlock);
      T block_loss = 0, block_mass = 0;
#pragma omp simd reduction(+ : block_loss, block_mass)
      for (int64_t i = start; i < stop; ++i) {
        const T surprise = soft_ce_surprise(s[i], stats.max_s, inv_temperature, stats.log_sum_s);
        block_loss += soft_ce_term(q[i], surprise);
        block_mass += q[i];
      }
      loss += block_loss;
      mass += block_mass;
    }
    stats.mass = T(mass);

    const double weight = params.weight ? double(static_cast<const T*>(params.weight)[r]) : 1.0;
    const double upstream =
        params.upstream
            ? double(static_cast<const T*>(params.upstream)[r * params.upstream_stride])
            : 1.0;
    const double factor = params.scale * weight * upstream;
    if (params.loss_rows) {
      static_cast<T*>(params.loss_rows)[r] = T(loss * params.scale * weight);
    }
    if (params.row_stats) static_cast<SoftCeRow<T>*>(params.row_stats)[r] = stats;
    if (gradient_row) {
      const T mass_over_sum = T(mass / sum);
      const T scale = T(factor / params.temperature);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) p[i] = (p[i] * mass_over_sum - q[i]) * scale;
      store_row(p, n, gradient_row, params.grad_dtype);
    }
    if (params.grad_target) {
      void* const target = element(params.grad_target, params.target_dtype, r * n);
      T* const values = result_row(target, params.target_dtype, scratch.data() + 3 * n);
      const T scale = T(factor);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        values[i] =
            soft_ce_surprise(s[i], stats.max_s, inv_temperature, stats.log_sum_s) * scale;
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
