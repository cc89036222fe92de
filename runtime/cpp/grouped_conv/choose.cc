#include "cpu.h"
#include "grouped_conv/grouped_conv.h"

namespace ptq {
namespace {

const ConvKernels* kernels() {
#if PTQ_X86
  if (has_avx512vnni() && wants("avx512vnni")) return &kConvAvx512Vnni;
  if (has_avxvnni() && wants("avxvnni")) return &kConvAvxVnni;
  if (has_avx2() && wants("avx2")) return &kConvAvx2;
#elif PTQ_ARM
  if (has_dotprod() && wants("neon")) return &kConvNeon;
#endif
  return nullptr;
}

}  // namespace

GroupedConvKernel choose_grouped_conv(GroupedConv& layer) {
  const ConvKernels* found = kernels();
  const ConvKind kind = found ? conv_kind(layer, found->lanes) : ConvKind::kReference;
  if (kind == ConvKind::kReference) return grouped_conv_ref;
  pack_conv(layer, kind, found->signed_bytes);
  if (kind == ConvKind::kDepthwise) return found->depthwise;
  if (kind == ConvKind::kImage) return found->image;
  return kind == ConvKind::kNarrow ? found->narrow : found->dense;
}

}  // namespace ptq
