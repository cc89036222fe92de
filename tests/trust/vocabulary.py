"""Words and numbers that models and files are spoilt with."""

from __future__ import annotations

import numpy as np
import onnx

NUMBERS = (-(1 << 63), -(1 << 31), -129, -2, -1, 0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 255, 65535, 1 << 24, 1 << 31, 1 << 40,
           (1 << 63) - 1)  # fmt: skip
FLOATS = (0.0, -0.0, -1.0, 0.5, 1e-45, 1e-38, 1e-7, 1e30, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan)
WORDS = ("", "x", "y", "w", "x_scale", "y_quantized", "nope", " ", "a/b:0", "größe", "\n", "\0", "%s{}", "x" * 3000,
         "../w.bin", "SAME_UPPER", "reflect", "NOTSET")  # fmt: skip
DOMAINS = ("", "ai.onnx", "com.microsoft", "ai.onnx.ml", "ai.ptq", "local", "nope", "ai.onnx.training")
OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas()})
LAYERS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU", "RNN", "Einsum", "ConvInteger", "Attention",
)  # fmt: skip
CONTRIBUTED = (
    "FusedConv", "FusedGemm", "FusedMatMul", "Gelu", "BiasGelu", "FastGelu", "QuickGelu", "LayerNormalization",
    "Attention", "QAttention", "SkipLayerNormalization", "EmbedLayerNormalization", "MultiHeadAttention",
    "GroupQueryAttention", "RotaryEmbedding", "QGemm", "QLinearAdd", "QLinearConcat", "QLinearMatMul",
    "MatMulNBits", "MatMulInteger16", "DynamicQuantizeMatMul", "TransposeMatMul", "QuantizeLinear", "Unique",
    "DequantizeLinear", "NhwcMaxPool", "Inverse",
)  # fmt: skip
UNARY = (
    "Relu", "Sigmoid", "Neg", "Identity", "Softmax", "Transpose", "Shape", "Cast <to = 1>", "Cast <to = 10>",
    "Cast <to = 7>", "Cast <to = 11>", "Not", "Flatten", "Squeeze", "ReduceMean", "GlobalAveragePool", "Erf", "Sqrt",
    "Log", "Dropout", "LeakyRelu <alpha = -2.0>", "HardSwish", "Exp", "NonZero", "Size", "DynamicQuantizeLinear",
    "LpNormalization", "MaxPool <kernel_shape = [2, 2]>", "Mish", "Gelu", "ArgMax", "LRN <size = 3>", "IsNaN",
    "Det", "Elu", "DepthToSpace <blocksize = 2>", "SequenceConstruct", "Optional", "InstanceNormalization", "Clip",
    "Multinomial",
)  # fmt: skip
BINARY = (
    "Add", "Mul", "Div", "Sub", "Pow", "MatMul", "Conv", "Gemm", "Concat <axis = -1>", "Concat <axis = 1>",
    "Gather", "Max", "PRelu", "Reshape", "Where", "Equal", "ConvTranspose", "Mod", "Expand", "Tile", "Sum",
)  # fmt: skip
TYPES = (
    "float16", "float64", "int8", "uint8", "int32", "int64", "bool", "float32",
)  # fmt: skip
