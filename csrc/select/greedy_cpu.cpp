// Sixteen rows at a time: each row's comparison in lanes, all of them folded together.
#include <algorithm>

#include "common/dtypes_cpu.h"
#include "common/rows_cpu.h"
#include "select/greedy.h"

namespace pyddfast {
namespace {

// A finite value; the integer arithmetic of to_float(Half) would cost more than the comparison.  An
// exact product moves the exponent, subnormals included unless the process flushes them to zero;
// the sign travels in copies above the exponent, and the product joins the comparison's first step.
template <class S>
PYDD_HD auto widened(S value) {
  if constexpr (std::is_same_v<S, Half>) {
    const uint32_t shifted = uint32_t(int32_t(int16_t(value.bits))) << 13;
    return bits_to_float(shifted & 0x8fffffffu) * 0x1p112f;
  } else {
    return to_float(value);
  }
}

template <Form kForm, class T>
PYDD_HD T term(T x, T c, T scale, const ScaledExp<T>& exp_of, T exp_c) {
  if constexpr (kForm == Form::kDot) return x * c;
  if constexpr (kForm == Form::kJeffreys) return (exp_of(x) - exp_c) * (x - c);
  if constexpr (kForm == Form::kCosine) x *= scale;
  return (x - c) * (x - c);
}

// Bytes ahead of a read: a page, where the processor's own prefetch stops.
constexpr int64_t kAhead = 4096;

// The lanes of one row.  Sums of kSumBlocks terms are added up: the error of long rows stays small.
template <Form kForm, class T, class S>
PYDD_HD void compare(const S* row, const T* center, const T* exp_center, int64_t dim, T scale,
                     const ScaledExp<T>& exp_of, T (&total)[kLanes]) {
  const int64_t whole = dim / kLanes, rest = dim % kLanes;
  std::fill_n(total, kLanes, T(0));
  for (int64_t first = 0; first < whole; first += kSumBlocks) {
    const int64_t last = std::min(whole, first + kSumBlocks);
    T sums[kLanes] = {};
    for (int64_t b = first; b < last; ++b) {
      __builtin_prefetch(row + b * kLanes + kAhead / int64_t(sizeof(S)));
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const int64_t i = b * kLanes + l;
        const T other = kForm == Form::kJeffreys ? exp_center[i] : T(0);
        sums[l] += term<kForm>(T(widened(row[i])), center[i], scale, exp_of, other);
      }
    }
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) total[l] += sums[l];
  }
  for (int64_t l = 0; l < rest; ++l) {
    const int64_t i = whole * kLanes + l;
    const T other = kForm == Form::kJeffreys ? exp_center[i] : T(0);
    total[l] += term<kForm>(T(widened(row[i])), center[i], scale, exp_of, other);
  }
}

template <Form kForm, class T, class S>
PYDD_HD void pass_tasks(const GreedyPass& pass, int64_t begin, int64_t end) {
  const GreedyParams& params = *pass.params;
  const Segment& segment = pass.segment;
  const T* const center = vector<T>(pass.center);
  const T* const scales = vector<T>(params.scale);
  const T* const factors = vector<T>(params.factor);
  const S* const x = static_cast<const S*>(params.x);
  const ScaledExp<T> exp_of(1.0);
  SimilarityMap map = params.map;
  if (params.offsets) map.offset = params.offsets[segment.index];
  const T* const exp_center = center + params.dim;  // written beside it for kJeffreys
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = segment.first + task * kTaskRows;
    const int64_t last = std::min(segment.last, first + kTaskRows);
    Best best{0.0, -1};
    for (int64_t group = first; group < last; group += kLanes) {
      const int64_t count = std::min(kLanes, last - group);
      alignas(64) T lanes[kLanes][kLanes] = {};
      alignas(64) T values[kLanes];
      if constexpr (kForm == Form::kEntry) {
        const S* const entries = x + pass.pick * params.stride;
        for (int64_t r = 0; r < count; ++r) values[r] = T(to_float(entries[group + r]));
      } else {
        for (int64_t r = 0; r < count; ++r) {
          const T scale = scales ? scales[group + r] : T(1);
          compare<kForm>(x + (group + r) * params.stride, center, exp_center, params.dim, scale,
                         exp_of, lanes[r]);
        }
        fold_rows(lanes, Sum(), values);
      }
      for (int64_t r = 0; r < count; ++r) {
        const int64_t row = group + r;
        double value = double(values[r]);
        if constexpr (kForm == Form::kCosine) {
          value = pass.center_is_zero || scales[row] == T(0) ? 1.0 : 0.5 * value;
        }
        const double state = updated(params.rule, map, params.state[row], value, row == pass.pick);
        params.state[row] = state;
        if (params.taken[row]) continue;
        const Best candidate{key_of(state, factors ? double(factors[row]) : 1.0), row};
        if (better(candidate, best)) best = candidate;
      }
    }
    pass.best[task] = best;
  }
}

template <class T, class S>
PYDD_HD void pass_rows(const GreedyPass& pass, int64_t begin, int64_t end) {
  switch (pass.params->form) {
    case Form::kSquares:
      return pass_tasks<Form::kSquares, T, S>(pass, begin, end);
    case Form::kCosine:
      return pass_tasks<Form::kCosine, T, S>(pass, begin, end);
    case Form::kJeffreys:
      return pass_tasks<Form::kJeffreys, T, S>(pass, begin, end);
    case Form::kDot:
      return pass_tasks<Form::kDot, T, S>(pass, begin, end);
    case Form::kEntry:
      return pass_tasks<Form::kEntry, T, S>(pass, begin, end);
  }
}

}  // namespace

PYDD_CPU_KERNEL(greedy_pass_cpu, GreedyPass, params.params->dtype, pass_rows)

}  // namespace pyddfast
