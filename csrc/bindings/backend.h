// The same glue is compiled once for each C++ backend: it registers under that backend's dispatch key and calls that
// backend's launchers.
//
//   WARPWRIGHT_BACKEND_CPU       torch.ops.warpwright, CPU key, csrc/cpu
//   WARPWRIGHT_BACKEND_CUDA      torch.ops.warpwright, CUDA key, csrc/cuda
//   WARPWRIGHT_BACKEND_EMULATED  torch.ops.warpwright_emulated, CPU key, csrc/cuda run by csrc/emulator

#pragma once

#include <torch/csrc/stable/library.h>

#include "kernels/common.h"

#if defined(WARPWRIGHT_BACKEND_CPU)
#define WARPWRIGHT_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(warpwright, CPU, m)
namespace warpwright::cpu {}
namespace backend = warpwright::cpu;
#elif defined(WARPWRIGHT_BACKEND_CUDA)
#define WARPWRIGHT_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(warpwright, CUDA, m)
namespace warpwright::cuda {}
namespace backend = warpwright::cuda;
#elif defined(WARPWRIGHT_BACKEND_EMULATED)
#define WARPWRIGHT_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(warpwright_emulated, CPU, m)
namespace warpwright::cuda {}
namespace backend = warpwright::cuda;
#else
#error "bindings are compiled with one of WARPWRIGHT_BACKEND_CPU, _CUDA, _EMULATED: see csrc/build.py"
#endif
