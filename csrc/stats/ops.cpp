// The operators of the stats family: schemas, layouts, allocation, dispatch.
#include <tuple>
#include <vector>

#include "common/torch_ops.h"
#include "stats/bn_distance.h"
#include "stats/channel_stats.h"
#include "stats/patch_stats.h"

namespace pyddfast {
namespace {

// ---- layouts -----------------------------------------------------------------------------------

// The positions of a (batch, channels, ...) tensor as one dimension; none where they do not fold.
std::optional<ChannelStrides> folded(const Tensor& tensor) {
  int64_t position = 1, expected = -1;  // the stride that the next dimension out has to have
  for (int64_t d = tensor.dim() - 1; d >= 2; --d) {
    if (tensor.size(d) == 1) continue;
    if (expected >= 0 && tensor.stride(d) != expected) return std::nullopt;
    if (expected < 0) position = tensor.stride(d);
    expected = tensor.stride(d) * tensor.size(d);
  }
  return ChannelStrides{tensor.stride(0), tensor.stride(1), position};
}

int64_t positions_of(const Tensor& tensor) {
  int64_t count = 1;
  for (int64_t d = 2; d < tensor.dim(); ++d) count *= tensor.size(d);
  return count;
}

std::optional<ChannelStrides> strides_as(const Tensor& tensor, ChannelLayout layout) {
  auto strides = folded(tensor);
  const bool planes = layout == ChannelLayout::kPlanes;
  if (strides && positions_of(tensor) == 1) strides->position = 1;
  if (strides && !planes && tensor.size(1) == 1) strides->channel = 1;
  return strides && (planes ? strides->position : strides->channel) == 1 ? strides : std::nullopt;
}

// With one position a sample the channels are what lies side by side.
std::optional<ChannelLayout> layout_of(const Tensor& tensor) {
  const auto first = positions_of(tensor) > 1 ? ChannelLayout::kPlanes : ChannelLayout::kRows;
  const auto second = positions_of(tensor) > 1 ? ChannelLayout::kRows : ChannelLayout::kPlanes;
  if (strides_as(tensor, first)) return first;
  if (strides_as(tensor, second)) return second;
  return std::nullopt;
}

Tensor copy_like(const Tensor& values, const Tensor& like) {
  Tensor result = torch::stable::empty_like(like);
  torch::stable::copy_(result, values);
  return result;
}

std::optional<Tensor> channel_vector(const std::optional<Tensor>& vector, const Tensor& x) {
  if (!vector) return std::nullopt;
  STD_TORCH_CHECK(vector->numel() == x.size(1), "pyddfast: one value a channel expected");
  const ScalarType type = accumulation_type(x);
  const Tensor cast = vector->scalar_type() == type ? *vector : torch::stable::to(*vector, type);
  return torch::stable::contiguous(cast);
}

const void* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

// ---- channel_stats, bn_eval_stats --------------------------------------------------------------

struct NormTensors {
  std::optional<Tensor> mean, var, weight, bias;
};

// The parameters, and the tensors that keep their memory alive.
struct StatsCall {
  Tensor x;
  NormTensors norm;
  std::optional<Tensor> shift, partials;
  ChannelStatsParams params{};

  StatsCall(const Tensor& x_, const NormTensors& norm_, double eps, int64_t activation)
      : x(x_),
        norm{channel_vector(norm_.mean, x_), channel_vector(norm_.var, x_),
             channel_vector(norm_.weight, x_), channel_vector(norm_.bias, x_)} {
    STD_TORCH_CHECK(x.dim() >= 2, "pyddfast: expected (batch, channels, ...)");
    STD_TORCH_CHECK(norm.mean.has_value() == norm.var.has_value(),
                    "pyddfast: running_mean and running_var come together");
    if (!layout_of(x)) x = torch::stable::contiguous(x);
    params.x = x.const_data_ptr();
    params.layout = *layout_of(x);
    params.x_strides = *strides_as(x, params.layout);
    params.dtype = dtype_of(x);
    params.batch = x.size(0);
    params.channels = x.size(1);
    params.positions = positions_of(x);
    params.running_mean = data_of(norm.mean);
    params.running_var = data_of(norm.var);
    params.weight = data_of(norm.weight);
    params.bias = data_of(norm.bias);
    params.eps = eps;
    params.activation = Activation(activation);
  }
};

// A result in the layout of the kernel, which is that of `like` wherever that one folds.
struct Result {
  Tensor wanted, written;

  explicit Result(const Tensor& like, const StatsCall& call)
      : wanted(torch::stable::empty_like(like)),
        written(strides_as(wanted, call.params.layout) ? wanted
                                                       : torch::stable::empty_like(call.x)) {}
  ChannelStrides strides(const StatsCall& call) const {
    return *strides_as(written, call.params.layout);
  }
  Tensor finish() {
    if (wanted.data_ptr() != written.data_ptr()) torch::stable::copy_(wanted, written);
    return wanted;
  }
};

template <bool kCuda>
std::tuple<Tensor, Tensor, Tensor> run_forward(StatsCall& call) {
  ChannelStatsParams& params = call.params;
  const ScalarType type = accumulation_type(call.x);
  const Tensor mean = new_tensor(call.x, {params.channels}, type);
  const Tensor var = new_tensor(call.x, {params.channels}, type);
  const Tensor kept = new_tensor(call.x, {params.channels}, type);
  params.mean = mean.mutable_data_ptr();
  params.mean_kept = kept.mutable_data_ptr();
  params.var = var.mutable_data_ptr();
  if constexpr (kCuda) {
    const int64_t tiles = channel_stats_tiles(params);
    call.partials = new_tensor(call.x, {params.channels, tiles, 3}, ScalarType::Float);
    params.partials = call.partials->mutable_data_ptr();
    launch(channel_stats_cuda, params, call.x);
  } else {
    const int64_t pieces = channel_stats_pieces(params), tasks = channel_stats_tasks(params);
    call.partials = new_tensor(call.x, {pieces, 2, params.channels}, ScalarType::Double);
    params.partials = call.partials->mutable_data_ptr();
    constexpr int64_t kGrain = 16384;  // elements that are worth a thread's wake-up
    const int64_t elements = params.batch * params.channels * params.positions;
    const int64_t grain = std::max<int64_t>(1, kGrain * tasks / std::max<int64_t>(1, elements));
    torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
      channel_stats_cpu(params, begin, end);
    });
    channel_stats_finish_cpu(params);
  }
  return {mean, var, kept};
}

template <bool kCuda>
std::tuple<Tensor, Tensor, Tensor> channel_stats(const Tensor& x, std::optional<Tensor> shift) {
  StatsCall call(x, {}, 0.0, 0);
  call.shift = channel_vector(shift, x);
  call.params.shift = data_of(call.shift);
  return run_forward<kCuda>(call);
}

template <bool kCuda>
std::tuple<Tensor, Tensor, Tensor, Tensor> bn_eval_stats(
    const Tensor& x, const Tensor& running_mean, const Tensor& running_var,
    std::optional<Tensor> weight, std::optional<Tensor> bias, double eps, int64_t activation) {
  StatsCall call(x, {running_mean, running_var, weight, bias}, eps, activation);
  Result y(x, call);
  call.params.shift = call.params.running_mean;
  call.params.y = y.written.mutable_data_ptr();
  call.params.y_strides = y.strides(call);
  const auto [mean, var, kept] = run_forward<kCuda>(call);
  return {y.finish(), mean, var, kept};
}

template <bool kCuda>
Tensor stats_backward(StatsCall& call, const Tensor& like, const Tensor& mean,
                      const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_mean,
                      const std::optional<Tensor>& grad_var) {
  ChannelStatsParams& params = call.params;
  const auto center = channel_vector(mean, call.x), of_mean = channel_vector(grad_mean, call.x),
             of_var = channel_vector(grad_var, call.x);
  params.mean = const_cast<void*>(center->const_data_ptr());
  params.grad_mean = data_of(of_mean);
  params.grad_var = data_of(of_var);
  std::optional<Tensor> upstream = grad_y;
  if (upstream) {
    const bool same = upstream->scalar_type() == call.x.scalar_type();
    if (!same || !strides_as(*upstream, params.layout)) upstream = copy_like(*upstream, call.x);
    params.grad_y = upstream->const_data_ptr();
    params.grad_y_strides = *strides_as(*upstream, params.layout);
  }
  Result grad_x(like, call);
  params.grad_x = grad_x.written.mutable_data_ptr();
  params.grad_x_strides = grad_x.strides(call);
  if constexpr (kCuda) {
    launch(channel_stats_backward_cuda, params, call.x);
  } else {
    const bool planes = params.layout == ChannelLayout::kPlanes;
    const int64_t tasks = params.batch * (planes ? params.channels : params.positions);
    torch::stable::parallel_for(
        0, tasks, grain_of(planes ? params.positions : params.channels),
        [&](int64_t begin, int64_t end) { channel_stats_backward_cpu(params, begin, end); });
  }
  return grad_x.finish();
}

template <bool kCuda>
Tensor channel_stats_grad(const Tensor& x, const Tensor& mean, std::optional<Tensor> grad_x,
                          std::optional<Tensor> grad_mean, std::optional<Tensor> grad_var) {
  StatsCall call(x, {}, 0.0, 0);
  return stats_backward<kCuda>(call, x, mean, grad_x, grad_mean, grad_var);
}

template <bool kCuda>
Tensor bn_eval_stats_grad(const Tensor& x, const Tensor& mean, const Tensor& running_mean,
                          const Tensor& running_var, std::optional<Tensor> weight,
                          std::optional<Tensor> bias, std::optional<Tensor> grad_y,
                          std::optional<Tensor> grad_mean, std::optional<Tensor> grad_var,
                          double eps, int64_t activation) {
  StatsCall call(x, {running_mean, running_var, weight, bias}, eps, activation);
  return stats_backward<kCuda>(call, x, mean, grad_y, grad_mean, grad_var);
}

// ---- patch_stats -------------------------------------------------------------------------------

// Whether the planes of (batch, channels, height, width) are contiguous.
bool has_planes(const Tensor& tensor) {
  const int64_t width = tensor.size(3);
  return (width == 1 || tensor.stride(3) == 1) &&
         (tensor.size(2) == 1 || tensor.stride(2) == width);
}

Tensor with_planes(const Tensor& tensor) {
  return has_planes(tensor) ? tensor : torch::stable::contiguous(tensor);
}

PatchStatsParams patch_params(const Tensor& x, int64_t cell) {
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "pyddfast: expected (batch, channels, h, w)");
  constexpr int64_t kMaxCell = 1 << 15;  // a cell's pixels are counted in int
  STD_TORCH_CHECK(cell >= 1 && cell <= kMaxCell && std::max(x.size(2), x.size(3)) <= kMaxSide / 2,
                  "pyddfast: cells have 1 to 2^15 pixels a side, planes up to 2^27");
  PatchStatsParams params{};
  params.x = x.const_data_ptr();
  params.x_stride_n = x.stride(0);
  params.x_stride_c = x.stride(1);
  params.dtype = dtype_of(x);
  params.batch = x.size(0);
  params.channels = x.size(1);
  params.height = x.size(2);
  params.width = x.size(3);
  params.cell = cell;
  return params;
}

template <bool kCuda>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> patch_stats(const Tensor& x_, int64_t cell) {
  const Tensor x = with_planes(x_);
  PatchStatsParams params = patch_params(x, cell);
  const ScalarType type = accumulation_type(x);
  const int64_t cells = CellGrid(params).cells(), channels = params.channels;
  const Tensor mean = new_tensor(x, {channels}, type), var = new_tensor(x, {channels}, type);
  const Tensor patch_mean = new_tensor(x, {cells}, type), patch_var = new_tensor(x, {cells}, type);
  const Tensor kept = new_tensor(x, {channels + cells}, type);
  params.mean = mean.mutable_data_ptr();
  params.var = var.mutable_data_ptr();
  params.patch_mean = patch_mean.mutable_data_ptr();
  params.patch_var = patch_var.mutable_data_ptr();
  params.kept = kept.mutable_data_ptr();
  if constexpr (kCuda) {
    const Tensor partials = new_tensor(x, {patch_stats_partials(params)}, ScalarType::Float);
    params.partials = partials.mutable_data_ptr();
    launch(patch_stats_cuda, params, x);
  } else {
    const int64_t blocks = patch_stats_blocks(params);
    const Tensor partials = new_tensor(x, {blocks, 2, channels + cells}, ScalarType::Double);
    params.partials = partials.mutable_data_ptr();
    torch::stable::parallel_for(
        0, blocks, 1, [&](int64_t begin, int64_t end) { patch_stats_cpu(params, begin, end); });
    patch_stats_finish_cpu(params);
  }
  return {mean, var, patch_mean, patch_var, kept};
}

template <bool kCuda>
Tensor patch_stats_grad(const Tensor& x_, const Tensor& kept, int64_t cell,
                        std::optional<Tensor> grad_x, std::optional<Tensor> grad_mean,
                        std::optional<Tensor> grad_var, std::optional<Tensor> grad_patch_mean,
                        std::optional<Tensor> grad_patch_var) {
  const Tensor x = with_planes(x_);
  PatchStatsParams params = patch_params(x, cell);
  const ScalarType type = accumulation_type(x);
  const int64_t cells = CellGrid(params).cells(), channels = params.channels;
  STD_TORCH_CHECK(kept.numel() == channels + cells && kept.scalar_type() == type,
                  "pyddfast: `kept` is not this tensor's");
  const Tensor means = torch::stable::contiguous(kept);
  const auto vector_of = [&](const std::optional<Tensor>& vector, int64_t size) {
    if (!vector) return vector;
    STD_TORCH_CHECK(vector->numel() == size, "pyddfast: a gradient of the wrong size");
    const Tensor cast = vector->scalar_type() == type ? *vector : torch::stable::to(*vector, type);
    return std::optional<Tensor>(torch::stable::contiguous(cast));
  };
  const auto of_mean = vector_of(grad_mean, channels), of_var = vector_of(grad_var, channels);
  const auto of_patch_mean = vector_of(grad_patch_mean, cells),
             of_patch_var = vector_of(grad_patch_var, cells);
  std::optional<Tensor> upstream;
  if (grad_x) {
    const bool same = grad_x->scalar_type() == x.scalar_type();
    upstream = with_planes(same ? *grad_x : torch::stable::to(*grad_x, x.scalar_type()));
    params.grad_x = upstream->const_data_ptr();
    params.grad_stride_n = upstream->stride(0);
    params.grad_stride_c = upstream->stride(1);
  }
  params.kept = const_cast<void*>(means.const_data_ptr());
  params.grad_mean = data_of(of_mean);
  params.grad_var = data_of(of_var);
  params.grad_patch_mean = data_of(of_patch_mean);
  params.grad_patch_var = data_of(of_patch_var);
  const Tensor result =
      new_tensor(x, {params.batch, channels, params.height, params.width}, x.scalar_type());
  params.result = result.mutable_data_ptr();
  if constexpr (kCuda) {
    launch(patch_stats_backward_cuda, params, x);
  } else {
    constexpr int64_t kGrain = 65536;  // elements; the coefficients are made once a task
    const int64_t each = params.height * params.width;
    torch::stable::parallel_for(
        0, params.batch * channels, std::max<int64_t>(1, kGrain / each),
        [&](int64_t begin, int64_t end) { patch_stats_backward_cpu(params, begin, end); });
  }
  return has_planes(x_) ? result : copy_like(result, x_);
}

// ---- bn_distance -------------------------------------------------------------------------------

struct DistanceCall {
  Tensor mean, var, target_mean, target_var;
  BnDistanceParams params{};

  DistanceCall(const Tensor& mean_, const Tensor& var_, const Tensor& target_mean_,
               const Tensor& target_var_, const std::vector<int64_t>& sizes,
               const std::vector<double>& layer_weight, const std::vector<double>& target_weight,
               double var_weight, bool squared)
      : mean(torch::stable::contiguous(mean_)),
        var(torch::stable::contiguous(var_)),
        target_mean(torch::stable::contiguous(target_mean_)),
        target_var(torch::stable::contiguous(target_var_)) {
    const int64_t channels = mean.numel(), targets = int64_t(target_weight.size());
    const ScalarType type = mean.scalar_type();
    STD_TORCH_CHECK(sizes.size() <= kMaxLayers && layer_weight.size() == sizes.size(),
                    "pyddfast: at most 256 layers, one weight a layer");
    STD_TORCH_CHECK(targets <= kMaxTargets, "pyddfast: at most 4 targets");
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "pyddfast: statistics are float32 or float64");
    STD_TORCH_CHECK(var.numel() == channels && target_mean.numel() == targets * channels &&
                        target_var.numel() == targets * channels,
                    "pyddfast: the packed statistics differ in size");
    STD_TORCH_CHECK(var.scalar_type() == type && target_mean.scalar_type() == type &&
                        target_var.scalar_type() == type,
                    "pyddfast: the packed statistics differ in dtype");
    params.mean = mean.const_data_ptr();
    params.var = var.const_data_ptr();
    params.target_mean = target_mean.const_data_ptr();
    params.target_var = target_var.const_data_ptr();
    params.wide = type == ScalarType::Double;
    params.layers = int(sizes.size());
    params.targets = int(targets);
    params.channels = channels;
    params.var_weight = var_weight;
    params.squared = squared;
    std::copy(target_weight.begin(), target_weight.end(), params.target_weight);
    std::copy(layer_weight.begin(), layer_weight.end(), params.layer_weight);
    int64_t end = 0;
    for (size_t l = 0; l < sizes.size(); ++l) {
      STD_TORCH_CHECK(sizes[l] >= 0, "pyddfast: a layer of negative size");
      end += sizes[l];
      STD_TORCH_CHECK(end <= channels, "pyddfast: sizes add up to more than the channels");
      params.begin[l + 1] = int(end);
    }
    STD_TORCH_CHECK(end == channels, "pyddfast: sizes add up to less than the channels");
  }
};

template <bool kCuda>
std::tuple<Tensor, Tensor, Tensor> bn_distance(const Tensor& mean, const Tensor& var,
                                               const Tensor& target_mean, const Tensor& target_var,
                                               std::vector<int64_t> sizes,
                                               std::vector<double> layer_weight,
                                               std::vector<double> target_weight, double var_weight,
                                               bool squared) {
  DistanceCall call(mean, var, target_mean, target_var, sizes, layer_weight, target_weight,
                    var_weight, squared);
  const int64_t layers = call.params.layers, targets = call.params.targets;
  const Tensor loss = new_tensor(mean, {}, mean.scalar_type());
  const Tensor per_layer = new_tensor(mean, {layers}, mean.scalar_type());
  const Tensor norms = new_tensor(mean, {layers, targets, 2}, mean.scalar_type());
  call.params.loss = loss.mutable_data_ptr();
  call.params.per_layer = per_layer.mutable_data_ptr();
  call.params.norms = norms.mutable_data_ptr();
  if constexpr (kCuda) {
    launch(bn_distance_cuda, call.params, mean);
  } else {
    bn_distance_cpu(call.params);
  }
  return {loss, per_layer, norms};
}

template <bool kCuda>
std::tuple<Tensor, Tensor, Tensor, Tensor> bn_distance_grad(
    std::optional<Tensor> grad_loss, std::optional<Tensor> grad_per_layer, const Tensor& mean,
    const Tensor& var, const Tensor& target_mean, const Tensor& target_var, const Tensor& norms,
    std::vector<int64_t> sizes, std::vector<double> layer_weight, std::vector<double> target_weight,
    double var_weight, bool squared, bool wants_targets) {
  DistanceCall call(mean, var, target_mean, target_var, sizes, layer_weight, target_weight,
                    var_weight, squared);
  const int64_t channels = call.params.channels, targets = wants_targets ? call.params.targets : 0;
  const ScalarType type = mean.scalar_type();
  const Tensor grad_mean = new_tensor(mean, {channels}, type);
  const Tensor grad_var = new_tensor(mean, {channels}, type);
  const Tensor grad_target_mean = new_tensor(mean, {targets, channels}, type);
  const Tensor grad_target_var = new_tensor(mean, {targets, channels}, type);
  std::optional<Tensor> of_layers;
  if (grad_per_layer) of_layers = torch::stable::contiguous(*grad_per_layer);
  call.params.grad_loss = data_of(grad_loss);
  call.params.grad_per_layer = data_of(of_layers);
  call.params.norms = const_cast<void*>(norms.const_data_ptr());
  call.params.grad_mean = grad_mean.mutable_data_ptr();
  call.params.grad_var = grad_var.mutable_data_ptr();
  if (wants_targets) {
    call.params.grad_target_mean = grad_target_mean.mutable_data_ptr();
    call.params.grad_target_var = grad_target_var.mutable_data_ptr();
  }
  if constexpr (kCuda) {
    launch(bn_distance_backward_cuda, call.params, mean);
  } else {
    bn_distance_backward_cpu(call.params);
  }
  return {grad_mean, grad_var, grad_target_mean, grad_target_var};
}

template <bool kCuda>
void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("channel_stats", TORCH_BOX(&channel_stats<kCuda>));
  m.impl("channel_stats_grad", TORCH_BOX(&channel_stats_grad<kCuda>));
  m.impl("bn_eval_stats", TORCH_BOX(&bn_eval_stats<kCuda>));
  m.impl("bn_eval_stats_grad", TORCH_BOX(&bn_eval_stats_grad<kCuda>));
  m.impl("patch_stats", TORCH_BOX(&patch_stats<kCuda>));
  m.impl("patch_stats_grad", TORCH_BOX(&patch_stats_grad<kCuda>));
  m.impl("bn_distance", TORCH_BOX(&bn_distance<kCuda>));
  m.impl("bn_distance_grad", TORCH_BOX(&bn_distance_grad<kCuda>));
}

}  // namespace
}  // namespace pyddfast

// activation: 0 none, 1 ReLU, 2 ReLU6.
STABLE_TORCH_LIBRARY_FRAGMENT(PYDDFAST_NAMESPACE, m) {
  m.def("channel_stats(Tensor x, Tensor? shift) -> (Tensor mean, Tensor var, Tensor kept)");
  m.def(
      "channel_stats_grad(Tensor x, Tensor mean, Tensor? grad_x, Tensor? grad_mean,"
      " Tensor? grad_var) -> Tensor");
  m.def(
      "bn_eval_stats(Tensor x, Tensor running_mean, Tensor running_var, Tensor? weight,"
      " Tensor? bias, float eps, int activation) -> (Tensor y, Tensor mean, Tensor var, Tensor "
      "kept)");
  m.def(
      "bn_eval_stats_grad(Tensor x, Tensor mean, Tensor running_mean, Tensor running_var,"
      " Tensor? weight, Tensor? bias, Tensor? grad_y, Tensor? grad_mean, Tensor? grad_var,"
      " float eps, int activation) -> Tensor");
  m.def(
      "patch_stats(Tensor x, int cell) -> (Tensor mean, Tensor var, Tensor patch_mean,"
      " Tensor patch_var, Tensor kept)");
  m.def(
      "patch_stats_grad(Tensor x, Tensor kept, int cell, Tensor? grad_x, Tensor? grad_mean,"
      " Tensor? grad_var, Tensor? grad_patch_mean, Tensor? grad_patch_var) -> Tensor");
  m.def(
      "bn_distance(Tensor mean, Tensor var, Tensor target_mean, Tensor target_var, int[] sizes,"
      " float[] layer_weight, float[] target_weight, float var_weight, bool squared)"
      " -> (Tensor loss, Tensor per_layer, Tensor norms)");
  m.def(
      "bn_distance_grad(Tensor? grad_loss, Tensor? grad_per_layer, Tensor mean, Tensor var,"
      " Tensor target_mean, Tensor target_var, Tensor norms, int[] sizes, float[] layer_weight,"
      " float[] target_weight, float var_weight, bool squared, bool wants_targets)"
      " -> (Tensor grad_mean, Tensor grad_var, Tensor grad_target_mean, Tensor grad_target_var)");
}

PYDDFAST_IMPLEMENT(pyddfast::register_kernels)
