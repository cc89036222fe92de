#include "grouped_conv/grouped_conv.h"
#include "simd/simd.h"

#if PTQ_X86
PTQ_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
namespace ptq {
namespace {
#include "simd/avx512vnni.h"
using V = Avx512Vnni;
#include "grouped_conv/grouped_conv.inc"
}  // namespace
PTQ_TARGET_END

const ConvKernels kConvAvx512Vnni = {
    "avx512vnni", V::kLanes, V::kSignedBytes, depthwise_conv, image_conv, narrow_conv, dense_conv,
};

}  // namespace ptq
#endif
