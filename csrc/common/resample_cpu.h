// Crop, resize, flip and strips on the CPU: one view, or a rectangle of it, at a time.
//
// The two axes are resampled one after the other.  A crop that is not shrunk vertically goes
// horizontally first, each source row once, two of them kept; a shrunk one vertically first.  So
// the horizontal step, whose loads are scattered, sees the fewer rows.  Which way is taken depends
// on the view alone, and so do its bits.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "common/resample_math.h"
#include "common/rows_cpu.h"

namespace pyddfast {

// Where results go; strides in elements: pixels of a row are neighbours (stride_w = 1) or their
// channels are (stride_c = 1, stride_w = channels).
struct Plane {
  void* data;
  DType dtype;
  int64_t stride_c, stride_h, stride_w;
};

// Rows [top, bottom) and columns [left, right) of a result.
struct Rect {
  int64_t top, bottom, left, right;
};

template <class T>
class Resampler {
 public:
  Resampler(int64_t channels, PixelType type) : channels_(channels), type_(type) {}

  // The rectangle `rect` of the view, times scale[c] plus shift[c], at the same place of `out`.
  PYDD_HD void render(const View& view, Rect rect, const double* scale, const double* shift,
                      const Plane& out) {
    if (rect.top >= rect.bottom || rect.left >= rect.right) return;
    set_columns(view, rect);
    rows_.resize(size_t(channels_ * width_));
    const bool across_first = view.rows.length <= view.rows.size;
    if (across_first) kept_.resize(size_t(2 * channels_ * width_));
    int64_t kept[2] = {-1, -1};
    for (int64_t y = rect.top; y < rect.bottom; ++y) {
      const Window window = view.rows.window(view.result_rows.source(y));
      const T inverse = T(1.0 / double(window.total()));
      if (!across_first) {
        for (int64_t p = window.first; p < window.last; ++p) {
          load<true>(view, p, T(window.weight(p)) * inverse, p > window.first);
        }
        for (int64_t c = 0; c < channels_; ++c) across(c, &rows_[size_t(c * width_)]);
        for (int64_t c = 0; c < channels_; ++c) {
          const T* const row = &rows_[size_t(c * width_)];
          store(out, rect, y, c, row, row, T(scale[c]), T(0), T(shift[c]));
        }
      } else {
        for (int64_t p = window.first; p < window.last; ++p) {
          if (kept[p % 2] == p) continue;
          load<false>(view, p, T(1), false);
          for (int64_t c = 0; c < channels_; ++c) across(c, kept_row(p, c));
          kept[p % 2] = p;
        }
        const int64_t second = window.last - window.first > 1 ? window.first + 1 : window.first;
        const T below = second == window.first ? T(0) : T(window.weight(second)) * inverse;
        const T above = T(window.weight(window.first)) * inverse;
        for (int64_t c = 0; c < channels_; ++c) {
          store(out, rect, y, c, kept_row(window.first, c), kept_row(second, c),
                T(scale[c]) * above, T(scale[c]) * below, T(shift[c]));
        }
      }
      if (out.stride_w != 1) interleave(out, rect, y);
    }
  }

  // NaN in place of a view that does not exist.
  PYDD_HD void fill(Rect rect, const Plane& out, T value) {
    if (rect.top >= rect.bottom || rect.left >= rect.right) return;
    count_ = rect.right - rect.left;
    width_ = blocks_of(count_) * kLanes;
    rows_.assign(size_t(channels_ * width_), value);
    for (int64_t y = rect.top; y < rect.bottom; ++y) {
      for (int64_t c = 0; c < channels_; ++c) {
        const T* const row = &rows_[size_t(c * width_)];
        store(out, rect, y, c, row, row, T(1), T(0), T(0));
      }
      if (out.stride_w != 1) interleave(out, rect, y);
    }
  }

 private:
  struct Piece {
    int64_t target, source, count;  // pixels: in the row buffer, in the image's row
  };

  // Source pixel and weights of every column, and what of a source row they need.
  PYDD_HD void set_columns(const View& view, Rect rect) {
    count_ = rect.right - rect.left;
    width_ = blocks_of(count_) * kLanes;
    taps_ = view.cols.taps();
    index_.resize(size_t(width_));
    weight_.resize(size_t(taps_ * width_));
    const int64_t last_start = view.cols.length - taps_;
    int64_t low = view.cols.length, high = 0;
    for (int64_t j = 0; j < count_; ++j) {
      const int64_t x = view.result_cols.source(rect.left + j);
      const Window window = view.cols.window(view.flip ? view.cols.size - 1 - x : x);
      const int64_t start = smaller<int64_t>(window.first, last_start);
      int64_t total = 0;
      for (int64_t t = 0; t < taps_; ++t) total += window.weight(start + t);
      const double inverse = 1.0 / double(total);
      for (int64_t t = 0; t < taps_; ++t) {
        weight_[size_t(t * width_ + j)] = T(double(window.weight(start + t)) * inverse);
      }
      index_[size_t(j)] = int32_t(start);
      low = smaller<int64_t>(low, start);
      high = larger<int64_t>(high, start + taps_);
    }
    packed_ = view.image.stride_c == 1 && view.image.stride_w == channels_;
    const int64_t pixel = packed_ ? channels_ : 1;
    // + kLanes: copies of whole blocks may read beyond the last pixel.
    plane_ = packed_ ? 1 : high - low + kLanes;
    source_.resize(size_t((high - low + kLanes) * channels_));
    in_order_ = taps_ == 1 && !packed_;
    for (int64_t j = 1; j < count_; ++j) {
      in_order_ = in_order_ && index_[size_t(j)] == index_[size_t(j - 1)] + 1;
    }
    for (int64_t j = 0; j < count_; ++j) {
      index_[size_t(j)] = int32_t((index_[size_t(j)] - low) * pixel);
    }
    for (int64_t j = count_; j < width_; ++j) {
      index_[size_t(j)] = 0;
      for (int64_t t = 0; t < taps_; ++t) weight_[size_t(t * width_ + j)] = T(0);
    }
    pieces_.clear();
    for (int64_t p = low; p < high;) {
      const int64_t position = view.left + p;
      const int64_t source = view.image_cols.source(position);
      int64_t count = high - p;
      if (view.image_cols.order) {
        const int place = view.image_cols.place_of_position(int(position));
        count = smaller<int64_t>(count, view.image_cols.end(place) - position);
      }
      pieces_.push_back({p - low, source, count});
      p += count;
    }
  }

  PYDD_HD T* kept_row(int64_t p, int64_t c) {
    return &kept_[size_t(((p % 2) * channels_ + c) * width_)];
  }

  // Row p of the crop into source_: copied, or `weight` times it written or added.
  template <bool kWeighted>
  PYDD_HD void load(const View& view, int64_t p, T weight, bool add) {
    switch (type_) {
      case PixelType::kUInt8:
        return load_as<kWeighted, uint8_t>(view, p, weight, add);
      case PixelType::kFloat32:
        return load_as<kWeighted, float>(view, p, weight, add);
      case PixelType::kFloat16:
        return load_as<kWeighted, Half>(view, p, weight, add);
      case PixelType::kBFloat16:
        return load_as<kWeighted, BFloat16>(view, p, weight, add);
      case PixelType::kFloat64:
        return load_as<kWeighted, double>(view, p, weight, add);
    }
  }

  template <bool kWeighted, class In>
  PYDD_HD void load_as(const View& view, int64_t p, T weight, bool add) {
    const int64_t row = view.image_rows.source(view.top + int(p));
    const In* const image = static_cast<const In*>(view.image.data) + row * view.image.stride_h;
    for (const Piece& piece : pieces_) {
      if (packed_) {
        load_piece<kWeighted>(image + piece.source * channels_, 1, piece.count * channels_, weight,
                              add, &source_[size_t(piece.target * channels_)]);
        continue;
      }
      for (int64_t c = 0; c < channels_; ++c) {
        load_piece<kWeighted>(image + c * view.image.stride_c + piece.source * view.image.stride_w,
                              view.image.stride_w, piece.count, weight, add,
                              &source_[size_t(c * plane_ + piece.target)]);
      }
    }
  }

  template <bool kWeighted, class In>
  PYDD_HD static void load_piece(const In* from, int64_t stride, int64_t count, T weight, bool add,
                                 T* to) {
    if (stride != 1) {
      for (int64_t i = 0; i < count; ++i) {
        const T value = T(to_float(from[i * stride]));
        to[i] = kWeighted ? (add ? to[i] + weight * value : weight * value) : value;
      }
    } else if (!kWeighted) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) to[i] = T(to_float(from[i]));
    } else if (add) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) to[i] += weight * T(to_float(from[i]));
    } else {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) to[i] = weight * T(to_float(from[i]));
    }
  }

  // The horizontal step for channel c.
  PYDD_HD void across(int64_t c, T* result) const {
    const T* const from = &source_[size_t(c * plane_)];
    const int64_t pixel = packed_ ? channels_ : 1;
    if (in_order_) {
      for (int64_t b = 0; b < width_; b += kLanes) {
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) result[b + l] = from[b + l];
      }
      return;
    }
    const int32_t* const index = index_.data();
    const T* const weight = weight_.data();
    if (taps_ == 1) {
      for (int64_t b = 0; b < width_; b += kLanes) {
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) result[b + l] = from[index[b + l]];
      }
    } else if (taps_ == 2) {
      const T* const next = from + pixel;
      const T* const second = weight + width_;
      for (int64_t b = 0; b < width_; b += kLanes) {
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) {
          const int32_t i = index[b + l];
          result[b + l] = weight[b + l] * from[i] + second[b + l] * next[i];
        }
      }
    } else {
      for (int64_t b = 0; b < width_; b += kLanes) {
        alignas(64) T sum[kLanes] = {};
        for (int64_t t = 0; t < taps_; ++t) {
          const T* const tap = from + t * pixel;
          const T* const w = weight + t * width_ + b;
#pragma omp simd
          for (int64_t l = 0; l < kLanes; ++l) sum[l] += w[l] * tap[index[b + l]];
        }
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) result[b + l] = sum[l];
      }
    }
  }

  // above * first + below * second + shift: to its place, or to rows_ where pixels are interleaved.
  PYDD_HD void store(const Plane& out, Rect rect, int64_t y, int64_t c, const T* first,
                     const T* second, T above, T below, T shift) {
    T* const scratch = &rows_[size_t(c * width_)];
    const bool planar = out.stride_w == 1;
    void* const row =
        planar ? element(out.data, out.dtype, y * out.stride_h + rect.left + c * out.stride_c)
               : scratch;
    const DType dtype = planar ? out.dtype : own_dtype();
    const Blocks<T> values = result_row(row, dtype, count_, scratch);
    const int64_t blocks = blocks_of(count_);
    for (int64_t b = 0; b < blocks; ++b) {
      T* const to = values[b];
      const T* const p = first + b * kLanes;
      const T* const q = second + b * kLanes;
      if (below == T(0)) {
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) to[l] = above * p[l] + shift;
      } else {
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) to[l] = above * p[l] + (below * q[l] + shift);
      }
    }
    if (planar) store_row(values, count_, row, dtype);
  }

  PYDD_HD void interleave(const Plane& out, Rect rect, int64_t y) const {
    switch (out.dtype) {
      case DType::kFloat64:
        return interleave_as<double>(out, rect, y);
      case DType::kFloat32:
        return interleave_as<float>(out, rect, y);
      case DType::kFloat16:
        return interleave_as<Half>(out, rect, y);
      case DType::kBFloat16:
        return interleave_as<BFloat16>(out, rect, y);
    }
  }

  template <class Out>
  PYDD_HD void interleave_as(const Plane& out, Rect rect, int64_t y) const {
    Out* const to = static_cast<Out*>(out.data) + y * out.stride_h + rect.left * out.stride_w;
    const T* const rows = rows_.data();
    if (channels_ == 3) {  // written out, so that it becomes vector permutations
      const T *const red = rows, *const green = rows + width_, *const blue = rows + 2 * width_;
#pragma omp simd
      for (int64_t j = 0; j < count_; ++j) {
        to[3 * j] = converted<Out>(red[j]);
        to[3 * j + 1] = converted<Out>(green[j]);
        to[3 * j + 2] = converted<Out>(blue[j]);
      }
      return;
    }
    for (int64_t j = 0; j < count_; ++j) {
      for (int64_t c = 0; c < channels_; ++c) {
        to[j * channels_ + c] = converted<Out>(rows[c * width_ + j]);
      }
    }
  }

  template <class Out>
  PYDD_HD static Out converted(T value) {
    if constexpr (std::is_same_v<Out, double>) {
      return double(value);
    } else {
      return from_float<Out>(float(value));
    }
  }

  static constexpr DType own_dtype() {
    return std::is_same_v<T, double> ? DType::kFloat64 : DType::kFloat32;
  }

  int64_t channels_;
  PixelType type_;
  int64_t count_ = 0, width_ = 0;  // columns, and rounded up to whole blocks
  int64_t taps_ = 0;
  int64_t plane_ = 0;      // between channels of source_
  bool packed_ = false;    // pixels of source_ are interleaved, as in the image
  bool in_order_ = false;  // columns are copied as they stand
  std::vector<int32_t> index_;
  std::vector<T> weight_;  // (taps_, width_)
  std::vector<T> source_, kept_, rows_;
  std::vector<Piece> pieces_;
};

}  // namespace pyddfast
