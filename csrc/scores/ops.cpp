// The operators of the scores family: schemas, allocation, dispatch.
#include <atomic>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "common/torch_ops.h"
#include "scores/dynamics.h"
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

// What sample_scores returns.
struct ScoreTable {
  Tensor scores, correct;

  ScoreTable(const Tensor& logits, bool with_features)
      : scores(new_tensor(logits, {with_features ? kScores : kGrand, logits.size(0)},
                          accumulation_type(logits))),
        correct(new_tensor(logits, {logits.size(0)}, ScalarType::Bool)) {}
};

// The CPU kernel, which refuses labels that are no classes, and NaN.
void fill_cpu(const ScoreInputs& inputs, void* scores, bool* correct) {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> invalid_row = kNone;
  SampleScoresParams params{inputs};
  params.scores = scores;
  params.correct = correct;
  params.invalid_row = &invalid_row;
  run_rows(sample_scores_cpu, params);
  STD_TORCH_CHECK(invalid_row == kNone, "pyddfast: the label of row ", invalid_row.load(),
                  " is no class, or its logits hold NaN");
}

template <bool kCuda>
std::tuple<Tensor, Tensor> sample_scores(const Tensor& logits, const Tensor& target,
                                         std::optional<Tensor> teacher,
                                         std::optional<Tensor> features, double temperature) {
  const ScoreCall call(logits, target, teacher, features);
  SampleScoresParams params{};
  call.set_in(params, temperature);
  const ScoreTable table(logits, features.has_value());
  void* const scores = table.scores.mutable_data_ptr();
  bool* const correct = table.correct.mutable_data_ptr<bool>();
  if constexpr (kCuda) {
    params.scores = scores;
    params.correct = correct;
    launch(sample_scores_cuda, params, call.logits);
  } else {
    fill_cpu(params, scores, correct);
  }
  return {table.scores, table.correct};
}

// The memory of one of the state's vectors; null if it is not recorded.
template <class T>
T* state_vector(const std::optional<Tensor>& vector, ScalarType type, int64_t samples) {
  if (!vector) return nullptr;
  STD_TORCH_CHECK(
      vector->scalar_type() == type && vector->numel() == samples && vector->is_contiguous(),
      "pyddfast: the state's vectors are contiguous, one value a sample");
  return static_cast<T*>(vector->mutable_data_ptr());
}

Score signal_of(int64_t code) {
  constexpr Score kSignals[] = {kOneMinusProb, kNll, kEl2n};
  STD_TORCH_CHECK(code >= 0 && code < 3, "pyddfast: unknown signal");
  return kSignals[code];
}

template <bool kCuda>
void dynamics_update(const Tensor& ring, const Tensor& last_correct, const Tensor& seen,
                     const Tensor& forgetting, const Tensor& correct, const Tensor& first_learned,
                     const Tensor& aum, const Tensor& el2n, std::optional<Tensor> el2n_sl,
                     std::optional<Tensor> entropy, std::optional<Tensor> nll,
                     std::optional<Tensor> grand, const Tensor& logits, const Tensor& target,
                     const Tensor& indices, const Tensor& tick, std::optional<Tensor> teacher,
                     std::optional<Tensor> features, double temperature, int64_t signal) {
  const ScoreCall call(logits, target, teacher, features);
  DynamicsParams params{};
  call.set_in(params, temperature);
  STD_TORCH_CHECK(target.dim() == 1, "pyddfast: the dynamics need labels");
  STD_TORCH_CHECK(
      ring.dim() == 2 && ring.size(1) > 0 && ring.is_contiguous() &&
          (ring.scalar_type() == ScalarType::Float || ring.scalar_type() == ScalarType::Half),
      "pyddfast: the ring is (N, R), contiguous, float32 or float16");
  STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Long && indices.dim() == 1 &&
                      indices.size(0) == params.rows && tick.numel() == 1 &&
                      tick.scalar_type() == ScalarType::Long,
                  "pyddfast: one int64 index a row and an int64 tick expected");
  STD_TORCH_CHECK(!grand || features, "pyddfast: grand needs features");
  const int64_t samples = ring.size(0);
  DynamicsArrays& state = params.state;
  state.ring = ring.mutable_data_ptr();
  state.half_ring = ring.scalar_type() == ScalarType::Half;
  state.samples = samples;
  state.slots = ring.size(1);
  state.signal = signal_of(signal);
  state.last_correct = state_vector<uint8_t>(last_correct, ScalarType::Byte, samples);
  state.seen = state_vector<int16_t>(seen, ScalarType::Short, samples);
  state.forgetting = state_vector<int16_t>(forgetting, ScalarType::Short, samples);
  state.correct = state_vector<int16_t>(correct, ScalarType::Short, samples);
  state.first_learned = state_vector<int16_t>(first_learned, ScalarType::Short, samples);
  state.aum = state_vector<float>(aum, ScalarType::Float, samples);
  state.el2n = state_vector<float>(el2n, ScalarType::Float, samples);
  state.el2n_sl = state_vector<float>(el2n_sl, ScalarType::Float, samples);
  state.entropy = state_vector<float>(entropy, ScalarType::Float, samples);
  state.nll = state_vector<float>(nll, ScalarType::Float, samples);
  state.grand = state_vector<float>(grand, ScalarType::Float, samples);
  params.indices = indices.const_data_ptr<int64_t>();
  params.index_stride = params.rows > 0 ? indices.stride(0) : 0;
  params.tick = tick.const_data_ptr<int64_t>();
  if constexpr (kCuda) {
    std::optional<Tensor> teacher_rows;
    if (teacher) teacher_rows = new_tensor(logits, {2, params.rows}, ScalarType::Float);
    params.teacher_rows = teacher_rows ? teacher_rows->mutable_data_ptr() : nullptr;
    launch(dynamics_update_cuda, params, call.logits);
  } else {
    // Everything that may be wrong is found before anything is written.
    STD_TORCH_CHECK(*params.tick >= 0, "pyddfast: the tick is negative");
    const int64_t bad = find_bad_index(params);
    STD_TORCH_CHECK(bad < 0, "pyddfast: the index of row ", bad, " is no sample or occurs twice");
    // Kept from call to call: a step of a training allocates nothing.
    thread_local std::vector<double> scores;
    thread_local std::vector<uint8_t> correct;
    const size_t rows = size_t(params.rows);
    if (scores.size() < kScores * rows) scores.resize(kScores * rows);
    if (correct.size() < rows) correct.resize(rows);
    bool* const is_correct = reinterpret_cast<bool*>(correct.data());
    fill_cpu(params, scores.data(), is_correct);
    const int64_t unsound = find_unsound_row(params, scores.data());
    STD_TORCH_CHECK(unsound < 0, "pyddfast: logits, teacher or features of row ", unsound,
                    " are not finite");
    record_rows_cpu(params, scores.data(), is_correct);
  }
}

template <bool kCuda>
void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("sample_scores", TORCH_BOX(&sample_scores<kCuda>));
  m.impl("dynamics_update_", TORCH_BOX(&dynamics_update<kCuda>));
}

}  // namespace
}  // namespace pyddfast

// target: (rows) labels or (rows, classes) probabilities.  scores: (12, rows), or 13 with features,
// in the order of scores_math.h.
STABLE_TORCH_LIBRARY_FRAGMENT(PYDDFAST_NAMESPACE, m) {
  m.def(
      "sample_scores(Tensor logits, Tensor target, Tensor? teacher, Tensor? features,"
      " float temperature) -> (Tensor scores, Tensor correct)");
  // signal: 0 1 - p_y, 1 -log p_y, 2 EL2N
  m.def(
      "dynamics_update_(Tensor(a!) ring, Tensor(b!) last_correct, Tensor(c!) seen,"
      " Tensor(d!) forgetting, Tensor(e!) correct, Tensor(f!) first_learned, Tensor(g!) aum,"
      " Tensor(h!) el2n, Tensor(i!)? el2n_sl, Tensor(j!)? entropy, Tensor(k!)? nll,"
      " Tensor(l!)? grand, Tensor logits, Tensor target, Tensor indices, Tensor tick,"
      " Tensor? teacher, Tensor? features, float temperature, int signal) -> ()");
}

PYDDFAST_IMPLEMENT(pyddfast::register_kernels)
