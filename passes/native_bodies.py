"""Functions that give the operators of domain ai.ptq a meaning in standard ones: models carry them for other machines.

Weights are signed, but the standard operators get them unsigned with 128 as their zero: products of bytes of both kinds
saturate on x86 without VNNI.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

DOMAIN, VERSION = "ai.ptq", 1
CONV, CENTER, LOOKUP = "NhwcQLinearConv", "NhwcQLinearConvWithCenter", "Lookup"

UNSIGNED = """
    {name}_wide = Cast <to = 6> ({name})
    {name}_moved = Add ({name}_wide, middle)
    {name}_bytes = Cast <to = 2> ({name}_moved)"""
MIDDLE = """
    middle = Constant <value = int32 {128}> ()
    zero = Constant <value = uint8 {128}> ()"""

CONV_BODY = f"""
NhwcQLinearConv <group, strides, pads, dilations> (x, x_scale, x_zero, w, w_scale, y_scale, y_zero, bias) => (y)
{{{MIDDLE}{UNSIGNED.format(name="w")}
    first = Transpose <perm = [0, 3, 1, 2]> (x)
    product = QLinearConv <group: int = @group, strides: ints = @strides, pads: ints = @pads,
                           dilations: ints = @dilations>
        (first, x_scale, x_zero, w_bytes, w_scale, zero, y_scale, y_zero, bias)
    y = Transpose <perm = [0, 2, 3, 1]> (product)
}}"""

LOOKUP_BODY = """
Lookup (x, table) => (y)
{
    places = Cast <to = 6> (x)
    y = Gather (table, places)
}"""

CENTER_BODY = f"""
NhwcQLinearConvWithCenter <group, strides, pads, dilations, center_pads> (
    x, x_scale, x_zero, w, w_scale, y_scale, y_zero, bias, center, center_scale, center_bias,
    fine_scale, fine_zero, coarse_scale, coarse_zero) => (y)
{{{MIDDLE}{UNSIGNED.format(name="w")}{UNSIGNED.format(name="center")}
    first = Transpose <perm = [0, 3, 1, 2]> (x)
    fine = QLinearConv <group: int = @group, strides: ints = @strides, pads: ints = @pads,
                        dilations: ints = @dilations>
        (first, x_scale, x_zero, w_bytes, w_scale, zero, fine_scale, fine_zero, bias)
    coarse = QLinearConv <group: int = @group, strides: ints = @strides, pads: ints = @center_pads>
        (first, x_scale, x_zero, center_bytes, center_scale, zero, coarse_scale, coarse_zero, center_bias)
    fine_real = DequantizeLinear (fine, fine_scale, fine_zero)
    coarse_real = DequantizeLinear (coarse, coarse_scale, coarse_zero)
    both = Add (fine_real, coarse_real)
    codes = QuantizeLinear (both, y_scale, y_zero)
    y = Transpose <perm = [0, 2, 3, 1]> (codes)
}}"""

DECODED = """
    second = Constant <value_ints = [1]> ()
    one = Constant <value_int = 1> ()
    nothing = Constant <value_int = 0> ()
    first = Constant <value_ints = [0]> ()
    two = Constant <value_int = 2> ()
    byte = Constant <value_int = 256> ()
    eight = Constant <value_int = 8> ()
    features = Constant <value_int: int = @N> ()
    inputs = Constant <value_int: int = @K> ()
    word = Constant <value_int: int = @bits> ()
    levels = Pow (two, word)
    fields = Div (eight, word)
    every_field = Range (nothing, fields, one)
    divisors = Pow (levels, every_field)
    every_byte = Range (nothing, byte, one)
    column_shape = Constant <value_ints = [256, 1]> ()
    column = Reshape (every_byte, column_shape)
    places = Div (column, divisors)
    codes_of_byte = Mod (places, levels)
    values_of_byte = Gather (table_bytes, codes_of_byte)
    bytes = Cast <to = 6> (w)
    packed = Gather (values_of_byte, bytes)
    ordered = Transpose <perm = [0, 2, 1, 4, 3]> (packed)
    padded = Flatten <axis = 2> (ordered)
    rows = Reshape (features, second)
    columns = Reshape (inputs, second)
    ends = Concat <axis = 0> (rows, columns)
    starts = Constant <value_ints = [0, 0]> ()
    values = Slice (padded, starts, ends)
    codes = Transpose <perm = [1, 0]> (values)
    strips = Transpose <perm = [1, 0, 2]> (w_scale)
"""
"""uint8 [K, N] of packed codes; strips [blocks, ceil(N / 16), 16] of scales."""

PER_FEATURE = """
    flat = Constant <value_ints = [-1]> ()
    all_scales = Reshape (strips, flat)
    scales = Slice (all_scales, first, rows)
    zeros = Expand (zero, rows)
    weight = DequantizeLinear <axis = 1> (codes, scales, zeros)
"""

PER_BLOCK = """
    all_scales = Flatten <axis = 1> (strips)
    scales = Slice (all_scales, first, rows, second)
    shape = Shape (scales)
    zeros = Expand (zero, shape)
    weight = DequantizeLinear <axis = 0, block_size: int = @block_size> (codes, scales, zeros)
"""

TO_FLOAT = """
    product = MatMul (real, weight)
    y = Sum (product, bias)
"""

TO_CLIPPED = """
    product = MatMul (real, weight)
    sum = Sum (product, bias)
    low = Constant <value_float: float = @min> ()
    high = Constant <value_float: float = @max> ()
    y = Clip (sum, low, high)
"""

TO_BYTES = """
    product = MatMul (real, weight)
    sum = Sum (product, bias)
    y = QuantizeLinear (sum, y_scale, y_zero)
"""

READ_BYTES = """
    decoded = DequantizeLinear (x, x_scale, x_zero)
    real = Identity (decoded)
"""
READ_BYTES_APART = """
    decoded = DequantizeLinear (x, x_scale, x_zero)
    real = Sum (decoded)
"""
"""Reading of bytes where blocks follow: between integers, onnxruntime takes their scales for scales per feature."""

READ_FLOATS = "    real = Identity (x)\n"
BYTES = "x, x_scale, x_zero, w, w_scale, table, bias"

PRODUCTS = {
    "DynamicMatMulNBits": ("x, w, w_scale, table, bias", READ_FLOATS, TO_FLOAT),
    "QLinearMatMulNBitsToFloat": (BYTES, READ_BYTES, TO_FLOAT),
    "QLinearMatMulNBits": (f"{BYTES}, y_scale, y_zero", READ_BYTES, TO_BYTES),
}

BODIES = {CONV: CONV_BODY, CENTER: CENTER_BODY, LOOKUP: LOOKUP_BODY}

NATIVE_OPERATORS = frozenset({*BODIES, *PRODUCTS})
"""Everything that the operator library has kernels for."""

NATIVE_LAYERS = NATIVE_OPERATORS - {LOOKUP}
"""Operators among them that are linear layers."""


def overload(*, blocks: bool = False, clipped: bool = False) -> str:
    """Return the name of a form of a product's function, which nodes have to carry."""
    return "_".join(name for name, wanted in (("blocks", blocks), ("clipped", clipped)) if wanted)


def body(op_type: str, opset: int, *, blocks: bool = False, clipped: bool = False) -> ir.Function:
    """Build the function of an operator.

    Args:
        op_type: Its name.
        opset: Version of the standard operators.
        blocks: For products, whether several inputs of one feature have scales of their own.
        clipped: For products that give floats, whether they have ends.

    Returns:
        A function to be put into a model.
    """
    if op_type in PRODUCTS:
        inputs, read, end = PRODUCTS[op_type]
        if blocks and read == READ_BYTES:
            read = READ_BYTES_APART
        if clipped:
            end = TO_CLIPPED
        attributes = "N, K, bits, block_size" + (", min, max" if clipped else "")
        weight = DECODED + (PER_BLOCK if blocks else PER_FEATURE)
        steps = MIDDLE + UNSIGNED.format(name="table") + weight + read + end
        text = f"{op_type} <{attributes}> ({inputs}) => (y)\n{{\n{steps}}}"
    else:
        text = BODIES[op_type]
    proto = onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n{text}')
    proto.overload = overload(blocks=blocks, clipped=clipped)
    return ir.serde.deserialize_function(proto)
