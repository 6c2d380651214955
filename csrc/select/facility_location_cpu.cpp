// A heap of upper bounds: gains only fall, in floating point too, as every sum is taken in the same
// order and rounding keeps order.  So the lazy picks are the exhaustive ones, ties included.
#include <algorithm>
#include <vector>

#include "common/dtypes_cpu.h"
#include "common/rows_cpu.h"
#include "select/facility_location.h"

namespace pyddfast {
namespace {

// sum of weight * max(0, similarity - served)
template <bool kWeighted, class T>
PYDD_HD double gain_of(const T* similarity, const T* served, const T* weight, int64_t size) {
  const auto term = [&](int64_t i) {
    const T more = similarity[i] - served[i];
    const T gain = more > T(0) ? more : T(0);
    return kWeighted ? weight[i] * gain : gain;
  };
  double total[kLanes] = {};
  const int64_t whole = size / kLanes, rest = size % kLanes;
  for (int64_t first = 0; first < whole; first += kSumBlocks) {
    const int64_t last = std::min(whole, first + kSumBlocks);
    T sums[kLanes] = {};
    for (int64_t b = first; b < last; ++b) {
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) sums[l] += term(b * kLanes + l);
    }
    add_lanes(sums, total);
  }
  for (int64_t l = 0; l < rest; ++l) total[l] += double(term(whole * kLanes + l));
  return fold(total, Sum());
}

template <class T>
struct Greedy {
  const T *similarity, *weight;
  int64_t size;
  std::vector<T> served;

  PYDD_HD double gain(int64_t candidate) const {
    const T* const row = similarity + candidate * size;
    return weight ? gain_of<true>(row, served.data(), weight, size)
                  : gain_of<false>(row, served.data(), weight, size);
  }
  PYDD_HD void take(int64_t candidate) {
    const T* const row = similarity + candidate * size;
    T* const values = served.data();
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) values[i] = row[i] > values[i] ? row[i] : values[i];
  }
};

inline bool below(const Best& a, const Best& b) { return better(b, a); }

template <class T>
PYDD_HD void select(const FacilityLocationParams& params, const LocationSegment& segment) {
  const T* const weights = vector<T>(params.weight);
  Greedy<T> greedy{vector<T>(params.similarity) + segment.matrix,
                   weights ? weights + segment.first : nullptr, segment.size,
                   std::vector<T>(size_t(segment.size), T(0))};
  std::vector<Best> heap;  // of upper bounds
  for (int64_t v = 0; v < segment.size; ++v) heap.push_back({greedy.gain(v), v});
  std::make_heap(heap.begin(), heap.end(), below);
  for (int64_t p = segment.begin; p < segment.end; ++p) {
    if (!params.lazy && p > segment.begin) {
      for (Best& bound : heap) bound.key = greedy.gain(bound.row);
      std::make_heap(heap.begin(), heap.end(), below);
    }
    // The front is evaluated until it stays in front.
    bool fresh = !params.lazy || p == segment.begin;
    std::pop_heap(heap.begin(), heap.end(), below);
    while (!fresh) {
      heap.back().key = greedy.gain(heap.back().row);
      fresh = heap.size() == 1 || better(heap.back(), heap.front());
      if (!fresh) {
        std::push_heap(heap.begin(), heap.end(), below);
        std::pop_heap(heap.begin(), heap.end(), below);
      }
    }
    params.picks[p] = segment.first + heap.back().row;
    params.gains[p] = heap.back().key;
    greedy.take(heap.back().row);
    heap.pop_back();
  }
}

template <class T, class S>
PYDD_HD void select_segments(const FacilityLocationParams& params, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<T, S>) {  // 16-bit similarities do not come here
    for (int64_t s = begin; s < end; ++s) {
      if (params.segments[s].begin < params.segments[s].end) select<T>(params, params.segments[s]);
    }
  }
}

}  // namespace

PYDD_CPU_KERNEL(facility_location_cpu, FacilityLocationParams, params.dtype, select_segments)

}  // namespace pyddfast
