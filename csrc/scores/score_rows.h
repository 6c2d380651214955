// The scores of rows on CUDA, for whoever keeps them (a Sink).  Rounds over a row in registers: the
// two largest logits; the sums of scores_math.h; for targets that hold probabilities, the KL terms.
#pragma once

#include <limits>

#include "common/exp.h"
#include "common/row_kernels.h"
#include "kd/kd_loss.h"
#include "scores/sample_scores.h"
#include "scores/scores_math.h"

namespace pyddfast {

constexpr int64_t kMaxScoredClasses = int64_t(1) << 24;  // indices travel as fp32

template <class Sink>
struct ScoreArgs : RowArgs {
  const int64_t* labels;
  int64_t label_stride;
  RowInput features;  // null data: none
  int width;
  ExpScale exp;
  float inv_temperature;
  const float* teacher_loss;   // (rows), or null: no teacher
  const float* teacher_score;  // (rows)
  Sink sink;
};

struct TemperedFloat {
  ExpScale scale;
  float inv_temperature;

  __device__ float exp(float x) const { return exp_scaled(x, scale); }
  __device__ Decay<float> decay(TwoSum<float> x) const {
    const float value = exp(-x.sum);
    return {value - value * (x.error * inv_temperature), -expm1f(-(x.sum * inv_temperature))};
  }
};

// {largest, -its first index, second largest}, and {largest, -its first index} of a second input.
struct Ranks {
  __device__ __forceinline__ static bool precedes(const float* a, const float* b) {
    return a[0] > b[0] || (a[0] == b[0] && a[1] > b[1]);
  }
  template <int N>
  __device__ __forceinline__ static void combine(float (&a)[N], const float (&b)[N]) {
    const bool take = precedes(b, a);
    a[2] = fmaxf(fmaxf(a[2], b[2]), fminf(a[0], b[0]));
    a[0] = take ? b[0] : a[0];
    a[1] = take ? b[1] : a[1];
    if constexpr (N == 5) {
      const bool take_second = precedes(b + 3, a + 3);
      a[3] = take_second ? b[3] : a[3];
      a[4] = take_second ? b[4] : a[4];
    }
  }
  static constexpr float kIdentity = -__builtin_huge_valf();
};

// kSoft: the second input holds probabilities, whose first largest one is the label.
template <bool kSoft, class Sink>
class ScoreRow {
 public:
  using Args = ScoreArgs<Sink>;
  static constexpr int kInputs = kSoft ? 2 : 1;
  static constexpr int kRounds = kSoft ? 3 : 2;
  template <int r>
  using Sums = std::conditional_t<r == 0, Reduced<Ranks, kSoft ? 5 : 3>,
                                  Reduced<Sum, r == kRounds - 1 ? 4 : 3>>;

  __device__ ScoreRow(const Args& args, int64_t)
      : classes_(args.classes), tempered_{args.exp, args.inv_temperature} {}

  __device__ void visit(Round<0>, float (&z)[kChunk], float (&q)[kChunk], float (&)[kChunk], int i,
                        float (&ranks)[kSoft ? 5 : 3]) const {
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      const bool higher = z[v] > ranks[0];
      ranks[2] = fmaxf(ranks[2], higher ? ranks[0] : z[v]);
      ranks[0] = higher ? z[v] : ranks[0];
      ranks[1] = higher ? float(-(i + v)) : ranks[1];
      if constexpr (kSoft) {
        const bool best = q[v] > ranks[3] && i + v < classes_;
        ranks[3] = best ? q[v] : ranks[3];
        ranks[4] = best ? float(-(i + v)) : ranks[4];
      }
    }
  }
  __device__ void finish(Round<0>, const float (&ranks)[kSoft ? 5 : 3]) {
    top_ = {ranks[0], ranks[2]};
    guess_ = ranks[1] > Ranks::kIdentity ? int(-ranks[1]) : -1;
    if constexpr (kSoft) label_ = ranks[4] > Ranks::kIdentity ? int(-ranks[4]) : -1;
  }

  // The squares of the features are summed on the way, in the last round.
  template <class Team>
  __device__ void start(Round<kRounds - 1>, const Args& args, int64_t row, float (&sums)[4]) const {
    if (!args.features.data) return;
    for (int c = Team::rank(); c * kChunk < args.width; c += Team::kSize) {
      float h[1][kChunk];
      load_row(args.features, row, args.width, c, 0, h);
      unpack_row(args.features.dtype, h);
      sums[3] += dot4(h[0], h[0]);
    }
  }
  template <int N>
  __device__ void visit(Round<1>, float (&z)[kChunk], float (&)[kChunk], float (&w)[kChunk], int,
                        float (&sums)[N]) const {
    const float shift = top_.shift();
    float depth[kChunk];
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      const float d = score_depth(z[v], shift);
      w[v] = tempered_.exp(d);
      depth[v] = score_surprise(w[v], d);
    }
    sums[0] += sum4(w);
    sums[1] += dot4(w, w);
    sums[2] += sum4(depth);
  }
  template <int N>
  __device__ void finish(Round<1>, const float (&sums)[N]) {
    sums_ = {sums[0], sums[1], sums[2]};
    if constexpr (kSoft) {
      soft_ = soft_row(predict(top_, sums_, tempered_), tempered_.inv_temperature);
    } else {
      feature_squares_ = sums[3];
    }
  }

  __device__ void visit(Round<2>, float (&z)[kChunk], float (&q)[kChunk], float (&w)[kChunk], int,
                        float (&sums)[4]) const {
    float kl[kChunk], e[kChunk];
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      const KdTerm<float> term = soft_term(z[v], w[v], q[v], logf(q[v]), soft_);
      kl[v] = term.kl;
      e[v] = term.e;
    }
    sums[0] += sum4(kl);
    sums[1] += dot4(e, e);
    sums[2] += sum4(q);
  }
  __device__ void finish(Round<2>, const float (&sums)[4]) {
    loss_ = sums[0] + (sums[2] - 1.0f);
    el2n_ = sqrtf(sums[1]);
    feature_squares_ = sums[3];
  }

  __device__ void write(const Args& args, int64_t row) const {
    const int64_t label = kSoft ? label_ : args.labels[row * args.label_stride];
    const bool valid = label >= 0 && label < classes_;
    const float z_y = valid ? load_element(args.inputs[0], row, label) : top_.first;
    float scores[kScores];
    // Again, where it was needed before: that takes fewer registers than to keep it.
    score_row(predict(top_, sums_, tempered_), z_y, valid, tempered_, scores);
    if constexpr (kSoft) {
      scores[kLoss] = loss_;
      scores[kEl2n] = el2n_;
      scores[kEl2nSl] = el2n_ * tempered_.inv_temperature;
    }
    const bool sound = scores[kProb] == scores[kProb];
    if (args.teacher_loss) {
      const float poison = sound ? 0.0f : __builtin_nanf("");
      scores[kLoss] = args.teacher_loss[row] + poison;
      scores[kEl2nSl] = args.teacher_score[row] + poison;
    }
    scores[kGrand] = scores[kEl2nSl] * sqrtf(1.0f + feature_squares_);
    args.sink(row, scores, sound && label == guess_);
  }

 private:
  int classes_, guess_, label_ = -1;
  TemperedFloat tempered_;
  TopTwo<float> top_;
  ScoreSums<float> sums_;
  SoftRow<float> soft_;
  float loss_, el2n_, feature_squares_;
};

// Scores of every row into `sink`, which says by kSoftTargets whether the target may hold
// probabilities.  `teacher_loss` and `teacher_score`, (rows) each, are written
// and read if there is a teacher.
template <class Sink>
int launch_score_rows(const ScoreInputs& inputs, float* teacher_loss, float* teacher_score,
                      const Sink& sink, void* stream) {
  if (!valid_rows(inputs.rows, inputs.classes) || inputs.classes > kMaxScoredClasses ||
      inputs.width > INT_MAX / 2) {
    return kInvalidValue;
  }
  if (inputs.teacher) {
    KdLossParams params{};
    params.student = inputs.logits;
    params.teacher = inputs.teacher;
    params.student_dtype = inputs.logits_dtype;
    params.teacher_dtype = inputs.teacher_dtype;
    params.teacher_kind = TeacherKind::kLogits;
    params.rows = inputs.rows;
    params.classes = inputs.classes;
    params.student_stride = inputs.logits_stride;
    params.teacher_stride = inputs.teacher_stride;
    params.temperature = inputs.temperature;
    params.scale = 1;
    params.loss_rows = teacher_loss;
    params.score = teacher_score;
    if (const int error = kd_loss_forward_cuda(params, stream)) return error;
  }
  ScoreArgs<Sink> args{};
  args.rows = inputs.rows;
  args.classes = static_cast<int>(inputs.classes);
  args.inputs[0] = {inputs.logits, inputs.logits_stride, inputs.logits_dtype,
                    -std::numeric_limits<float>::infinity()};
  args.inputs[1] = {inputs.target, inputs.target_stride, inputs.target_dtype, 0.0f};
  args.labels = inputs.labels;
  args.label_stride = inputs.label_stride;
  args.features = {inputs.features, inputs.features_stride, inputs.features_dtype, 0.0f};
  args.width = static_cast<int>(inputs.width);
  args.exp = exp_scale(inputs.temperature);
  args.inv_temperature = static_cast<float>(1.0 / inputs.temperature);
  args.teacher_loss = inputs.teacher ? teacher_loss : nullptr;
  args.teacher_score = teacher_score;
  args.sink = sink;
  if constexpr (Sink::kSoftTargets) {
    // With two inputs, the kernel for the longest clusters would spill.
    constexpr int kLongestSoft = 24576;
    if (!inputs.labels) return launch_row_forward<ScoreRow<true, Sink>, kLongestSoft>(args, stream);
  }
  return launch_row_forward<ScoreRow<false, Sink>>(args, stream);
}

}  // namespace pyddfast
