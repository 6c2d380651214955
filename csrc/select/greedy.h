// Greedy selection with one number of state a row: k-center, graph cut, herding.  Each pick is one
// pass over the features (or one row of a matrix), for every segment of rows by itself.
#pragma once

#include <cstdint>

#include "select/select_math.h"

namespace pyddfast {

struct GreedyParams {
  const void* x;  // (rows, dim), `stride` elements apart; kEntry: (rows, rows)
  int64_t stride;
  DType dtype;
  int64_t dim;
  const void* scale;      // (rows,) fp32 (fp64 for fp64 x): rows are multiplied by it; null: 1
  const void* factor;     // (rows,) likewise: of the keys; null: 1
  const double* mean;     // (segments, dim) of kNearest and kFarthest
  const double* offsets;  // (segments,) of the map; null: 0
  double* state;          // (rows,)
  uint8_t* taken;         // (rows,) 1: cannot be picked
  Form form;
  Rule rule;
  SimilarityMap map;
  int64_t* picks;  // (picks,) rows of x; -1: to be found
  double* keys;    // (picks,) the largest key that is left after each pick
};

// CPU: one segment, rows [first, last), whose picks are [begin, end).  A pass is cut into tasks of
// kTaskRows rows, which `run` spreads over threads.
constexpr int64_t kTaskRows = 256;

struct Segment {
  int64_t index, first, last;  // rows of x
  int64_t begin, end;          // its picks
};

// One pass: what all of its tasks share.
struct GreedyPass {
  const GreedyParams* params;
  Segment segment;
  const void* center;   // (dim,) in the type that is computed in
  bool center_is_zero;  // kCosine
  int64_t pick;         // the row that `center` is, or -1
  Best* best;           // of each task
};

void greedy_pass_cpu(const GreedyPass& pass, int64_t begin, int64_t end);

// CUDA: all segments, `most` picks in the largest, by one launch a pick.
struct GreedyLaunch {
  GreedyParams params;
  const Segment* segments;       // on the device
  int64_t count, most, largest;  // segments; picks and rows of the largest
  Best* partials;                // (2, segments, greedy_partials())
  double* targets;               // (2, segments, dim) of kNearest and kFarthest
};
int64_t greedy_partials(int64_t largest);
int greedy_cuda(const GreedyLaunch& launch, void* stream);

}  // namespace pyddfast
