// From a DType at run time to the element type at compile time.
#pragma once

#include <type_traits>

#include "common/half.h"
#include "common/types.h"

namespace pyddfast {

// What elements stored as S are computed in.
template <class S>
using Accumulation = std::conditional_t<std::is_same_v<S, double>, double, float>;

// run<S>() for the storage type S: with_dtype(dtype, [&]<class S>() { ... }).
template <class Run>
auto with_dtype(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::kFloat32:
      return run.template operator()<float>();
    case DType::kFloat16:
      return run.template operator()<Half>();
    case DType::kBFloat16:
      return run.template operator()<BFloat16>();
    case DType::kFloat64:
      break;
  }
  return run.template operator()<double>();
}

// The same for a launcher of CUDA kernels: float64 is the twin's.
template <class Run>
int with_device_dtype(DType dtype, const Run& run) {
  return with_dtype(dtype, [&]<class S>() -> int {
    if constexpr (std::is_same_v<S, double>) {
      return kInvalidValue;
    } else {
      return run.template operator()<S>();
    }
  });
}

}  // namespace pyddfast
