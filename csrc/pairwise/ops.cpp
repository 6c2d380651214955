// The operators of the pairwise family: schemas, layouts, allocation, dispatch.
#include <optional>
#include <tuple>

#include "common/rows_cpu.h"
#include "common/torch_ops.h"
#include "pairwise/knn_divergence.h"
#include "pairwise/knn_topk.h"

namespace pyddfast {
namespace {

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
    run_rows(knn_divergence_cpu, params);
  }
  return result;
}

// ---- neighbours, on the CPU: a device takes the composition, whose topk is fast there -----------

void knn_propose(const Tensor& product, const Tensor& squares, Tensor values, Tensor indices,
                 int64_t first_row, int64_t first_column, bool exclude_self) {
  const ScalarType type = accumulation_type(product);
  const int64_t rows = values.size(0);
  for (const Tensor* each : {&product, &squares, const_cast<const Tensor*>(&values)}) {
    STD_TORCH_CHECK(each->scalar_type() == type && each->is_contiguous(),
                    "pyddfast: contiguous float32 or float64 tensors of one type are needed");
  }
  STD_TORCH_CHECK(product.dim() == 2 && values.dim() == 2 && squares.numel() == rows &&
                      indices.scalar_type() == ScalarType::Long && indices.is_contiguous() &&
                      indices.numel() == values.numel() && values.size(1) > 0,
                  "pyddfast: a square and proposals of every row are needed");
  KnnProposeParams params{};
  params.product = product.const_data_ptr();
  params.squares = squares.const_data_ptr();
  params.first_row = first_row;
  params.rows = product.size(0);
  params.first_column = first_column;
  params.columns = product.size(1);
  params.kept = values.size(1);
  params.values = values.mutable_data_ptr();
  params.indices = indices.mutable_data_ptr<int64_t>();
  params.dtype = dtype_of(product);
  params.exclude_self = exclude_self;
  STD_TORCH_CHECK(first_row >= 0 && first_row + params.rows <= rows && first_column >= first_row &&
                      first_column + params.columns <= rows,
                  "pyddfast: a tile of the rows' products, on or above the diagonal, is needed");
  torch::stable::parallel_for(
      0, params.rows, grain_of(params.columns),
      [&](int64_t begin, int64_t end) { knn_propose_rows_cpu(params, begin, end); });
  torch::stable::parallel_for(
      params.first_other(), params.columns, grain_of(params.rows),
      [&](int64_t begin, int64_t end) { knn_propose_columns_cpu(params, begin, end); });
}

std::tuple<Tensor, Tensor, Tensor> knn_decide(const Tensor& x, std::optional<Tensor> norm,
                                              const Tensor& squares, const Tensor& values,
                                              const Tensor& indices, int64_t neighbours, bool all,
                                              double error) {
  const ScalarType type = accumulation_type(x);
  const int64_t rows = x.size(0);
  for (const Tensor* each : {&x, &squares, &values}) {
    STD_TORCH_CHECK(each->scalar_type() == type && each->is_contiguous(),
                    "pyddfast: contiguous float32 or float64 tensors of one type are needed");
  }
  STD_TORCH_CHECK(x.dim() == 2 && values.dim() == 2 && values.size(0) == rows &&
                      squares.numel() == rows && indices.scalar_type() == ScalarType::Long &&
                      indices.is_contiguous() && indices.numel() == values.numel() &&
                      neighbours > 0 && neighbours <= values.size(1),
                  "pyddfast: proposals of every row are needed, as many as neighbours or more");
  STD_TORCH_CHECK(!norm || (norm->scalar_type() == ScalarType::Double && norm->is_contiguous() &&
                            norm->numel() == rows),
                  "pyddfast: a float64 norm a row is needed");
  const Tensor distance = new_tensor(x, {rows, neighbours}, ScalarType::Double);
  const Tensor nearest = new_tensor(x, {rows, neighbours}, ScalarType::Long);
  const Tensor unclear = new_tensor(x, {rows}, ScalarType::Bool);
  KnnDecideParams params{};
  params.x = x.const_data_ptr();
  params.norm = norm ? norm->const_data_ptr<double>() : nullptr;
  params.rows = rows;
  params.dim = x.size(1);
  params.kept = values.size(1);
  params.neighbours = neighbours;
  params.squares = squares.const_data_ptr();
  params.values = values.const_data_ptr();
  params.indices = indices.const_data_ptr<int64_t>();
  params.dtype = dtype_of(x);
  params.all = all;
  params.error = error;
  params.distance = distance.mutable_data_ptr<double>();
  params.nearest = nearest.mutable_data_ptr<int64_t>();
  params.unclear = static_cast<bool*>(unclear.mutable_data_ptr());
  torch::stable::parallel_for(
      0, rows, grain_of(params.kept * params.dim),
      [&](int64_t begin, int64_t end) { knn_decide_cpu(params, begin, end); });
  return {distance, nearest, unclear};
}

template <bool kCuda>
void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("knn_divergence", TORCH_BOX(&knn_divergence<kCuda>));
  if constexpr (!kCuda) {
    m.impl("knn_propose_", TORCH_BOX(&knn_propose));
    m.impl("knn_decide", TORCH_BOX(&knn_decide));
  }
}

}  // namespace
}  // namespace pyddfast

// kind: 0 Jeffreys, 1 KL(neighbour || row), 2 KL(row || neighbour).  NaN where a row is no
// distribution or a neighbour no row.
STABLE_TORCH_LIBRARY_FRAGMENT(PYDDFAST_NAMESPACE, m) {
  m.def("knn_divergence(Tensor logp, Tensor knn, int kind) -> Tensor");
  m.def(
      "knn_propose_(Tensor product, Tensor squares, Tensor(a!) values, Tensor(b!) indices,"
      " int first_row, int first_column, bool exclude_self) -> ()");
  m.def(
      "knn_decide(Tensor x, Tensor? norm, Tensor squares, Tensor values, Tensor indices,"
      " int neighbours, bool all, float error) -> (Tensor distances, Tensor nearest, Tensor "
      "unclear)");
}

PYDDFAST_IMPLEMENT(pyddfast::register_kernels)
