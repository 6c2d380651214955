// The operators of the match family: schemas, allocation, dispatch.
#include <tuple>
#include <vector>

#include "common/rows_cpu.h"
#include "common/torch_ops.h"
#include "match/gradient_distance.h"
#include "match/gradient_distance_math.h"

namespace pyddfast {
namespace {

// The two lists, and the memory of what had to be copied.
struct MatchCall {
  std::vector<Tensor> memory;
  std::vector<MatchedTensor> tensors;
  int64_t elements = 0;
  GradientDistanceParams params{};

  MatchCall(const std::vector<Tensor>& syn, const std::vector<Tensor>& real, int64_t metric) {
    STD_TORCH_CHECK(!syn.empty() && syn.size() == real.size(),
                    "pyddfast: two lists, of one length");
    STD_TORCH_CHECK(metric >= 0 && metric <= int64_t(GradientMetric::kCosine),
                    "pyddfast: unknown metric");
    params.metric = GradientMetric(metric);
    params.dtype = dtype_of(syn[0]);
    const bool by_row = params.metric == GradientMetric::kRows;
    memory.reserve(2 * syn.size());
    for (size_t i = 0; i < syn.size(); ++i) {
      const int64_t numel = syn[i].numel();
      STD_TORCH_CHECK(numel > 0 && real[i].numel() == numel && dtype_of(syn[i]) == params.dtype &&
                          dtype_of(real[i]) == params.dtype && (!by_row || syn[i].dim() > 1),
                      "pyddfast: tensors of one dtype, the same sizes, none empty");
      memory.push_back(torch::stable::contiguous(syn[i]));
      memory.push_back(torch::stable::contiguous(real[i]));
      MatchedTensor tensor{};
      tensor.syn = memory[2 * i].const_data_ptr();
      tensor.real = memory[2 * i + 1].const_data_ptr();
      tensor.numel = numel;
      tensor.length = by_row ? numel / syn[i].size(0) : kMatchLength;
      tensor.first = elements;
      tensor.first_row = params.rows;
      tensors.push_back(tensor);
      elements += numel;
      params.rows += tensor.rows();
    }
    params.tensors = tensors.data();
    params.count = int64_t(tensors.size());
  }

  // Rows that a coefficient stands for itself.
  int64_t coefficients() const { return params.metric == GradientMetric::kRows ? params.rows : 1; }

  void run_cpu(void (*kernel)(const GradientDistanceParams&, int64_t, int64_t)) const {
    torch::stable::parallel_for(0, elements, grain_of(1),
                                [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
  }
};

template <bool kCuda>
std::tuple<Tensor, Tensor> gradient_distance(std::vector<Tensor> syn, std::vector<Tensor> real,
                                             int64_t metric) {
  MatchCall call(syn, real, metric);
  const ScalarType type = accumulation_type(syn[0]);
  const Tensor distance = new_tensor(syn[0], {}, type);
  const Tensor coefficients = new_tensor(syn[0], {call.coefficients(), 2}, type);
  const Tensor sums = new_tensor(syn[0], {call.params.rows, kMatchSums},
                                 kCuda ? ScalarType::Float : ScalarType::Double);
  call.params.distance = distance.mutable_data_ptr();
  call.params.coefficients = coefficients.mutable_data_ptr();
  call.params.sums = sums.mutable_data_ptr();
  if constexpr (kCuda) {
    launch(gradient_distance_cuda, call.params, syn[0]);
  } else {
    call.run_cpu(gradient_distance_cpu);
    gradient_distance_finish_cpu(call.params);
  }
  return {distance, coefficients};
}

// All gradients, one after the other.
template <bool kCuda>
Tensor gradient_distance_grad(const Tensor& upstream_, std::vector<Tensor> syn,
                              std::vector<Tensor> real, const Tensor& coefficients_,
                              int64_t metric) {
  MatchCall call(syn, real, metric);
  const ScalarType type = accumulation_type(syn[0]);
  STD_TORCH_CHECK(coefficients_.numel() == 2 * call.coefficients() &&
                      coefficients_.scalar_type() == type && upstream_.numel() == 1 &&
                      upstream_.scalar_type() == type,
                  "pyddfast: the coefficients are not these tensors'");
  const Tensor coefficients = torch::stable::contiguous(coefficients_);
  const Tensor grad = new_tensor(syn[0], {call.elements}, syn[0].scalar_type());
  char* const memory = static_cast<char*>(grad.mutable_data_ptr());
  for (MatchedTensor& tensor : call.tensors) {
    tensor.grad = memory + tensor.first * element_size(call.params.dtype);
  }
  call.params.coefficients = const_cast<void*>(coefficients.const_data_ptr());
  call.params.upstream = upstream_.const_data_ptr();
  if constexpr (kCuda) {
    launch(gradient_distance_backward_cuda, call.params, syn[0]);
  } else {
    call.run_cpu(gradient_distance_backward_cpu);
  }
  return grad;
}

template <bool kCuda>
void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("gradient_distance", TORCH_BOX(&gradient_distance<kCuda>));
  m.impl("gradient_distance_grad", TORCH_BOX(&gradient_distance_grad<kCuda>));
}

}  // namespace
}  // namespace pyddfast

// metric: 0 a row each, 1 squared, 2 cosine of everything.  The gradient is that to `syn`.
STABLE_TORCH_LIBRARY_FRAGMENT(PYDDFAST_NAMESPACE, m) {
  m.def(
      "gradient_distance(Tensor[] syn, Tensor[] real, int metric)"
      " -> (Tensor distance, Tensor coefficients)");
  m.def(
      "gradient_distance_grad(Tensor grad, Tensor[] syn, Tensor[] real, Tensor coefficients,"
      " int metric) -> Tensor");
}

PYDDFAST_IMPLEMENT(pyddfast::register_kernels)
