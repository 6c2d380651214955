// Temperature KL with its score EL2N-SL: parameters and launchers.  No torch, no CUDA headers.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace pyddfast {

enum class TeacherKind : int { kLogits, kProbs, kLogProbs };

// Rows are `classes` contiguous elements, `*_stride` elements apart.  "Accumulation type" is fp32,
// or fp64 if the student is fp64 (CPU only).  Null outputs are not computed.
struct KdLossParams {
  const void* student;
  const void* teacher;
  const void* weight;  // (rows) accumulation type, or null: multiplies loss and gradient
  DType student_dtype, teacher_dtype;
  TeacherKind teacher_kind;
  int64_t rows, classes;
  int64_t student_stride, teacher_stride;
  double temperature;
  double scale;  // T^2 and 1/rows of the options, multiplies loss and gradient of every row

  void* loss_rows;  // (rows) accumulation type: scale * weight * KL
  void* loss;       // scalar, accumulation type: the sum of loss_rows in row order; may be null
  void* score;      // (rows) accumulation type: ||p - q||_2 / T, whatever weight and scale are
  void* row_stats;  // (rows, kKdRowSize) accumulation type: KdRow, for the backward

  // Gradient with respect to the student, (rows, classes) contiguous, in `grad_dtype`: an output of
  // the one-pass form, or of the backward.
  void* grad_student;
  DType grad_dtype;
  // Gradient with respect to the teacher argument (backward only), in the teacher's dtype.
  void* grad_teacher;
  // Upstream gradient: element r is at upstream[r * upstream_stride] (stride 0: one for all).
  // One-pass form: optional device scalar grad_scale, stride 0.  Null means 1.
  const void* upstream;
  int64_t upstream_stride;
};

// CPU: rows [begin, end).  `loss` is summed by the caller.
void kd_loss_cpu(const KdLossParams& params, int64_t begin, int64_t end);

// CUDA: each returns a cudaError_t as int; `stream` is a cudaStream_t.
int kd_loss_forward_cuda(const KdLossParams& params, void* stream);  // loss, score, row_stats; also
                                                                     // grad_student if not null
int kd_loss_backward_cuda(const KdLossParams& params, void* stream);  // from row_stats

}  // namespace pyddfast
