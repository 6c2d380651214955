// Training views of a uint8 set: parameters and launchers.  No torch, no CUDA headers.
#pragma once

#include <cstdint>

#include "common/resample_math.h"

namespace pyddfast {

// Strides in elements.  An index, box, strip order or partner out of range makes its pixels NaN.
struct AugmentParams {
  const uint8_t* images;  // (count, channels, height, width)
  int64_t count, channels, height, width;
  int64_t stride_n, stride_c, stride_h, stride_w;
  bool shuffle_first;  // PatchShuffle before the crop, else after the flip
  bool antialias;

  int64_t batch;
  const int64_t* index;      // (batch)
  const int64_t* box;        // (batch, 4): top, left, height, width; null: the whole image
  const bool* flip;          // (batch), or null
  const int64_t* row_order;  // (batch, row_factor), or null
  const int64_t* col_order;  // (batch, col_factor), or null
  int64_t row_factor, col_factor;
  const int64_t* partner;  // (batch), or null: CutMix
  const int64_t* mix_box;  // (4): y0, x0, y1, x1 of the pixels that come from the partner's view

  // result = resampled * scale[c] + shift[c]; host memory, (channels)
  const double* scale;
  const double* shift;
  void* out;  // (batch, channels, out_height, out_width)
  DType out_dtype;
  int64_t out_height, out_width;
  int64_t out_stride_n, out_stride_c, out_stride_h, out_stride_w;
};

// The view of sample b.
template <class Params>
PYDD_HD View augmented_view(const Params& p, int64_t b) {
  const int64_t image = p.index[b];
  const bool found = image >= 0 && image < p.count;
  const int height = int(p.height), width = int(p.width);
  const int out_height = int(p.out_height), out_width = int(p.out_width);
  const ImageView source{p.images + (found ? image : 0) * p.stride_n,
                         p.stride_c,
                         p.stride_h,
                         p.stride_w,
                         height,
                         width};
  const Box box = p.box ? Box{p.box[4 * b], p.box[4 * b + 1], p.box[4 * b + 2], p.box[4 * b + 3]}
                        : Box{0, 0, height, width};
  const int64_t* const rows = p.row_order ? p.row_order + b * p.row_factor : nullptr;
  const int64_t* const cols = p.col_order ? p.col_order + b * p.col_factor : nullptr;
  const int row_factor = int(p.row_factor), col_factor = int(p.col_factor);
  const Strips image_rows(p.shuffle_first ? rows : nullptr, row_factor, height);
  const Strips image_cols(p.shuffle_first ? cols : nullptr, col_factor, width);
  const Strips result_rows(p.shuffle_first ? nullptr : rows, row_factor, out_height);
  const Strips result_cols(p.shuffle_first ? nullptr : cols, col_factor, out_width);
  return View{source,
              int(box.top),
              int(box.left),
              Axis{int(box.height), out_height, p.antialias},
              Axis{int(box.width), out_width, p.antialias},
              image_rows,
              image_cols,
              result_rows,
              result_cols,
              p.flip != nullptr && p.flip[b],
              found && box.inside(source) && image_rows.valid() && image_cols.valid() &&
                  result_rows.valid() && result_cols.valid()};
}

void augment_cpu(const AugmentParams& params, int64_t begin, int64_t end);  // images of the batch
int augment_cuda(const AugmentParams& params, void* stream);

}  // namespace pyddfast
