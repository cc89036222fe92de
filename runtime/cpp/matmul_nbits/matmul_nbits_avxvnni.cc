#include "matmul_nbits/matmul_nbits.h"
#include "simd/simd.h"

#if PTQ_X86
#if defined(PTQ_EVEX)
PTQ_TARGET_BEGIN("avx2,avx512vl,avx512vnni")
#else
PTQ_TARGET_BEGIN("avx2,avxvnni")
#endif
namespace ptq {
namespace {
#include "simd/avx2.h"
#include "simd/avxvnni.h"
using V = AvxVnni;
#include "matmul_nbits/matmul_nbits.inc"
}  // namespace
PTQ_TARGET_END

const NBitsKernels kNBitsAvxVnni = {"avxvnni", quantize, shift, multiply};

}  // namespace ptq
#endif
