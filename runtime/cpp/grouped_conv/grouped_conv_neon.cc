#include "grouped_conv/grouped_conv.h"
#include "simd/simd.h"

#if PTQ_ARM
PTQ_TARGET_BEGIN("arch=armv8.2-a+dotprod")
namespace ptq {
namespace {
#include "simd/neon.h"
using V = Neon;
#include "grouped_conv/grouped_conv.inc"
}  // namespace
PTQ_TARGET_END

const ConvKernels kConvNeon = {
    "neon", V::kLanes, V::kSignedBytes, depthwise_conv, image_conv, narrow_conv, dense_conv,
};

}  // namespace ptq
#endif
