// Code that is wrong in one way, for tests/test_sanitizers.py, built as `csrc/build.py --sanitized` builds the kernels.

#if defined(WARPWRIGHT_BACKEND_EMULATED)

#include <exception>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tensor_map.cuh"
#include "cuda/ptx/tma.cuh"

#endif
