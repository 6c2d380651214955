// Training dynamics: parameters, launchers, and what one presentation of a sample does to the
// state.  No torch, no CUDA headers.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/types.h"
#include "scores/sample_scores.h"
#include "scores/scores_math.h"

namespace pyddfast {

// Of all samples (DynamicsState in pyddfast/ops/reference/dynamics.py); a null sum is not recorded.
struct DynamicsArrays {
  void* ring;  // (samples, slots)
  bool half_ring;
  int64_t samples, slots;
  Score signal;  // what the ring holds
  uint8_t* last_correct;
  int16_t *seen, *forgetting, *correct, *first_learned;
  float *aum, *el2n, *el2n_sl, *entropy, *nll, *grand;
};

struct DynamicsParams : ScoreInputs {
  DynamicsArrays state;
  const int64_t* indices;  // (rows)
  int64_t index_stride;
  const int64_t* tick;  // scalar, on the device
  void* teacher_rows;   // CUDA: (2, rows) fp32 for the teacher's loss and score, if there is one
};

PYDD_HD int16_t saturating_add(int16_t count, bool event) {
  return int16_t(count + (event && count < 32767 ? 1 : 0));
}

PYDD_HD void add_to(float* sums, int64_t sample, float value) {
  if (sums) sums[sample] += value;
}

PYDD_HD void record(const DynamicsArrays& state, int64_t sample, int64_t tick,
                    const float (&scores)[kScores], bool correct) {
  const int64_t slot = sample * state.slots + tick % state.slots;
  const float value = state.signal == kNll    ? scores[kNll]
                      : state.signal == kEl2n ? scores[kEl2n]
                                              : scores[kOneMinusProb];
  if (state.half_ring) {
    static_cast<Half*>(state.ring)[slot] = from_float<Half>(value);
  } else {
    static_cast<float*>(state.ring)[slot] = value;
  }
  const bool before = state.last_correct[sample] != 0;
  const int16_t presentation = state.seen[sample];
  if (correct && state.first_learned[sample] < 0) state.first_learned[sample] = presentation;
  state.seen[sample] = saturating_add(presentation, true);
  state.forgetting[sample] = saturating_add(state.forgetting[sample], before && !correct);
  state.correct[sample] = saturating_add(state.correct[sample], correct);
  state.last_correct[sample] = correct ? 1 : 0;
  add_to(state.aum, sample, scores[kMargin]);
  add_to(state.el2n, sample, scores[kEl2n]);
  add_to(state.el2n_sl, sample, scores[kEl2nSl]);
  add_to(state.entropy, sample, scores[kEntropy]);
  add_to(state.nll, sample, scores[kNll]);
  add_to(state.grand, sample, scores[kGrand]);
}

// CPU.  The first row whose index is no sample or came before, or -1.
int64_t find_bad_index(const DynamicsParams& params);
// CPU.  The first row whose scores are not finite since its logits, teacher or features are not, or
// -1.
int64_t find_unsound_row(const DynamicsParams& params, const void* scores);
// CPU: writes rows whose scores are in `scores` (kScores, rows), in the accumulation type.
void record_rows_cpu(const DynamicsParams& params, const void* scores, const bool* correct);

// CUDA: scores and state in one kernel.  Rows that may not be (an index that is no sample, a label
// that is no class, NaN) leave the state as it is; of equal indices any one may win.
int dynamics_update_cuda(const DynamicsParams& params, void* stream);

}  // namespace pyddfast
