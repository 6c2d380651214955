// Greedy facility location on similarities, all segments in one call.
#pragma once

#include <cstdint>

#include "common/types.h"
#include "select/select_math.h"

namespace pyddfast {

// A segment of `size` rows: its matrix begins at entry `matrix` of the flat similarities, candidate
// by candidate (entry v * size + i: how well row v serves row i); its picks are [begin, end).
struct LocationSegment {
  int64_t matrix, first, size;  // `first`: its first row among those of all segments
  int64_t begin, end;
};

struct FacilityLocationParams {
  const void* similarity;  // fp32, or fp64 on the CPU
  const void* weight;      // (rows,) likewise; null: 1
  DType dtype;
  bool lazy;  // CPU: evaluate only what could be best
  const LocationSegment* segments;
  int64_t count;
  int64_t* picks;  // (picks,) rows of all segments
  double* gains;   // (picks,)
  // CUDA
  float* served;          // (rows,) what each row has
  uint8_t* taken;         // (rows,)
  Best* partials;         // (segments, facility_location_partials())
  int64_t largest, most;  // rows and picks of the largest segment
};

// Segments are tasks.
void facility_location_cpu(const FacilityLocationParams& params, int64_t begin, int64_t end);
int64_t facility_location_partials(int64_t largest);
int facility_location_cuda(const FacilityLocationParams& params, void* stream);

}  // namespace pyddfast
