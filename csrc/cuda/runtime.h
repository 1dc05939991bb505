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

// Dynamic shared memory as an array of unsigned char named NAME, aligned to the longest pattern of a swizzle.
#define WARPWRIGHT_DYNAMIC_SHARED(NAME) extern __shared__ __align__(1024) unsigned char NAME[]
#endif

// Whether sm_90a's instructions (wgmma, setmaxnreg) exist where this is compiled. A kernel that needs them has an empty
// body elsewhere, and its launcher does not choose it there.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WARPWRIGHT_SM90A 1
#else
#define WARPWRIGHT_SM90A 0
#endif

#include "kernels/common.h"
