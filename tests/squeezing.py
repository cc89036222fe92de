"""Channels that carry nothing, planted into small models, and what has to become of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.passes.check_equivalence import float_outputs
from ptq.transforms.squeeze import Squeeze
from tests.builders import Arrays, feeds, model_from_text
from tests.transforming import rewritten

CHANNELS = 12
SAMPLES = 24
ALL = ("dead", "constant", "duplicate", "scaled")
FACTOR = 0.5


@dataclass(frozen=True)
class Plants:
    """Channels that carry nothing, at random places.

    Attributes:
        seed: What the places and the weights are drawn from.
        kinds: What there is: `dead`: far below 0 at all times; `constant`: always the same; `duplicate` and `scaled`
            repeat another channel.
        count: Number of channels.
    """

    seed: int
    kinds: Sequence[str] = ALL
    count: int = CHANNELS

    @property
    def at(self) -> dict[str, int]:
        """Where each kind is; what is repeated is at `leader`, in front."""
        places = np.random.default_rng(1000 + self.seed).permutation(self.count)
        named = dict(zip(ALL, places.tolist(), strict=False))
        leader = min(places.tolist()[4:])
        for kind in ("duplicate", "scaled"):
            if leader > named[kind]:  # the first of those that are alike is the one to stay
                named[kind], leader = leader, named[kind]
        return {"leader": leader, **{kind: named[kind] for kind in self.kinds}}

    @property
    def gone(self) -> list[int]:
        """Channels that have to leave."""
        return sorted(place for kind, place in self.at.items() if kind != "leader")

    def without(self, *kinds: str) -> list[int]:
        """Channels that leave where some kinds stay."""
        return sorted(place for kind, place in self.at.items() if kind not in (*kinds, "leader"))

    def layer(self, *shape: int, axis: int = 0, below: float = -40.0, value: float = 0.7) -> tuple[Any, Any]:
        """A weight of some shape and its bias, planted along an axis."""
        rng = np.random.default_rng(self.seed)
        weight = (rng.standard_normal(shape) * 0.3).astype(np.float32)
        bias = (rng.standard_normal(shape[axis]) * 0.3 + 0.3).astype(np.float32)
        rows, at = np.moveaxis(weight, axis, 0), self.at
        if "dead" in at:
            bias[at["dead"]] = below
        if "constant" in at:
            rows[at["constant"]], bias[at["constant"]] = 0, value
        for kind, factor in (("duplicate", 1.0), ("scaled", FACTOR)):
            if kind in at:
                rows[at[kind]], bias[at[kind]] = rows[at["leader"]] * factor, bias[at["leader"]] * factor
        return weight, bias

    def repeated(self, array: NDArray[Any], axis: int = 0, *, scaled: bool = False) -> NDArray[Any]:
        """A weight of a layer behind that treats channels that repeat another one as that one."""
        rows, at = np.moveaxis(array, axis, 0), self.at
        for kind, factor in (("duplicate", 1.0), ("scaled", FACTOR if scaled else 1.0)):
            if kind in at:
                rows[at[kind]] = rows[at["leader"]] * factor
        return array


@dataclass
class Net:
    """A model, with what is to leave it.

    Attributes:
        text: The graph.
        weights: Its constants.
        gone: Constant -> axis -> positions that have to leave it; of others nothing may change.
        free: Constants whose numbers may change: weights and biases of the layers that sum over what leaves.
        shape: Shape of a sample of `x`.
        scale: Standard deviation of the samples.
    """

    text: str
    weights: Arrays
    gone: Mapping[str, Mapping[int, Sequence[int]]] = field(default_factory=dict)
    free: Collection[str] = ()
    shape: tuple[int, ...] = (3, 8, 8)
    opset: int = 17

    def model(self) -> ir.Model:
        """The model."""
        return model_from_text(self.text, {k: np.asarray(v) for k, v in self.weights.items()}, self.opset)

    def samples(self, count: int = SAMPLES, seed: int = 5) -> list[Arrays]:
        """Samples of standard normal numbers."""
        return feeds(count, *self.shape, seed=seed)


def squeezed(net: Net, samples: Sequence[Mapping[str, Any]] | None = None) -> ir.Model:
    """What is left of a model."""
    return rewritten(net.model(), samples or net.samples(), Squeeze(lanes=1)).model


def require_same(before: ir.Model, after: ir.Model, samples: Sequence[Mapping[str, Any]], within: float = 1e-5) -> None:
    """Refuse outputs that differ by more than a share of their largest."""
    for sample in samples:
        expected, found = float_outputs(before, sample, ()), float_outputs(after, sample, ())
        for name, values in expected.items():
            assert found[name].shape == values.shape
            assert np.abs(found[name] - values).max() <= within * np.abs(values).max(), name


def check(net: Net) -> ir.Model:
    """What has to leave leaves, nothing else does, and the outputs stay."""
    after = squeezed(net)
    arrays = {name: value.const_value.numpy() for name, value in after.graph.initializers.items()}  # type: ignore[union-attr]
    for name, array in net.weights.items():
        expected = np.asarray(array)
        for axis, positions in net.gone.get(name, {}).items():
            expected = np.delete(expected, list(positions), axis)
        if expected.dtype == np.int64 or not expected.any():  # sizes and places are written anew, states begin with 0
            continue
        if expected.ndim == 1 and name in net.free and name not in arrays:  # another bias took its place
            continue
        assert arrays[name].shape == expected.shape, f"{name}: {arrays[name].shape}, expected {expected.shape}"
        if name not in net.free:
            np.testing.assert_array_equal(arrays[name], expected, err_msg=name)
    require_same(net.model(), after, net.samples(3, seed=77))
    return after
