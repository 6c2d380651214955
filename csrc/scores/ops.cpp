// The operators of the scores family: schemas, allocation, dispatch.
#include <atomic>
#include <limits>
#include <tuple>

#include "common/torch_ops.h"
#include "scores/sample_scores.h"
#include "scores/scores_math.h"

namespace pyddfast {
namespace {

// The inputs with contiguous rows, and the tensors that keep their memory alive.
struct ScoreCall {
  Tensor logits, target;
  std::optional<Tensor> teacher, features;

  ScoreCall(const Tensor& logits_, const Tensor& target_, const std::optional<Tensor>& teacher_,
            const std::optional<Tensor>& features_)
      : logits(with_contiguous_rows(logits_)),
        target(target_.dim() == 1 ? target_ : with_contiguous_rows(target_)) {
    if (teacher_) teacher = with_contiguous_rows(*teacher_);
    if (features_) features = with_contiguous_rows(*features_);
  }

  void set_in(ScoreInputs& inputs, double temperature) const {
    inputs.logits = logits.const_data_ptr();
    inputs.logits_dtype = dtype_of(logits);
    inputs.rows = logits.size(0);
    inputs.classes = logits.size(1);
    inputs.logits_stride = logits.stride(0);
    inputs.temperature = temperature;
    STD_TORCH_CHECK(target.size(0) == inputs.rows, "pyddfast: one target a row expected");
    if (target.dim() == 1) {
      STD_TORCH_CHECK(target.scalar_type() == ScalarType::Long, "pyddfast: labels are int64");
      inputs.labels = target.const_data_ptr<int64_t>();
      inputs.label_stride = target.stride(0);
    } else {
      check_like_logits(target);
      inputs.target = target.const_data_ptr();
      inputs.target_dtype = dtype_of(target);
      inputs.target_stride = target.stride(0);
    }
    if (teacher) {
      check_like_logits(*teacher);
      inputs.teacher = teacher->const_data_ptr();
      inputs.teacher_dtype = dtype_of(*teacher);
      inputs.teacher_stride = teacher->stride(0);
    }
    if (features) {
      STD_TORCH_CHECK(features->size(0) == inputs.rows, "pyddfast: one feature row a row expected");
      inputs.features = features->const_data_ptr();
      inputs.features_dtype = dtype_of(*features);
      inputs.width = features->size(1);
      inputs.features_stride = features->stride(0);
    }
  }

  void check_like_logits(const Tensor& tensor) const {
    STD_TORCH_CHECK(tensor.size(0) == logits.size(0) && tensor.size(1) == logits.size(1),
                    "pyddfast: logits and another input differ in shape");
  }
};

template <bool kCuda>
std::tuple<Tensor, Tensor> sample_scores(const Tensor& logits, const Tensor& target,
                                         std::optional<Tensor> teacher,
                                         std::optional<Tensor> features, double temperature) {
  const ScoreCall call(logits, target, teacher, features);
  SampleScoresParams params{};
  call.set_in(params, temperature);
  const int64_t columns = features ? kScores : kGrand;
  const Tensor scores = new_tensor(logits, {columns, params.rows}, accumulation_type(logits));
  const Tensor correct = new_tensor(logits, {params.rows}, ScalarType::Bool);
  params.scores = scores.mutable_data_ptr();
  params.correct = correct.mutable_data_ptr<bool>();
  if constexpr (kCuda) {
    launch(sample_scores_cuda, params, call.logits);
  } else {
    constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
    std::atomic<int64_t> invalid_row = kNone;
    params.invalid_row = &invalid_row;
    run_rows(sample_scores_cpu, params);
    STD_TORCH_CHECK(invalid_row == kNone, "pyddfast: the label of row ", invalid_row.load(),
                    " is no class, or its logits hold NaN");
  }
  return {scores, correct};
}

template <bool kCuda>
void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("sample_scores", TORCH_BOX(&sample_scores<kCuda>));
}

}  // namespace
}  // namespace pyddfast

// target: (rows) labels or (rows, classes) probabilities.  scores: (12, rows), or 13 with features,
// in the order of scores_math.h.
STABLE_TORCH_LIBRARY_FRAGMENT(PYDDFAST_NAMESPACE, m) {
  m.def(
      "sample_scores(Tensor logits, Tensor target, Tensor? teacher, Tensor? features,"
      " float temperature) -> (Tensor scores, Tensor correct)");
}

PYDDFAST_IMPLEMENT(pyddfast::register_kernels)
