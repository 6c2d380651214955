// Cross-entropy against soft labels.  Two rounds over a row in registers: the maximum;
// exponentials, the label's mass and its surprise.
#include <limits>

#include "common/exp.h"
#include "common/row_kernels.h"
#include "kd/soft_ce.h"
#include "kd/soft_ce_math.h"

namespace pyddfast {
namespace {

struct SoftCeArgs : RowArgs {
  ExpScale exp_temperature;
  float inv_temperature;
  float* loss_rows;
  SoftCeRow<float>* row_stats;
};

class SoftCe {
 public:
  using Args = SoftCeArgs;
  static constexpr int kInputs = 2;
  static constexpr int kRounds = 2;
  static constexpr int kGradientRounds[2] = {2, 0};
  template <int r>
  using Sums = Reduced<std::conditional_t<r == 0, Max, Sum>, r == 0 ? 1 : 3>;

  __device__ SoftCe(const Args& args, int64_t row)
      : exp_temperature_(args.exp_temperature),
        inv_temperature_(args.inv_temperature),
        factor_(row_factor(args, row)) {}

  __device__ void visit(Round<0>, float (&s)[kChunk], float (&)[kChunk], float (&)[kChunk], int,
                        float (&maximum)[1]) const {
#pragma unroll
    for (int v = 0; v < kChunk; ++v) maximum[0] = fmaxf(maximum[0], s[v]);
  }
  __device__ void finish(Round<0>, const float (&maximum)[1]) { row_.max_s = maximum[0]; }

  // s becomes the exponentials.  The surprise is summed without its part log_sum_s, which is not
  // known yet and the same for every class.
  __device__ void visit(Round<1>, float (&s)[kChunk], float (&q)[kChunk], float (&)[kChunk], int,
                        float (&sums)[3]) const {
    float surprise[kChunk];
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      surprise[v] = soft_ce_term(q[v], soft_ce_surprise(s[v], row_.max_s, inv_temperature_, 0.0f));
      s[v] = exp_scaled(s[v] - row_.max_s, exp_temperature_);
    }
    sums[0] += sum4(s);
    sums[1] += sum4(q);
    sums[2] += sum4(surprise);
  }
  __device__ void finish(Round<1>, const float (&sums)[3]) {
    row_.inv_sum_s = 1.0f / sums[0];
    row_.log_sum_s = logf(sums[0]);
    row_.mass = sums[1];
    loss_ = sums[2] + row_.mass * row_.log_sum_s;
  }

  __device__ void write(const Args& args, int64_t row) const {
    const float weight = args.weight ? args.weight[row] : 1.0f;
    if (args.loss_rows) args.loss_rows[row] = loss_ * (args.scale * weight);
    if (args.row_stats) args.row_stats[row] = row_;
  }

  __device__ void restore(const Args& args, int64_t row) {
    const auto stored =
        *reinterpret_cast<const simt::Vector<float, kSoftCeRowSize>*>(args.row_stats + row);
    memcpy(&row_, &stored, sizeof(row_));
  }

  __device__ void gradient(Output<0>, const float (&exp_s)[kChunk], const float (&q)[kChunk],
                           const float (&)[kChunk], int, float (&result)[kChunk]) const {
    const float mass_over_sum = row_.mass * row_.inv_sum_s;
    const float factor = factor_ * inv_temperature_;
#pragma unroll
    for (int v = 0; v < kChunk; ++v) result[v] = (exp_s[v] * mass_over_sum - q[v]) * factor;
  }

  __device__ void gradient(Output<1>, const float (&s)[kChunk], const float (&)[kChunk],
                           const float (&)[kChunk], int, float (&result)[kChunk]) const {
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      result[v] = soft_ce_surprise(s[v], row_.max_s, inv_temperature_, row_.log_sum_s) * factor_;
    }
  }

 private:
  ExpScale exp_temperature_;
  float inv_temperature_;
  float factor_;
  SoftCeRow<float> row_;
  float loss_;
};

SoftCeArgs soft_ce_args(const SoftCeParams& params) {
  SoftCeArgs args;
  args.rows = params.rows;
  args.classes = static_cast<int>(params.classes);
  args.inputs[0] = {params.student, params.student_stride, params.student_dtype,
                    -std::numeric_limits<float>::infinity()};
  args.inputs[1] = {params.target, params.target_stride, params.target_dtype, 0.0f};
  args.gradients[0] = {params.grad_student, params.grad_dtype};
  args.gradients[1] = {params.grad_target, params.target_dtype};
  args.upstream = static_cast<const float*>(params.upstream);
  args.upstream_stride = params.upstream_stride;
  args.weight = static_cast<const float*>(params.weight);
  args.scale = static_cast<float>(params.scale);
  args.exp_temperature = exp_scale(params.temperature);
  args.inv_temperature = static_cast<float>(1.0 / params.temperature);
  args.loss_rows = static_cast<float*>(params.loss_rows);
  args.row_stats = static_cast<SoftCeRow<float>*>(params.row_stats);
  return args;
}

}  // namespace

int soft_ce_forward_cuda(const SoftCeParams& params, void* stream) {
  if (!valid_rows(params.rows, params.classes)) return kInvalidValue;
  const SoftCeArgs args = soft_ce_args(params);
  const int error = launch_row_forward<SoftCe>(args, stream);
  return error
             ? error
             : launch_sum_rows(args.loss_rows, args.rows, static_cast<float*>(params.loss), stream);
}

int soft_ce_backward_cuda(const SoftCeParams& params, void* stream) {
  if (!valid_rows(params.rows, params.classes)) return kInvalidValue;
  return launch_row_backward<SoftCe>(soft_ce_args(params), stream);
}

}  // namespace pyddfast
