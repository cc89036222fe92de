// What a kernel needs from a vector unit, as one struct of static functions per instruction set.
//
// A vector holds kLanes int32 sums, or as many dwords of four bytes, or floats. Kernels are templates over that struct,
// and each instruction set has a source file of its own that includes them between PTQ_TARGET_BEGIN and PTQ_TARGET_END:
// only what is written there is compiled for more than the baseline, templates of the standard library are not.
//
//   dot(sum, bytes, x)        sum + products of unsigned bytes with signed ones, four per lane
//   dot_small(sum, bytes, x)  the same for bytes below 16, where some units have a shorter way
//   kSignedBytes              whether dot wants its bytes signed: then bytes >= 128 have to come with their top bit
//                             flipped, and stand for 128 less
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define PTQ_X86 1
#include <immintrin.h>
#else
#define PTQ_X86 0
#endif

#if defined(__aarch64__)
#define PTQ_ARM 1
#include <arm_neon.h>
#else
#define PTQ_ARM 0
#endif

#define PTQ_STRING(text) #text
#if defined(__clang__)
#define PTQ_TARGET_BEGIN(features) \
  _Pragma(PTQ_STRING(clang attribute push(__attribute__((target(features))), apply_to = function)))
#define PTQ_TARGET_END _Pragma("clang attribute pop")
#else
#define PTQ_TARGET_BEGIN(features) _Pragma("GCC push_options") _Pragma(PTQ_STRING(GCC target(features)))
#define PTQ_TARGET_END _Pragma("GCC pop_options")
#endif

// Before loops over the accumulators of a tile: unrolled late, they would live in memory.
#define PTQ_UNROLL _Pragma("GCC unroll 8")

// For what holds a tile's accumulators: called, it would pass them through memory.
#define PTQ_INLINE __attribute__((always_inline)) inline
