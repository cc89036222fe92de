#include "grouped_conv/grouped_conv.h"
#include "simd/simd.h"

#if PTQ_X86
PTQ_TARGET_BEGIN("avx2")
namespace ptq {
namespace {
#include "simd/avx2.h"
using V = Avx2;
#include "grouped_conv/grouped_conv.inc"
}  // namespace
PTQ_TARGET_END

const ConvKernels kConvAvx2 = {
    "avx2", V::kLanes, V::kSignedBytes, depthwise_conv, image_conv, narrow_conv, dense_conv,
};

}  // namespace ptq
#endif
