// Mean squared error to the teacher's logits plus weighted cross-entropy to the hard label (the
// student loss of G-VBSM and EDC): parameters and launchers.  No torch, no CUDA headers.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace pyddfast {

// Row value: sum_i (s_i - t_i)^2 / classes + ce_weight * -log softmax(s)_y.  A label outside
// [0, classes) gives NaN.  Conventions as in KdLossParams.
struct MseCeParams {
  const void* student;
  const void* teacher;
  const int64_t* target;  // (rows) labels
  const void* weight;
  DType student_dtype, teacher_dtype;
  int64_t rows, classes;
  int64_t student_stride, teacher_stride, target_stride;
  double ce_weight;
  double scale;

  void* loss_rows;
  void* loss;
  void* row_stats;  // (rows, 2): MseCeRow

  void* grad_student;
  DType grad_dtype;
  void* grad_teacher;  // backward only, in the teacher's dtype

  const void* upstream;
  int64_t upstream_stride;
};

template <class T>
struct MseCeRow {
  T max_s, inv_sum_s;
};
constexpr int kMseCeRowSize = 2;

void mse_ce_cpu(const MseCeParams& params, int64_t begin, int64_t end);
int mse_ce_forward_cuda(const MseCeParams& params, void* stream);
int mse_ce_backward_cuda(const MseCeParams& params, void* stream);

}  // namespace pyddfast
