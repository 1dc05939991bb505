// wgmma's inline assembly. PTX has an instruction for each N, with N / 2 registers for the sums. They are the first
// operands of the statement, so the numbers of those that follow depend on N too: hence the tables.

#pragma once

// The names of the first COUNT operands.
#define WARPWRIGHT_NAMES_4 "%0, %1, %2, %3"
#define WARPWRIGHT_NAMES_8 WARPWRIGHT_NAMES_4 ", %4, %5, %6, %7"
#define WARPWRIGHT_NAMES_12 WARPWRIGHT_NAMES_8 ", %8, %9, %10, %11"
#define WARPWRIGHT_NAMES_16 WARPWRIGHT_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WARPWRIGHT_NAMES_24 WARPWRIGHT_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define WARPWRIGHT_NAMES_32 WARPWRIGHT_NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define WARPWRIGHT_NAMES_40 WARPWRIGHT_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define WARPWRIGHT_NAMES_48 WARPWRIGHT_NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define WARPWRIGHT_NAMES_56 WARPWRIGHT_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define WARPWRIGHT_NAMES_64 WARPWRIGHT_NAMES_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define WARPWRIGHT_NAMES_72 WARPWRIGHT_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define WARPWRIGHT_NAMES_80 WARPWRIGHT_NAMES_72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define WARPWRIGHT_NAMES_88 WARPWRIGHT_NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define WARPWRIGHT_NAMES_96 WARPWRIGHT_NAMES_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define WARPWRIGHT_NAMES_104 WARPWRIGHT_NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define WARPWRIGHT_NAMES_112 WARPWRIGHT_NAMES_104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define WARPWRIGHT_NAMES_120 WARPWRIGHT_NAMES_112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define WARPWRIGHT_NAMES_128 WARPWRIGHT_NAMES_120 ", %120, %121, %122, %123, %124, %125, %126, %127"

// The sums as operands, of constraint C.
#define WARPWRIGHT_SUMS_AT(C, I) C(d[I]), C(d[I + 1]), C(d[I + 2]), C(d[I + 3])
#define WARPWRIGHT_SUMS_4(C) WARPWRIGHT_SUMS_AT(C, 0)
#define WARPWRIGHT_SUMS_8(C) WARPWRIGHT_SUMS_4(C), WARPWRIGHT_SUMS_AT(C, 4)
#define WARPWRIGHT_SUMS_12(C) WARPWRIGHT_SUMS_8(C), WARPWRIGHT_SUMS_AT(C, 8)
#define WARPWRIGHT_SUMS_16(C) WARPWRIGHT_SUMS_8(C), WARPWRIGHT_SUMS_AT(C, 8), WARPWRIGHT_SUMS_AT(C, 12)
#define WARPWRIGHT_SUMS_24(C) WARPWRIGHT_SUMS_16(C), WARPWRIGHT_SUMS_AT(C, 16), WARPWRIGHT_SUMS_AT(C, 20)
#define WARPWRIGHT_SUMS_32(C) WARPWRIGHT_SUMS_24(C), WARPWRIGHT_SUMS_AT(C, 24), WARPWRIGHT_SUMS_AT(C, 28)
#define WARPWRIGHT_SUMS_40(C) WARPWRIGHT_SUMS_32(C), WARPWRIGHT_SUMS_AT(C, 32), WARPWRIGHT_SUMS_AT(C, 36)
#define WARPWRIGHT_SUMS_48(C) WARPWRIGHT_SUMS_40(C), WARPWRIGHT_SUMS_AT(C, 40), WARPWRIGHT_SUMS_AT(C, 44)
#define WARPWRIGHT_SUMS_56(C) WARPWRIGHT_SUMS_48(C), WARPWRIGHT_SUMS_AT(C, 48), WARPWRIGHT_SUMS_AT(C, 52)
#define WARPWRIGHT_SUMS_64(C) WARPWRIGHT_SUMS_56(C), WARPWRIGHT_SUMS_AT(C, 56), WARPWRIGHT_SUMS_AT(C, 60)
#define WARPWRIGHT_SUMS_72(C) WARPWRIGHT_SUMS_64(C), WARPWRIGHT_SUMS_AT(C, 64), WARPWRIGHT_SUMS_AT(C, 68)
#define WARPWRIGHT_SUMS_80(C) WARPWRIGHT_SUMS_72(C), WARPWRIGHT_SUMS_AT(C, 72), WARPWRIGHT_SUMS_AT(C, 76)
#define WARPWRIGHT_SUMS_88(C) WARPWRIGHT_SUMS_80(C), WARPWRIGHT_SUMS_AT(C, 80), WARPWRIGHT_SUMS_AT(C, 84)
#define WARPWRIGHT_SUMS_96(C) WARPWRIGHT_SUMS_88(C), WARPWRIGHT_SUMS_AT(C, 88), WARPWRIGHT_SUMS_AT(C, 92)
#define WARPWRIGHT_SUMS_104(C) WARPWRIGHT_SUMS_96(C), WARPWRIGHT_SUMS_AT(C, 96), WARPWRIGHT_SUMS_AT(C, 100)
#define WARPWRIGHT_SUMS_112(C) WARPWRIGHT_SUMS_104(C), WARPWRIGHT_SUMS_AT(C, 104), WARPWRIGHT_SUMS_AT(C, 108)
#define WARPWRIGHT_SUMS_120(C) WARPWRIGHT_SUMS_112(C), WARPWRIGHT_SUMS_AT(C, 112), WARPWRIGHT_SUMS_AT(C, 116)
#define WARPWRIGHT_SUMS_128(C) WARPWRIGHT_SUMS_120(C), WARPWRIGHT_SUMS_AT(C, 120), WARPWRIGHT_SUMS_AT(C, 124)

// X(N, COUNT, numbers of the twelve operands that follow COUNT sums, ...) for each N that every type has.
#define WARPWRIGHT_EACH_N(X, ...)                                                      \
  X(8, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, __VA_ARGS__)                       \
  X(16, 8, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, __VA_ARGS__)                  \
  X(24, 12, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, __VA_ARGS__)               \
  X(32, 16, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, __VA_ARGS__)               \
  X(48, 24, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, __VA_ARGS__)               \
  X(64, 32, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, __VA_ARGS__)               \
  X(80, 40, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, __VA_ARGS__)               \
  X(96, 48, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, __VA_ARGS__)               \
  X(112, 56, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, __VA_ARGS__)              \
  X(128, 64, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, __VA_ARGS__)              \
  X(144, 72, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, __VA_ARGS__)              \
  X(160, 80, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, __VA_ARGS__)              \
  X(176, 88, 88, 89, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99, __VA_ARGS__)              \
  X(192, 96, 96, 97, 98, 99, 100, 101, 102, 103, 104, 105, 106, 107, __VA_ARGS__)      \
  X(208, 104, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113, 114, 115, __VA_ARGS__) \
  X(224, 112, 112, 113, 114, 115, 116, 117, 118, 119, 120, 121, 122, 123, __VA_ARGS__) \
  X(240, 120, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129, 130, 131, __VA_ARGS__) \
  X(256, 128, 128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 138, 139, __VA_ARGS__)

// What stands for A and B, by their operands' numbers: A in shared memory or in registers, whole or with metadata and
// the selector of the lanes that have them.
#define WARPWRIGHT_WGMMA_SHARED(B, A0, A1, A2, A3, A4, A5) "%" #A0 ", %" #B
#define WARPWRIGHT_WGMMA_REGISTERS(B, A0, A1, A2, A3, A4, A5) "{%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B
#define WARPWRIGHT_WGMMA_SP_SHARED(B, A0, A1, A2, A3, A4, A5) "%" #A0 ", %" #B ", %" #A1 ", %" #A2
#define WARPWRIGHT_WGMMA_SP_REGISTERS(B, A0, A1, A2, A3, A4, A5) \
  "{%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", %" #A4 ", %" #A5

// The statement for one N, in a function that has kN, the types TA and TB, kDepth, Modes (wgmma.cuh), b and accumulate.
// The operands after the sums: b, accumulate, K, A's type, B's type, modes, and those that the caller adds.
#define WARPWRIGHT_WGMMA_N(N, COUNT, B, ADD, K, A_TYPE, B_TYPE, MODES, A0, A1, A2, A3, A4, A5, SUM, C, SP, A, ...) \
  if constexpr (kN == N) {                                                                                         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ADD                                                         \
                 ", 0;\n"                                                                                          \
                 "wgmma.mma_async" SP ".sync.aligned.m64n" #N "k%" #K "." SUM ".%" #A_TYPE ".%" #B_TYPE            \
                 " {" WARPWRIGHT_NAMES_##COUNT "}, " A(B, A0, A1, A2, A3, A4, A5) ", p%" #MODES ";\n}\n"           \
                 : WARPWRIGHT_SUMS_##COUNT(C)                                                                      \
                 : "l"(b), "r"(static_cast<int>(accumulate)), "n"(kDepth), "C"(Element<TA>::kName),                \
                   "C"(Element<TB>::kName), "C"(Modes::kText), __VA_ARGS__);                                       \
  }

// The statements for either type of sums: WARPWRIGHT_WGMMA("" or ".sp", what stands for A and B, operands...).
#define WARPWRIGHT_WGMMA(...)                                       \
  if constexpr (kIsInt8<TA>) {                                      \
    WARPWRIGHT_EACH_N(WARPWRIGHT_WGMMA_N, "s32", "+r", __VA_ARGS__) \
  } else {                                                          \
    WARPWRIGHT_EACH_N(WARPWRIGHT_WGMMA_N, "f32", "+f", __VA_ARGS__) \
  }
