"""Random networks with channels that carry nothing: outputs stay, hardly any is left, the note tells what left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptq.passes.channels.removed import REMOVED, count_removed, without_removed
from ptq.passes.infer_shapes import annotate
from ptq.transforms.squeeze import Squeeze
from tests.builders import Arrays
from tests.squeezing import Net, require_same, squeezed
from tests.transforming import rewritten

SAMPLES = 64


class Random:
    """A network under construction: a chain of random operators on maps of 8 x 8."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.weights: Arrays = {}
        self.lines: list[str] = []

    def add(self, form: str, *inputs: str) -> str:
        """A node."""
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {form.format(*inputs)}")
        return name

    def constant(self, array: Any) -> str:
        """A constant."""
        name = f"c{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def layer(self, source: str, inputs: int, outputs: int, group: int = 1) -> str:
        """A convolution, a third of its channels dead, constant or like another."""
        size = int(self.rng.choice([1, 3]))
        weight = (self.rng.standard_normal((outputs, inputs // group, size, size)) * 0.3 / size).astype(np.float32)
        bias = (self.rng.standard_normal(outputs) * 0.3 + 0.2).astype(np.float32)
        places = self.rng.permutation(outputs)
        for place in places[: outputs // 3]:
            match self.rng.integers(4):
                case 0:
                    bias[place] = -40
                case 1:
                    weight[place], bias[place] = 0, self.rng.choice([0.7, -0.5, 0.0])
                case kind:
                    weight[place], bias[place] = (each[places[-1]] / (kind - 1) for each in (weight, bias))
        pads = f"pads = [{', '.join([str(size // 2)] * 4)}], group = {group}"
        more = f", {self.constant(bias)}" if self.rng.random() < 0.8 else ""
        return self.add(f"Conv <{pads}> ({{0}}, {self.constant(weight)}{more})", source)

    def step(self, x: str, count: int) -> str:
        """Something that leaves the number of channels as it is."""
        return (self.moved if self.rng.random() < 0.5 else self.layered)(x, count)

    def moved(self, x: str, count: int) -> str:
        """An operator without layers."""
        match self.rng.integers(6):
            case 0:
                return self.add("HardSwish ({})", x)
            case 1:
                return self.add("MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({})", x)
            case 2:
                return self.add("Gather <axis = 1> ({}, {})", x, self.constant(self.rng.permutation(count)))
            case 3:
                last = self.add("Transpose <perm = [0, 2, 3, 1]> ({})", x)
                return self.add("Transpose <perm = [0, 3, 1, 2]> ({})", self.add("Sigmoid ({})", last))
            case 4:
                values = [(self.rng.random(count) + 0.5).astype(np.float32) for _ in range(4)]
                return self.add("BatchNormalization ({}, {}, {}, {}, {})", x, *map(self.constant, values))
            case _:
                parts = self.add("Reshape ({}, {})", x, self.constant(np.array([0, 4, count // 4, 8, 8])))
                return self.add("Reshape ({}, {})", parts, self.constant(np.array([0, -1, 8, 8])))

    def layered(self, x: str, count: int) -> str:
        """Something around more layers."""
        match self.rng.integers(4):
            case 0:
                return self.layer(x, count, count, int(self.rng.choice([count, 2, 4])))
            case 1:
                return self.add("Add ({}, {})", self.layer(x, count, count), x)
            case 2:
                hidden = self.add("Relu ({})", self.layer(self.add("GlobalAveragePool ({})", x), count, 5))
                return self.add("Mul ({}, {})", x, self.add("HardSigmoid ({})", self.layer(hidden, 5, count)))
            case _:
                one = self.layer(x, count, 1)
                return self.add("Concat <axis = 1> ({}, {})", one, self.layer(x, count, count - 1))

    def net(self) -> Net:
        """Layers, with other things in between."""
        x, count = "x", 3
        for _ in range(self.rng.integers(2, 4)):
            wide = int(self.rng.choice([8, 12]))
            x, count = self.layer(x, count, wide), wide
            for _ in range(self.rng.integers(3)):
                x = self.step(self.add("Relu ({})", x) if self.rng.random() < 0.6 else x, count)
        last = self.layer(self.add("Relu ({})", x), count, 4)
        text = f"net (float[N, 3, 8, 8] x) => (float[N, A, B, C] y) {{ {'  '.join(self.lines)}  y = Neg ({last}) }}"
        return Net(text, self.weights)


@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed: int) -> None:
    net = Random(seed).net()
    samples, fresh = net.samples(SAMPLES), net.samples(2, seed=77)
    before, after = net.model(), squeezed(net, samples)
    require_same(before, after, fresh)
    annotate(before, samples[0])
    require_same(before, without_removed(before, after, samples[0]), fresh)
    after.metadata_props.pop(REMOVED, None)
    again = rewritten(after, samples, Squeeze(lanes=1)).model  # what the first samples held for constants
    assert count_removed(again) <= 2
    require_same(before, again, fresh)
