#include "matmul_nbits/matmul_nbits.h"
#include "simd/simd.h"

#if PTQ_X86
PTQ_TARGET_BEGIN("avx2")
namespace ptq {
namespace {
#include "simd/avx2.h"
using V = Avx2;
#include "matmul_nbits/matmul_nbits.inc"
}  // namespace
PTQ_TARGET_END

const NBitsKernels kNBitsAvx2 = {"avx2", quantize, shift, multiply};

}  // namespace ptq
#endif
