// Sample scores: parameters and launchers.  No torch, no CUDA headers.
#pragma once

#include <atomic>
#include <cstdint>

#include "common/types.h"

namespace pyddfast {

// What the scores of a row are computed from.  Rows are `stride` elements apart.
struct ScoreInputs {
  const void* logits;     // (rows, classes)
  const int64_t* labels;  // (rows), or null: the target holds probabilities
  const void* target;     // (rows, classes) probabilities, or null
  const void* teacher;    // (rows, classes) logits, or null
  const void* features;   // (rows, width), or null
  DType logits_dtype, target_dtype, teacher_dtype, features_dtype;
  int64_t rows, classes, width;
  int64_t logits_stride, label_stride, target_stride, teacher_stride, features_stride;
  double temperature;
};

struct SampleScoresParams : ScoreInputs {
  void* scores;   // (kScores, rows) in the accumulation type; see scores_math.h
  bool* correct;  // (rows)
  // CPU: the first row whose label is no class or whose logits hold NaN, if below its value.
  std::atomic<int64_t>* invalid_row;
};

void sample_scores_cpu(const SampleScoresParams& params, int64_t begin, int64_t end);
int sample_scores_cuda(const SampleScoresParams& params, void* stream);

}  // namespace pyddfast
