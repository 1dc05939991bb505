// TMA: one thread has boxes of a tensor copied between global and shared memory, tails and padding included (sm_90).
//
// PTX ISA 9.7.9.27.1.2, "cp.async.bulk.tensor", 9.7.9.27.1.3, "cp.reduce.async.bulk.tensor" and 9.7.9.27.2, "Bulk and
// Tensor copy completion instructions"; 5.5.3, "Tiled mode", 5.5.4, "im2col mode". Coordinates count elements from the
// innermost dimension on and may lie outside: what is read there is zero, what is written there is dropped. In shared
// memory the box lies densely, innermost dimension first, then swizzled.
//
// A load completes by the bytes of its whole box on an mbarrier; a store is closed into a group and waited for by the
// thread that started it. All of them go through the async proxy: see fence.cuh.

#pragma once

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tensor_map.cuh"

namespace warpwright::cuda::ptx {

#if defined(WARPWRIGHT_BACKEND_EMULATED)

// Calls piece(offset, global, first, last) for each 16 bytes of the box: they belong at `offset` of the box in shared
// memory before it is swizzled; bytes [first, last) of them are at global + first, the others lie outside.
template <class Piece>
void emulated_row(const EmulatedTensorMap& map, const int64_t (&at)[kMaxTensorRank], int elements, int64_t offset,
                  const Piece& piece) {
  const int64_t bytes = element_bytes(static_cast<DType>(map.element));
  bool inside = true;
  unsigned char* row = map.data;
  for (int d = 1; d < map.rank; ++d) {
    inside = inside && at[d] >= 0 && at[d] < map.size[d];
    row += at[d] * map.stride[d];
  }
  for (int64_t chunk = 0; chunk < elements * bytes; chunk += 16) {
    const int64_t from = at[0] * bytes + chunk, end = int64_t{map.size[0]} * bytes;
    const auto clamp = [](int64_t x) { return x < 0 ? 0 : x > 16 ? 16 : x; };
    const int64_t first = clamp(-from), last = inside ? clamp(end - from) : first;
    piece(offset + chunk, row + from, static_cast<int>(first), static_cast<int>(last < first ? first : last));
  }
}

template <class Piece>
void emulated_tile(const EmulatedTensorMap& map, const int* coordinates, const Piece& piece) {
  const int64_t row_bytes = int64_t{map.box[0]} * element_bytes(static_cast<DType>(map.element));
  int64_t rows = 1;
  for (int d = 1; d < map.rank; ++d) rows *= map.box[d];
  for (int64_t row = 0; row < rows; ++row) {
    int64_t at[kMaxTensorRank] = {coordinates[0]}, rest = row;
    for (int d = 1; d < map.rank; ++d) {
      at[d] = coordinates[d] + rest % map.box[d] * map.step[d];
      rest /= map.box[d];
    }
    emulated_row(map, at, map.box[0], row * row_bytes, piece);
  }
}

// Pixels are walked along the width, then the height, the depth and the batch, within the bounding box of the filter's
// base; each is read at its base plus the offsets (PTX ISA 5.5.4.1 and 5.5.4.2).
template <class Piece>
void emulated_im2col(const EmulatedTensorMap& map, const int* coordinates, const uint16_t* offsets,
                     const Piece& piece) {
  const int spatial = map.rank - 2, channels = map.box[0], pixels = map.box[1];
  const int64_t row_bytes = int64_t{channels} * element_bytes(static_cast<DType>(map.element));
  int64_t base[kMaxTensorRank] = {};
  for (int d = 0; d < map.rank; ++d) base[d] = coordinates[d];
  for (int pixel = 0; pixel < pixels; ++pixel) {
    int64_t at[kMaxTensorRank] = {};
    for (int d = 0; d < map.rank; ++d) at[d] = base[d] + (d >= 1 && d <= spatial ? offsets[d - 1] : 0);
    emulated_row(map, at, channels, pixel * row_bytes, piece);
    int d = 1;
    for (; d <= spatial; ++d) {
      base[d] += map.step[d];
      if (base[d] < int64_t{map.size[d]} + map.upper[d - 1]) break;
      base[d] = map.lower[d - 1];
    }
    if (d > spatial) ++base[map.rank - 1];
  }
}

inline const EmulatedTensorMap& emulated_map(const TensorMap* map) {
  const auto* found = reinterpret_cast<const EmulatedTensorMap*>(map->bytes);
  if (found->magic != EmulatedTensorMap::kMagic) emulator::stop("TMA: not a tensor map");
  return *found;
}

// The filter's base must lie within the bounding box, and offsets have 16, 8 or 5 bits: PTX ISA 5.5.4.1.
inline void check_im2col(const EmulatedTensorMap& map, const int* coordinates, const uint16_t* offsets) {
  const int spatial = map.rank - 2, most = most_im2col_offset(spatial);
  for (int d = 0; d < spatial; ++d) {
    const int64_t base = coordinates[d + 1], end = int64_t{map.size[d + 1]} + map.upper[d];
    if (base < map.lower[d] || base >= end) {
      emulator::stop("TMA: coordinate " + std::to_string(d + 1) + " of an im2col load is " + std::to_string(base) +
                     ", expected one within the pixel box, " + std::to_string(map.lower[d]) + " to " +
                     std::to_string(end - 1));
    }
    if (offsets[d] > most) {
      emulator::stop("TMA: im2col offset " + std::to_string(d) + " is " + std::to_string(offsets[d]) +
                     ", expected at most " + std::to_string(most));
    }
  }
}

template <int kRank>
emulator::Boxes emulated_boxes(const TensorMap* tensor_map, const int (&coordinates)[kRank], const uint16_t* offsets) {
  const EmulatedTensorMap& map = emulated_map(tensor_map);
  if (map.rank != kRank) {
    emulator::stop("TMA: " + std::to_string(kRank) + " coordinates for a map of rank " + std::to_string(map.rank));
  }
  if ((map.im2col != 0) != (offsets != nullptr))
    emulator::stop("TMA: an im2col map goes with im2col loads, and only with them");
  if (offsets != nullptr) check_im2col(map, coordinates, offsets);
  emulator::Boxes boxes;
  boxes.alignment = map.swizzle == 0 ? 128 : 128 << map.swizzle;
  boxes.to_tf32 = map.to_tf32 != 0;
  const auto piece = [&](int64_t offset, unsigned char* global, int first, int last) {
    boxes.add({swizzled(offset, static_cast<Swizzle>(map.swizzle)), global, first, last});
  };
  if (map.im2col != 0) {
    emulated_im2col(map, coordinates, offsets, piece);
  } else {
    emulated_tile(map, coordinates, piece);
  }
  return boxes;
}

// sum += value for `bytes` of elements of this dtype, rounded once an element. Not watched: the accesses are TMA's.
__attribute__((noinline, no_sanitize("thread"))) inline void emulated_add(unsigned char* sum,
                                                                          const unsigned char* value, int bytes,
                                                                          DType dtype) {
  const auto each = [&](auto tag, auto add) __attribute__((no_sanitize("thread"))) {
    using T = decltype(tag);
    for (int i = 0; i < bytes; i += static_cast<int>(sizeof(T))) {
      T a, b;
      std::memcpy(&a, sum + i, sizeof(T));
      std::memcpy(&b, value + i, sizeof(T));
      a = add(a, b);
      std::memcpy(sum + i, &a, sizeof(T));
    }
  };
  switch (dtype) {
    case DType::kFloat32: return each(float{}, [](float a, float b) { return a + b; });
    case DType::kInt32:
      return each(int32_t{}, [](int32_t a, int32_t b) {
        return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
      });
    case DType::kFloat16:
      return each(__half{}, [](__half a, __half b) { return __float2half_rn(__half2float(a) + __half2float(b)); });
    case DType::kBFloat16:
      return each(__nv_bfloat16{}, [](__nv_bfloat16 a, __nv_bfloat16 b) {
        return __float2bfloat16_rn(__bfloat162float(a) + __bfloat162float(b));
      });
    default: emulator::stop("TMA: add is for float32, float16, bfloat16 and int32");
  }
}

#endif

// Brings the map itself into the cache of descriptors.
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap* map) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  (void)emulated_map(map);
#else
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
#endif
}

#if !defined(WARPWRIGHT_BACKEND_EMULATED)
// An instruction for each rank; the coordinates are operands 0 to 4, as many of them as the rank says.
#define WARPWRIGHT_TMA_RANK(RANK, COORDINATES, BEFORE, MODE, MIDDLE, AFTER, ...)                       \
  if constexpr (kRank == RANK) {                                                                       \
    asm volatile(BEFORE "." #RANK "d" MODE MIDDLE "{" COORDINATES "}" AFTER ::"r"(coordinates[0]),     \
                 "r"(coordinates[kRank > 1 ? 1 : 0]), "r"(coordinates[kRank > 2 ? 2 : 0]),             \
                 "r"(coordinates[kRank > 3 ? 3 : 0]), "r"(coordinates[kRank > 4 ? 4 : 0]), __VA_ARGS__ \
                 : "memory");                                                                          \
  }
#define WARPWRIGHT_TMA(BEFORE, MODE, MIDDLE, AFTER, ...)                             \
  WARPWRIGHT_TMA_RANK(1, "%0", BEFORE, MODE, MIDDLE, AFTER, __VA_ARGS__)             \
  WARPWRIGHT_TMA_RANK(2, "%0, %1", BEFORE, MODE, MIDDLE, AFTER, __VA_ARGS__)         \
  WARPWRIGHT_TMA_RANK(3, "%0, %1, %2", BEFORE, MODE, MIDDLE, AFTER, __VA_ARGS__)     \
  WARPWRIGHT_TMA_RANK(4, "%0, %1, %2, %3", BEFORE, MODE, MIDDLE, AFTER, __VA_ARGS__) \
  WARPWRIGHT_TMA_RANK(5, "%0, %1, %2, %3, %4", BEFORE, MODE, MIDDLE, AFTER, __VA_ARGS__)
#endif

// Loads the box at `coordinates` to `shared` and completes its bytes on `barrier`. `shared` is a multiple of 128 bytes,
// of the swizzle's pattern where there is one.
template <int kRank>
__device__ __forceinline__ void tma_load(void* shared, const TensorMap* map, Mbarrier* barrier,
                                         const int (&coordinates)[kRank]) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::tensor_load(shared, barrier, emulated_boxes(map, coordinates, nullptr), 0);
#else
  WARPWRIGHT_TMA("cp.async.bulk.tensor", ".shared::cluster.global.tile.mbarrier::complete_tx::bytes", " [%5], [%6, ",
                 "], [%7];\n", "r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)))
#endif
}

// The same into every block of the cluster whose bit is set in `blocks`: to the address that `shared` has there, on the
// object that lies where `barrier` does.
template <int kRank>
__device__ __forceinline__ void tma_load_multicast(void* shared, const TensorMap* map, Mbarrier* barrier,
                                                   const int (&coordinates)[kRank], uint16_t blocks) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::tensor_load(shared, barrier, emulated_boxes(map, coordinates, nullptr), blocks);
#else
  WARPWRIGHT_TMA("cp.async.bulk.tensor", ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster",
                 " [%5], [%6, ", "], [%7], %8;\n", "r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)),
                 "h"(blocks))
#endif
}

// Loads `pixels` of an im2col map, from the pixel whose filter base is at `coordinates` on, each `offsets` (width,
// height, depth) away from its base.
template <int kRank>
__device__ __forceinline__ void tma_load_im2col(void* shared, const TensorMap* map, Mbarrier* barrier,
                                                const int (&coordinates)[kRank], const uint16_t (&offsets)[kRank - 2]) {
  static_assert(kRank >= 3, "channels, at least a width, batch");
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::tensor_load(shared, barrier, emulated_boxes(map, coordinates, offsets), 0);
#else
#define WARPWRIGHT_IM2COL(RANK, COORDINATES, OFFSETS)                                                           \
  WARPWRIGHT_TMA_RANK(                                                                                          \
      RANK, COORDINATES, "cp.async.bulk.tensor", ".shared::cluster.global.im2col.mbarrier::complete_tx::bytes", \
      " [%5], [%6, ", "], [%7], {" OFFSETS "};\n", "r"(shared_address(shared)), "l"(map),                       \
      "r"(shared_address(barrier)), "h"(offsets[0]), "h"(offsets[kRank > 3 ? 1 : 0]), "h"(offsets[kRank > 4 ? 2 : 0]))
  WARPWRIGHT_IM2COL(3, "%0, %1, %2", "%8")
  WARPWRIGHT_IM2COL(4, "%0, %1, %2, %3", "%8, %9")
  WARPWRIGHT_IM2COL(5, "%0, %1, %2, %3, %4", "%8, %9, %10")
#undef WARPWRIGHT_IM2COL
#endif
}

// Starts storing the box at `coordinates` from `shared`.
template <int kRank>
__device__ __forceinline__ void tma_store(const TensorMap* map, const void* shared, const int (&coordinates)[kRank]) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::tensor_store(shared, emulated_boxes(map, coordinates, nullptr), nullptr);
#else
  WARPWRIGHT_TMA("cp.async.bulk.tensor", ".global.shared::cta.tile.bulk_group", " [%6, ", "], [%5];\n",
                 "r"(shared_address(shared)), "l"(map))
#endif
}

// Starts adding it to what is there, element by element.
template <int kRank>
__device__ __forceinline__ void tma_reduce_add(const TensorMap* map, const void* shared,
                                               const int (&coordinates)[kRank]) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  const auto dtype = static_cast<DType>(emulated_map(map).element);
  emulator::tensor_store(
      shared, emulated_boxes(map, coordinates, nullptr),
      [dtype](unsigned char* sum, const unsigned char* value, int bytes) { emulated_add(sum, value, bytes, dtype); });
#else
  WARPWRIGHT_TMA("cp.reduce.async.bulk.tensor", ".global.shared::cta.add.tile.bulk_group", " [%6, ", "], [%5];\n",
                 "r"(shared_address(shared)), "l"(map))
#endif
}

// Closes the stores that this thread has started since the last call into a group.
__device__ __forceinline__ void tma_store_commit() {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::commit_stores();
#else
  asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most the kPending latest groups of this thread still read shared memory.
template <int kPending>
__device__ __forceinline__ void tma_store_wait_read() {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::wait_for_stores(kPending, true);
#else
  asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(kPending) : "memory");
#endif
}

// Waits until at most the kPending latest groups of this thread have not been written to global memory.
template <int kPending>
__device__ __forceinline__ void tma_store_wait() {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::wait_for_stores(kPending, false);
#else
  asm volatile("cp.async.bulk.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

#if !defined(WARPWRIGHT_BACKEND_EMULATED)
#undef WARPWRIGHT_TMA
#undef WARPWRIGHT_TMA_RANK
#endif

}  // namespace warpwright::cuda::ptx
