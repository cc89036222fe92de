#include "cpu.h"
#include "matmul_nbits/matmul_nbits.h"

namespace ptq {

const NBitsKernels& choose_nbits() {
#if PTQ_X86
  if (has_avx512vnni() && wants("avx512vnni")) return kNBitsAvx512Vnni;
  if (has_avxvnni() && wants("avxvnni")) return kNBitsAvxVnni;
  if (has_avx2() && wants("avx2")) return kNBitsAvx2;
#elif PTQ_ARM
  if (has_dotprod() && wants("neon")) return kNBitsNeon;
#endif
  return kNBitsRef;
}

}  // namespace ptq
