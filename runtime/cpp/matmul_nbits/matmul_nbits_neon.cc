#include "matmul_nbits/matmul_nbits.h"
#include "simd/simd.h"

#if PTQ_ARM
PTQ_TARGET_BEGIN("arch=armv8.2-a+dotprod")
namespace ptq {
namespace {
#include "simd/neon.h"
using V = Neon;
#include "matmul_nbits/matmul_nbits.inc"
}  // namespace
PTQ_TARGET_END

const NBitsKernels kNBitsNeon = {"neon", quantize, shift, multiply};

}  // namespace ptq
#endif
