#include "scores/sample_scores.h"
#include "scores/score_rows.h"

namespace pyddfast {
namespace {

// (columns, rows): one column a score.
struct ScoreTable {
  static constexpr bool kSoftTargets = true;
  float* scores;
  bool* correct;
  int64_t rows;
  int columns;

  __device__ void operator()(int64_t row, const float (&values)[kScores], bool is_correct) const {
#pragma unroll
    for (int k = 0; k < kScores; ++k) {
      if (k < columns) scores[k * rows + row] = values[k];
    }
    correct[row] = is_correct;
  }
};

}  // namespace

int sample_scores_cuda(const SampleScoresParams& params, void* stream) {
  auto* const scores = static_cast<float*>(params.scores);
  const ScoreTable table{scores, params.correct, params.rows, params.features ? kScores : kGrand};
  return launch_score_rows(params, scores + kLoss * params.rows, scores + kEl2nSl * params.rows,
                           table, stream);
}

}  // namespace pyddfast
