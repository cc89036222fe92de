"""A method that sees the whole network, and what it is promised: a toy of each, as the family has none yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from ptq.core.encoding import WeightEncoding
from ptq.core.problem import LayerProblem, Needs, Network, NetworkMethod
from ptq.core.spec import INT8_WEIGHT, PerAxis
from ptq.weights import Hqq, Pot, Rtn

Float = NDArray[np.float64]
CANDIDATES = (Rtn(), Rtn("mse"), Hqq(), Pot())


@dataclass(frozen=True)
class Perceptron:
    """Two layers and a Relu; the loss is the squared distance from labels, half of it."""

    weights: Mapping[str, NDArray[np.float32]]
    x: Float
    labels: Float

    @staticmethod
    def drawn(seed: int) -> Perceptron:
        rng = np.random.default_rng(seed)
        weights = {"a": rng.standard_t(3, (24, 16)), "b": 0.3 * rng.standard_t(3, (6, 24))}
        x = rng.standard_normal((300, 16))
        single = {name: weight.astype(np.float32) for name, weight in weights.items()}
        clean = Perceptron(single, x, np.zeros((300, 6))).outputs(single)
        return Perceptron(single, x, clean + rng.standard_normal(clean.shape))

    def outputs(self, weights: Mapping[str, NDArray[np.float32]]) -> Float:
        return np.asarray(np.maximum(self.x @ weights["a"].T.astype(float), 0) @ weights["b"].T.astype(float))

    def error(self, weights: Mapping[str, WeightEncoding]) -> float:
        real = self.outputs(self.weights)
        found = self.outputs({**self.weights, **{name: each.decode() for name, each in weights.items()}})
        return float(np.square(found - real).sum() / np.square(real).sum())

    def gain(self, layer: str) -> float:
        if layer == "b":
            return 1.0
        alive = self.x @ self.weights["a"].T.astype(float) > 0
        return float((alive.mean(0) * np.square(self.weights["b"]).sum(0)).mean())

    def gradient(self, layer: str) -> Float:
        hidden = self.x @ self.weights["a"].T.astype(float)
        off = (self.outputs(self.weights) - self.labels) / len(self.x)
        if layer == "b":
            return np.asarray(off.T @ np.maximum(hidden, 0))
        return np.asarray(((off @ self.weights["b"].astype(float)) * (hidden > 0)).T @ self.x)


@dataclass(frozen=True)
class Pick:
    """For one layer after the other, the candidate that leaves the network the least error; the touchiest layer first.

    Ties are broken by what the gradient says of the loss.
    """

    needs: ClassVar[Needs] = Needs.NETWORK | Needs.GRADIENT

    def quantize_all(self, problems: Mapping[str, LayerProblem], network: Network) -> Mapping[str, WeightEncoding]:
        """Choose."""
        found: dict[str, WeightEncoding] = {}
        for name in sorted(problems, key=network.gain, reverse=True):
            problem, slope = problems[name], network.gradient(name)
            tried = [method.quantize(problem) for method in CANDIDATES]
            found[name] = min(
                tried, key=lambda each: (network.error({**found, name: each}), loss(slope, problem, each))
            )
        return {name: found[name] for name in problems}


def loss(slope: Float, problem: LayerProblem, weight: WeightEncoding) -> float:
    """What a weight adds to the loss, to first order."""
    return float(np.sum(slope * (weight.decode().astype(float) - problem.weight)))


METHOD: NetworkMethod = Pick()


def problems_of(network: Perceptron, bits: int) -> dict[str, LayerProblem]:
    spec = replace(INT8_WEIGHT, num_bits=bits, narrow_range=False, granularity=PerAxis(0))
    return {name: LayerProblem(name, weight, spec) for name, weight in network.weights.items()}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bits", [4, 3])
def test_a_network_method_errs_less_at_the_end_than_any_of_its_parts(bits: int, seed: int) -> None:
    network = Perceptron.drawn(seed)
    problems = problems_of(network, bits)
    found = METHOD.quantize_all(problems, network)
    assert list(found) == list(problems)
    assert all(found[name].shape == problem.weight.shape for name, problem in problems.items())
    first = max(problems, key=network.gain)
    alone = [network.error({first: method.quantize(problems[first])}) for method in CANDIDATES]
    assert network.error({first: found[first]}) == min(alone)
    rest = [name for name in problems if name != first]
    others = [{first: found[first]} | {name: method.quantize(problems[name]) for name in rest} for method in CANDIDATES]
    assert network.error(found) <= min(network.error(each) for each in others)


@pytest.mark.parametrize("layer", ["a", "b"])
def test_the_toy_answers_what_networks_promise(layer: str) -> None:
    """Its gradient against differences of the loss; without weights, or with exact ones, there is no error."""
    network, step = Perceptron.drawn(0), 1e-3
    assert network.error({}) == 0
    slope = network.gradient(layer)
    for index in [(0, 0), (3, 7), (5, 11)]:
        losses = []
        for side in (-step, step):
            moved = network.weights[layer].astype(float)
            moved[index] += side
            off = network.outputs({**network.weights, layer: moved}) - network.labels
            losses.append(np.square(off).sum() / len(network.x) / 2)
        assert slope[index] == pytest.approx((losses[1] - losses[0]) / (2 * step), rel=1e-3, abs=1e-6)


def test_needs_are_a_flag() -> None:
    assert Needs.NETWORK in METHOD.needs
    assert Needs.MOMENTS not in METHOD.needs
    assert Needs(0) == Needs.WEIGHT
    assert not Needs.WEIGHT
