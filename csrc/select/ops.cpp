// The operators of the select family: schemas, layouts, allocation, dispatch.
#include <algorithm>
#include <tuple>
#include <vector>

#include "common/rows_cpu.h"
#include "common/torch_ops.h"
#include "select/facility_location.h"
#include "select/greedy.h"

namespace pyddfast {
namespace {

Tensor copy_of(const Tensor& tensor) {
  const Tensor result = new_tensor(tensor, {tensor.numel()}, tensor.scalar_type());
  Tensor target = result;
  torch::stable::copy_(target, tensor);
  return result;
}

const void* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

// ---- one state a row ---------------------------------------------------------------------------

// The row or target that a pass compares with, in the type that is computed in.
template <class T>
struct Center {
  Scratch<T> memory;
  std::vector<double> target;  // t mean - sum of the picks

  explicit Center(const GreedyParams& params, const Segment& segment)
      : memory(new_scratch<T>(2 * params.dim)) {
    if (!params.mean) return;
    const double* const mean = params.mean + segment.index * params.dim;
    target.assign(mean, mean + params.dim);
    std::copy(target.begin(), target.end(), &memory[0]);
  }

  // The picked row, times its scale; whether it is zero.
  bool move_to(const GreedyParams& params, int64_t row) {
    if (params.form == Form::kEntry) return false;
    const void* const source = element(params.x, params.dtype, row * params.stride);
    const Scratch<T> padded = new_scratch<T>(blocks_of(params.dim) * kLanes);
    const Blocks<const T> values = load_row(source, params.dtype, params.dim, T(0), &padded[0]);
    const T scale = params.scale ? static_cast<const T*>(params.scale)[row] : T(1);
    for (int64_t i = 0; i < params.dim; ++i) {
      memory[i] = values.at(i) * scale;
      if (params.form == Form::kJeffreys) memory[params.dim + i] = std::exp(memory[i]);
    }
    return params.scale && scale == T(0);
  }

  void move_on(const GreedyParams& params, const Segment& segment, int64_t row) {
    move_to(params, row);
    const double* const mean = params.mean + segment.index * params.dim;
    for (int64_t i = 0; i < params.dim; ++i) {
      target[size_t(i)] += mean[i] - double(memory[i]);
      memory[i] = T(target[size_t(i)]);
    }
  }
};

template <class T>
void greedy_segment(const GreedyParams& params, const Segment& segment, bool parallel) {
  const int64_t tasks = (segment.last - segment.first + kTaskRows - 1) / kTaskRows;
  std::vector<Best> bests(static_cast<size_t>(tasks));
  Center<T> center(params, segment);
  GreedyPass pass{&params, segment, &center.memory[0], false, -1, bests.data()};
  const auto run = [&] {
    if (parallel) {
      torch::stable::parallel_for(
          0, tasks, grain_of(kTaskRows * params.dim),
          [&](int64_t begin, int64_t end) { greedy_pass_cpu(pass, begin, end); });
    } else {
      greedy_pass_cpu(pass, 0, tasks);
    }
    Best best{0.0, -1};
    for (const Best& candidate : bests) {
      if (better(candidate, best)) best = candidate;
    }
    return best;
  };
  const bool seeks = params.mean != nullptr;  // compares before it picks
  Best best{0.0, -1};
  for (int64_t p = segment.begin; p < segment.end; ++p) {
    if (seeks) best = run();
    int64_t& pick = params.picks[p];
    if (pick < 0) pick = best.row;
    params.taken[pick] = 1;
    if (seeks) {
      params.keys[p] = best.key;
      center.move_on(params, segment, pick);
    } else {
      pass.pick = pick;
      pass.center_is_zero = center.move_to(params, pick);
      best = run();
      params.keys[p] = best.row < 0 ? 0.0 : best.key;
    }
  }
}

// layout: (segments, 5) int64, see Segment.  picks: rows, or -1 where
// one is to be found, which the first of a segment is only with a mean.
template <bool kCuda>
std::tuple<Tensor, Tensor, Tensor> greedy_rows(const Tensor& x_, std::optional<Tensor> scale,
                                               std::optional<Tensor> factor,
                                               std::optional<Tensor> mean,
                                               std::optional<Tensor> offsets, const Tensor& state_,
                                               const Tensor& picks_, const Tensor& layout,
                                               int64_t form, int64_t rule, int64_t similarity,
                                               double gamma, int64_t most, int64_t largest) {
  const Tensor x = with_contiguous_rows(x_);
  const int64_t rows = x.size(0), count = layout.size(0);
  STD_TORCH_CHECK(layout.scalar_type() == ScalarType::Long && layout.dim() == 2 &&
                      layout.size(1) == 5 && layout.is_contiguous(),
                  "pyddfast: the layout is int64 (segments, 5)");
  STD_TORCH_CHECK(state_.scalar_type() == ScalarType::Double && state_.numel() == rows &&
                      picks_.scalar_type() == ScalarType::Long,
                  "pyddfast: a float64 state a row and int64 picks are needed");
  STD_TORCH_CHECK(!mean || (mean->scalar_type() == ScalarType::Double && mean->is_contiguous() &&
                            mean->numel() == count * x.size(1)),
                  "pyddfast: a float64 mean a segment is needed");
  STD_TORCH_CHECK(!offsets || (offsets->scalar_type() == ScalarType::Double &&
                               offsets->is_contiguous() && offsets->numel() == count),
                  "pyddfast: a float64 offset a segment is needed");
  const auto scales = row_vector(scale, x), factors = row_vector(factor, x);
  Tensor state = copy_of(state_), picks = copy_of(picks_);
  Tensor keys = new_tensor(x, {picks.numel()}, ScalarType::Double);
  Tensor taken = new_tensor(x, {rows}, ScalarType::Byte);
  torch::stable::zero_(taken);
  GreedyParams params{};
  params.x = x.const_data_ptr();
  params.stride = rows > 1 ? x.stride(0) : x.size(1);
  params.dtype = dtype_of(x);
  params.dim = x.size(1);
  params.scale = data_of(scales);
  params.factor = data_of(factors);
  params.mean = static_cast<const double*>(data_of(mean));
  params.offsets = static_cast<const double*>(data_of(offsets));
  params.state = state.mutable_data_ptr<double>();
  params.taken = taken.mutable_data_ptr<uint8_t>();
  params.form = Form(form);
  params.rule = Rule(rule);
  params.map = {Similarity(similarity), gamma, 0.0};
  params.picks = picks.mutable_data_ptr<int64_t>();
  params.keys = keys.mutable_data_ptr<double>();
  static_assert(sizeof(Segment) == 5 * sizeof(int64_t));
  const auto* const segments = reinterpret_cast<const Segment*>(layout.const_data_ptr<int64_t>());
  if constexpr (kCuda) {
    const int64_t parts = greedy_partials(largest);
    const Tensor partials = new_tensor(x, {2, count, parts, 2}, ScalarType::Double);
    const Tensor targets = new_tensor(x, {2, mean ? count : 0, params.dim}, ScalarType::Double);
    const GreedyLaunch all{params,
                           segments,
                           count,
                           most,
                           largest,
                           static_cast<Best*>(partials.mutable_data_ptr()),
                           targets.mutable_data_ptr<double>()};
    if (most > 0) launch(greedy_cuda, all, x);
  } else {
    const auto run = [&](const Segment& segment, bool parallel) {
      return params.dtype == DType::kFloat64 ? greedy_segment<double>(params, segment, parallel)
                                             : greedy_segment<float>(params, segment, parallel);
    };
    // Threads over segments, where every thread has some; else over the rows of each.
    if (count >= 2 * int64_t(torch::stable::get_num_threads())) {
      torch::stable::parallel_for(0, count, grain_of(largest * most * params.dim),
                                  [&](int64_t begin, int64_t end) {
                                    for (int64_t s = begin; s < end; ++s) run(segments[s], false);
                                  });
    } else {
      for (int64_t s = 0; s < count; ++s) run(segments[s], true);
    }
  }
  return {picks, keys, state};
}

// ---- facility location -------------------------------------------------------------------------

// similarity: all matrices one after the other.  layout: (segments, 5) int64, see LocationSegment.
template <bool kCuda>
std::tuple<Tensor, Tensor> facility_location(const Tensor& similarity, std::optional<Tensor> weight,
                                             const Tensor& layout, int64_t rows, int64_t picks_,
                                             int64_t most, int64_t largest, bool lazy) {
  STD_TORCH_CHECK(layout.scalar_type() == ScalarType::Long && layout.dim() == 2 &&
                      layout.size(1) == 5 && layout.is_contiguous(),
                  "pyddfast: the layout is int64 (segments, 5)");
  STD_TORCH_CHECK(similarity.dim() == 1 && similarity.is_contiguous() &&
                      similarity.scalar_type() == accumulation_type(similarity),
                  "pyddfast: flat float32 or float64 similarities are needed");
  STD_TORCH_CHECK(!weight || (weight->numel() == rows && weight->is_contiguous() &&
                              weight->scalar_type() == similarity.scalar_type()),
                  "pyddfast: one weight a row is needed");
  const Tensor picks = new_tensor(similarity, {picks_}, ScalarType::Long);
  const Tensor gains = new_tensor(similarity, {picks_}, ScalarType::Double);
  FacilityLocationParams params{};
  params.similarity = similarity.const_data_ptr();
  params.weight = data_of(weight);
  params.dtype = dtype_of(similarity);
  params.lazy = lazy;
  static_assert(sizeof(LocationSegment) == 5 * sizeof(int64_t));
  params.segments = reinterpret_cast<const LocationSegment*>(layout.const_data_ptr<int64_t>());
  params.count = layout.size(0);
  params.picks = picks.mutable_data_ptr<int64_t>();
  params.gains = gains.mutable_data_ptr<double>();
  params.largest = largest;
  params.most = most;
  if (picks_ == 0) return {picks, gains};
  if constexpr (kCuda) {
    Tensor served = new_tensor(similarity, {rows}, ScalarType::Float);
    Tensor taken = new_tensor(similarity, {rows}, ScalarType::Byte);
    torch::stable::zero_(served);
    torch::stable::zero_(taken);
    const Tensor partials = new_tensor(
        similarity, {params.count, facility_location_partials(largest), 2}, ScalarType::Double);
    params.served = served.mutable_data_ptr<float>();
    params.taken = taken.mutable_data_ptr<uint8_t>();
    params.partials = static_cast<Best*>(partials.mutable_data_ptr());
    launch(facility_location_cuda, params, similarity);
  } else {
    torch::stable::parallel_for(
        0, params.count, grain_of(largest * largest),
        [&](int64_t begin, int64_t end) { facility_location_cpu(params, begin, end); });
  }
  return {picks, gains};
}

template <bool kCuda>
void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("greedy_rows", TORCH_BOX(&greedy_rows<kCuda>));
  m.impl("facility_location", TORCH_BOX(&facility_location<kCuda>));
}

}  // namespace
}  // namespace pyddfast

STABLE_TORCH_LIBRARY_FRAGMENT(PYDDFAST_NAMESPACE, m) {
  m.def(
      "greedy_rows(Tensor x, Tensor? scale, Tensor? factor, Tensor? mean, Tensor? offsets, "
      "Tensor state, Tensor picks, Tensor layout, int form, int rule, int similarity, "
      "float gamma, int most, int largest) -> (Tensor, Tensor, Tensor)");
  m.def(
      "facility_location(Tensor similarity, Tensor? weight, Tensor layout, int rows, int picks, "
      "int most, int largest, bool lazy) -> (Tensor, Tensor)");
}

PYDDFAST_IMPLEMENT(pyddfast::register_kernels)
