#include <algorithm>
#include <cmath>
#include <limits>

#include "common/rows_cpu.h"
#include "common/softmax_cpu.h"
#include "kd/mse_ce.h"

namespace pyddfast {
namespace {

template <class T>
PYDD_HD double squared_distance(Blocks<const T> s, Blocks<const T> t, int64_t blocks) {
  alignas(64) double total[kLanes] = {};
  for (int64_t start = 0; start < blocks; start += kSumBlocks) {
    const int64_t stop = std::min(blocks, start + kSumBlocks);
    alignas(64) T sum[kLanes] = {};
    for (int64_t b = start; b < stop; ++b) {
      const T* const s_b = s[b];
      const T* const t_b = t[b];
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) sum[l] += (s_b[l] - t_b[l]) * (s_b[l] - t_b[l]);
    }
    add_lanes(sum, total);
  }
  return fold(total, Sum());
}

template <class T>
PYDD_HD void mse_ce_rows(const MseCeParams& params, int64_t begin, int64_t end) {
  const int64_t n = params.classes;
  const int64_t blocks = blocks_of(n), width = blocks * kLanes;
  const Scratch<T> scratch = new_scratch<T>(3 * width);  // s, t, p
  const ScaledExp<T> exp(1.0);

  for (int64_t r = begin; r < end; ++r) {
    const Blocks<const T> s =
        load_row(element(params.student, params.student_dtype, r * params.student_stride),
                 params.student_dtype, n, kNoClass<T>, &scratch[0]);
    const Blocks<const T> t =
        load_row(element(params.teacher, params.teacher_dtype, r * params.teacher_stride),
                 params.teacher_dtype, n, T(0), &scratch[width]);
    T* const p = &scratch[2 * width];

    MseCeRow<T> stats;
    const double sum = row_softmax(s, blocks, exp, p, stats.max_s);
    stats.inv_sum_s = T(1.0 / sum);
    // What follows are differences of the logits.
    if (n % kLanes) pad_block(&scratch[width - kLanes], n % kLanes, T(0));
    const double squares = squared_distance(s, t, blocks);
    const int64_t label = params.target[r * params.target_stride];
    const bool valid = label >= 0 && label < n;
    const double surprise = valid ? double(stats.max_s) - double(s.at(label)) + std::log(sum)
                                  : std::numeric_limits<double>::quiet_NaN();
    const double loss = squares / double(n) + params.ce_weight * surprise;

    const double loss_factor = params.scale * factor_at<T>(params.weight, r);
    const double factor = loss_factor * factor_at<T>(params.upstream, r * params.upstream_stride);
    if (params.loss_rows) {
      static_cast<T*>(params.loss_rows)[r] = T(loss * loss_factor);
    }
    if (params.row_stats) static_cast<MseCeRow<T>*>(params.row_stats)[r] = stats;
    const T mse_scale = T(factor * 2.0 / double(n));
    if (params.grad_student) {
      void* const target = element(params.grad_student, params.grad_dtype, r * n);
      const Blocks<T> values = result_row(target, params.grad_dtype, n, p);
      const T ce_scale = valid ? T(factor * params.ce_weight) : std::numeric_limits<T>::quiet_NaN();
      for (int64_t b = 0; b < blocks; ++b) {
        const T* const s_b = s[b];
        const T* const t_b = t[b];
        const T* const p_b = p + b * kLanes;
        T* const out = values[b];
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) {
          out[l] = mse_scale * (s_b[l] - t_b[l]) + ce_scale * (p_b[l] * stats.inv_sum_s);
        }
      }
      if (valid) values.at(label) -= ce_scale;
      store_row(values, n, target, params.grad_dtype);
    }
    if (params.grad_teacher) {
      void* const target = element(params.grad_teacher, params.teacher_dtype, r * n);
      const Blocks<T> values = result_row(target, params.teacher_dtype, n, p);
      for (int64_t b = 0; b < blocks; ++b) {
        const T* const s_b = s[b];
        const T* const t_b = t[b];
        T* const out = values[b];
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) out[l] = mse_scale * (t_b[l] - s_b[l]);
      }
      store_row(values, n, target, params.teacher_dtype);
    }
  }
}

PYDD_CPU_CLONES void mse_ce_rows_f32(const MseCeParams& params, int64_t begin, int64_t end) {
  mse_ce_rows<float>(params, begin, end);
}

PYDD_CPU_CLONES void mse_ce_rows_f64(const MseCeParams& params, int64_t begin, int64_t end) {
  mse_ce_rows<double>(params, begin, end);
}

}  // namespace

void mse_ce_cpu(const MseCeParams& params, int64_t begin, int64_t end) {
  if (params.student_dtype == DType::kFloat64) {
    mse_ce_rows_f64(params, begin, end);
  } else {
    mse_ce_rows_f32(params, begin, end);
  }
}

}  // namespace pyddfast
