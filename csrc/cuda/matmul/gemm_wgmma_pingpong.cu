// gemm_wgmma's pingpong kernels, see gemm_wgmma_cooperative.cu.

#include "cuda/matmul/gemm_wgmma_kernel.cuh"

namespace warpwright::cuda {

WgmmaKernel pingpong_kernel(const WgmmaConfig& config) { return find_kernel<true>(config); }

}  // namespace warpwright::cuda
