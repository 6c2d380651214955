// Temperature KL with its score.  Three rounds over a row in registers: maxima; exponentials and
// normalisers; KL terms and centred differences, from which the gradient is one more step.
#include <limits>

#include "common/exp.h"
#include "common/row_kernels.h"
#include "kd/kd_loss.h"
#include "kd/kd_math.h"

namespace pyddfast {
namespace {

struct KdLossArgs : RowArgs {
  bool is_log;  // a teacher of log-probabilities, not probabilities
  ExpScale exp_temperature, exp_one;
  float inv_temperature;
  float* loss_rows;
  float* score;
  KdRow<float>* row_stats;
};

template <bool kLogits>
class KdLoss {
 public:
  using Args = KdLossArgs;
  static constexpr int kInputs = 2;
  static constexpr int kRounds = 3;
  static constexpr int kGradientRounds[2] = {3, 2};
  template <int r>
  using Sums = Reduced<std::conditional_t<r == 0, Max, Sum>, r == 2 ? 5 : 2>;

  __device__ KdLoss(const Args& args, int64_t row)
      : is_log_(args.is_log),
        exp_temperature_(args.exp_temperature),
        exp_one_(args.exp_one),
        inv_temperature_(args.inv_temperature),
        factor_(row_factor(args, row)) {}

  // Maxima of the logits.
  __device__ void visit(Round<0>, float (&s)[kChunk], float (&t)[kChunk], float (&)[kChunk], int,
                        float (&maxima)[2]) const {
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      maxima[0] = fmaxf(maxima[0], s[v]);
      maxima[1] = fmaxf(maxima[1], t[v]);
    }
  }
  __device__ void finish(Round<0>, const float (&maxima)[2]) {
    row_.max_s = maxima[0];
    row_.max_t = kLogits ? maxima[1] : 0.0f;
    shift_ = two_difference(row_.max_t, row_.max_s);
  }

  // s, t become the exponentials (t: the probabilities, if it holds such), x what is left of the
  // log ratio when the normalisers are known.
  __device__ void visit(Round<1>, float (&s)[kChunk], float (&t)[kChunk], float (&x)[kChunk], int,
                        float (&sums)[2]) const {
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      if constexpr (kLogits) {
        x[v] = kd_logit_gap(s[v], t[v], shift_);
        t[v] = exp_scaled(t[v] - row_.max_t, exp_temperature_);
      } else {
        const float log_q = is_log_ ? t[v] : logf(t[v]);
        x[v] = kd_log_ratio_probs(log_q, s[v], row_.max_s, inv_temperature_, 0.0f);
        t[v] = is_log_ ? exp_scaled(t[v], exp_one_) : t[v];
      }
      s[v] = exp_scaled(s[v] - row_.max_s, exp_temperature_);
    }
    sums[0] += sum4(s);
    sums[1] += sum4(t);
  }
  __device__ void finish(Round<1>, const float (&sums)[2]) {
    row_.inv_sum_s = 1.0f / sums[0];
    row_.inv_sum_t = kLogits ? 1.0f / sums[1] : 1.0f;
    row_.log_ratio = logf(kLogits ? sums[0] / sums[1] : sums[0]);
    row_.mass = kLogits ? 1.0f : sums[1];
  }

  // s, t, x become p, q, e = p - q.
  __device__ void visit(Round<2>, float (&s)[kChunk], float (&t)[kChunk], float (&x)[kChunk], int,
                        float (&sums)[5]) const {
    float kl[kChunk];
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      const float p = s[v] * row_.inv_sum_s;
      const float q = t[v] * row_.inv_sum_t;
      const KdTerm<float> term = kd_term(q, p, log_ratio(x[v]));
      // Stored probabilities are as exact as they are: their difference needs no log ratio.
      const float e = kLogits ? term.e : p - q;
      kl[v] = term.kl;
      s[v] = p;
      t[v] = q;
      x[v] = e;
    }
    sums[0] += sum4(kl);
    sums[1] += sum4(x);
    sums[2] += dot4(x, x);
    sums[3] += dot4(x, t);
    sums[4] += dot4(t, t);
  }
  __device__ void finish(Round<2>, const float (&sums)[5]) {
    const float common = kLogits ? sums[1] : 0.0f;
    row_.common = common;
    row_.kl = kLogits ? sums[0] - kd_common_error(common) : sums[0] + (row_.mass - 1.0f);
    // sum (e - qS)^2 without a fourth round: |S| is far below |e|/|q|, so little cancels.
    const float squares = sums[2] - common * (2.0f * sums[3] - common * sums[4]);
    const float norm = sqrtf(squares < 0.0f ? 0.0f : squares);  // NaN passes
    score_ = norm / (1.0f + common) * inv_temperature_;
  }

  __device__ void write(const Args& args, int64_t row) const {
    const float weight = args.weight ? args.weight[row] : 1.0f;
    if (args.loss_rows) args.loss_rows[row] = row_.kl * (args.scale * weight);
    if (args.score) args.score[row] = score_;
    if (args.row_stats) args.row_stats[row] = row_;
  }

  __device__ void restore(const Args& args, int64_t row) {
    using Vector = simt::Vector<float, kKdRowSize / 2>;
    const auto* const stored = reinterpret_cast<const Vector*>(args.row_stats + row);
    const Vector halves[2] = {stored[0], stored[1]};
    memcpy(&row_, halves, sizeof(row_));
    shift_ = two_difference(row_.max_t, row_.max_s);
  }

  // (Q p - q)/T, from the centred difference.
  __device__ void gradient(Output<0>, const float (&p)[kChunk], const float (&q)[kChunk],
                           const float (&e)[kChunk], int, float (&result)[kChunk]) const {
    const float factor = factor_ * inv_temperature_ / (1.0f + row_.common);
    const float extra_mass = row_.mass - 1.0f;
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      const float centred = kLogits ? e[v] - q[v] * row_.common : e[v] + extra_mass * p[v];
      result[v] = centred * factor;
    }
  }

  // With d from the given teacher: logits q (d - KL)/T, where d has the row's common error taken
  // out; probabilities d + 1 and log-probabilities q (d + 1), which are F.kl_div's.  Where q = 0
  // the gradient is 0 (F.kl_div: NaN).
  __device__ void gradient(Output<1>, const float (&)[kChunk], const float (&t)[kChunk],
                           const float (&x)[kChunk], int, float (&result)[kChunk]) const {
    const float center = kLogits ? row_.kl - log1pf(row_.common) : -1.0f;
    const float factor = kLogits ? factor_ * inv_temperature_ : factor_;
    const bool times_q = kLogits || is_log_;
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      const float q = t[v] * row_.inv_sum_t;
      const float value = (log_ratio(x[v]) - center) * (times_q ? q : 1.0f) * factor;
      result[v] = q == 0.0f ? 0.0f : value;
    }
  }

 private:
  __device__ float log_ratio(float x) const {
    return kLogits ? x * inv_temperature_ + row_.log_ratio : x + row_.log_ratio;
  }

  bool is_log_;
  ExpScale exp_temperature_, exp_one_;
  float inv_temperature_;
  float factor_;
  TwoSum<float> shift_;
  KdRow<float> row_;
  float score_;
};

KdLossArgs kd_loss_args(const KdLossParams& params) {
  const float infinity = std::numeric_limits<float>::infinity();
  const bool probabilities = params.teacher_kind == TeacherKind::kProbs;
  KdLossArgs args;
  args.rows = params.rows;
  args.classes = static_cast<int>(params.classes);
  args.inputs[0] = {params.student, params.student_stride, params.student_dtype, -infinity};
  args.inputs[1] = {params.teacher, params.teacher_stride, params.teacher_dtype,
                    probabilities ? 0.0f : -infinity};
  args.gradients[0] = {params.grad_student, params.grad_dtype};
  args.gradients[1] = {params.grad_teacher, params.teacher_dtype};
  args.upstream = static_cast<const float*>(params.upstream);
  args.upstream_stride = params.upstream_stride;
  args.weight = static_cast<const float*>(params.weight);
  args.scale = static_cast<float>(params.scale);
  args.is_log = params.teacher_kind == TeacherKind::kLogProbs;
  args.exp_temperature = exp_scale(params.temperature);
  args.exp_one = exp_scale(1.0);
  args.inv_temperature = static_cast<float>(1.0 / params.temperature);
  args.loss_rows = static_cast<float*>(params.loss_rows);
  args.score = static_cast<float*>(params.score);
  args.row_stats = static_cast<KdRow<float>*>(params.row_stats);
  return args;
}

}  // namespace

int kd_loss_forward_cuda(const KdLossParams& params, void* stream) {
  if (!valid_rows(params.rows, params.classes)) return kInvalidValue;
  const KdLossArgs args = kd_loss_args(params);
  const int error = params.teacher_kind == TeacherKind::kLogits
                        ? launch_row_forward<KdLoss<true>>(args, stream)
                        : launch_row_forward<KdLoss<false>>(args, stream);
  return error
             ? error
             : launch_sum_rows(args.loss_rows, args.rows, static_cast<float*>(params.loss), stream);
}

int kd_loss_backward_cuda(const KdLossParams& params, void* stream) {
  if (!valid_rows(params.rows, params.classes)) return kInvalidValue;
  const KdLossArgs args = kd_loss_args(params);
  return params.teacher_kind == TeacherKind::kLogits
             ? launch_row_backward<KdLoss<true>>(args, stream)
             : launch_row_backward<KdLoss<false>>(args, stream);
}

}  // namespace pyddfast
