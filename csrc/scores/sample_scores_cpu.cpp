#include "scores/sample_scores.h"
#include "scores/score_rows_cpu.h"

namespace pyddfast {
namespace {

template <class T>
PYDD_HD void sample_scores_rows(const SampleScoresParams& params, int64_t begin, int64_t end) {
  T* const table = static_cast<T*>(params.scores);
  const int columns = params.features ? kScores : kGrand;
  const auto store = [=, &params](int64_t row, const double (&scores)[kScores], bool correct)
                         __attribute__((always_inline)) {
                           for (int k = 0; k < columns; ++k)
                             table[k * params.rows + row] = T(scores[k]);
                           params.correct[row] = correct;
                         };
  ScoreRows<T, decltype(store)>(params, *params.invalid_row, store).run(begin, end);
}

PYDD_CPU_CLONES void sample_scores_rows_f32(const SampleScoresParams& params, int64_t begin,
                                            int64_t end) {
  sample_scores_rows<float>(params, begin, end);
}

PYDD_CPU_CLONES void sample_scores_rows_f64(const SampleScoresParams& params, int64_t begin,
                                            int64_t end) {
  sample_scores_rows<double>(params, begin, end);
}

}  // namespace

void sample_scores_cpu(const SampleScoresParams& params, int64_t begin, int64_t end) {
  if (params.logits_dtype == DType::kFloat64) {
    sample_scores_rows_f64(params, begin, end);
  } else {
    sample_scores_rows_f32(params, begin, end);
  }
}

}  // namespace pyddfast
