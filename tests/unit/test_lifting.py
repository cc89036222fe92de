"""Weights read back from lowered graphs: the same numbers, in every form that lowering writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq import Recipe, quantize
from ptq.analysis.diff.kinds import is_quantized
from ptq.calibration.observers import Dynamic
from ptq.core.affine import Range, choose_qparams
from ptq.core.encoding import IntegerWeight, LookupWeight, WeightEncoding
from ptq.core.layer import LinearLayer
from ptq.core.plan import QuantPlan
from ptq.core.problem import LayerProblem, Needs
from ptq.core.spec import PerAxis, PerBlock, PerTensor, QuantSpec
from ptq.core.storage import Alphabet
from ptq.core.widths import Widths
from ptq.models.sessions import run, session_of
from ptq.passes import InsertDynamic, InsertQdq, UseNative, insert_qdq, place, place_weights, prepare
from ptq.passes.lifting import has_weights, weights_of
from ptq.passes.lower_stored import short_scale
from ptq.passes.lower_weight import WeightWriter
from ptq.passes.placement import Placement
from ptq.recipe import Weights
from ptq.target import NATIVE
from tests.builders import attention, conv_net, feeds, model_from_text, random
from tests.golden.scenarios import SCENARIOS
from tests.unit.test_stored import branches, lstm, sequences
from tests.unit.test_transformers import language_model, tokens

Arrays = dict[str, list[Any]]


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_is_delivered_holds_the_weights_of_the_plan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = planned_weights(monkeypatch)
    with SCENARIOS[name].result().delivery.as_file() as path:
        lifted = weights_of(ir.load(path))
    assert planned
    integer_lstm = {key for key in lifted if key.endswith(("_W", "_R"))}
    for key, arrays in planned.items():
        found = [lifted[key]] if key in lifted else [lifted[each] for each in integer_lstm]
        assert any(equal(each.decode(), array) for each in found for array in arrays), key
    assert len(lifted) == len(planned)


def planned_weights(monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """Every weight that is lowered from now on, as it decodes, by its name."""
    planned: Arrays = {}
    of_layer, table, stored = WeightWriter.of_layer, insert_qdq.lower_table, insert_qdq.lower_stored

    def seen_layer(self: WeightWriter, layer: LinearLayer, weight: WeightEncoding, *, on_codes: bool) -> ir.Value:
        if self.compact:
            planned.setdefault(layer.name, []).append(weight.decode())
        return of_layer(self, layer, weight, on_codes=on_codes)

    def seen_table(weights: WeightWriter, name: str, readers: Any, rows: WeightEncoding) -> list[ir.Value]:
        if weights.compact:
            planned.setdefault(name, []).append(as_filed(rows).decode())
        return table(weights, name, readers, rows)

    def seen_stored(weights: WeightWriter, model: ir.Model, weight: Any, encoding: WeightEncoding) -> None:
        if weights.compact:
            name = weight.reader if weight.role == "float" else weight.name  # read back as any layer's
            planned.setdefault(name, []).append(encoding.decode())
        stored(weights, model, weight, encoding)

    monkeypatch.setattr(WeightWriter, "of_layer", seen_layer)
    monkeypatch.setattr(insert_qdq, "lower_table", seen_table)
    monkeypatch.setattr(insert_qdq, "lower_stored", seen_stored)
    return planned


def as_filed(rows: WeightEncoding) -> WeightEncoding:
    """A table with scales as short as lowering stores them."""
    if isinstance(rows, LookupWeight):
        return rows
    return replace(rows, params=replace(rows.params, scale=short_scale(rows.scale).astype(np.float32)))


def equal(one: Any, other: Any) -> bool:
    return one.shape == other.shape and bool((one == other).all())


LAYERS = {
    "convolution": ("y = Conv <pads = [1, 1, 1, 1]> (x, w)", (6, 4, 3, 3), (1, 4, 9, 9)),
    "depthwise": ("y = Conv <pads = [1, 1, 1, 1], group = 4> (x, w)", (4, 1, 3, 3), (1, 4, 8, 8)),
    "line": ("y = Conv <pads = [1, 1]> (x, w)", (6, 4, 3), (1, 4, 9)),
    "transposed": ("y = ConvTranspose <strides = [2, 2]> (x, w)", (4, 6, 2, 2), (1, 4, 5, 5)),
    "product": ("y = MatMul (x, w)", (40, 6), (3, 40)),
    "left": ("y = MatMul (w, x)", (6, 8), (8, 3)),
    "gemm": ("y = Gemm (x, w)", (8, 6), (3, 8)),
    "turned gemm": ("y = Gemm <transB = 1> (x, w)", (6, 8), (3, 8)),
}


def layer_model(name: str) -> tuple[ir.Model, Any]:
    body, shape, given_shape = LAYERS[name]
    extents = ", ".join(map(str, given_shape))
    text = f"m (float[{extents}] x) => (float[{', '.join('ABCD'[: len(given_shape)])}] y) {{ {body} }}"
    return model_from_text(text, {"w": random(shape, 1)}, 21), random(given_shape, 2)


def drawn(shape: tuple[int, int], seed: int, *, taps: int = 1, blocks: bool = False) -> WeightEncoding:
    """A weight in any form, with any numbers."""
    rng, (rows, columns) = np.random.default_rng(seed), shape
    form, bits = rng.choice(["words", "rows", "taps", "alphabet", "table"]), int(rng.integers(2, 9))
    if form == "table":
        count = int(rng.integers(1, 257))
        return LookupWeight(rng.integers(0, count, shape).astype(np.uint8), np.sort(random((count,), seed)))
    granularity = rng.choice(np.array([PerTensor(), PerAxis(0), *[PerBlock(1, 16)] * blocks], object))
    size = {PerTensor: (), PerAxis: (rows,), PerBlock: (rows, -(-columns // 16))}[type(granularity)]
    reach = Range.of(-(0.1 + rng.random(size)), 0.1 + rng.random(size))
    symmetric = not isinstance(granularity, PerBlock) or bool(rng.integers(2))
    word = bits if form == "words" else 8
    params = choose_qparams(reach, QuantSpec(word, signed=True, symmetric=symmetric, granularity=granularity))
    if form == "alphabet":
        levels = np.sort(rng.permutation(np.arange(-128, 128))[: int(rng.integers(1, 257))]).astype(np.int8)
        return IntegerWeight(rng.choice(levels, shape), params, Alphabet(levels))
    if form == "words" or isinstance(granularity, PerBlock):
        return IntegerWeight.of(rng.integers(*params.spec.limits, shape, endpoint=True).astype(np.int8), params)
    wide = np.tile(rng.integers(0, 9, taps), columns // taps) if form == "taps" else np.zeros(columns)
    widths = Widths(rng.integers(0, 9, rows).astype(np.int8), wide.astype(np.int8))
    low, high = widths.limits()
    return IntegerWeight.of(rng.integers(low.astype(int), high.astype(int) + 1).astype(np.int8), params, widths)


def output(model: ir.Model, x: Any, *, exact: bool) -> Any:
    """What onnxruntime computes; its product with blocks rounds the inputs too, if it may."""
    with session_of(model, optimization="none" if exact else "all") as session:
        return run(session, {"x": x})[0]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(LAYERS)), st.integers(0, 1 << 30))
def test_any_weight_computes_what_it_decodes_to_and_is_read_back(name: str, seed: int) -> None:
    model, x = layer_model(name)
    placement = place_weights(model)
    (layer,) = placement.layers
    shape = layer.layout.to_matrix(np.empty(layer.layout.shape)).shape
    taps = int(np.prod(layer.unfold.kernel)) if layer.op_type == "Conv" else 1
    weight = drawn(shape, seed, taps=taps, blocks=name == "product")
    lowered, expected = model.clone(), model.clone()
    InsertQdq(QuantPlan({}, {layer.name: weight}, {}), placement)(lowered)
    (lifted,) = weights_of(lowered).values()
    assert equal(lifted.decode(), weight.decode())
    assert isinstance(lifted, LookupWeight) == isinstance(weight, LookupWeight)
    expected.graph.initializers["w"].const_value = ir.tensor(layer.layout.to_tensor(weight.decode()), name="w")
    in_blocks = isinstance(weight, IntegerWeight) and weight.scale.ndim == 2
    found, wanted = (output(each, x, exact=in_blocks) for each in (lowered, expected))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(np.abs(wanted).max(), 1))


def any_plan(placement: Placement, seed: int, *, blocks: bool = False) -> QuantPlan:
    """Grids for all values, and for all weights any numbers."""
    rng = np.random.default_rng(seed)
    grids = {
        name: choose_qparams(Range.of(0.0, 1.0 + index), QuantSpec())
        for index, group in enumerate(placement.groups)
        for name in group
    }
    weights: dict[str, WeightEncoding] = {}
    for layer in placement.layers:
        shape = layer.layout.to_matrix(np.empty(layer.layout.shape)).shape
        taps = int(np.prod(layer.unfold.kernel)) if layer.op_type == "Conv" else 1
        weights[layer.name] = drawn(
            shape, int(rng.integers(1 << 30)), taps=taps, blocks=blocks and layer.op_type == "MatMul"
        )
    rows = {table.name: table.shape for table in placement.tables}
    rows |= {each.name: each.to_matrix(np.empty(each.shape)).shape for each in placement.stored}
    weights |= {name: by_row(shape, int(rng.integers(1 << 30))) for name, shape in rows.items()}
    return QuantPlan(grids, weights, {})


def by_row(shape: tuple[int, int], seed: int) -> WeightEncoding:
    """As `drawn`, without one scale for all: tables have one for each row."""
    return next(
        weight
        for each in range(seed, seed + 1000)
        if not isinstance(weight := drawn(shape, each), IntegerWeight) or weight.scale.ndim == 1
    )


MODELS = {
    "convolutions": (conv_net, feeds(1, 3, 16, 16)),
    "transformer": (attention, feeds(1, 7, 16)),
    "tables": (language_model, tokens(1)),
    "recurrent": (lstm, sequences(1)),
    "bodies": (branches, feeds(1, 8, 8, 8)),
}


MODES = ["static", "native", "weight-only", "dynamic", "dynamic native"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(MODELS)), st.sampled_from(MODES), st.integers(0, 1 << 30))
def test_any_plan_is_read_back_from_any_model(name: str, mode: str, seed: int) -> None:
    build, (feed, *_) = MODELS[name]
    model, _ = prepare(build(), feed)
    static, native = mode in ("static", "native"), "native" in mode
    placement = place(model, native=native) if static else place_weights(model, only_products="dynamic" in mode)
    plan = any_plan(placement, seed, blocks=not static)
    InsertQdq(plan, placement)(model)
    if mode == "native":
        UseNative(plan, NATIVE.native_words)(model)
    elif "dynamic" in mode:
        InsertDynamic(plan, placement, NATIVE.native_words if native else ())(model)
    lifted = weights_of(ir.from_proto(ir.to_proto(model)))
    tables = {table.name: as_filed(plan.weights[table.name]) for table in placement.tables}
    every = {**plan.weights, **tables}
    assert len(lifted) == len(every)
    for key, weight in every.items():
        if key in lifted:
            assert equal(lifted[key].decode(), weight.decode()), (key, lifted[key].decode(), weight.decode())


@dataclass(frozen=True)
class Evenly:
    """A method that chooses a table; it asks for moments, so that it is walked to."""

    needs = Needs.MOMENTS

    def quantize(self, problem: LayerProblem) -> LookupWeight:
        table = np.linspace(problem.weight.min(), problem.weight.max(), 256, dtype=np.float32)
        return LookupWeight(np.zeros(problem.weight.shape, np.uint8), table).nearest(problem.weight)


@pytest.mark.parametrize("mode", ["static", "weight-only", "dynamic", "native", "portable"])
@pytest.mark.parametrize("build", [conv_net, attention])
def test_weights_of_tables_are_walked_to_lowered_and_read_back(build: Any, mode: str) -> None:
    target = mode if mode in ("native", "portable") else "cpu-x86"
    given = {"weight_only": mode == "weight-only"} | ({"activations": Dynamic()} if mode == "dynamic" else {})
    data = feeds(24, *((3, 16, 16) if build is conv_net else (7, 16)))
    result = quantize(build(), data, Recipe(target, weights=Weights(Evenly()), **given))  # type: ignore[arg-type]
    lifted = weights_of(result.delivery.model)
    assert lifted.keys() - {row.name for row in result.report.layers} <= result.report.left_float.keys()
    lifted = {row.name: lifted[row.name] for row in result.report.layers}
    assert all(isinstance(weight, LookupWeight) and weight.num_levels() > 16 for weight in lifted.values())
    assert is_quantized(result.delivery.model)
    layers = {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
    on_integers = sum(count for op_type, count in result.report.proof.kernels.integer.items() if op_type in layers)
    assert on_integers <= (2 if build is attention else 0)  # products of two activations
    assert result.report.proof.comparison.sqnr_db > 20


@pytest.mark.parametrize("count", [2, 4, 8, 16, 200])
def test_a_model_of_tables_alone_is_quantized(count: int) -> None:
    """It has no Q/DQ pair, no integer operator, and perhaps no bytes of codes."""
    model, _ = layer_model("convolution")
    placement = place_weights(model)
    table = np.sort(random((count,), 3))
    weight = LookupWeight(np.random.default_rng(0).integers(0, count, (6, 36)).astype(np.uint8), table)
    InsertQdq(QuantPlan({}, {"y": weight}, {}), placement)(model)
    assert has_weights(model)
    assert is_quantized(model)


@pytest.mark.parametrize("build", [conv_net, language_model, attention, lstm, branches])
def test_a_float_model_has_no_weights_on_codes(build: Any) -> None:
    assert weights_of(build()) == {}
    assert not has_weights(build())
    assert not is_quantized(build())
