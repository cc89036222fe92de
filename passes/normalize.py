"""Normal form: any exported graph becomes what all other passes know.

Stock passes of onnx-ir and onnxscript in the right order. Afterwards: no local functions, no Constant, Identity or
inference-time Dropout nodes, constant sub-expressions folded, weights are initializers and not inputs, names unique,
opset at least 13 (per-channel scales need it).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir

from ptq.core.errors import UnsupportedModelError
from ptq.models.foreign import hide_foreign, show_foreign
from ptq.models.lean import message_without_weights
from ptq.passes.unused import RemoveUnused, bodies_of

MIN_OPSET = 13
MIN_IR_VERSION = 7  # of opset 13; before 4, every weight had to be an input too
INT4_OPSET = 21
RESIZE_OPSET = 11
"""From here on Resize says how coordinates are scaled; Upsample became Resize."""

IR_VERSIONS = {MIN_OPSET: MIN_IR_VERSION, INT4_OPSET: 10}
FOLD_LIMIT = 64 * 2**20  # bytes; larger constants are left for onnxruntime to fold


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    """Silence the warnings of a library within the context."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class InlineFunctions(ir.passes.InPlacePass):
    """Replace calls of model-local functions by their bodies.

    Preserves float outputs: yes, exactly.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inline all local functions of the model."""
        try:
            result = common.InlinePass()(model)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise UnsupportedModelError(f"local functions cannot be inlined: {reason}; export it again") from error
        common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        return ir.passes.PassResult(model, result.modified)


@dataclass(frozen=True)
class RaiseOpset(ir.passes.InPlacePass):
    """Convert an older model to a newer operator set.

    Preserves float outputs: yes, within 1e-5.

    Attributes:
        minimum: Operator set to reach; 13 has per-channel scales, 21 has int4 tensors.
        required: Refuse a model that cannot be converted, instead of leaving it as it is.
    """

    minimum: int = MIN_OPSET
    required: bool = True

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run ONNX's version converter; a model that is recent enough stays untouched.

        Raises:
            UnsupportedModelError: The converter does not know an operator of the model.
        """
        opset = model.opset_imports.get("", self.minimum)
        if opset >= self.minimum:
            return ir.passes.PassResult(model, False)
        try:
            convert(model, self.minimum)
        except Exception as error:  # the converter raises RuntimeError and pybind types alike
            if not self.required:
                return ir.passes.PassResult(model, False)
            reason = " ".join(str(error).split())[:200]
            raise UnsupportedModelError(
                f"the model has opset {opset}; quantization needs {self.minimum} and the ONNX version converter fails: "
                f"{reason}; export the model again with a newer opset"
            ) from error
        model.ir_version = max(model.ir_version, IR_VERSIONS.get(self.minimum, MIN_IR_VERSION))
        return ir.passes.PassResult(model, True)


def convert(model: ir.Model, opset: int) -> None:
    """Run ONNX's version converter on a model, in place, without its weights.

    Args:
        model: The model; stays as it is if the converter fails.
        opset: Operator set to reach.

    Raises:
        Exception: Whatever the converter raises when it does not know an operator of the model.
    """
    before = model.opset_imports.get("", opset)
    message, weights = message_without_weights(model)
    hide_foreign(message)
    converted = onnx.version_converter.convert_version(message, opset)
    show_foreign(converted)
    folders = {t.base_dir for t in _tensors(model) if isinstance(t, ir.ExternalTensor)}
    model.graph = ir.from_proto(converted).graph
    for name, value in model.graph.initializers.items():
        value.const_value = weights.get(name, value.const_value)
    for folder in folders:  # one at most: a model's weights lie beside it
        ir.external_data.set_base_dir(model.graph, folder)
    if before < RESIZE_OPSET <= opset:
        _resize_as_before(model)


def _resize_as_before(model: ir.Model) -> None:
    """Say what Resize did before it could be told: coordinates scaled from the corner. The converter leaves it out."""
    for node in model.graph.all_nodes():
        if node.op_type == "Resize" and not node.domain and node.attributes.get_string("mode", "nearest") != "nearest":
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "asymmetric"
            )


def _tensors(model: ir.Model) -> list[ir.TensorProtocol]:
    return [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]


@dataclass(frozen=True)
class RemoveDropout(ir.passes.InPlacePass):
    """Drop Dropout nodes, which do nothing outside training.

    Before: y = Dropout(x)
    After:  x
    Preserves float outputs: yes, exactly.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove every Dropout whose mask is unused and that is not in training mode."""
        modified = False
        for node in list(model.graph):
            if node.op_type != "Dropout" or node.domain or _is_training(node):
                continue
            if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
                continue
            source = node.inputs[0]
            if source is None:
                continue
            if node.outputs[0].is_graph_output():
                _rename_to_identity(model.graph, node, source)
            else:
                ir.convenience.replace_all_uses_with(node.outputs[0], source)
            model.graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)


def _folds(node: ir.Node) -> bool | None:
    """Whether a node may be folded, None for the default.

    Weights may be written as ConstantOfShape, which the folder skips by default; text it cannot write back.
    """
    if any(value is not None and value.dtype == ir.DataType.STRING for value in (*node.inputs, *node.outputs)):
        return False
    return True if node.op_type == "ConstantOfShape" else None


def _drop_identities(graph: ir.Graph) -> None:
    """Remove Identities, but those that give an output of this graph a name of its own."""
    made = set(graph)
    for node in [node for node in graph if node.op_type == "Identity" and not node.domain]:
        source, out = node.inputs[0], node.outputs[0]
        if source is None:
            continue
        if out.is_graph_output():
            if source.producer() not in made or source.is_graph_output():
                continue
            name, out.name = out.name, None
            ir.convenience.replace_all_uses_with(out, source, replace_graph_outputs=True)
            source.name = name
        else:
            ir.convenience.replace_all_uses_with(out, source)
        source.type, source.shape = source.type or out.type, source.shape or out.shape
        graph.remove(node, safe=True)


def _forget_first_shapes(model: ir.Model) -> None:
    """Drop the extents written down inside Loops: exporters give those of the first turn, as of a list still empty."""
    for node in model.graph.all_nodes():
        if node.op_type != "Loop" or node.domain:
            continue
        for body in bodies_of(node):
            states = [*body.inputs[2:], *(value for inner in body.all_nodes() for value in inner.outputs)]
            for value in states:
                value.shape = None if value.shape is None else ir.Shape([None] * len(value.shape))


def _name_apart(model: ir.Model) -> None:
    """Give constants of bodies names of their own: those side by side may call theirs alike."""
    taken = {str(value.name) for node in model.graph.all_nodes() for value in node.outputs}
    taken |= {str(value.name) for value in (*model.graph.inputs, *model.graph.initializers.values())}
    for graph in dict.fromkeys(node.graph for node in model.graph.all_nodes()):
        if not isinstance(graph, ir.Graph) or graph is model.graph:
            continue
        for value in list(graph.initializers.values()):
            name, count = str(value.name), 1
            while (candidate := name if count == 1 else f"{name}_{count - 1}") in taken:
                count += 1
            value.name = candidate
            taken.add(candidate)


def _rename_to_identity(graph: ir.Graph, node: ir.Node, source: ir.Value) -> None:
    """Replace a node by an Identity of `source`: a graph output keeps its name, so something has to produce it."""
    old = node.outputs[0]
    new = ir.Value(name=old.name, type=old.type, shape=old.shape)
    graph.insert_before(node, ir.Node("", "Identity", [source], outputs=[new]))
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name = None


def _is_training(node: ir.Node) -> bool:
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    return mode is not None and (mode.const_value is None or bool(mode.const_value.numpy()))


@dataclass(frozen=True)
class SumToAdd(ir.passes.InPlacePass):
    """Write the sum of two values as Add, which has an integer kernel.

    Before: y = Sum(a, b)
    After:  y = Add(a, b)
    Preserves float outputs: yes, exactly.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename every Sum of two."""
        modified = False
        for node in model.graph:
            if node.op_type == "Sum" and not node.domain and len(node.inputs) == 2:
                node.op_type = "Add"
                modified = True
        return ir.passes.PassResult(model, modified)


@dataclass(frozen=True)
class FoldConstants(ir.passes.InPlacePass):
    """Make constants initializers, evaluate what depends on constants only, and drop what nothing uses.

    Preserves float outputs: yes, exactly (up to the evaluator's own rounding).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the stock passes; weights that were also graph inputs become plain weights."""
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.RemoveInitializersFromInputsPass()(model)
        model.ir_version = max(model.ir_version, MIN_IR_VERSION)
        for graph in dict.fromkeys([model.graph, *(node.graph for node in model.graph.all_nodes())]):
            if isinstance(graph, ir.Graph):
                _drop_identities(graph)
        _forget_first_shapes(model)
        with _silenced("onnxscript.optimizer"):  # warns of what it cannot evaluate and leaves as it is
            fold_constants_ir(model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT, should_fold=_folds)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        RemoveUnused()(model)
        common.TopologicalSortPass()(model)
        common.NameFixPass()(model)
        _name_apart(model)
        for (
            node
        ) in model.graph.all_nodes():  # exporters leave stack traces here, often more bytes than the int8 weights
            node.metadata_props.clear()
            node.doc_string = None
        return ir.passes.PassResult(model, True)
