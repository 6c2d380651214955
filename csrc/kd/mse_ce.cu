// Mean squared error to the teacher's logits plus cross-entropy to the hard label.  Two rounds over
// a row in registers: the maximum; exponentials and squares.
#include <limits>

#include "common/exp.h"
#include "common/row_kernels.h"
#include "kd/mse_ce.h"

namespace pyddfast {
namespace {

struct MseCeArgs : RowArgs {
  const int64_t* target;
  int64_t target_stride;
  ExpScale exp_one;
  float inv_classes, ce_weight;
  float* loss_rows;
  MseCeRow<float>* row_stats;
};

class MseCe {
 public:
  using Args = MseCeArgs;
  static constexpr int kInputs = 2;
  static constexpr int kRounds = 2;
  static constexpr int kGradientRounds[2] = {2, 0};
  template <int r>
  using Sums = Reduced<std::conditional_t<r == 0, Max, Sum>, r == 0 ? 1 : 3>;

  __device__ MseCe(const Args& args, int64_t row)
      : classes_(args.classes),
        exp_one_(args.exp_one),
        inv_classes_(args.inv_classes),
        ce_weight_(args.ce_weight),
        factor_(row_factor(args, row)) {
    const int64_t label = args.target[row * args.target_stride];
    const bool valid = label >= 0 && label < args.classes;
    label_ = valid ? static_cast<int>(label) : -1;
    // A label without a class makes the row NaN, whatever the weight of its cross-entropy.
    if (!valid) ce_weight_ = __builtin_nanf("");
  }

  __device__ void visit(Round<0>, float (&s)[kChunk], float (&)[kChunk], float (&)[kChunk], int,
                        float (&maximum)[1]) const {
#pragma unroll
    for (int v = 0; v < kChunk; ++v) maximum[0] = fmaxf(maximum[0], s[v]);
  }
  __device__ void finish(Round<0>, const float (&maximum)[1]) { row_.max_s = maximum[0]; }

  // s becomes the exponentials, difference s - t.  The label's own logit is a sum of one term.
  __device__ void visit(Round<1>, float (&s)[kChunk], float (&t)[kChunk],
                        float (&difference)[kChunk], int i, float (&sums)[3]) const {
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      if (i + v == label_) sums[2] += row_.max_s - s[v];
      difference[v] = i + v < classes_ ? s[v] - t[v] : 0.0f;
      s[v] = exp_scaled(s[v] - row_.max_s, exp_one_);
    }
    sums[0] += sum4(s);
    sums[1] += dot4(difference, difference);
  }
  __device__ void finish(Round<1>, const float (&sums)[3]) {
    row_.inv_sum_s = 1.0f / sums[0];
    loss_ = sums[1] * inv_classes_ + ce_weight_ * (sums[2] + logf(sums[0]));
  }

  __device__ void write(const Args& args, int64_t row) const {
    const float weight = args.weight ? args.weight[row] : 1.0f;
    if (args.loss_rows) args.loss_rows[row] = loss_ * (args.scale * weight);
    if (args.row_stats) args.row_stats[row] = row_;
  }

  __device__ void restore(const Args& args, int64_t row) { row_ = args.row_stats[row]; }

  __device__ void gradient(Output<0>, const float (&exp_s)[kChunk], const float (&)[kChunk],
                           const float (&difference)[kChunk], int i,
                           float (&result)[kChunk]) const {
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      const float p = exp_s[v] * row_.inv_sum_s;
      const float ce = i + v == label_ ? p - 1.0f : p;
      result[v] = (2.0f * inv_classes_ * difference[v] + ce_weight_ * ce) * factor_;
    }
  }

  __device__ void gradient(Output<1>, const float (&s)[kChunk], const float (&t)[kChunk],
                           const float (&)[kChunk], int, float (&result)[kChunk]) const {
#pragma unroll
    for (int v = 0; v < kChunk; ++v) result[v] = 2.0f * inv_classes_ * (t[v] - s[v]) * factor_;
  }

 private:
  int label_, classes_;
  ExpScale exp_one_;
  float inv_classes_, ce_weight_;
  float factor_;
  MseCeRow<float> row_;
  float loss_;
};

MseCeArgs mse_ce_args(const MseCeParams& params) {
  MseCeArgs args;
  args.rows = params.rows;
  args.classes = static_cast<int>(params.classes);
  args.inputs[0] = {params.student, params.student_stride, params.student_dtype,
                    -std::numeric_limits<float>::infinity()};
  args.inputs[1] = {params.teacher, params.teacher_stride, params.teacher_dtype, 0.0f};
  args.gradients[0] = {params.grad_student, params.grad_dtype};
  args.gradients[1] = {params.grad_teacher, params.teacher_dtype};
  args.upstream = static_cast<const float*>(params.upstream);
  args.upstream_stride = params.upstream_stride;
  args.weight = static_cast<const float*>(params.weight);
  args.scale = static_cast<float>(params.scale);
  args.target = params.target;
  args.target_stride = params.target_stride;
  args.exp_one = exp_scale(1.0);
  args.inv_classes = static_cast<float>(1.0 / static_cast<double>(params.classes));
  args.ce_weight = static_cast<float>(params.ce_weight);
  args.loss_rows = static_cast<float*>(params.loss_rows);
  args.row_stats = static_cast<MseCeRow<float>*>(params.row_stats);
  return args;
}

}  // namespace

int mse_ce_forward_cuda(const MseCeParams& params, void* stream) {
  if (!valid_rows(params.rows, params.classes)) return kInvalidValue;
  const MseCeArgs args = mse_ce_args(params);
  const int error = launch_row_forward<MseCe>(args, stream);
  return error
             ? error
             : launch_sum_rows(args.loss_rows, args.rows, static_cast<float*>(params.loss), stream);
}

int mse_ce_backward_cuda(const MseCeParams& params, void* stream) {
  if (!valid_rows(params.rows, params.classes)) return kInvalidValue;
  return launch_row_backward<MseCe>(mse_ce_args(params), stream);
}

}  // namespace pyddfast
