// Rows of any storage type in registers: chunks of four fp32 values.
//
// Chunk c holds the elements 4c .. 4c+3, whatever the row's alignment: which thread sums what, and
// so the bits of a result, depend on the row's length alone.  A row aligned to a chunk moves by
// vectors, another one by elements, whose neighbours then come from the L1 cache.
#pragma once

#include "common/half.h"
#include "common/simt.h"
#include "common/types.h"

namespace pyddfast {

constexpr int kChunk = 4;  // 16 bytes of fp32; 8 bytes of a 16-bit type

// (rows, classes): rows `stride` elements apart, each contiguous.
struct RowInput {
  const void* data;
  int64_t stride;
  DType dtype;
  float fill;  // stands for elements beyond the row
};

// (rows, classes), contiguous.  Null data: not wanted.
struct RowOutput {
  void* data;
  DType dtype;
};

namespace detail {

template <class T, int K>
__device__ __forceinline__ void load_packed(const T* row, int n, int first, int step, float fill,
                                            float (&x)[K][kChunk]) {
  const bool aligned = reinterpret_cast<uintptr_t>(row) % (kChunk * sizeof(T)) == 0;
  const T padding = from_float<T>(fill);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int i = (first + k * step) * kChunk;
    simt::Vector<T, kChunk> chunk;
    if (aligned && i + kChunk <= n) {
      chunk = simt::load_vector<kChunk>(row + i);
    } else {
#pragma unroll
      for (int v = 0; v < kChunk; ++v) {
        chunk[v] = padding;
        if (i + v < n) chunk[v] = row[i + v];
      }
    }
    memcpy(x[k], &chunk, sizeof(chunk));
  }
}

template <class T, int K>
__device__ __forceinline__ void unpack(float (&x)[K][kChunk]) {
#pragma unroll
  for (int k = 0; k < K; ++k) {
    simt::Vector<T, kChunk> chunk;
    memcpy(&chunk, x[k], sizeof(chunk));
#pragma unroll
    for (int v = 0; v < kChunk; ++v) x[k][v] = to_float(chunk[v]);
  }
}

template <class T>
__device__ __forceinline__ void store_chunk(T* row, int n, int i, const float (&x)[kChunk]) {
  simt::Vector<T, kChunk> chunk;
#pragma unroll
  for (int v = 0; v < kChunk; ++v) chunk[v] = from_float<T>(x[v]);
  if (reinterpret_cast<uintptr_t>(row) % (kChunk * sizeof(T)) == 0 && i + kChunk <= n) {
    simt::store_vector(row + i, chunk);
  } else {
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      if (i + v < n) row[i + v] = chunk[v];
    }
  }
}

}  // namespace detail

// The chunks first, first + step, ... of a row, as stored: the loads of two inputs are issued with
// load_row before unpack_row waits for either.
template <int K>
__device__ __forceinline__ void load_row(const RowInput& input, int64_t row, int n, int first,
                                         int step, float (&x)[K][kChunk]) {
  const int64_t offset = row * input.stride;
  if (input.dtype == DType::kFloat32) {
    detail::load_packed(static_cast<const float*>(input.data) + offset, n, first, step, input.fill,
                        x);
  } else if (input.dtype == DType::kFloat16) {
    detail::load_packed(static_cast<const Half*>(input.data) + offset, n, first, step, input.fill,
                        x);
  } else {
    detail::load_packed(static_cast<const BFloat16*>(input.data) + offset, n, first, step,
                        input.fill, x);
  }
}

template <int K>
__device__ __forceinline__ void unpack_row(DType dtype, float (&x)[K][kChunk]) {
  if (dtype == DType::kFloat16) detail::unpack<Half>(x);
  if (dtype == DType::kBFloat16) detail::unpack<BFloat16>(x);
}

// One element.
__device__ __forceinline__ float load_element(const RowInput& input, int64_t row, int64_t i) {
  const int64_t offset = row * input.stride + i;
  if (input.dtype == DType::kFloat32) return static_cast<const float*>(input.data)[offset];
  if (input.dtype == DType::kFloat16) return to_float(static_cast<const Half*>(input.data)[offset]);
  return to_float(static_cast<const BFloat16*>(input.data)[offset]);
}

// Rounds four results and stores those of them that lie inside the row, as chunk `c`.
__device__ __forceinline__ void store_chunk(const RowOutput& output, int64_t row, int n, int c,
                                            const float (&x)[kChunk]) {
  const int64_t offset = row * n;
  if (output.dtype == DType::kFloat32) {
    detail::store_chunk(static_cast<float*>(output.data) + offset, n, c * kChunk, x);
  } else if (output.dtype == DType::kFloat16) {
    detail::store_chunk(static_cast<Half*>(output.data) + offset, n, c * kChunk, x);
  } else {
    detail::store_chunk(static_cast<BFloat16*>(output.data) + offset, n, c * kChunk, x);
  }
}

}  // namespace pyddfast
