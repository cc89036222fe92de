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

struct NhwcQLinearConvKernel;

template <bool kWithCenter>
struct NhwcQLinearConvOp : Ort::CustomOpBase<NhwcQLinearConvOp<kWithCenter>, NhwcQLinearConvKernel, true> {
  NhwcQLinearConvOp();
  OrtStatusPtr CreateKernelV2(const OrtApi& api, const OrtKernelInfo* info, void** kernel) const;
  const char* GetName() const;
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
  size_t GetInputTypeCount() const { return kWithCenter ? 15 : 8; }
  ONNXTensorElementDataType GetInputType(size_t index) const;
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const;
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8; }
  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context);
};

using NhwcQLinearConv = NhwcQLinearConvOp<false>;
using NhwcQLinearConvWithCenter = NhwcQLinearConvOp<true>;

}  // namespace ptq
