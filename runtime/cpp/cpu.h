// What this processor can do.
#pragma once

#if (defined(__x86_64__) || defined(_M_X64)) && defined(__GNUC__)
#define PTQ_X86 1
#else
#define PTQ_X86 0
#endif

namespace ptq {

inline bool has_avx512vnni() {
#if PTQ_X86
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

}  // namespace ptq
