// Nearest neighbours on the CPU: proposals from products of tiles, and the decision among them.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace pyddfast {

// The products of rows [first_row, + rows) with rows [first_column, + columns), each of which is
// another pair, but for those of a row range with itself.
struct KnnProposeParams {
  const void* product;
  const void* squares;  // (n,) squared norms; all in `dtype`, fp32 or fp64
  int64_t first_row, rows, first_column, columns;
  int64_t kept;      // proposals of a row
  void* values;      // (n, kept) heaps, the largest first, of |y|^2 - 2 x y; at first infinity
  int64_t* indices;  // (n, kept) the rows y; at first -1
  DType dtype;
  bool exclude_self;

  // Columns from here on are proposed to as well; those before are rows.
  int64_t first_other() const {
    const int64_t end = first_row + rows - first_column;
    return end < 0 ? 0 : end < columns ? end : columns;
  }
};

struct KnnDecideParams {
  const void* x;       // (n, dim), contiguous
  const double* norm;  // (n,) of the rows, for their cosines; null: Euclidean distances
  int64_t rows, dim, kept, neighbours;
  const void* squares;  // of KnnProposeParams
  const void* values;
  const int64_t* indices;
  DType dtype;
  bool all;          // no row is left out of the proposals
  double error;      // of a value, over (|x| + |y|)^2
  double* distance;  // (n, neighbours)
  int64_t* nearest;  // (n, neighbours)
  bool* unclear;     // (n,) whether a row that was left out may be nearer
};

// To rows [begin, end) of the tile; then to columns [begin, end).
void knn_propose_rows_cpu(const KnnProposeParams& params, int64_t begin, int64_t end);
void knn_propose_columns_cpu(const KnnProposeParams& params, int64_t begin, int64_t end);
void knn_decide_cpu(const KnnDecideParams& params, int64_t begin, int64_t end);

}  // namespace pyddfast
