#include "scores/dynamics.h"
#include "scores/score_rows.h"

namespace pyddfast {
namespace {

struct StateSink {
  static constexpr bool kSoftTargets = false;
  DynamicsArrays state;
  const int64_t* indices;
  int64_t index_stride;
  const int64_t* tick;

  __device__ void operator()(int64_t row, const float (&scores)[kScores], bool correct) const {
    const int64_t sample = indices[row * index_stride];
    // Finite unless logits, teacher or features are not: el2n_sl is part of it.
    const bool sound = scores[kGrand] - scores[kGrand] == 0.0f;
    if (!sound || sample < 0 || sample >= state.samples || *tick < 0) return;
    record(state, sample, *tick, scores, correct);
  }
};

}  // namespace

int dynamics_update_cuda(const DynamicsParams& params, void* stream) {
  auto* const teacher = static_cast<float*>(params.teacher_rows);
  const StateSink sink{params.state, params.indices, params.index_stride, params.tick};
  return launch_score_rows(params, teacher, teacher ? teacher + params.rows : nullptr, sink,
                           stream);
}

}  // namespace pyddfast
