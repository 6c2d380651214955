// Mean divergence of each row's distribution and its neighbours': parameters and launchers.
#pragma once

#include <cstdint>

#include "common/types.h"
#include "pairwise/knn_divergence_math.h"

namespace pyddfast {

struct KnnDivergenceParams {
  const void* logp;    // (rows, classes) of `stride`, fp32, or fp64 on the CPU
  const int64_t* knn;  // (rows, neighbours)
  int64_t rows, classes, stride, neighbours;
  DType dtype;
  Divergence kind;
  void* result;  // (rows,); NaN where a row is no distribution or a neighbour no row
};

void knn_divergence_cpu(const KnnDivergenceParams& params, int64_t begin, int64_t end);
int knn_divergence_cuda(const KnnDivergenceParams& params, void* stream);

}  // namespace pyddfast
