"""What every sensitivity has to do, run for each member of the family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ptq.core.family import members, tag_of
from ptq.sensitivity import FeatureInfluence, RestoredShare, SensitivityMethod
from ptq.sensitivity.problem import RoundedLayer
from ptq.sensitivity.table import FLOAT, SensitivityTable, at_other_bits

MEMBERS = [pytest.param(member(), id=tag_of(member)) for member in members(SensitivityMethod)]
each_member = pytest.mark.parametrize("member", MEMBERS)
BITS = (2, 3, 4, 6, 8, FLOAT)


@dataclass
class Outputs:
    """A network whose outputs err by the sum of what its features do to them; it hears what is asked.

    Attributes:
        truth: Layer -> error at the outputs by feature.
        more: Error that comes from no layer.
        heard: Layers that were asked for.
    """

    truth: Mapping[str, NDArray[np.float64]]
    more: float = 0.0
    heard: list[str] = field(default_factory=list)

    @property
    def total(self) -> float:
        return float(sum(each.sum() for each in self.truth.values())) + self.more

    def errors(self, layer: RoundedLayer, sets: Sequence[NDArray[np.intp]]) -> NDArray[np.float64]:
        self.heard.append(layer.name)
        return np.array([self.truth[layer.name][each].sum() for each in sets])


def case(seed: int, num_layers: int = 4) -> tuple[list[RoundedLayer], Outputs]:
    """Layers of several sizes and word lengths, and what their features do, however much they err themselves."""
    rng = np.random.default_rng(seed)
    layers, truth = [], {}
    for index in range(num_layers):
        size = int(rng.integers(1, 80))
        energy = rng.exponential(1.0, size)
        layers.append(RoundedLayer(f"l{index}", int(rng.integers(2, 9)), energy, float(rng.exponential(0.5))))
        truth[f"l{index}"] = rng.exponential(1e-3, size)
    return layers, Outputs(truth, float(rng.exponential(1e-3)))


@each_member
@pytest.mark.parametrize("seed", range(8))
def test_every_layer_has_its_error_at_every_word_length(member: SensitivityMethod, seed: int) -> None:
    layers, network = case(seed)
    table = member.measure(layers, BITS, network)
    assert table.layers == tuple(layer.name for layer in layers)
    assert table.bits == BITS
    assert table.error.shape == (len(layers), len(BITS))
    assert np.isfinite(table.error).all()
    assert (table.error >= 0).all()
    assert table.rest >= 0
    for layer, errors in zip(layers, table.error, strict=True):
        assert (np.diff(errors) < 0).all(), "longer words err less"
        assert errors[-1] == 0, "float does not err"
        at_its_own = member.measure([layer], (layer.num_bits,), network).error[0, 0]
        assert at_its_own == pytest.approx(network.truth[layer.name].sum()), "in the network's own unit"


@each_member
@pytest.mark.parametrize("seed", range(8))
def test_layers_and_what_is_left_make_up_the_error(member: SensitivityMethod, seed: int) -> None:
    layers, network = case(seed)
    table = member.measure(layers, tuple(range(2, 9)), network)
    own = sum(row[layer.num_bits - 2] for layer, row in zip(layers, table.error, strict=True))
    if isinstance(member, FeatureInfluence):  # it looks at a network in which nothing else errs
        assert table.rest == 0
    else:
        assert own + table.rest == pytest.approx(network.total)


@each_member
def test_features_add_up_to_their_layer_where_they_are_told_apart(member: SensitivityMethod) -> None:
    layers, network = case(3)
    table = member.measure(layers, BITS, network)
    for layer in layers:
        if layer.name in table.rows:
            rows = table.rows[layer.name]
            assert rows.shape == (len(layer.weight_error), len(BITS))
            assert rows.sum(0) == pytest.approx(table.error[table.layers.index(layer.name)])
    assert bool(table.rows) == isinstance(member, FeatureInfluence)


@each_member
def test_layers_are_asked_for_one_by_one(member: SensitivityMethod) -> None:
    """A walk stands before one layer at a time: what comes next may not be asked for too early."""
    layers, network = case(1)

    def walk() -> Iterator[RoundedLayer]:
        for index, layer in enumerate(layers):
            yield layer
            assert network.heard == [each.name for each in layers[: index + 1]]

    member.measure(walk(), BITS, network)


@each_member
@given(st.permutations(range(4)))
def test_the_order_of_layers_does_not_matter(member: SensitivityMethod, order: list[int]) -> None:
    layers, network = case(2)
    table = member.measure(layers, BITS, network)
    other = member.measure([layers[index] for index in order], BITS, network)
    np.testing.assert_allclose(other.error, table.error[order])
    assert other.rest == pytest.approx(table.rest)


@each_member
def test_a_model_without_layers_has_an_empty_table(member: SensitivityMethod) -> None:
    table = member.measure([], BITS, Outputs({}, 0.5))
    assert table.error.shape == (0, len(BITS))
    assert table.shortest == {}


@pytest.mark.parametrize("seed", range(8))
def test_with_a_set_for_each_feature_their_influence_is_what_they_do(seed: int) -> None:
    layers, network = case(seed)
    table = FeatureInfluence(1000).measure(layers, BITS, network)
    for layer in layers:
        expected = network.truth[layer.name][:, None] * 4.0 ** (layer.num_bits - np.array(BITS, float))
        expected[:, -1] = 0
        np.testing.assert_allclose(table.rows[layer.name], expected, rtol=1e-12)


def test_features_of_a_set_divide_its_error_by_what_they_err_themselves() -> None:
    layer = RoundedLayer("a", 4, np.array([3.0, 1.0, 0.0]))
    table = FeatureInfluence(1).measure([layer], (4,), Outputs({"a": np.array([0.5, 0.25, 0.25])}))
    assert table.rows["a"][:, 0].tolist() == [0.75, 0.25, 0.0]


@pytest.mark.parametrize("seed", range(8))
def test_longer_words_help_the_weights_part_of_a_restored_share(seed: int) -> None:
    """The formula, written out."""
    layers, network = case(seed)
    table = RestoredShare().measure(layers, BITS, network)
    for layer, errors in zip(layers, table.error, strict=True):
        weight, given_input = layer.weight_error.sum(), layer.input_error
        share = network.truth[layer.name].sum()
        for bits, error in zip(BITS[:-1], errors, strict=False):
            expected = share * (given_input + weight * 4.0 ** (layer.num_bits - bits)) / (weight + given_input)
            assert error == pytest.approx(expected)


@given(st.integers(2, 8), st.floats(0, 1e6), st.integers(2, 14))
def test_a_bit_quarters_a_rounding_error(num_bits: int, energy: float, bits: int) -> None:
    found = at_other_bits(np.array([energy]), num_bits, (bits, bits + 1, FLOAT))[0]
    assert found.tolist() == [energy * 4.0 ** (num_bits - bits), energy * 4.0 ** (num_bits - bits - 1), 0.0]


def test_tables_are_checked() -> None:
    with pytest.raises(ValueError, match="ascending"):
        SensitivityTable(("a",), (4, 2), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="shape"):
        SensitivityTable(("a",), (2, 4), np.zeros((2, 2)))
    nothing = SensitivityTable(("a",), (2, 4), np.ones((1, 2))).among({"a": ()})
    with pytest.raises(ValueError, match="'a' may have no word length"):
        assert nothing.shortest
