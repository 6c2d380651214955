#include <cmath>
#include <cstddef>
#include <vector>

#include "scores/dynamics.h"

namespace pyddfast {
namespace {

template <class T>
void record_rows(const DynamicsParams& params, const T* scores, const bool* correct) {
  const int columns = params.features ? kScores : kGrand;
  for (int64_t r = 0; r < params.rows; ++r) {
    float row[kScores] = {};
    for (int k = 0; k < columns; ++k) row[k] = float(scores[k * params.rows + r]);
    record(params.state, params.indices[r * params.index_stride], *params.tick, row, correct[r]);
  }
}

template <class T>
int64_t find_unsound(const DynamicsParams& params, const T* scores) {
  // Either is NaN where p_y is.
  const T* const decisive = scores + (params.features ? kGrand : kEl2nSl) * params.rows;
  for (int64_t r = 0; r < params.rows; ++r) {
    if (!std::isfinite(decisive[r])) return r;
  }
  return -1;
}

}  // namespace

int64_t find_bad_index(const DynamicsParams& params) {
  // A hash table at most half full; it costs less than the sort that torch would do.
  size_t slots = 2;
  while (slots < 2 * size_t(params.rows)) slots *= 2;
  thread_local std::vector<int64_t> table;  // kept: a step of a training allocates nothing
  table.assign(slots, -1);
  for (int64_t r = 0; r < params.rows; ++r) {
    const int64_t index = params.indices[r * params.index_stride];
    if (index < 0 || index >= params.state.samples) return r;
    constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;  // 2^64 over the golden ratio: spreads runs
    size_t slot = size_t((uint64_t(index) * kGolden) >> 32) & (slots - 1);
    for (; table[slot] >= 0; slot = (slot + 1) & (slots - 1)) {
      if (table[slot] == index) return r;
    }
    table[slot] = index;
  }
  return -1;
}

int64_t find_unsound_row(const DynamicsParams& params, const void* scores) {
  if (params.logits_dtype == DType::kFloat64) {
    return find_unsound(params, static_cast<const double*>(scores));
  }
  return find_unsound(params, static_cast<const float*>(scores));
}

void record_rows_cpu(const DynamicsParams& params, const void* scores, const bool* correct) {
  if (params.logits_dtype == DType::kFloat64) {
    record_rows(params, static_cast<const double*>(scores), correct);
  } else {
    record_rows(params, static_cast<const float*>(scores), correct);
  }
}

}  // namespace pyddfast
