// Statistics a channel, alone or beside an eval-mode batch normalisation: parameters and launchers.
// No torch, no CUDA headers.
#pragma once

#include <cstdint>

#include "common/types.h"
#include "stats/stats_math.h"

namespace pyddfast {

// Strides in elements of a tensor seen as (batch, channels, positions).
struct ChannelStrides {
  int64_t batch, channel, position;
};

// How the elements of a channel lie: kPlanes, a sample's positions side by side (NCHW); kRows, a
// position's channels side by side (channels last).
enum class ChannelLayout : int { kPlanes, kRows };

// All of one layout.  Vectors have one value a channel, in the accumulation type (fp32; fp64 for an
// fp64 x), null where not given.
struct ChannelStatsParams {
  const void* x;
  ChannelStrides x_strides;
  ChannelLayout layout;
  DType dtype;  // of x, y and the gradients
  int64_t batch, channels, positions;

  const void* shift;  // a guess of the mean; null: the channel's first element
  void* mean;         // backward: an input
  void* var;          // biased
  void* mean_kept;    // the mean once more, for the backward: autograd does not alias its outputs
  void* partials;     // CPU: (pieces, 2, channels) doubles; CUDA: (channels, tiles) Moments<float>

  // Batch normalisation, if running_var is given.
  const void* running_mean;
  const void* running_var;
  const void* weight;
  const void* bias;
  double eps;
  Activation activation;
  void* y;
  ChannelStrides y_strides;

  // Backward.
  const void* grad_y;  // to y, or to the view of x where there is no normalisation
  ChannelStrides grad_y_strides;
  const void* grad_mean;
  const void* grad_var;
  void* grad_x;
  ChannelStrides grad_x_strides;
};

// CPU: the forward has pieces * channels (kPlanes) or pieces (kRows) independent tasks and a
// finish; the backward batch * channels or batch * positions.  The split depends on the shape
// alone.
int64_t channel_stats_pieces(const ChannelStatsParams& params);
int64_t channel_stats_tasks(const ChannelStatsParams& params);
void channel_stats_cpu(const ChannelStatsParams& params, int64_t begin, int64_t end);
void channel_stats_finish_cpu(const ChannelStatsParams& params);
void channel_stats_backward_cpu(const ChannelStatsParams& params, int64_t begin, int64_t end);

// CUDA: tiles of every channel.
int64_t channel_stats_tiles(const ChannelStatsParams& params);
int channel_stats_cuda(const ChannelStatsParams& params, void* stream);
int channel_stats_backward_cuda(const ChannelStatsParams& params, void* stream);

}  // namespace pyddfast
