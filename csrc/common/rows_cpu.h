// Rows of any storage type as blocks of the accumulation type, and reductions over them.
//
// The kernels work on whole blocks of kLanes elements, which the compiler turns into vector
// instructions of any width.  Each lane of a block gathers its own sum or maximum; they are reduced
// to one number a row at the end, for up to kLanes rows at once (fold_rows) or for one (fold).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>

#include "common/half.h"
#include "common/simd.h"
#include "common/types.h"

namespace pyddfast {

constexpr int64_t kLanes = 16;  // fp32 elements of the widest vector register

inline int64_t blocks_of(int64_t n) { return (n + kLanes - 1) / kLanes; }

inline int64_t element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

inline const void* element(const void* base, DType dtype, int64_t offset) {
  return static_cast<const char*>(base) + offset * element_size(dtype);
}

inline void* element(void* base, DType dtype, int64_t offset) {
  return static_cast<char*>(base) + offset * element_size(dtype);
}

// One number of an optional vector in the accumulation type; 1 where there is none.
template <class T>
PYDD_HD double factor_at(const void* vector, int64_t index) {
  return vector ? double(static_cast<const T*>(vector)[index]) : 1.0;
}

// The logit of a class that does not exist.
template <class T>
inline constexpr T kNoClass = -std::numeric_limits<T>::infinity();

// ---- reductions --------------------------------------------------------------------------------

struct Sum {
  template <class T>
  PYDD_HD T operator()(T a, T b) const {
    return a + b;
  }
};

// NaN in the second operand is passed over.
struct Maximum {
  template <class T>
  PYDD_HD T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};

struct Minimum {
  template <class T>
  PYDD_HD T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

// out[r] <- the reduction of lanes[r]: pairwise, lane l with lane l + half, in an order that is the
// same for every row and every instruction set.  Each step halves the lanes of two rows and zips
// them into one vector, so that kLanes rows take kLanes - 1 vector operations.
template <int64_t kRows = kLanes, class T, class Op>
PYDD_HD void fold_rows(const T (&lanes)[kRows][kLanes], Op op, T (&out)[kLanes]) {
  constexpr int64_t kHalf = kLanes / 2, kPairs = kRows / 2;
  alignas(64) T folded[kPairs][kLanes];
  for (int64_t r = 0; r < kPairs; ++r) {
#pragma omp simd
    for (int64_t l = 0; l < kHalf; ++l) {
      folded[r][2 * l] = op(lanes[r][l], lanes[r][l + kHalf]);
      folded[r][2 * l + 1] = op(lanes[r + kPairs][l], lanes[r + kPairs][l + kHalf]);
    }
  }
  if constexpr (kPairs > 1) {
    fold_rows<kPairs>(folded, op, out);
  } else {
    std::copy_n(folded[0], kLanes, out);
  }
}

// The same for one row.
template <class T, class Op>
PYDD_HD T fold(const T (&lanes)[kLanes], Op op) {
  alignas(64) T folded[kLanes];
  std::copy_n(lanes, kLanes, folded);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) folded[l] = op(folded[l], folded[l + width]);
  }
  return folded[0];
}

// Blocks per partial sum.  Lanes add up in the accumulation type, at most kSumBlocks terms each;
// partial sums are added in fp64, so that the error does not grow with the number of classes.
constexpr int64_t kSumBlocks = 64;

template <class T>
PYDD_HD void add_lanes(const T (&partial)[kLanes], double (&total)[kLanes]) {
#pragma omp simd
  for (int64_t l = 0; l < kLanes; ++l) total[l] += double(partial[l]);
}

// ---- rows --------------------------------------------------------------------------------------

struct AlignedDelete {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};

// Uninitialised memory whose blocks do not cross cache lines.
template <class T>
using Scratch = std::unique_ptr<T[], AlignedDelete>;

template <class T>
Scratch<T> new_scratch(int64_t size) {
  void* const memory = ::operator new(size_t(size) * sizeof(T), std::align_val_t(64));
  return Scratch<T>(static_cast<T*>(memory));
}

// A row as blocks: the whole ones where they are stored, and the last one, if `n` does not fill
// it, padded in `tail`.
template <class T>
struct Blocks {
  T* body;
  T* tail;
  int64_t whole;  // blocks in the body

  PYDD_HD T* operator[](int64_t b) const { return b < whole ? body + b * kLanes : tail; }
  PYDD_HD T& at(int64_t i) const { return (*this)[i / kLanes][i % kLanes]; }
};

// The first `count` elements and `fill` after them.
template <class T, class S>
PYDD_HD void load_block(const S* source, int64_t count, T fill, T* target) {
#pragma omp simd
  for (int64_t l = 0; l < kLanes; ++l) target[l] = l < count ? T(to_float(source[l])) : fill;
}

// Fills what lies after the first `count` elements.
template <class T>
PYDD_HD void pad_block(T* block, int64_t count, T fill) {
#pragma omp simd
  for (int64_t l = 0; l < kLanes; ++l) block[l] = l < count ? block[l] : fill;
}

// `scratch`, a padded row, holds what cannot be read in place: everything if the row is stored in
// another type, else its last block.
template <class T, class S>
PYDD_HD Blocks<const T> load_row(const S* row, int64_t n, T fill, T* scratch) {
  const int64_t whole = n / kLanes, rest = n % kLanes;
  T* const tail = scratch + whole * kLanes;
  if (rest) load_block(row + whole * kLanes, rest, fill, tail);
  if constexpr (std::is_same_v<S, T>) {
    return {row, tail, whole};
  } else {
    for (int64_t b = 0; b < whole; ++b) {
      load_block(row + b * kLanes, kLanes, fill, scratch + b * kLanes);
    }
    return {scratch, tail, whole};
  }
}

template <class T>
PYDD_HD Blocks<const T> load_row(const void* row, DType dtype, int64_t n, T fill, T* scratch) {
  switch (dtype) {
    case DType::kFloat64:
      return load_row(static_cast<const double*>(row), n, fill, scratch);
    case DType::kFloat32:
      return load_row(static_cast<const float*>(row), n, fill, scratch);
    case DType::kFloat16:
      return load_row(static_cast<const Half*>(row), n, fill, scratch);
    case DType::kBFloat16:
      return load_row(static_cast<const BFloat16*>(row), n, fill, scratch);
  }
  __builtin_unreachable();
}

// Where a row of results is computed: the counterpart of load_row, finished by store_row.
template <class T>
PYDD_HD Blocks<T> result_row(void* row, DType dtype, int64_t n, T* scratch) {
  const bool same = dtype == (std::is_same_v<T, double> ? DType::kFloat64 : DType::kFloat32);
  const int64_t whole = n / kLanes;
  return {same ? static_cast<T*>(row) : scratch, scratch + whole * kLanes, whole};
}

template <class T, class S>
PYDD_HD void store_block(const T* source, int64_t count, S* target) {
#pragma omp simd
  for (int64_t l = 0; l < kLanes; ++l) {
    if (l < count) {
      if constexpr (std::is_same_v<S, double>) {
        target[l] = double(source[l]);
      } else {
        target[l] = from_float<S>(float(source[l]));
      }
    }
  }
}

template <class T, class S>
PYDD_HD void store_row(Blocks<T> values, int64_t n, S* row) {
  if (static_cast<const void*>(values.body) != row) {
    for (int64_t b = 0; b < values.whole; ++b) store_block(values[b], kLanes, row + b * kLanes);
  }
  store_block(values.tail, n % kLanes, row + values.whole * kLanes);
}

template <class T>
PYDD_HD void store_row(Blocks<T> values, int64_t n, void* row, DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return store_row(values, n, static_cast<double*>(row));
    case DType::kFloat32:
      return store_row(values, n, static_cast<float*>(row));
    case DType::kFloat16:
      return store_row(values, n, static_cast<Half*>(row));
    case DType::kBFloat16:
      return store_row(values, n, static_cast<BFloat16*>(row));
  }
}

}  // namespace pyddfast
