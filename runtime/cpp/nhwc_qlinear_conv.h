// ai.ptq::NhwcQLinearConv: ONNX's QLinearConv with channels last, for convolutions in groups and of images.
//
// Inputs, all but x constant: x uint8 [N, H, W, C]; x_scale float []; x_zero_point uint8 []; w int8 [M, C / group, kH, kW];
// w_scale float [M] or []; y_scale float []; y_zero_point uint8 []; B int32 [M], optional. Output: y uint8
// [N, outH, outW, M]. Attributes as in Conv: group, strides, pads, dilations.
//
// ai.ptq::NhwcQLinearConvWithCenter: the same, B required, plus a convolution with the kernel's centre alone, in one
// pass and rounded once. Further inputs: center int8 [M, C / group, 1, 1]; center_scale float [M] or []; center_B int32
// [M]; and what only its body uses: scale and zero point of the first convolution by itself, and of the second.
#pragma once

#include "ort.h"

namespace ptq {

template <bool kWithCenter>
struct NhwcQLinearConvOp : Operator<NhwcQLinearConvOp<kWithCenter>> {
  static const char* name();
  static size_t num_inputs() { return kWithCenter ? 15 : 8; }
  static ElementType input_type(size_t index);
  static Presence presence(size_t index);
  static ElementType output_type() { return ElementType::kUint8; }
  static Kernel* create(const KernelInfo* info);
  static void infer(const Inference& node);
};

using NhwcQLinearConv = NhwcQLinearConvOp<false>;
using NhwcQLinearConvWithCenter = NhwcQLinearConvOp<true>;

}  // namespace ptq
