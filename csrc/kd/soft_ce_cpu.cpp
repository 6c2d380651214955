#include <algorithm>
#include <cmath>
#include <memory>

#include "common/rows_cpu.h"
#include "common/softmax_cpu.h"
#include "kd/soft_ce.h"
#include "kd/soft_ce_math.h"

namespace pyddfast {
namespace {

// Loss of a row whose student is normalised, and the mass of its target.
struct SoftCeSums {
  double loss = 0, mass = 0;
};

template <class T>
PYDD_HD SoftCeSums soft_ce_sums(const T* s, const T* q, int64_t blocks, SoftCeRow<T> stats,
                                T inv_temperature) {
  SoftCeSums total;
  for (int64_t start = 0; start < blocks; start += kSumBlocks) {
    const int64_t stop = std::min(blocks, start + kSumBlocks);
    alignas(64) T loss[kLanes] = {}, mass[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const int64_t i = b * kLanes + l;
        const T surprise = soft_ce_surprise(s[i], stats.max_s, inv_temperature, stats.log_sum_s);
        loss[l] += soft_ce_term(q[i], surprise);
        mass[l] += q[i];
      }
    }
    total.loss += lane_sum(loss);
    total.mass += lane_sum(mass);
  }
  return total;
}

template <class T>
PYDD_HD void soft_ce_rows(const SoftCeParams& params, int64_t begin, int64_t end) {
  const int64_t n = params.classes;
  const int64_t blocks = blocks_of(n), width = blocks * kLanes;
  const std::unique_ptr<T[]> scratch(new T[size_t(3 * width)]);  // s, q, p
  const ScaledExp<T> exp(1.0 / params.temperature);
  const T inv_temperature = T(1.0 / params.temperature);

  for (int64_t r = begin; r < end; ++r) {
    const T* const s =
        load_row(element(params.student, params.student_dtype, r * params.student_stride),
                 params.student_dtype, n, kPadding<T>, &scratch[0]);
    const T* const q =
        load_row(element(params.target, params.target_dtype, r * params.target_stride),
                 params.target_dtype, n, T(0), &scratch[width]);
    T* const p = &scratch[2 * width];

    SoftCeRow<T> stats;
    stats.max_s = row_maximum(s, blocks);
    const double sum = row_exponentials(s, blocks, stats.max_s, exp, p);
    stats.inv_sum_s = T(1.0 / sum);
    stats.log_sum_s = T(std::log(sum));
    const SoftCeSums sums = soft_ce_sums(s, q, blocks, stats, inv_temperature);
    stats.mass = T(sums.mass);

    const double weight = params.weight ? double(static_cast<const T*>(params.weight)[r]) : 1.0;
    const double upstream =
        params.upstream ? double(static_cast<const T*>(params.upstream)[r * params.upstream_stride])
                        : 1.0;
    const double factor = params.scale * weight * upstream;
    if (params.loss_rows) {
      static_cast<T*>(params.loss_rows)[r] = T(sums.loss * params.scale * weight);
    }
    if (params.row_stats) static_cast<SoftCeRow<T>*>(params.row_stats)[r] = stats;
    if (params.grad_student) {
      void* const target = element(params.grad_student, params.grad_dtype, r * n);
      T* const values = result_row(target, params.grad_dtype, n, p);
      const T mass_over_sum = T(sums.mass / sum);
      const T scale = T(factor / params.temperature);
      for (int64_t start = 0; start < width; start += kLanes) {
#pragma omp simd
        for (int64_t i = start; i < start + kLanes; ++i) {
          values[i] = (p[i] * mass_over_sum - q[i]) * scale;
        }
      }
      store_row(values, n, target, params.grad_dtype);
    }
    if (params.grad_target) {
      void* const target = element(params.grad_target, params.target_dtype, r * n);
      T* const values = result_row(target, params.target_dtype, n, p);
      const T scale = T(factor);
      for (int64_t start = 0; start < width; start += kLanes) {
#pragma omp simd
        for (int64_t i = start; i < start + kLanes; ++i) {
          values[i] = soft_ce_surprise(s[i], stats.max_s, inv_temperature, stats.log_sum_s) * scale;
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
