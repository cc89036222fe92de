"""Search for the integers of a model that is quantized already, by whichever program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ptq.passes._qdq import decoder, quantizer
from ptq.passes.given import SOURCE_HASH, comes_from_codes, is_constant
from ptq.passes.lifting import has_weights
from ptq.passes.linear import name_of
from ptq.passes.native_bodies import DOMAIN
from ptq.passes.unsigned_codes import is_centered_behind_relu
from ptq.target import LINEAR_OPS

INTEGER_OPERATORS = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"})
ORT_OPERATORS = frozenset({
    "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "GatherBlockQuantized", "MatMulBnb4", "MatMulFpQ4",
    "MatMulIntegerToFloat", "MatMulNBits", "QAttention", "QEmbedLayerNormalization", "QGemm", "QMoE", "QOrderedMatMul",
})  # fmt: skip
"""Operators of domain com.microsoft whose weights are codes."""

OPEN_WEIGHT = "its weight came in float"
OPEN_CODES = "its weight came in float, to be rounded whenever a session opens"
OPEN_CENTERED = "half of the codes of its output lie below its Relu"
OPEN_OUTPUT = "its weight and input came on codes, its output has no grid"


@dataclass(frozen=True)
class GivenIntegers:
    """Integers that a model came with.

    Attributes:
        is_own: Whether this program made the file.
        open: Linear layer -> what of it is not on integers.
    """

    is_own: bool
    open: Mapping[str, str]


def given_integers(model: ir.Model) -> GivenIntegers | None:
    """Find out whether a model is quantized already.

    Args:
        model: As it came; not modified.

    Returns:
        What was found; None if no layer of the model has codes.
    """
    nodes = list(model.graph.all_nodes())
    is_own = SOURCE_HASH in model.metadata_props and has_weights(model)
    layers = [node for node in nodes if not node.domain and node.op_type in LINEAR_OPS]
    coded = [node for node in layers if any(comes_from_codes(value) for value in node.inputs[1:2])]
    if not is_own and not coded and not any(_has_codes(node) for node in nodes):
        return None
    return GivenIntegers(is_own, dict(_open(model.graph, layers)))


def _has_codes(node: ir.Node) -> bool:
    known = INTEGER_OPERATORS if not node.domain else ORT_OPERATORS if node.domain == "com.microsoft" else ()
    return node.op_type in known or node.domain == DOMAIN


def _reads_pair(node: ir.Node) -> bool:
    pair = decoder(node.inputs[0])
    return pair is not None and not is_constant(pair.inputs[0])


def _open(graph: ir.Graph, layers: list[ir.Node]) -> Iterator[tuple[str, str]]:
    """Find layers that are not on integers."""
    for node in layers:
        if not any(is_constant(value) for value in node.inputs[:2]):
            continue
        coded = next((value for value in node.inputs[1:2] if comes_from_codes(value)), None)
        if coded is None:
            yield name_of(node), OPEN_WEIGHT
        elif _is_rounded_at_load(coded):
            yield name_of(node), OPEN_CODES
        elif node.op_type == "Conv" and node.graph is graph and _reads_pair(node):
            if any(is_centered_behind_relu(each) for each in _behind(node)):
                yield name_of(node), OPEN_CENTERED
            elif quantizer(node) is None:
                yield name_of(node), OPEN_OUTPUT


def _behind(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes that read what a node gives, and those behind them."""
    for use in node.outputs[0].uses():
        yield use.node
        yield from (end.node for value in use.node.outputs[:1] for end in value.uses())


def _is_rounded_at_load(value: ir.Value | None) -> bool:
    """Whether codes are not in the file, but made of floats when a session opens."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "QuantizeLinear":
            return True
        value = node.inputs[0]
    return False
