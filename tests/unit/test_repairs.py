"""Model files that are put right before anything reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.core.errors import InputError
from ptq.models.load import load_model
from ptq.models.source import input_specs
from ptq.recipe import Weights
from ptq.weights import Rtn
from tests.builders import conv_net, feeds, model_from_text, random

FLOATS = onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=onnx.TensorProto.FLOAT))
MAP = onnx.TypeProto(map_type=onnx.TypeProto.Map(key_type=onnx.TensorProto.INT64, value_type=FLOATS))


def without_shapes(model: ir.Model) -> onnx.ModelProto:
    """As people leave outputs that they add or cut by hand."""
    proto = ir.to_proto(model)
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return proto


def test_outputs_without_a_shape_get_the_one_that_follows(tmp_path: Path) -> None:
    onnx.save(without_shapes(conv_net()), tmp_path / "m.onnx")
    model = load_model(tmp_path / "m.onnx")
    assert [value.shape is not None and len(value.shape) for value in model.graph.outputs] == [2]
    found, wanted = (quantize(each, feeds(16, 3, 16, 16)) for each in (tmp_path / "m.onnx", conv_net()))
    assert found.report.proof.comparison.sqnr_db == wanted.report.proof.comparison.sqnr_db
    assert found.delivery.num_bytes == wanted.delivery.num_bytes


def test_where_nothing_follows_the_checker_says_so(tmp_path: Path) -> None:
    proto = without_shapes(model_from_text("m (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }", {}))
    proto.graph.node[0].domain = "somebody.else"
    proto.opset_import.add(domain="somebody.else", version=1)
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="invalid ONNX model: Field 'shape'"):
        load_model(tmp_path / "m.onnx")


RESIZE = {10: "Resize", 9: "Upsample"}
TEXT = 'm (float[1, 4, 5, 5] x) => (float[1, 4, H, W] y) {{ a = Conv (x, w) y = {} <mode = "linear"> (a, scales) }}'


@pytest.mark.parametrize("opset", RESIZE)
def test_older_resizing_keeps_its_coordinates_when_the_opset_is_raised(opset: int) -> None:
    weights = {"w": random((4, 4, 1, 1), 1), "scales": np.array([1, 1, 2, 2], np.float32)}
    result = quantize(
        model_from_text(TEXT.format(RESIZE[opset]), weights, opset), feeds(24, 4, 5, 5)
    )  # checked on a sample
    (node,) = (node for node in result.delivery.model.graph if node.op_type == "Resize")
    assert node.attributes.get_string("coordinate_transformation_mode") == "asymmetric"
    assert result.report.proof.comparison.sqnr_db > 30


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (onnx.TypeProto(sequence_type=onnx.TypeProto.Sequence(elem_type=FLOATS)), "sequence"),
        (onnx.TypeProto(sequence_type=onnx.TypeProto.Sequence(elem_type=MAP)), "sequence of map"),
        (onnx.TypeProto(optional_type=onnx.TypeProto.Optional(elem_type=FLOATS)), "optional"),
    ],
)
def test_an_output_that_is_no_tensor_is_named(tmp_path: Path, kind: onnx.TypeProto, words: str) -> None:
    proto = ir.to_proto(conv_net())
    proto.graph.output.add(name="scores", type=kind)
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=f"output 'scores' is of type {words}, expected a tensor; drop the ZipMap"):
        load_model(tmp_path / "m.onnx")


def test_extents_of_minus_one_are_open(tmp_path: Path) -> None:
    """As Paddle exported images of any size."""
    proto = ir.to_proto(conv_net())
    for value, axes in ((proto.graph.input[0], (0, 2, 3)), (proto.graph.output[0], (0,))):
        for axis in axes:
            value.type.tensor_type.shape.dim[axis].ClearField("dim_param")
            value.type.tensor_type.shape.dim[axis].dim_value = -1
    onnx.save(proto, tmp_path / "m.onnx")
    (spec,) = input_specs(load_model(tmp_path / "m.onnx"))
    assert spec.shape == (None, 3, None, None)
    result = quantize(tmp_path / "m.onnx", feeds(16, 3, 16, 16))
    assert result.report.proof.comparison.sqnr_db > 25
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -3
    with pytest.raises(InputError, match="input 'x' has the extents"):
        load_model(proto.SerializeToString())


def test_a_sparse_weight_with_a_name_that_is_no_text_is_one_line() -> None:
    proto = ir.to_proto(conv_net())
    values = onnx.numpy_helper.from_array(np.ones(1, np.float32), "NAME")
    places = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "")
    proto.graph.sparse_initializer.append(onnx.SparseTensorProto(values=values, indices=places, dims=[4]))
    with pytest.raises(InputError, match=r"sparse tensor .*decode"):
        load_model(proto.SerializeToString().replace(b"NAME", b"N\x80\x80E"))


def test_weights_that_functions_read_have_to_be_finite_too() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
    net (float[N, 4] x) => (float[N, 4] y) { y = local.layer (x, w) }
    <domain: "local", opset_import: ["" : 17]>
    layer (a, v) => (b) { b = MatMul (a, v) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full((4, 4), np.inf, np.float32), "w"))
    with pytest.raises(InputError, match="weight 'w' of MatMul 'y' holds NaN or infinity"):
        quantize(proto, [{"x": random((2, 4), seed)} for seed in range(8)])


@pytest.mark.parametrize("target", ["cpu-x86", "native"])
def test_outputs_are_declared_with_as_many_axes_as_they_have(target: str) -> None:
    text = "net (float[N, 8, 8, 8] x) => (float y) { y = Conv <group = 2> (x, w) }"
    result = quantize(
        model_from_text(text, {"w": random((6, 4, 3, 3), 1)}), feeds(8, 8, 8, 8), Recipe(target, weights=Weights(Rtn()))
    )
    assert [len(value.shape or ()) for value in result.delivery.model.graph.outputs] == [4]
    assert result.session().run(None, feeds(1, 8, 8, 8)[0])[0].shape == (1, 6, 6, 6)
