// Products with packed weights of 2, 4 or 8 bits, and a bias: x [.., K] times w [N, K], transposed -> y [.., N].
//
//   ai.ptq::DynamicMatMulNBits        x float; each block of each row is rounded to 8 bits on the way in. y float
//   ai.ptq::QLinearMatMulNBitsToFloat x uint8 with x_scale, x_zero_point. y float
//   ai.ptq::QLinearMatMulNBits        the same with y_scale, y_zero_point. y uint8
//
// Inputs, all but x constant: x; x_scale float [], x_zero_point uint8 [] (not dynamic); w uint8, packed as
// matmul_nbits/matmul_nbits.h says; w_scale float [ceil(N / 16), blocks, 16]; table int8 [2^bits], the value of each
// code; bias float [N]; y_scale float [], y_zero_point uint8 [] (bytes out only). Attributes: N, K, bits; block_size,
// a multiple of 16, or 0 for one scale per feature; min, max: ends of a clip (float out only).
#pragma once

#include "ort.h"

namespace ptq {

enum class Product { kDynamic, kToFloat, kToBytes };

template <Product kKind>
struct MatMulNBitsOp : Operator<MatMulNBitsOp<kKind>> {
  static const char* name();
  static size_t num_inputs();
  static ElementType input_type(size_t index);
  static Presence presence(size_t) { return Presence::kRequired; }
  static ElementType output_type();
  static Kernel* create(const KernelInfo* info);
  static void infer(const Inference& node);
};

using DynamicMatMulNBits = MatMulNBitsOp<Product::kDynamic>;
using QLinearMatMulNBitsToFloat = MatMulNBitsOp<Product::kToFloat>;
using QLinearMatMulNBits = MatMulNBitsOp<Product::kToBytes>;

}  // namespace ptq
