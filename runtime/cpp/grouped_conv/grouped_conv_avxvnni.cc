#include "grouped_conv/grouped_conv.h"
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
#include "grouped_conv/grouped_conv.inc"
}  // namespace
PTQ_TARGET_END

const ConvKernels kConvAvxVnni = {
    "avxvnni", V::kLanes, V::kSignedBytes, depthwise_conv, image_conv, narrow_conv, dense_conv,
};

}  // namespace ptq
#endif
