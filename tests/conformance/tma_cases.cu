// TMA: boxes of a tensor to shared memory, seen there byte by byte, and from there.

#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/tma.cuh"
#include "harness.h"

namespace warpwright::conformance {
namespace {

using namespace warpwright::cuda;
using ptx::kMaxTensorRank;

inline constexpr int kThreads = 64, kMaxBoxes = 8;

struct TmaParams {
  ptx::TensorMap map;
  const unsigned char* input;
  unsigned char* output;
  int bytes;  // Of a box; a multiple of 16.
  int boxes;
  int coordinates[kMaxBoxes][kMaxTensorRank];
  uint16_t offsets[kMaxBoxes][3];  // Of im2col.
  int mode;
  uint16_t masks[kMaxBoxes];  // Of multicast: what block r sends its box to.
};

// Boxes lie behind each other at multiples of the longest pattern of a swizzle.
WARPWRIGHT_HOST_DEVICE int slot_bytes(int bytes) { return (bytes + 1023) / 1024 * 1024; }

// Where the kernels are empty nobody calls it.
[[maybe_unused]] __device__ __forceinline__ void copy_bytes(unsigned char* to, const unsigned char* from, int bytes) {
  for (int i = 16 * static_cast<int>(threadIdx.x); i < bytes; i += 16 * kThreads) {
    *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
  }
}

template <int kRank>
__device__ __forceinline__ void coordinates_of(const TmaParams& p, int box, int (&at)[kRank]) {
  for (int d = 0; d < kRank; ++d) at[d] = p.coordinates[box][d];
}

// Block i loads box i.
template <int kRank, bool kIm2col>
__global__ void load_kernel(const __grid_constant__ TmaParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  __shared__ ptx::Mbarrier full;
  const auto box = static_cast<int>(blockIdx.x);
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&p.map);
    ptx::mbarrier_init(&full, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect(&full, static_cast<unsigned>(p.bytes));
    int at[kRank];
    coordinates_of(p, box, at);
    if constexpr (kIm2col) {
      uint16_t offsets[kRank - 2];
      for (int d = 0; d < kRank - 2; ++d) offsets[d] = p.offsets[box][d];
      ptx::tma_load_im2col(shared, &p.map, &full, at, offsets);
    } else {
      ptx::tma_load(shared, &p.map, &full, at);
    }
  }
  __syncthreads();
  ptx::mbarrier_wait(&full, 0);
  copy_bytes(p.output + box * p.bytes, shared, p.bytes);
#endif
}

// Phases of two boxes each through the same memory. mode 0: the bytes are announced with the arrival, before the loads;
// 1: after them; 2: box by box, then the arrival. Behind the boxes: whether the phase was over before its last box was
// asked for, and after the wait.
__global__ void transactions_kernel(const __grid_constant__ TmaParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  __shared__ ptx::Mbarrier full;
  const auto bytes = static_cast<unsigned>(p.bytes);
  unsigned char* const seen = p.output + p.boxes * p.bytes;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&full, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  for (int first = 0; first < p.boxes; first += 2) {
    const unsigned parity = first / 2 & 1;
    if (threadIdx.x == 0) {
      if (p.mode == 0) ptx::mbarrier_arrive_expect(&full, 2 * bytes);
      for (int i = 0; i < 2; ++i) {
        if (p.mode == 2) ptx::mbarrier_expect(&full, bytes);
        if (i == 1) seen[first] = ptx::mbarrier_test_wait(&full, parity) ? 1 : 0;
        int at[2];
        coordinates_of(p, first + i, at);
        ptx::tma_load(shared + i * slot_bytes(p.bytes), &p.map, &full, at);
      }
      if (p.mode == 1) ptx::mbarrier_arrive_expect(&full, 2 * bytes);
      if (p.mode == 2) ptx::mbarrier_arrive(&full);
    }
    ptx::mbarrier_wait(&full, parity);
    for (int i = 0; i < 2; ++i) {
      copy_bytes(p.output + (first + i) * p.bytes, shared + i * slot_bytes(p.bytes), p.bytes);
    }
    if (threadIdx.x == 0) seen[first + 1] = ptx::mbarrier_test_wait(&full, parity) ? 1 : 0;
    ptx::fence_proxy_async();
    __syncthreads();
  }
#endif
}

// Block r of the cluster sends box r to slot r of the blocks of its mask. Slots that nobody sends to keep the input.
__global__ void multicast_kernel(const __grid_constant__ TmaParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  __shared__ ptx::Mbarrier full;
  const auto size = static_cast<int>(ptx::cluster_size()), rank = static_cast<int>(ptx::cluster_rank());
  const int slot = slot_bytes(p.bytes);
  for (int r = 0; r < size; ++r) {
    for (int i = static_cast<int>(threadIdx.x); i < p.bytes; i += kThreads) shared[r * slot + i] = 0xa5;
  }
  unsigned expected = 0;
  for (int r = 0; r < size; ++r) expected += (p.masks[r] >> rank & 1) != 0 ? static_cast<unsigned>(p.bytes) : 0;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&full, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect(&full, expected);
  }
  ptx::fence_proxy_async();
  ptx::cluster_sync();
  if (threadIdx.x == 0) {
    int at[2];
    coordinates_of(p, rank, at);
    ptx::tma_load_multicast(shared + rank * slot, &p.map, &full, at, p.masks[rank]);
  }
  ptx::mbarrier_wait(&full, 0);
  for (int r = 0; r < size; ++r) {
    copy_bytes(p.output + (static_cast<int>(blockIdx.x) * size + r) * p.bytes, shared + r * slot, p.bytes);
  }
  ptx::cluster_sync();
#endif
}

// Stores or adds the boxes of the input in turn through two slots: the second waits for the first to be read only.
// mode 0: waits for the writes too; 1: for the reads alone, and leaves the writes to the kernel's end.
template <int kRank, bool kAdd>
__global__ void store_kernel(const __grid_constant__ TmaParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  for (int box = 0; box < p.boxes; ++box) {
    unsigned char* const slot = shared + box % 2 * slot_bytes(p.bytes);
    if (box >= 2 && threadIdx.x == 0) ptx::tma_store_wait_read<1>();
    __syncthreads();
    copy_bytes(slot, p.input + box * p.bytes, p.bytes);
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
      int at[kRank];
      coordinates_of(p, box, at);
      if constexpr (kAdd) {
        ptx::tma_reduce_add(&p.map, slot, at);
      } else {
        ptx::tma_store(&p.map, slot, at);
      }
      ptx::tma_store_commit();
    }
  }
  if (threadIdx.x == 0) {
    if (p.mode == 0) ptx::tma_store_wait<0>();
    ptx::tma_store_wait_read<0>();
  }
#endif
}

struct TmaCase {
  TmaParams params;
  int rank;
};

// numbers: dtype (-1: float32 that is rounded to TF32), rank, size[rank], stride[rank], swizzle, then of im2col:
// channels, pixels, lower, upper[rank - 2], of others: box[rank]; step[rank]; bytes, mode, boxes, then of each:
// coordinates[rank], of im2col offsets[rank - 2], mask.
TmaCase make_case(Case& c, const void* tensor, bool im2col) {
  ptx::TensorLayout layout{};
  layout.data = tensor;
  const int dtype = c.next();
  layout.to_tf32 = dtype < 0;
  layout.dtype = layout.to_tf32 ? DType::kFloat32 : static_cast<DType>(dtype);
  layout.rank = c.next();
  const int rank = layout.rank;
  for (int d = 0; d < rank; ++d) layout.size[d] = c.next();
  for (int d = 0; d < rank; ++d) layout.stride[d] = c.next();
  const auto swizzle = static_cast<ptx::Swizzle>(c.next());
  TmaCase result{{}, rank};
  TmaParams& p = result.params;
  if (im2col) {
    ptx::Im2colBox box{};
    box.channels = c.next(), box.pixels = c.next();
    for (int d = 0; d < rank - 2; ++d) box.lower[d] = c.next();
    for (int d = 0; d < rank - 2; ++d) box.upper[d] = c.next();
    for (int d = 0; d < rank; ++d) box.step[d] = c.next();
    p.map = ptx::encode_im2col(layout, box, swizzle);
  } else {
    ptx::TiledBox box{};
    for (int d = 0; d < rank; ++d) box.box[d] = c.next();
    for (int d = 0; d < rank; ++d) box.step[d] = c.next();
    p.map = ptx::encode_tiled(layout, box, swizzle);
  }
  p.input = static_cast<const unsigned char*>(c.input);
  p.output = static_cast<unsigned char*>(c.output);
  p.bytes = c.next(), p.mode = c.next(), p.boxes = c.next();
  for (int i = 0; i < p.boxes; ++i) {
    for (int d = 0; d < rank; ++d) p.coordinates[i][d] = c.next();
    for (int d = 0; im2col && d < rank - 2; ++d) p.offsets[i][d] = static_cast<uint16_t>(c.next());
    p.masks[i] = static_cast<uint16_t>(c.next());
  }
  return result;
}

LaunchConfig config_of(const TmaParams& p, int blocks, int slots) {
  LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kThreads)};
  config.shared_bytes = slots * slot_bytes(p.bytes);
  return config;
}

void run_load(Case c) {
  const auto [p, rank] = make_case(c, c.input, false);
  const LaunchConfig config = config_of(p, p.boxes, 1);
  if (rank == 1) launch("tma_load", load_kernel<1, false>, config, p);
  if (rank == 2) launch("tma_load", load_kernel<2, false>, config, p);
  if (rank == 3) launch("tma_load", load_kernel<3, false>, config, p);
  if (rank == 4) launch("tma_load", load_kernel<4, false>, config, p);
  if (rank == 5) launch("tma_load", load_kernel<5, false>, config, p);
}

void run_im2col(Case c) {
  const auto [p, rank] = make_case(c, c.input, true);
  const LaunchConfig config = config_of(p, p.boxes, 1);
  if (rank == 3) launch("tma_im2col", load_kernel<3, true>, config, p);
  if (rank == 4) launch("tma_im2col", load_kernel<4, true>, config, p);
  if (rank == 5) launch("tma_im2col", load_kernel<5, true>, config, p);
}

template <bool kAdd>
void run_store(Case c) {
  const auto [p, rank] = make_case(c, c.output, false);
  const LaunchConfig config = config_of(p, 1, 2);
  if (rank == 1) launch("tma_store", store_kernel<1, kAdd>, config, p);
  if (rank == 2) launch("tma_store", store_kernel<2, kAdd>, config, p);
  if (rank == 3) launch("tma_store", store_kernel<3, kAdd>, config, p);
  if (rank == 4) launch("tma_store", store_kernel<4, kAdd>, config, p);
  if (rank == 5) launch("tma_store", store_kernel<5, kAdd>, config, p);
}

void run_transactions(Case c) {
  const TmaParams p = make_case(c, c.input, false).params;
  launch("tma_transactions", transactions_kernel, config_of(p, 1, 2), p);
}

void run_multicast(Case c) {
  const TmaParams p = make_case(c, c.input, false).params;
  LaunchConfig config = config_of(p, 2 * p.boxes, p.boxes);
  config.cluster = p.boxes;
  launch("tma_multicast", multicast_kernel, config, p);
}

}  // namespace

std::span<const NamedCase> tma_cases() {
  static constexpr NamedCase kCases[] = {
      {"tma_load", run_load},
      {"tma_im2col", run_im2col},
      {"tma_store", run_store<false>},
      {"tma_add", run_store<true>},
      {"tma_transactions", run_transactions},
      {"tma_multicast", run_multicast},
  };
  return kCases;
}

}  // namespace warpwright::conformance
