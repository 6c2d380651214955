// The distance of two gradients of one network, lists of tensors: parameters and launchers.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace pyddfast {

// Order as METRICS in pyddfast/ops/match.py.
enum class GradientMetric : int { kRows, kSquared, kCosine };

// Where the rows do not matter (kSquared, kCosine), tensors are cut into rows of this length:
// enough work for a CTA, few enough partial sums.
constexpr int64_t kMatchLength = 4096;

// One tensor of both lists, contiguous, and the same of the result.
struct MatchedTensor {
  const void* syn;
  const void* real;
  void* grad;
  int64_t numel, length;     // elements; those of a row, of which the last one may have fewer
  int64_t first, first_row;  // elements and rows of the tensors before this one

  PYDD_HD int64_t rows() const { return (numel + length - 1) / length; }
  PYDD_HD int64_t size_of(int64_t row) const {
    const int64_t rest = numel - row * length;
    return rest < length ? rest : length;
  }
  // The first row that begins at `element` of the list, or later.
  PYDD_HD int64_t row_from(int64_t element) const {
    const int64_t own = element - first, row = own <= 0 ? 0 : (own + length - 1) / length;
    return row < rows() ? row : rows();
  }
};

struct GradientDistanceParams {
  const MatchedTensor* tensors;  // in host memory
  int64_t count, rows;           // tensors; rows of them all
  DType dtype;                   // of all tensors
  GradientMetric metric;
  void* sums;            // (rows, kMatchSums): fp64 on the CPU, fp32 on CUDA
  void* coefficients;    // (rows, 2), or (1, 2) where the rows do not matter: see RowMatch
  void* distance;        // scalar; vectors and scalars are fp32, or fp64 for fp64 tensors
  const void* upstream;  // backward: scalar
};

// CPU: rows that begin at elements [begin, end) of the list.
void gradient_distance_cpu(const GradientDistanceParams& params, int64_t begin, int64_t end);
void gradient_distance_finish_cpu(const GradientDistanceParams& params);
void gradient_distance_backward_cpu(const GradientDistanceParams& params, int64_t begin,
                                    int64_t end);

int gradient_distance_cuda(const GradientDistanceParams& params, void* stream);
int gradient_distance_backward_cuda(const GradientDistanceParams& params, void* stream);

}  // namespace pyddfast
