// ai.ptq::NhwcQLinearConv: ONNX's QLinearConv with channels last, for convolutions in groups.
//
// Inputs, all but x constant: x uint8 [N, H, W, C]; x_scale float []; x_zero_point uint8 []; w int8 [M, C / group, kH, kW];
// w_scale float [M] or []; y_scale float []; y_zero_point uint8 []; B int32 [M], optional; center int8 [M, C / group],
// optional: with it the weight is w * 2^shift, plus center at the kernel's centre. Output: y uint8 [N, outH, outW, M].
// Attributes as in Conv: group, strides, pads, dilations; and shift.
#pragma once

#include "ort.h"

namespace ptq {

struct NhwcQLinearConvKernel;

struct NhwcQLinearConv : Ort::CustomOpBase<NhwcQLinearConv, NhwcQLinearConvKernel, true> {
  NhwcQLinearConv();
  OrtStatusPtr CreateKernelV2(const OrtApi& api, const OrtKernelInfo* info, void** kernel) const;
  const char* GetName() const { return "NhwcQLinearConv"; }
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
  size_t GetInputTypeCount() const { return 9; }
  ONNXTensorElementDataType GetInputType(size_t index) const;
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const;
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8; }
  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context);
};

}  // namespace ptq
