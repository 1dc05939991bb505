// Quantization of a matrix, and of its transpose in the same pass, so that the products of the backward pass find K
// contiguous too. A block holds a tile of the matrix in shared memory, takes the largest magnitudes of its blocks or
// squares there, and writes both results: the input is read once. Scales of rows and of the whole tensor go beyond a
// tile: a kernel before it leaves each tile's maxima, and a second one makes scales of them. Maxima have no order, so
// that the same bits come out every time.

#include <type_traits>

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/quantize.cuh"
#include "kernels/philox.h"
#include "kernels/quantize.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;
constexpr int kTile = kQuantizeTile, kUnit = kQuantizeUnit, kUnits = kQuantizeUnits;
constexpr int kPad = 2;     // Elements: columns of the tile start in different banks.
constexpr int kCodes = 16;  // Bytes of one store.

// As the other kernels' parameters, and whether rows of the input are whole packs.
struct TileParams : QuantizeMatrixParams {
  bool packs;
};

template <class F>
__device__ __forceinline__ float scale_of_bits(uint32_t magnitude) {
  return scale_of_magnitude(__uint_as_float(magnitude), F::kMax);
}

// A uniform number from [0, 1) of 24 bits.
__device__ __forceinline__ float uniform(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

// `word`: random bits, used where `stochastic`.
template <class F>
__device__ __forceinline__ uint8_t encode(float x, bool stochastic, uint32_t word) {
  if constexpr (std::is_same_v<F, Int8>) {
    return encode_int8(stochastic ? floorf(x + uniform(word)) : x);
  } else {
    if (!stochastic) return encode_float8<F>(x);
    constexpr int kDropped = 23 - F::kMantissa;
    if (x != x) return static_cast<uint8_t>(kFloat8Nan);
    const uint32_t sign = (__float_as_uint(x) >> 24) & 0x80u;
    const float clamped = fminf(fabsf(x), F::kMax);
    const uint32_t magnitude = __float_as_uint(clamped);
    if (magnitude < power_bits(1 - F::kBias)) {
      const float steps = clamped * __uint_as_float(power_bits(F::kBias - 1 + F::kMantissa));
      return static_cast<uint8_t>(sign | static_cast<uint32_t>(floorf(steps + uniform(word))));
    }
    constexpr uint32_t kRebias = static_cast<uint32_t>(127 - F::kBias) << F::kMantissa;
    return static_cast<uint8_t>(sign | (((magnitude + (word >> (32 - kDropped))) >> kDropped) - kRebias));
  }
}

template <class T>
struct Tile {
  const T* values;   // (kTile, kTile + kPad) in shared memory, zeros past the matrix
  int64_t row, col;  // of its first element
  int rows, cols;    // that the matrix has

  __device__ __forceinline__ T at(int r, int c) const { return values[r * (kTile + kPad) + c]; }
};

template <class T>
__device__ __forceinline__ Tile<T> load_tile(const TileParams& p, T* values) {
  constexpr int kPack = kPackSize<T>;
  const int64_t tiles = (p.cols + kTile - 1) / kTile;
  const int64_t row = blockIdx.x / tiles * kTile, col = blockIdx.x % tiles * kTile;
  const auto rows = static_cast<int>(p.rows - row < kTile ? p.rows - row : kTile);
  const auto cols = static_cast<int>(p.cols - col < kTile ? p.cols - col : kTile);
  const auto at = [&](int r, int c) {
    return static_cast<const T*>(p.input.data) + p.input.offset(row + r) + (col + c) * p.input.col_stride;
  };
  for (int i = threadIdx.x; i < kTile * kTile / kPack; i += kThreads) {
    const int r = i / (kTile / kPack), first = i % (kTile / kPack) * kPack;
    Pack<T, kPack> pack;
    if (p.packs && r < rows && first < cols) {
      pack = *reinterpret_cast<const Pack<T, kPack>*>(at(r, first));
    } else {
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        pack.values[k] = r < rows && first + k < cols ? *at(r, first + k) : from_float<T>(0.0f);
      }
    }
#pragma unroll
    for (int k = 0; k < kPack; ++k) values[r * (kTile + kPad) + first + k] = pack.values[k];
  }
  __syncthreads();
  return {values, row, col, rows, cols};
}

// The largest magnitudes of each kUnit elements of a line of the tile: a row, or where kTurned a column.
template <class T, bool kTurned>
__device__ __forceinline__ void unit_maxima(const Tile<T>& tile, uint32_t (*maxima)[kUnits]) {
  for (int i = threadIdx.x; i < kTile * kUnits; i += kThreads) {
    const int line = i % kTile, unit = i / kTile;
    uint32_t largest = 0;
    for (int k = 0; k < kUnit; ++k) {
      const T value = kTurned ? tile.at(unit * kUnit + k, line) : tile.at(line, unit * kUnit + k);
      const uint32_t bits = __float_as_uint(to_float(value)) & 0x7fffffffu;
      largest = bits > largest ? bits : largest;
    }
    maxima[line][unit] = largest;
  }
  __syncthreads();
}

// The scale of each unit of each line: from the maxima of the units and, in squares, the lines that share it, or where
// a scale goes beyond the tile as another kernel made it. Each is written once.
template <class F>
__device__ __forceinline__ void unit_scales(const QuantizeMatrixParams& p, const QuantizeOutput& output, int64_t line0,
                                            int64_t element0, int lines, int elements, const uint32_t (*maxima)[kUnits],
                                            float (*scales)[kUnits]) {
  const bool square = p.granularity == Granularity::kSquare;
  const bool beyond = p.granularity == Granularity::kTensor || p.granularity == Granularity::kRow;
  const auto block = static_cast<int>(p.block);
  for (int i = threadIdx.x; i < kTile * kUnits; i += kThreads) {
    const int line = i % kTile, unit = i / kTile;
    if (line >= lines || unit * kUnit >= elements) continue;
    float* global = output.scale + output.grid.at(line0 + line, element0 + unit * kUnit);
    if (beyond) {
      scales[line][unit] = *global;
      continue;
    }
    const int units = block / kUnit, first_unit = unit / units * units;
    const int first_line = square ? line / block * block : line, last_line = square ? first_line + block : line + 1;
    uint32_t largest = 0;
    for (int l = first_line; l < last_line; ++l) {
      for (int u = first_unit; u < first_unit + units; ++u) largest = maxima[l][u] > largest ? maxima[l][u] : largest;
    }
    const float scale = scale_of_bits<F>(largest);
    scales[line][unit] = scale;
    if (unit == first_unit && line == first_line) *global = scale;
  }
  __syncthreads();
}

// Lines of the tile as codes, kCodes neighbours a thread. Random bits are those of the output's own elements.
template <class T, class F, bool kTurned>
__device__ __forceinline__ void write_codes(const QuantizeMatrixParams& p, const Tile<T>& tile,
                                            const float (*scales)[kUnits], uint8_t* quantized) {
  const int lines = kTurned ? tile.cols : tile.rows, elements = kTurned ? tile.rows : tile.cols;
  const int64_t line0 = kTurned ? tile.col : tile.row, element0 = kTurned ? tile.row : tile.col;
  const int64_t length = kTurned ? p.rows : p.cols;
  for (int i = threadIdx.x; i < kTile * kTile / kCodes; i += kThreads) {
    const int line = i / (kTile / kCodes), first = i % (kTile / kCodes) * kCodes;
    if (line >= lines || first >= elements) continue;
    const float scale = scales[line][first / kUnit];
    Pack<uint8_t, kCodes> codes;
#pragma unroll
    for (int quad = 0; quad < kCodes / kPhiloxWords; ++quad) {
      PhiloxBlock bits{};
      if (p.stochastic) {
        bits = philox(p.seed, line0 + line, (element0 + first) / kPhiloxWords + quad, kTurned);
      }
#pragma unroll
      for (int j = 0; j < kPhiloxWords; ++j) {
        const int k = quad * kPhiloxWords + j;
        const T value = kTurned ? tile.at(first + k, line) : tile.at(line, first + k);
        codes.values[k] = encode<F>(to_float(value) / scale, p.stochastic, bits.words[j]);
      }
    }
    uint8_t* to = quantized + (line0 + line) * length + element0 + first;
    if (first + kCodes <= elements && length % kCodes == 0) {
      store_whole(to, codes);
    } else {
#pragma unroll
      for (int k = 0; k < kCodes; ++k) {
        if (first + k < elements) to[k] = codes.values[k];
      }
    }
  }
}

// machine code: LDG.128, STG.128
template <class T, class F>
__global__ void __launch_bounds__(kThreads) quantize_tiles_kernel(const TileParams p) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  __shared__ uint32_t maxima[kTile][kUnits];
  __shared__ float scales[kTile][kUnits];
  const Tile<T> tile = load_tile<T>(p, reinterpret_cast<T*>(shared));
  const bool beyond = p.granularity == Granularity::kTensor || p.granularity == Granularity::kRow;
  if (!beyond) unit_maxima<T, false>(tile, maxima);
  unit_scales<F>(p, p.straight, tile.row, tile.col, tile.rows, tile.cols, maxima, scales);
  write_codes<T, F, false>(p, tile, scales, p.straight.quantized);
  if (p.transposed.quantized == nullptr) return;
  __syncthreads();
  if (!beyond) unit_maxima<T, true>(tile, maxima);
  unit_scales<F>(p, p.transposed, tile.col, tile.row, tile.cols, tile.rows, maxima, scales);
  write_codes<T, F, true>(p, tile, scales, p.transposed.quantized);
}

template <bool kTurned>
__device__ __forceinline__ void store_maxima(const uint32_t (*maxima)[kUnits], int64_t line0, int lines, int64_t number,
                                             int64_t tiles, uint32_t* partials) {
  for (int line = threadIdx.x; line < lines; line += kThreads) {
    uint32_t largest = 0;
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) largest = maxima[line][unit] > largest ? maxima[line][unit] : largest;
    partials[(line0 + line) * tiles + number] = largest;
  }
  __syncthreads();
}

// machine code: LDG.128
template <class T>
__global__ void __launch_bounds__(kThreads) quantize_maxima_kernel(const TileParams p) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  __shared__ uint32_t maxima[kTile][kUnits];
  const Tile<T> tile = load_tile<T>(p, reinterpret_cast<T*>(shared));
  unit_maxima<T, false>(tile, maxima);
  store_maxima<false>(maxima, tile.row, tile.rows, tile.col / kTile, (p.cols + kTile - 1) / kTile, p.straight.maxima);
  if (p.transposed.quantized == nullptr || p.granularity == Granularity::kTensor) return;
  unit_maxima<T, true>(tile, maxima);
  store_maxima<true>(maxima, tile.col, tile.cols, tile.row / kTile, (p.rows + kTile - 1) / kTile, p.transposed.maxima);
}

struct ScalesParams {
  const uint32_t* maxima;  // (scales, count)
  float* scale;            // (scales)
  float* copy;             // of the only scale, for the transposed matrix; null: none
  int64_t count;
};

// One block a scale.
// machine code: plain
template <class F>
__global__ void __launch_bounds__(kThreads) quantize_scales_kernel(const ScalesParams p) {
  __shared__ uint32_t maxima[kThreads];
  uint32_t largest = 0;
  for (int64_t i = threadIdx.x; i < p.count; i += kThreads) {
    const uint32_t bits = p.maxima[blockIdx.x * p.count + i];
    largest = bits > largest ? bits : largest;
  }
  maxima[threadIdx.x] = largest;
  __syncthreads();
  for (unsigned offset = kThreads / 2; offset > 0; offset /= 2) {
    if (threadIdx.x < offset) {
      const uint32_t bits = maxima[threadIdx.x + offset];
      if (bits > maxima[threadIdx.x]) maxima[threadIdx.x] = bits;
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  const float scale = scale_of_bits<F>(maxima[0]);
  p.scale[blockIdx.x] = scale;
  if (p.copy != nullptr) *p.copy = scale;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

namespace {

template <class F>
void make_scales(const QuantizeMatrixParams& params, Stream stream) {
  const int64_t tiles = (params.cols + kTile - 1) / kTile, turned_tiles = (params.rows + kTile - 1) / kTile;
  const bool tensor = params.granularity == Granularity::kTensor, turned = params.transposed.quantized != nullptr;
  const auto run = [&](const QuantizeOutput& output, int64_t scales, int64_t count, float* copy) {
    launch("quantize_scales", quantize_scales_kernel<F>, {dim3(static_cast<unsigned>(scales)), dim3(kThreads), stream},
           ScalesParams{output.maxima, output.scale, copy, count});
  };
  if (tensor) return run(params.straight, 1, params.rows * tiles, turned ? params.transposed.scale : nullptr);
  run(params.straight, params.rows, tiles, nullptr);
  if (turned) run(params.transposed, params.cols, turned_tiles, nullptr);
}

}  // namespace

void quantize(const QuantizeMatrixParams& params, Stream stream) {
  visit_float(params.input_dtype, [&](auto tag) {
    visit_codes(params.quantized_dtype, [&](auto format) {
      using T = decltype(tag);
      using F = decltype(format);
      const int64_t tiles = (params.rows + kTile - 1) / kTile * ((params.cols + kTile - 1) / kTile);
      LaunchConfig config{dim3(static_cast<unsigned>(tiles)), dim3(kThreads), stream};
      config.shared_bytes = kTile * (kTile + kPad) * static_cast<int>(sizeof(T));
      const TileParams tile{params, params.cols % kPackSize<T> == 0 && rows_fit_packs<T>(params.input)};
      const bool beyond = params.granularity == Granularity::kTensor || params.granularity == Granularity::kRow;
      if (beyond) launch("quantize_maxima", quantize_maxima_kernel<T>, config, tile);
      if (beyond) make_scales<F>(params, stream);
      launch("quantize_tiles", quantize_tiles_kernel<T, F>, config, tile);
    });
  });
}

}  // namespace warpwright::cuda
