// The operator of the pairwise family: schema, layouts, allocation, dispatch.
#include <algorithm>

#include "common/rows_cpu.h"
#include "common/torch_ops.h"
#include "pairwise/knn_divergence.h"

namespace pyddfast {
namespace {

// Rows in parallel, each of `elements`.
void run_wide_rows(void (*kernel)(const KnnDivergenceParams&, int64_t, int64_t),
                   const KnnDivergenceParams& params, int64_t elements) {
  constexpr int64_t kGrain = 16384;  // elements, as run_rows
  torch::stable::parallel_for(0, params.rows, std::max<int64_t>(1, kGrain / elements),
                              [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
}

template <bool kCuda>
Tensor knn_divergence(const Tensor& logp_, const Tensor& knn_, int64_t kind) {
  const Tensor logp = with_contiguous_rows(logp_), knn = torch::stable::contiguous(knn_);
  const ScalarType type = accumulation_type(logp);
  STD_TORCH_CHECK(logp.scalar_type() == type && knn.scalar_type() == ScalarType::Long &&
                      knn.dim() == 2 && knn.size(0) == logp.size(0) && knn.size(1) > 0 &&
                      logp.size(1) > 0,
                  "pyddfast: float32 or float64 rows and int64 neighbours of each are needed");
  STD_TORCH_CHECK(kind >= 0 && kind <= int64_t(Divergence::kKlRowNeighbour),
                  "pyddfast: unknown kind");
  const Tensor result = new_tensor(logp, {logp.size(0)}, type);
  KnnDivergenceParams params{};
  params.logp = logp.const_data_ptr();
  params.knn = knn.const_data_ptr<int64_t>();
  params.rows = logp.size(0);
  params.classes = logp.size(1);
  params.stride = params.rows > 1 ? logp.stride(0) : params.classes;
  params.neighbours = knn.size(1);
  params.dtype = dtype_of(logp);
  params.kind = Divergence(kind);
  params.result = result.mutable_data_ptr();
  if (params.rows == 0) return result;
  if constexpr (kCuda) {
    launch(knn_divergence_cuda, params, logp);
  } else {
    const int64_t width = blocks_of(params.classes) * kLanes;
    const Tensor filled = new_tensor(logp, {params.rows, 2, width}, type);
    params.filled = filled.mutable_data_ptr();
    run_wide_rows(knn_fill_cpu, params, width);
    run_wide_rows(knn_divergence_cpu, params, params.neighbours * width);
  }
  return result;
}

template <bool kCuda>
void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("knn_divergence", TORCH_BOX(&knn_divergence<kCuda>));
}

}  // namespace
}  // namespace pyddfast

// kind: 0 Jeffreys, 1 KL(neighbour || row), 2 KL(row || neighbour).  NaN where a row is no
// distribution or a neighbour no row.
STABLE_TORCH_LIBRARY_FRAGMENT(PYDDFAST_NAMESPACE, m) {
  m.def("knn_divergence(Tensor logp, Tensor knn, int kind) -> Tensor");
}

PYDDFAST_IMPLEMENT(pyddfast::register_kernels)
