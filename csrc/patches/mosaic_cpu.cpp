#include <type_traits>
#include <vector>

#include "common/dtypes_cpu.h"
#include "common/rows_cpu.h"
#include "patches/mosaic.h"
#include "patches/mosaic_math.h"

namespace pyddfast {
namespace {

template <class T>
PYDD_HD T rounded(T value) {  // to nearest, ties to even, for 0 <= value <= 255
  constexpr T kRound = std::is_same_v<T, double> ? T(6755399441055744.0) : T(12582912.0);
  return (value + kRound) - kRound;
}

// Loops of their own: the product and the sum are rounded one by one, as in torch, so that bytes
// that are cut off agree.
template <class T>
PYDD_HD void denormalize(T* row, int64_t n, T std, T mean) {
#pragma omp simd
  for (int64_t x = 0; x < n; ++x) row[x] *= std;
#pragma omp simd
  for (int64_t x = 0; x < n; ++x) row[x] += mean;
}

template <class T>
PYDD_HD void to_bytes(const T* row, int64_t n, bool round, uint8_t* out) {
#pragma omp simd
  for (int64_t x = 0; x < n; ++x) {
    const T scaled = row[x] * T(255);
    const T kept = scaled > T(0) ? (scaled < T(255) ? scaled : T(255)) : T(0);
    out[x] = uint8_t(int32_t(round ? rounded(kept) : kept));
  }
}

template <class T, class S>
PYDD_HD void mosaic_rows_of(const MosaicParams& p, int64_t begin, int64_t end) {
  const Tiling tiling{p.size, p.factor};
  std::vector<int64_t> index(size_t(p.size), 0);  // of the first source column, times its stride
  std::vector<T> beside(size_t(p.size), T(0));    // weight of the next column
  for (int64_t x = 0; x < p.size; ++x) {
    const int64_t tile = tiling.tile(x), extent = tiling.extent(tile), i = x - tiling.start(tile);
    if (p.bilinear) {
      const Window window = Axis{int(p.width), int(extent), false}.window(int(i));
      index[size_t(x)] = window.first * p.stride_w;
      if (window.last - window.first > 1) {
        beside[size_t(x)] = T(window.weight(window.first + 1)) / T(window.total());
      }
    } else {
      index[size_t(x)] = nearest(i, p.width, extent) * p.stride_w;
    }
  }
  std::vector<T> row(size_t(p.size + kLanes), T(0));
  for (int64_t r = begin; r < end; ++r) {
    const int64_t y = r % p.size, c = r / p.size % p.channels, image = r / p.size / p.channels;
    const int64_t tile_y = tiling.tile(y), extent_y = tiling.extent(tile_y);
    const int64_t i = y - tiling.start(tile_y);
    int64_t source = 0, below = 0;  // rows
    T weight = T(0);                // of the row below
    if (p.bilinear) {
      const Window window = Axis{int(p.height), int(extent_y), false}.window(int(i));
      source = below = window.first;
      if (window.last - window.first > 1) {
        below = window.first + 1;
        weight = T(window.weight(below)) / T(window.total());
      }
    } else {
      source = nearest(i, p.height, extent_y);
    }
    for (int64_t tile_x = 0; tile_x < p.factor; ++tile_x) {
      const int64_t rank = (tile_y * p.factor + tile_x) * p.images + image;
      const S* const plane = static_cast<const S*>(p.patches) + rank * p.stride_k + c * p.stride_c;
      const S* const first = plane + source * p.stride_h;
      const int64_t start = tiling.start(tile_x), extent = tiling.extent(tile_x);
      T* const to = &row[size_t(start)];
      if (!p.bilinear && extent == p.width && p.stride_w == 1) {
#pragma omp simd
        for (int64_t x = 0; x < extent; ++x) to[x] = T(to_float(first[x]));
      } else if (!p.bilinear) {
        for (int64_t x = 0; x < extent; ++x) to[x] = T(to_float(first[index[size_t(start + x)]]));
      } else {
        const S* const second = plane + below * p.stride_h;
        for (int64_t x = 0; x < extent; ++x) {
          const int64_t here = index[size_t(start + x)];
          const T share = beside[size_t(start + x)];
          const int64_t next = here + (share > T(0) ? p.stride_w : 0);
          const T top =
              (T(1) - share) * T(to_float(first[here])) + share * T(to_float(first[next]));
          const T bottom =
              (T(1) - share) * T(to_float(second[here])) + share * T(to_float(second[next]));
          to[x] = (T(1) - weight) * top + weight * bottom;
        }
      }
    }
    if (p.std) denormalize(row.data(), p.size, T(p.std[c]), T(p.mean[c]));
    if (p.quantize != Quantize::kNone) {
      to_bytes(row.data(), p.size, p.quantize == Quantize::kRound,
               static_cast<uint8_t*>(p.out) + r * p.size);
      continue;
    }
    S* const out = static_cast<S*>(p.out) + r * p.size;
#pragma omp simd
    for (int64_t x = 0; x < p.size; ++x) out[x] = stored<S>(row[size_t(x)]);
  }
}

}  // namespace

PYDD_CPU_KERNEL(mosaic_cpu, MosaicParams, params.dtype, mosaic_rows_of)

}  // namespace pyddfast
