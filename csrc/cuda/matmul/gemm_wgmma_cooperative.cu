// gemm_wgmma's cooperative kernels: in files of their own, schedules are compiled at once.

#include "cuda/matmul/gemm_wgmma_kernel.cuh"

namespace warpwright::cuda {

WgmmaKernel cooperative_kernel(const WgmmaConfig& config) { return find_kernel<false>(config); }

}  // namespace warpwright::cuda
