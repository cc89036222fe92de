#include "cpu.h"
#include "grouped_conv/grouped_conv.h"

namespace ptq {

GroupedConvKernel choose_grouped_conv([[maybe_unused]] GroupedConv& layer) {
#if PTQ_X86
  if (has_avx512vnni() && wants("avx512vnni")) {
    const ConvShape& shape = layer.shape;
    if (depthwise_conv_fits(shape)) {
      pack_depthwise(layer);
      return depthwise_conv_avx512vnni;
    }
    if (image_conv_fits(shape)) {
      pack_image(layer);
      return image_conv_avx512vnni;
    }
    if (narrow_conv_fits(shape)) {
      pack_narrow(layer);
      return narrow_conv_avx512vnni;
    }
  }
#endif
  return grouped_conv_ref;
}

}  // namespace ptq
