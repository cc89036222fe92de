// What this processor can do.
#pragma once

#include <cstdlib>
#include <cstring>

#include "simd/simd.h"

#if PTQ_X86
#include <cpuid.h>
#elif PTQ_ARM && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace ptq {

#if PTQ_X86
inline bool has_avx2() { return __builtin_cpu_supports("avx2"); }

inline bool has_avxvnni() {
#if defined(PTQ_EVEX)  // tests: the same code in the encoding of another unit
  return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
  unsigned a = 0, b = 0, c = 0, d = 0;  // compilers' own names for it are too young
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#endif
}

inline bool has_avx512vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}

inline bool has_avx512vbmi() { return has_avx512vnni() && __builtin_cpu_supports("avx512vbmi"); }
#endif

#if PTQ_ARM
inline bool has_dotprod() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & (1 << 20);  // ASIMDDP
#else
  return true;  // Apple's
#endif
}
#endif

// For comparisons: PTQ_KERNELS in the environment names the kernels to be run, "ref" the specification.
inline bool wants(const char* kernels) {
  const char* asked = std::getenv("PTQ_KERNELS");
  return asked == nullptr || asked[0] == 0 || std::strcmp(asked, kernels) == 0;
}

}  // namespace ptq
