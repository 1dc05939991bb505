// Which kernel multiplies 8-bit matrices.

#include "cuda/scaled/scaled_mma.cuh"
#include "cuda/scaled/scaled_wgmma.cuh"

namespace warpwright::cuda {

void scaled_matmul(const ScaledMatmulParams& params, Stream stream) {
  if (scaled_wgmma_takes(params)) return scaled_wgmma(params, stream);
  scaled_mma(params, stream);
}

}  // namespace warpwright::cuda
