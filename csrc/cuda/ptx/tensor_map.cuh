// Tensor maps: what TMA must know of a tensor in global memory, made on the host and passed to a kernel by value.
//
// PTX ISA 5.5, "Tensors"; CUDA driver API, "Tensor Map Object Management": cuTensorMapEncodeTiled and
// cuTensorMapEncodeIm2col, whose requirements are checked here with a message that names them. Dimensions run from the
// innermost, whose elements lie together, to the outermost.

#pragma once

#include <stdexcept>
#include <string>

#include "cuda/ptx/swizzle.cuh"

#if !defined(WARPWRIGHT_BACKEND_EMULATED)
#include <cuda.h>
#endif

namespace warpwright::cuda::ptx {

inline constexpr int kMaxTensorRank = 5;

// Opaque, as CUtensorMap is: a kernel takes it as a __grid_constant__ parameter and hands its address to TMA.
struct alignas(128) TensorMap {
  unsigned char bytes[128];
};

struct TensorLayout {
  const void* data;
  DType dtype;
  int rank;
  int64_t size[kMaxTensorRank];
  int64_t stride[kMaxTensorRank];  // In elements; stride[0] is 1.
  // Loads round float32 to TF32, to the nearest even number: what wgmma, which cuts bits off, wants in shared memory.
  bool to_tf32 = false;
};

inline int element_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64: return 8;
    case DType::kFloat32:
    case DType::kInt32: return 4;
    case DType::kFloat16:
    case DType::kBFloat16: return 2;
    case DType::kFloat8E4M3:
    case DType::kFloat8E5M2:
    case DType::kInt8:
    case DType::kUInt8: return 1;
  }
  return 0;
}

// In elements. That of a dimension of one element may be anything: nothing is ever that far away.
inline int64_t stride_of(const TensorLayout& layout, int d) {
  return d > 0 && layout.size[d] == 1 ? 16 / element_bytes(layout.dtype) : layout.stride[d];
}

// What keeps a tensor map of `layout` from being made, or an empty text.
inline std::string tensor_map_fault(const TensorLayout& layout) {
  const auto not_as = [](const std::string& what, int64_t is, const std::string& expected) {
    return what + " is " + std::to_string(is) + ", expected " + expected;
  };
  const int64_t bytes = element_bytes(layout.dtype);
  if (layout.to_tf32 && layout.dtype != DType::kFloat32) return "only float32 is rounded to TF32";
  if (layout.rank < 1 || layout.rank > kMaxTensorRank) return not_as("the rank", layout.rank, "1 to 5");
  if (layout.stride[0] != 1) return not_as("the innermost stride", layout.stride[0], "1");
  const auto off = static_cast<int64_t>(reinterpret_cast<uintptr_t>(layout.data) % 16);
  if (off != 0) return not_as("the data's address modulo 16", off, "0");
  for (int d = 0; d < layout.rank; ++d) {
    const std::string dimension = " of dimension " + std::to_string(d);
    if (layout.size[d] < 1 || layout.size[d] >= int64_t{1} << 32)
      return not_as("the size" + dimension, layout.size[d], "1 to 2^32 - 1");
    const int64_t stride = stride_of(layout, d);
    if (d > 0 && (stride <= 0 || stride * bytes % 16 != 0 || stride > ((int64_t{1} << 40) - 1) / bytes))
      return not_as("the stride" + dimension, stride,
                    "a multiple of " + std::to_string(16 / bytes) + " elements, below 2^40 bytes");
  }
  return "";
}
inline bool tensor_map_takes(const TensorLayout& layout) { return tensor_map_fault(layout).empty(); }

// Tiles of `box` elements; `step` elements from one to the next in each dimension (1 in the innermost).
struct TiledBox {
  int box[kMaxTensorRank];
  int step[kMaxTensorRank] = {1, 1, 1, 1, 1};
};

// Pixels of a convolution's input (channels, width[, height[, depth]], batch), PTX ISA 5.5.4: `channels` of each of
// `pixels` that are walked along the width first, within corners that are offsets from the first and last pixel.
struct Im2colBox {
  int lower[3], upper[3];  // Of (width, height, depth).
  int channels, pixels;
  int step[kMaxTensorRank] = {1, 1, 1, 1, 1};
};

#if defined(WARPWRIGHT_BACKEND_EMULATED)

// What the emulator keeps in a TensorMap's bytes.
struct EmulatedTensorMap {
  static constexpr uint32_t kMagic = 0x54414d45;
  uint32_t magic;
  uint8_t rank, swizzle, im2col, element, to_tf32;  // `element` is a DType.
  unsigned char* data;
  uint32_t size[kMaxTensorRank];
  int64_t stride[kMaxTensorRank];  // In bytes.
  uint16_t box[kMaxTensorRank];    // Tiled; of im2col: channels, pixels.
  uint8_t step[kMaxTensorRank];
  int16_t lower[3], upper[3];
};
static_assert(sizeof(EmulatedTensorMap) <= sizeof(TensorMap));

inline TensorMap pack_map(const TensorLayout& layout, Swizzle swizzle, bool im2col, const int* step) {
  TensorMap map{};
  auto* to = reinterpret_cast<EmulatedTensorMap*>(map.bytes);
  to->magic = EmulatedTensorMap::kMagic;
  to->rank = static_cast<uint8_t>(layout.rank);
  to->swizzle = static_cast<uint8_t>(swizzle);
  to->im2col = im2col;
  to->element = static_cast<uint8_t>(layout.dtype);
  to->to_tf32 = layout.to_tf32;
  to->data = static_cast<unsigned char*>(const_cast<void*>(layout.data));
  for (int d = 0; d < layout.rank; ++d) {
    to->size[d] = static_cast<uint32_t>(layout.size[d]);
    to->stride[d] = stride_of(layout, d) * element_bytes(layout.dtype);
    to->step[d] = static_cast<uint8_t>(d == 0 ? 1 : step[d]);
  }
  return map;
}

#else

inline CUtensorMapDataType map_dtype(const TensorLayout& layout) {
  if (layout.to_tf32) return CU_TENSOR_MAP_DATA_TYPE_TFLOAT32;
  switch (layout.dtype) {
    case DType::kFloat64: return CU_TENSOR_MAP_DATA_TYPE_FLOAT64;
    case DType::kInt64: return CU_TENSOR_MAP_DATA_TYPE_INT64;
    case DType::kFloat32: return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case DType::kInt32: return CU_TENSOR_MAP_DATA_TYPE_INT32;
    case DType::kFloat16: return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::kBFloat16: return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kFloat8E4M3:
    case DType::kFloat8E5M2:
    case DType::kInt8:
    case DType::kUInt8: return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  }
  throw std::logic_error("warpwright: no tensor map of this dtype");
}

// The driver's function, asked of the runtime: the library does not link the driver.
template <class Function>
Function driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) {
    throw std::runtime_error(std::string("warpwright: the CUDA driver has no ") + name);
  }
  return reinterpret_cast<Function>(found);
}

struct DriverLayout {
  cuuint64_t size[kMaxTensorRank], stride[kMaxTensorRank];
  cuuint32_t step[kMaxTensorRank];
};
inline DriverLayout driver_layout(const TensorLayout& layout, const int* step) {
  DriverLayout result{};
  for (int d = 0; d < layout.rank; ++d) {
    result.size[d] = static_cast<cuuint64_t>(layout.size[d]);
    if (d > 0) result.stride[d - 1] = static_cast<cuuint64_t>(stride_of(layout, d) * element_bytes(layout.dtype));
    result.step[d] = static_cast<cuuint32_t>(step[d]);
  }
  return result;
}

inline void check_driver(CUresult result, const char* name) {
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error(std::string("warpwright: ") + name + " failed with error " + std::to_string(result));
  }
}

#endif

[[noreturn]] inline void refuse_map(const std::string& why) {
  throw std::logic_error("warpwright: tensor map: " + why);
}

inline std::string out_of_range(const std::string& what, int64_t value, int64_t low, int64_t high) {
  return what + " is " + std::to_string(value) + ", expected " + std::to_string(low) + " to " + std::to_string(high);
}

// Throws unless `value`, which `what` names, is one of [low, high].
inline void check_range(const std::string& what, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) refuse_map(out_of_range(what, value, low, high));
}

inline void check_map(const TensorLayout& layout, int64_t inner_elements, Swizzle swizzle) {
  const std::string fault = tensor_map_fault(layout);
  if (!fault.empty()) refuse_map(fault);
  const int64_t bytes = inner_elements * element_bytes(layout.dtype);
  if (bytes % 16 != 0) {
    refuse_map("the box' innermost dimension has " + std::to_string(bytes) + " bytes, expected a multiple of 16");
  }
  if (swizzle != Swizzle::kNone && bytes > swizzle_span(swizzle)) {
    refuse_map("the box' innermost dimension has " + std::to_string(bytes) + " bytes, expected at most the " +
               std::to_string(swizzle_span(swizzle)) + " of the swizzle's span");
  }
}

inline TensorMap encode_tiled(const TensorLayout& layout, const TiledBox& box, Swizzle swizzle) {
  check_map(layout, box.box[0], swizzle);
  for (int d = 0; d < layout.rank; ++d) {
    const std::string dimension = " of dimension " + std::to_string(d);
    check_range("the box" + dimension, box.box[d], 1, 256);
    check_range("the step" + dimension, box.step[d], 1, d == 0 ? 1 : 8);
    // The driver's box counts the elements that are stepped over.
    check_range("the box times the step" + dimension, int64_t{box.box[d]} * box.step[d], 1, 256);
  }
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  TensorMap map = pack_map(layout, swizzle, false, box.step);
  for (int d = 0; d < layout.rank; ++d) {
    reinterpret_cast<EmulatedTensorMap*>(map.bytes)->box[d] = static_cast<uint16_t>(box.box[d]);
  }
#else
  const DriverLayout driver = driver_layout(layout, box.step);
  cuuint32_t sizes[kMaxTensorRank];
  for (int d = 0; d < layout.rank; ++d) sizes[d] = static_cast<cuuint32_t>(box.box[d] * box.step[d]);
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap));
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  TensorMap map;
  check_driver(encode(reinterpret_cast<CUtensorMap*>(&map), map_dtype(layout), static_cast<cuuint32_t>(layout.rank),
                      const_cast<void*>(layout.data), driver.size, driver.stride, sizes, driver.step,
                      CU_TENSOR_MAP_INTERLEAVE_NONE, static_cast<CUtensorMapSwizzle>(swizzle),
                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
               "cuTensorMapEncodeTiled");
#endif
  return map;
}

// What keeps an im2col map of a box from being made, or an empty text; the layout has none of tensor_map_fault's.
inline std::string im2col_fault(const TensorLayout& layout, const Im2colBox& box) {
  std::string fault;
  const auto check = [&](const char* what, int64_t value, int64_t low, int64_t high, int dimension = -1) {
    if (!fault.empty() || (value >= low && value <= high)) return;
    fault = out_of_range(dimension < 0 ? what : what + std::to_string(dimension), value, low, high);
  };
  check("the rank of an im2col map", layout.rank, 3, kMaxTensorRank);
  if (!fault.empty()) return fault;
  check("the number of channels", box.channels, 1, 256);
  check("the number of pixels", box.pixels, 1, 1024);
  const int spatial = layout.rank - 2, limit = spatial == 1 ? 32768 : spatial == 2 ? 128 : 16;
  for (int d = 0; d < layout.rank; ++d) check("the step of dimension ", box.step[d], 1, d == 0 ? 1 : 8, d);
  for (int d = 0; d < spatial; ++d) {
    check("the lower corner of dimension ", box.lower[d], -limit, limit - 1, d + 1);
    check("the upper corner of dimension ", box.upper[d], -limit, limit - 1, d + 1);
    const int64_t extent = layout.size[d + 1] + box.upper[d] - box.lower[d];
    if (fault.empty() && extent < 1) {
      fault = "the pixel box has " + std::to_string(extent) + " elements of dimension " + std::to_string(d + 1) +
              ", expected 1";
    }
  }
  return fault;
}

// The most that a load's offset into an im2col map of `spatial` dimensions can be: it has 16, 8 or 5 bits.
inline constexpr int most_im2col_offset(int spatial) { return spatial == 1 ? 0xffff : spatial == 2 ? 0xff : 0x1f; }

inline TensorMap encode_im2col(const TensorLayout& layout, const Im2colBox& box, Swizzle swizzle) {
  check_map(layout, box.channels, swizzle);
  const std::string fault = im2col_fault(layout, box);
  if (!fault.empty()) refuse_map(fault);
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  TensorMap map = pack_map(layout, swizzle, true, box.step);
  auto* to = reinterpret_cast<EmulatedTensorMap*>(map.bytes);
  to->box[0] = static_cast<uint16_t>(box.channels);
  to->box[1] = static_cast<uint16_t>(box.pixels);
  for (int d = 0; d < layout.rank - 2; ++d) {
    to->lower[d] = static_cast<int16_t>(box.lower[d]);
    to->upper[d] = static_cast<int16_t>(box.upper[d]);
  }
#else
  const DriverLayout driver = driver_layout(layout, box.step);
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  TensorMap map;
  check_driver(encode(reinterpret_cast<CUtensorMap*>(&map), map_dtype(layout), static_cast<cuuint32_t>(layout.rank),
                      const_cast<void*>(layout.data), driver.size, driver.stride, box.lower, box.upper,
                      static_cast<cuuint32_t>(box.channels), static_cast<cuuint32_t>(box.pixels), driver.step,
                      CU_TENSOR_MAP_INTERLEAVE_NONE, static_cast<CUtensorMapSwizzle>(swizzle),
                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
               "cuTensorMapEncodeIm2col");
#endif
  return map;
}

}  // namespace warpwright::cuda::ptx
