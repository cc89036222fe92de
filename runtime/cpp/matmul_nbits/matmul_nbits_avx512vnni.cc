#include "matmul_nbits/matmul_nbits.h"
#include "simd/simd.h"

#if PTQ_X86
PTQ_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
namespace ptq {
namespace {
#include "simd/avx512vnni.h"
using V = Avx512Vnni;
#include "matmul_nbits/matmul_nbits.inc"
}  // namespace
PTQ_TARGET_END

const NBitsKernels kNBitsAvx512Vnni = {"avx512vnni", quantize, shift, multiply};

}  // namespace ptq
#endif
