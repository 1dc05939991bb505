// The gradients of group, batch and instance norm: sums of the slabs, means of the cells (of a batch norm the gradients
// of weight and bias with them), gradients. With z = xhat * weight + bias + residual, the gradient of z is
// g = grad_output * activation'(z), z being computed once more, and
//   grad_weight = the sum of g * xhat,  grad_bias = the sum of g,  grad_residual = g,
//   grad_input  = rstd * (g * weight - mean(g * weight) - xhat * mean(g * weight * xhat)), the means over a cell.

#include "cuda/channel_norm/units.cuh"
#include "cuda/tile/partials.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// body(at, g, xhat), with both as [kHeldPacks][kCount], for the positions of a thread's part from `at` on. Past the end
// g is zero.
template <class T, int kCount, bool kLast, class Values, class Body>
__device__ __forceinline__ void for_each_gradient(const ChannelNormBackwardParams& p,
                                                  const UnitPart<kCount, kLast>& part, const Values& channels,
                                                  const Body& body) {
  using Part = UnitPart<kCount, kLast>;
  for (int64_t at = part.first; at < part.last; at += kHeldPacks * Part::kStep) {
    HeldPacks<T, kCount, kLast> grad, x, residual;
    grad.load(p.grad_output, part, at);
    x.load(p.input, part, at);
    if (p.residual.data != nullptr) residual.load(p.residual, part, at);
    float g[kHeldPacks][kCount], xhat[kHeldPacks][kCount];
#pragma unroll
    for (int k = 0; k < kHeldPacks; ++k) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int c = kLast ? i : 0;
        xhat[k][i] = (x.get(k, i) - channels.mean[c]) * channels.rstd[c];
        float z = xhat[k][i] * channels.weight[c] + channels.bias[c];
        if (p.residual.data != nullptr) z += residual.get(k, i);
        g[k][i] = grad.get(k, i) * norm_activation_grad(p.activation, z);
      }
    }
    body(at, g, xhat);
  }
}

// machine code: 1, true>: plain; 1, false>: SHFL; true>: LDG.128; else: SHFL, LDG.128
template <class T, int kCount, bool kLast>
__global__ void __launch_bounds__(kUnitThreads) slab_sums_kernel(const ChannelNormBackwardParams p) {
  using Part = UnitPart<kCount, kLast>;
  for_each_unit<kCount, kLast>(p.shape, [&](const Part& part) {
    float* grads = static_cast<float*>(p.grad_partials) + part.slab * p.shape.channels;
    float* dots = static_cast<float*>(p.dot_partials) + part.slab * p.shape.channels;
    ChannelValues<T, Part::kPackChannels> channels;
    channels.load(p, part);
    float grad[Part::kPackChannels]{}, dot[Part::kPackChannels]{};
    for_each_gradient<T>(p, part, channels, [&](int64_t, const auto& g, const auto& xhat) {
#pragma unroll
      for (int k = 0; k < kHeldPacks; ++k) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          grad[kLast ? i : 0] += g[k][i];
          dot[kLast ? i : 0] += g[k][i] * xhat[k][i];
        }
      }
    });
    if constexpr (!kLast) {
      grad[0] = warp_reduce<Sum>(grad[0]);
      dot[0] = warp_reduce<Sum>(dot[0]);
      if (part.lane == 0) {
        grads[part.channel] = grad[0];
        dots[part.channel] = dot[0];
      }
    } else {
      __shared__ LanePairs<kCount, kLast> lanes;
      const int column = static_cast<int>(threadIdx.x);
#pragma unroll
      for (int c = 0; c < Part::kPackChannels; ++c) {
        const int at = column % Part::kWidth * Part::kPackChannels + c;
        lanes.a[part.lane][at] = grad[c];
        lanes.b[part.lane][at] = dot[c];
      }
      __syncthreads();
      const int64_t channel = part.channel - column % Part::kWidth * Part::kPackChannels + column;
      if (column < Part::kChannels && channel < p.shape.channels) {
        float all_grad = 0.0f, all_dot = 0.0f;
        for (int lane = 0; lane < Part::kLanes; ++lane) {
          all_grad += lanes.a[lane][column];
          all_dot += lanes.b[lane][column];
        }
        grads[channel] = all_grad;
        dots[channel] = all_dot;
      }
      __syncthreads();
    }
  });
}

// machine code: SHFL
template <class T>
__global__ void __launch_bounds__(kCellThreads) cell_means_kernel(const ChannelNormBackwardParams p) {
  const int64_t cell = blockIdx.x;
  const CellParts parts(p.shape, cell);
  const auto elements = static_cast<float>(p.shape.cell_elements());
  const bool of_channel = p.shape.cells_are_channels();
  const auto sum_of = [&](const void* partials) {
    const float* sums = static_cast<const float*>(partials);
    return parts.total([&](float, int64_t i, int64_t c) {
      return of_channel ? sums[i] : sums[i] * channel_value<T>(p.weight, c, 1.0f);
    });
  };
  float grad = sum_of(p.grad_partials), dot = sum_of(p.dot_partials);
  if (threadIdx.x != 0) return;
  if (of_channel) {
    set_channel_value<T>(p.grad_weight, cell, dot);
    set_channel_value<T>(p.grad_bias, cell, grad);
    const float weight = channel_value<T>(p.weight, cell, 1.0f);
    grad *= weight;
    dot *= weight;
  }
  if (!p.finds_means()) return;
  static_cast<float*>(p.mean_grad)[cell] = grad / elements;
  static_cast<float*>(p.mean_dot)[cell] = dot / elements;
}

// machine code: 1, false>: plain; 1, true>: plain; else: 16-byte
template <class T, int kCount, bool kLast>
__global__ void __launch_bounds__(kUnitThreads) channel_norm_backward_kernel(const ChannelNormBackwardParams p) {
  using Part = UnitPart<kCount, kLast>;
  for_each_unit<kCount, kLast>(p.shape, [&](const Part& part) {
    constexpr int kChannels = Part::kPackChannels;
    ChannelValues<T, kChannels> channels;
    channels.load(p, part);
    float mean_grad[kChannels]{}, mean_dot[kChannels]{};
    if (part.holds && p.needs_means()) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        mean_grad[c] = static_cast<const float*>(p.mean_grad)[channels.cell[c]];
        mean_dot[c] = static_cast<const float*>(p.mean_dot)[channels.cell[c]];
        if (p.elements != nullptr) {
          const float share = channels.weight[c] / static_cast<const float*>(p.elements)[channels.cell[c]];
          mean_grad[c] *= share;
          mean_dot[c] *= share;
        }
      }
    }
    for_each_gradient<T>(p, part, channels, [&](int64_t at, const auto& g, const auto& xhat) {
      HeldPacks<T, kCount, kLast> out;
      if (p.grad_residual.data != nullptr) {
#pragma unroll
        for (int k = 0; k < kHeldPacks; ++k) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) out.set(k, i, g[k][i]);
        }
        out.store(p.grad_residual, part, at);
      }
      if (p.grad_input.data == nullptr) return;
#pragma unroll
      for (int k = 0; k < kHeldPacks; ++k) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const int c = kLast ? i : 0;
          const float centred = g[k][i] * channels.weight[c] - mean_grad[c] - xhat[k][i] * mean_dot[c];
          out.set(k, i, centred * channels.rstd[c]);
        }
      }
      out.store(p.grad_input, part, at);
    });
  });
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

namespace {

template <class T>
void sum_slabs(const ChannelShape& shape, const void* partials, const PerChannel& output, Stream stream) {
  if (output.data == nullptr) return;
  if (output.wide) return sum_partials<float>(partials, output.data, shape.slabs(), shape.channels, stream);
  sum_partials<T>(partials, output.data, shape.slabs(), shape.channels, stream);
}

}  // namespace

void channel_norm_backward(const ChannelNormBackwardParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const ChannelShape& shape = params.shape;
    const bool packs = planes_fit_packs<T>(
        shape, {&params.grad_output, &params.input, &params.residual, &params.grad_input, &params.grad_residual});
    const bool any = shape.slabs() > 0;
    if (any && params.needs_sums()) {
      visit_units<T>(shape, packs, stream, [&](auto count, auto last, const LaunchConfig& config) {
        launch("channel_norm_backward_slabs", slab_sums_kernel<T, count(), last()>, config, params);
      });
    }
    // Of a batch norm they write the gradients of weight and bias too.
    const bool merged = any && shape.cells_are_channels();
    if (any && (params.finds_means() || (merged && params.needs_sums()))) {
      launch("channel_norm_backward_cells", cell_means_kernel<T>, cell_config(shape, stream), params);
    }
    if (any && (params.grad_input.data != nullptr || params.grad_residual.data != nullptr)) {
      visit_units<T>(shape, packs, stream, [&](auto count, auto last, const LaunchConfig& config) {
        launch("channel_norm_backward", channel_norm_backward_kernel<T, count(), last()>, config, params);
      });
    }
    if (merged) return;
    sum_slabs<T>(shape, params.dot_partials, params.grad_weight, stream);
    sum_slabs<T>(shape, params.grad_partials, params.grad_bias, stream);
  });
}

}  // namespace warpwright::cuda
