// Cross-entropy against soft labels: parameters and launchers.  No torch, no CUDA headers.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace pyddfast {

// Conventions as in KdLossParams.
struct SoftCeParams {
  const void* student;
  const void* target;  // probabilities
  const void* weight;
  DType student_dtype, target_dtype;
  int64_t rows, classes;
  int64_t student_stride, target_stride;
  double temperature;
  double scale;

  void* loss_rows;
  void* loss;
  void* row_stats;  // (rows, kSoftCeRowSize): SoftCeRow

  void* grad_student;
  DType grad_dtype;
  void* grad_target;  // backward only, in the target's dtype

  const void* upstream;
  int64_t upstream_stride;
};

void soft_ce_cpu(const SoftCeParams& params, int64_t begin, int64_t end);
int soft_ce_forward_cuda(const SoftCeParams& params, void* stream);
int soft_ce_backward_cuda(const SoftCeParams& params, void* stream);

}  // namespace pyddfast
