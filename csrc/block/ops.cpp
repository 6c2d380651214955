// The operators of the block family: schemas, layouts, allocation, dispatch.
#include <tuple>

#include "block/norm_relu_pool.h"
#include "block/norm_relu_pool_math.h"
#include "common/torch_ops.h"

namespace pyddfast {
namespace {

// `tensor` in this dtype, with contiguous planes.
Tensor with_planes(const Tensor& tensor, ScalarType type) {
  const Tensor cast = tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
  const int64_t width = cast.size(3);
  const bool planes =
      (width == 1 || cast.stride(3) == 1) && (cast.size(2) == 1 || cast.stride(2) == width);
  return planes ? cast : torch::stable::contiguous(cast);
}

Planes planes_of(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)};
}

const void* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

Tensor as_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

Tensor channel_vector(const Tensor& vector, const Tensor& x) {
  STD_TORCH_CHECK(vector.dim() == 1 && vector.size(0) == x.size(1),
                  "pyddfast: one number a channel expected");
  return torch::stable::contiguous(as_type(vector, accumulation_type(x)));
}

std::optional<Tensor> channel_vector(const std::optional<Tensor>& vector, const Tensor& x) {
  return vector ? std::optional<Tensor>(channel_vector(*vector, x)) : std::nullopt;
}

// The parameters that all three operators share, and the tensors that keep their memory alive.
struct Call {
  Tensor x, weight, bias;
  ScalarType vector_type;
  NormReluPoolParams params{};

  Call(const Tensor& x_, const Tensor& weight_, const Tensor& bias_, bool relu, bool pool)
      : x(x_), weight(weight_), bias(bias_), vector_type(weight_.scalar_type()) {
    STD_TORCH_CHECK(x.dim() == 4, "pyddfast: expected (batch, channels, height, width)");
    x = with_planes(x, x.scalar_type());
    weight = channel_vector(weight_, x);
    bias = channel_vector(bias_, x);
    params.x = planes_of(x);
    params.dtype = dtype_of(x);
    params.batch = x.size(0);
    params.channels = x.size(1);
    params.height = x.size(2);
    params.width = x.size(3);
    params.relu = relu;
    params.pool = pool;
    params.weight = weight.const_data_ptr();
    params.bias = bias.const_data_ptr();
    STD_TORCH_CHECK(params.pooled_height() >= 1 && params.pooled_width() >= 1,
                    "pyddfast: planes are too small");
  }

  int64_t planes() const { return params.batch * params.channels; }
  Tensor like_x() const {
    return new_tensor(x, {params.batch, params.channels, params.height, params.width},
                      x.scalar_type());
  }
  Tensor like_y() const {
    return new_tensor(
        x, {params.batch, params.channels, params.pooled_height(), params.pooled_width()},
        x.scalar_type());
  }
  Tensor channel_result() const { return new_tensor(x, {params.channels}, accumulation_type(x)); }
  Tensor take_grad(const Tensor& grad) {
    STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == params.batch &&
                        grad.size(1) == params.channels && grad.size(2) == params.pooled_height() &&
                        grad.size(3) == params.pooled_width(),
                    "pyddfast: the gradient has not the shape of the result");
    const Tensor planes = with_planes(grad, x.scalar_type());
    params.grad = planes_of(planes);
    return planes;
  }
  Tensor take_stats(const Tensor& stats) {
    STD_TORCH_CHECK(
        stats.numel() == planes() * kPlaneStats && stats.scalar_type() == accumulation_type(x),
        "pyddfast: the statistics are not this tensor's");
    const Tensor own = torch::stable::contiguous(stats);
    params.stats = const_cast<void*>(own.const_data_ptr());
    return own;
  }
  template <bool kCuda>
  Tensor new_partials(int64_t numbers) {
    const Tensor partials =
        new_tensor(x, {planes(), numbers}, kCuda ? ScalarType::Float : ScalarType::Double);
    params.partials = partials.mutable_data_ptr();
    return partials;
  }

  void run_cpu(void (*kernel)(const NormReluPoolParams&, int64_t, int64_t)) const {
    torch::stable::parallel_for(0, planes(), grain_of(params.height * params.width),
                                [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
  }
};

template <bool kCuda>
std::tuple<Tensor, Tensor> norm_relu_pool(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                          double eps, bool relu, bool pool) {
  Call call(x, weight, bias, relu, pool);
  const Tensor y = call.like_y();
  const Tensor stats = new_tensor(call.x, {call.params.batch, call.params.channels, kPlaneStats},
                                  accumulation_type(call.x));
  call.params.eps = eps;
  call.params.y = y.mutable_data_ptr();
  call.params.stats = stats.mutable_data_ptr();
  if constexpr (kCuda) {
    launch(norm_relu_pool_cuda, call.params, call.x);
  } else {
    call.run_cpu(norm_relu_pool_cpu);
  }
  return {y, stats};
}

template <bool kCuda>
std::tuple<Tensor, Tensor, Tensor> norm_relu_pool_grad(const Tensor& grad_, const Tensor& x,
                                                       const Tensor& weight, const Tensor& bias,
                                                       const Tensor& stats_, bool relu, bool pool) {
  Call call(x, weight, bias, relu, pool);
  const Tensor grad = call.take_grad(grad_), stats = call.take_stats(stats_);
  const Tensor grad_x = call.like_x(), grad_weight = call.channel_result(),
               grad_bias = call.channel_result();
  const Tensor partials = call.new_partials<kCuda>(2);
  call.params.grad_x = grad_x.mutable_data_ptr();
  call.params.grad_weight = grad_weight.mutable_data_ptr();
  call.params.grad_bias = grad_bias.mutable_data_ptr();
  if constexpr (kCuda) {
    launch(norm_relu_pool_backward_cuda, call.params, call.x);
  } else {
    call.run_cpu(norm_relu_pool_backward_cpu);
    norm_relu_pool_sums_cpu(call.params, 0, call.params.channels);
  }
  return {grad_x, as_type(grad_weight, call.vector_type), as_type(grad_bias, bias.scalar_type())};
}

template <bool kCuda>
std::tuple<Tensor, Tensor, Tensor> norm_relu_pool_double_grad(
    std::optional<Tensor> of_x_, std::optional<Tensor> of_weight_, std::optional<Tensor> of_bias_,
    const Tensor& grad_, const Tensor& x, const Tensor& weight, const Tensor& bias,
    const Tensor& stats_, bool relu, bool pool) {
  Call call(x, weight, bias, relu, pool);
  const Tensor grad = call.take_grad(grad_), stats = call.take_stats(stats_);
  std::optional<Tensor> of_x;
  if (of_x_) {
    STD_TORCH_CHECK(of_x_->dim() == 4 && of_x_->numel() == x.numel(),
                    "pyddfast: a cotangent of the wrong shape");
    of_x = with_planes(*of_x_, x.scalar_type());
    call.params.of_x = planes_of(*of_x);
  }
  const auto of_weight = channel_vector(of_weight_, x), of_bias = channel_vector(of_bias_, x);
  call.params.of_weight = data_of(of_weight);
  call.params.of_bias = data_of(of_bias);
  const Tensor grad_grad = call.like_y(), grad_x = call.like_x(),
               grad_weight = call.channel_result();
  const Tensor partials = call.new_partials<kCuda>(1);
  call.params.grad_grad = grad_grad.mutable_data_ptr();
  call.params.grad_x = grad_x.mutable_data_ptr();
  call.params.grad_weight = grad_weight.mutable_data_ptr();
  if constexpr (kCuda) {
    launch(norm_relu_pool_double_backward_cuda, call.params, call.x);
  } else {
    call.run_cpu(norm_relu_pool_double_backward_cpu);
    norm_relu_pool_sums_cpu(call.params, 0, call.params.channels);
  }
  return {grad_grad, grad_x, as_type(grad_weight, call.vector_type)};
}

template <bool kCuda>
void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("norm_relu_pool", TORCH_BOX(&norm_relu_pool<kCuda>));
  m.impl("norm_relu_pool_grad", TORCH_BOX(&norm_relu_pool_grad<kCuda>));
  m.impl("norm_relu_pool_double_grad", TORCH_BOX(&norm_relu_pool_double_grad<kCuda>));
}

}  // namespace
}  // namespace pyddfast

// stats: of the forward, kPlaneStats numbers a plane.  of_x, of_weight, of_bias: cotangents of the
// three gradients, 0 where not given.
STABLE_TORCH_LIBRARY_FRAGMENT(PYDDFAST_NAMESPACE, m) {
  m.def(
      "norm_relu_pool(Tensor x, Tensor weight, Tensor bias, float eps, bool relu, bool pool)"
      " -> (Tensor y, Tensor stats)");
  m.def(
      "norm_relu_pool_grad(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor stats,"
      " bool relu, bool pool) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "norm_relu_pool_double_grad(Tensor? of_x, Tensor? of_weight, Tensor? of_bias, Tensor grad,"
      " Tensor x, Tensor weight, Tensor bias, Tensor stats, bool relu, bool pool)"
      " -> (Tensor grad_grad, Tensor grad_x, Tensor grad_weight)");
}

PYDDFAST_IMPLEMENT(pyddfast::register_kernels)
