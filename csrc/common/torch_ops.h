// What the files that see torch (<family>/ops.cpp) share: dtypes, allocation, streams, dispatch.
//
// Arguments are checked in Python (pyddfast/ops), where errors can name them; on this side only
// what memory safety needs is checked again.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <optional>

#include "common/device.h"
#include "common/types.h"

// The emulated build (tests/simt) registers the CUDA path for CPU tensors under a second name.
#ifndef PYDDFAST_NAMESPACE
#define PYDDFAST_NAMESPACE pyddfast
#endif

// Registers what register_kernels<bool kCuda>(library) of the family implements, on every device
// of this build.
#ifdef PYDDFAST_SIMT
#define PYDDFAST_IMPLEMENT(register_kernels) \
  STABLE_TORCH_LIBRARY_IMPL(PYDDFAST_NAMESPACE, CPU, m) { register_kernels<true>(m); }
#elif defined(PYDDFAST_CUDA)
#define PYDDFAST_IMPLEMENT(register_kernels)                                            \
  STABLE_TORCH_LIBRARY_IMPL(PYDDFAST_NAMESPACE, CPU, m) { register_kernels<false>(m); } \
  STABLE_TORCH_LIBRARY_IMPL(PYDDFAST_NAMESPACE, CUDA, m) { register_kernels<true>(m); }
#else
#define PYDDFAST_IMPLEMENT(register_kernels) \
  STABLE_TORCH_LIBRARY_IMPL(PYDDFAST_NAMESPACE, CPU, m) { register_kernels<false>(m); }
#endif

namespace pyddfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false, "pyddfast: unsupported dtype");
  }
}

// fp32, or fp64 for an fp64 student.
inline ScalarType accumulation_type(const Tensor& student) {
  return student.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// An uninitialised, contiguous tensor on the device of `like`.  torch::stable::new_empty goes
// through the dispatcher with boxed arguments: 1 us a tensor, of which a call makes four.
inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes,
                         ScalarType type) {
  constexpr size_t kMaxDims = 5;
  STD_TORCH_CHECK(sizes.size() <= kMaxDims, "pyddfast: at most 5 dimensions");
  int64_t strides[kMaxDims], stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= sizes.begin()[i]) strides[i] = stride;
  int32_t device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.begin(), strides,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), device_type,
      like.get_device_index(), &handle));
  return Tensor(handle);
}

// A (rows, classes) matrix whose rows are contiguous.
inline Tensor with_contiguous_rows(const Tensor& matrix) {
  STD_TORCH_CHECK(matrix.dim() == 2, "pyddfast: expected a matrix");
  return matrix.size(1) <= 1 || matrix.stride(1) == 1 ? matrix : torch::stable::contiguous(matrix);
}

// A per-row vector in the accumulation type; null if not given.
inline std::optional<Tensor> row_vector(const std::optional<Tensor>& vector,
                                        const Tensor& student) {
  if (!vector) return std::nullopt;
  STD_TORCH_CHECK(vector->numel() == student.size(0), "pyddfast: one value a row expected");
  const ScalarType type = accumulation_type(student);
  const Tensor cast = vector->scalar_type() == type ? *vector : torch::stable::to(*vector, type);
  return torch::stable::contiguous(cast);
}

// The CUDA stream getter lives in libtorch_cuda, which a CPU build of torch does not have, so it is
// looked up in the process instead of linked.
inline void* current_stream([[maybe_unused]] const Tensor& tensor) {
#ifdef PYDDFAST_SIMT
  return nullptr;
#else
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library == nullptr
               ? nullptr
               : reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(getter != nullptr, "pyddfast: this build of torch has no CUDA streams");
  void* stream = nullptr;
  STD_TORCH_CHECK(getter(tensor.get_device_index(), &stream) == 0,
                  "pyddfast: no current CUDA stream");
  return stream;
#endif
}

template <class Params>
using Launcher = int (*)(const Params&, void*);

template <class Params>
void launch(Launcher<Params> launcher, const Params& params, const Tensor& student) {
#ifndef PYDDFAST_SIMT
  const torch::stable::accelerator::DeviceGuard guard(student.get_device_index());
#endif
  const int error = launcher(params, current_stream(student));
  STD_TORCH_CHECK(error == 0, "pyddfast: CUDA error: ", device_error_string(error));
}

// How many tasks of `each` elements a thread takes at least.
inline int64_t grain_of(int64_t each) {
  constexpr int64_t kGrain = 16384;  // elements: fewer cost less than a thread's wake-up
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, each));
}

// Rows in parallel on torch's own threads.
template <class Params>
void run_rows(void (*kernel)(const Params&, int64_t, int64_t), const Params& params) {
  torch::stable::parallel_for(0, params.rows, grain_of(params.classes),
                              [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
}

}  // namespace pyddfast
