// A consumer warpgroup's way along K: stage after stage is waited for, multiplied on the tensor cores and released
// (sm_90a).

#pragma once

#include "cuda/tile/wgmma_operand.cuh"
#include "cuda/tile/wgmma_pipeline.cuh"

namespace warpwright::cuda {

// What multiply_stages calls where there is nothing to do.
struct Nothing {
  template <class... Arguments>
  __device__ __forceinline__ void operator()(const Arguments&...) const {}
};

// sums[i] = the products of rows [64 i, 64 i + 64) of A's tile with all kN of B's, added up over `steps` stages. `a`
// and `b` are the operands' tiles in stage 0, kStageBytes apart in the next ones; `a` is this warpgroup's rows.
//
// The instructions of a step wait for those of the step before alone, so the tensor cores have the next ones in hand
// when they finish. A step's stage is therefore released a step later. all_started() is called when the last step's
// have been started: no stage of these steps will be waited for any more. has_come(step) is called when a step's
// operands have come to the stage and before they are multiplied; beside(i, a, accumulate) may start other products of
// each part of A, which have been waited for as well at the end.
template <class T, bool kAAlongK, bool kBAlongK, int kStageBytes, int kMmas, int kSums, int kStages,
          class AllStarted = Nothing, class HasCome = Nothing, class Beside = Nothing>
__device__ __forceinline__ void multiply_stages(float (&sums)[kMmas][kSums], uint64_t a, uint64_t b,
                                                WgmmaBarriers<kStages>& barriers, WgmmaStage<kStages>& stage, int steps,
                                                unsigned cluster = 1, const AllStarted& all_started = {},
                                                const HasCome& has_come = {}, const Beside& beside = {}) {
  constexpr int kN = 2 * kSums;
  int previous = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    ptx::mbarrier_wait(&barriers.full[stage.index], stage.parity);
    has_come(step);
    const uint64_t a_tile = a + stage.index * kStageBytes / 16;
    const uint64_t b_tile = b + stage.index * kStageBytes / 16;
    ptx::wgmma_fence();
#pragma unroll
    for (int part = 0; part < kSpanBytes / ptx::kProductBytes; ++part) {
#pragma unroll
      for (int i = 0; i < kMmas; ++i) {
        const uint64_t a_part = advanced<kAAlongK>(a_tile, i, part);
        ptx::wgmma<T, kN, kAAlongK, kBAlongK>(sums[i], a_part, advanced<kBAlongK>(b_tile, 0, part), step + part > 0);
        beside(i, a_part, step + part > 0);
      }
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
    if (step > 0) release_stage(barriers, previous, cluster);
    previous = stage.index;
    stage.advance();
  }
  all_started();
  ptx::wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kMmas; ++i) ptx::wgmma_registers(sums[i]);
  release_stage(barriers, previous, cluster);
}

// multiply.operator()<kAAlongK, kBAlongK>() for operands that lie like this, B's in tiles of kN rows.
template <int kN, class Multiply>
__device__ __forceinline__ void with_layouts(bool a_along_k, bool b_along_k, const Multiply& multiply) {
  // Boxes have 64 rows: tiles of other sizes are for operands whose k lies together.
  if constexpr (kN % kBoxRows == 0) {
    if (!b_along_k) {
      return a_along_k ? multiply.template operator()<true, false>() : multiply.template operator()<false, false>();
    }
  }
  return a_along_k ? multiply.template operator()<true, true>() : multiply.template operator()<false, true>();
}

}  // namespace warpwright::cuda
