"""Which output features get longer words: those whose errors cost the network's output the most for their price."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq.core.widths import MAX_BITS


@dataclass(frozen=True)
class Demand:
    """One layer's side of the bargain.

    Attributes:
        gain: What the rounding of each feature costs the network's output. Shape [out].
        price: Products of one more word in one feature, per sample.
        num_bits: Word length b that all features have; longer ones are multiples of it, up to a byte.
    """

    gain: NDArray[np.float64]
    price: int
    num_bits: int

    @property
    def most(self) -> int:
        """Words of b bits beyond which a feature has nothing to gain."""
        return -(-MAX_BITS // self.num_bits)


def allocate(demands: Mapping[str, Demand], share: float) -> dict[str, NDArray[np.int8]]:
    """Spend a budget of products where they gain most.

    Another b bits leave 4^-b of the energy of a feature's error.

    Args:
        demands: By layer.
        share: Extra products as a share of those of all the layers with one word for each weight.

    Returns:
        Bits of every output feature, by layer.
    """
    names = list(demands)
    layer, row, gain, price = [], [], [], []
    for index, name in enumerate(names):
        demand = demands[name]
        for step in range(1, demand.most):
            left = 4.0 ** (-demand.num_bits * (step - 1)) - 4.0 ** (-demand.num_bits * step)
            layer.append(np.full(len(demand.gain), index))
            row.append(np.arange(len(demand.gain)))
            gain.append(demand.gain * left)
            price.append(np.full(len(demand.gain), demand.price))
    words = {name: np.ones(len(demand.gain), np.int8) for name, demand in demands.items()}
    if not layer:
        return _bits(words, demands)
    layers, rows, gains, prices = (np.concatenate(each) for each in (layer, row, gain, price))
    budget = share * sum(demand.price * len(demand.gain) for demand in demands.values())
    for item in np.argsort(-gains / prices, kind="stable"):  # a feature's first extra word comes before its second
        if prices[item] <= budget and gains[item] > 0:
            budget -= prices[item]
            words[names[layers[item]]][rows[item]] += 1
    return _bits(words, demands)


def _bits(words: Mapping[str, NDArray[np.int8]], demands: Mapping[str, Demand]) -> dict[str, NDArray[np.int8]]:
    return {
        name: np.minimum(count * np.int8(demands[name].num_bits), np.int8(MAX_BITS)) for name, count in words.items()
    }
