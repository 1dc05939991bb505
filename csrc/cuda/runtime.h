// The one door to CUDA: kernel files include this instead of the toolkit's headers, so that the same file is compiled
// by nvcc for the GPU, and by the host compiler against csrc/emulator for the tests.

#pragma once

#if defined(WARPWRIGHT_BACKEND_EMULATED)
#include "emulator/runtime.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

// Dynamic shared memory, 128-byte aligned, as an array of unsigned char named NAME.
#define WARPWRIGHT_DYNAMIC_SHARED(NAME) extern __shared__ __align__(128) unsigned char NAME[]
#endif

#include "kernels/common.h"
