"""A method that sees the whole network, run by the pipeline's own solver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.allocation import BitPlan
from ptq.calibration.network import RunnableNetwork
from ptq.core.encoding import WeightEncoding
from ptq.core.errors import UnsupportedModelError
from ptq.core.problem import LayerProblem, Needs, Network
from ptq.job import Result
from ptq.models.sessions import run, session_of
from ptq.passes import prepare
from ptq.passes.placing import place
from ptq.passes.sites import matrix_of
from ptq.recipe import Weights
from ptq.solving import choices as choosing
from ptq.target import CPU_X86
from ptq.weights import Hqq, Rtn
from tests.builders import conv_net, feeds

DATA = feeds(24, 3, 16, 16)
CANDIDATES = (Rtn(), Rtn("mse"), Hqq())


@dataclass(frozen=True)
class Pick:
    """For each layer, the touchiest first, the candidate with which the network errs least."""

    asked: list[tuple[str, ...]] = field(default_factory=list, hash=False, compare=False)
    needs: ClassVar[Needs] = Needs.NETWORK

    def quantize_all(self, problems: Mapping[str, LayerProblem], network: Network) -> Mapping[str, WeightEncoding]:
        self.asked.append(tuple(problems))
        found: dict[str, WeightEncoding] = {}
        for name in sorted(problems, key=network.gain, reverse=True):
            tried = [method.quantize(problems[name]) for method in CANDIDATES]
            found[name] = min(tried, key=lambda each, name=name: network.error({**found, name: each}))
        return found


@dataclass(frozen=True)
class PickByMoments(Pick):
    """The same, told what inputs look like."""

    needs: ClassVar[Needs] = Needs.NETWORK | Needs.MOMENTS

    def quantize_all(self, problems: Mapping[str, LayerProblem], network: Network) -> Mapping[str, WeightEncoding]:
        assert all(problem.statistics is not None for problem in problems.values())
        return super().quantize_all(problems, network)


@dataclass(frozen=True)
class Lengths(Pick):
    """Rounding, of words as long as each layer's problem says."""

    def quantize_all(self, problems: Mapping[str, LayerProblem], network: Network) -> Mapping[str, WeightEncoding]:
        assert {name for name, problem in problems.items() if problem.widths is not None} == {"c"}
        return {name: Rtn().quantize(problem) for name, problem in problems.items()}


def quantized(method: Any, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Result:
    """Static integers of 3 bits by a method that is no member of the union."""
    plain = choosing.choices_of

    def choices_of(recipe: Recipe, *rest: Any) -> Any:
        found = plain(recipe, *rest)
        overrides = {name: replace(each, method=method) for name, each in found.overrides.items()}
        return replace(found, weights=replace(found.weights, method=method), overrides=overrides)

    monkeypatch.setattr("ptq.pipeline.choices_of", choices_of)
    return quantize(conv_net(), DATA, Recipe(weights=Weights(bits=3, split="never"), **fields))


@pytest.mark.parametrize("kind", [Pick, PickByMoments])
def test_the_solver_hands_all_layers_to_a_method_that_wants_them(
    kind: type[Pick], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = kind()
    result = quantized(method, monkeypatch)
    assert method.asked == [("n", "c", "d", "y")]
    plain = [quantize(conv_net(), DATA, Recipe(weights=Weights(each, 3, split="never"))) for each in CANDIDATES]
    best = max(each.report.proof.comparison.sqnr_db for each in plain)
    assert result.report.proof.comparison.sqnr_db > best - 1.0  # judged in float: activations may turn it a little
    assert result.report.proof.kernels.num_linear == 4
    assert {row.num_bits for row in result.report.layers} == {3}


def test_problems_of_all_layers_have_the_word_lengths_of_a_bit_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    result = quantized(Lengths(), monkeypatch, bit_plan=BitPlan({"c": (2, 3, 4, 5, 6, 7, 8, 2)}))
    assert next(row.points for row in result.report.layers if row.name == "c") == "2 to 8 bits by feature"


def network() -> tuple[ir.Model, RunnableNetwork, dict[str, Any]]:
    model, _ = prepare(conv_net(), DATA[0])
    layers = {layer.name: layer for layer in place(model).layers}
    return model, RunnableNetwork(model, layers.values(), DATA[:4]), layers


def test_errors_are_those_of_a_network_with_these_weights() -> None:
    model, asked, layers = network()
    choices = choosing.choices_of(Recipe(weights=Weights(bits=4)), CPU_X86, model)
    weights = {
        name: Rtn().quantize(LayerProblem(name, matrix_of(model, layer), choices.choice(layer).spec))
        for name, layer in layers.items()
    }
    assert asked.error({}) == 0
    assert 0 < asked.error({"n": weights["n"]}) < asked.error(weights)
    changed = model.clone()
    for name, layer in layers.items():
        tensor = layer.layout.to_tensor(weights[name].decode())
        changed.graph.initializers[layer.weight].const_value = ir.tensor(tensor, name=layer.weight)
    with session_of(model) as one, session_of(changed) as other:
        pairs = [(run(one, dict(feed))[0], run(other, dict(feed))[0]) for feed in DATA[:4]]
    error = sum(np.square(b.astype(np.float64) - a).sum() for a, b in pairs)
    signal = sum(np.square(a.astype(np.float64)).sum() for a, _ in pairs)
    assert asked.error(weights) == pytest.approx(error / signal, rel=1e-5)


def test_the_gain_of_the_last_layer_is_one_and_gradients_are_refused() -> None:
    _, asked, _ = network()
    assert asked.gain("y") == pytest.approx(1.0)
    assert asked.gain("n") > 0
    assert asked.gain("n") == asked.gain("n")
    with pytest.raises(UnsupportedModelError, match="'n' needs a network that can be differentiated"):
        asked.gradient("n")


def test_a_method_for_all_layers_is_not_asked_for_one() -> None:
    choice = choosing.LayerChoice(Pick(), CPU_X86.weight)
    with pytest.raises(TypeError, match="Pick solves all layers together"):
        _ = choice.quantizer
    assert choosing.LayerChoice(Rtn(), CPU_X86.weight).together is None
