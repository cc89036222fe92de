"""Decisions about a whole model, outside the graph: the only input of lowering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import QuantParams
from ptq.core.encoding import WeightEncoding


@dataclass(frozen=True)
class BiasEncoding:
    """Bias of integers: real = scale * codes, scale = input scale * weight scale.

    Attributes:
        codes: Integers, int32. Shape [out].
        scale: Real units per code, float32. Shape [out].
    """

    codes: NDArray[np.int32]
    scale: NDArray[np.float32]


@dataclass(frozen=True)
class FloatBias:
    """Bias that is added in float, behind a product whose result is float.

    Attributes:
        values: Real units, float32. Shape [out].
    """

    values: NDArray[np.float32]


@dataclass(frozen=True)
class QuantPlan:
    """Decision for every tensor: grids of activations, weights and biases; immutable.

    Attributes:
        activations: Value name -> grid. Values that share data without arithmetic share the grid.
        weights: Weight site (layer, embedding table, weight that float kernels read) -> its weight.
        biases: Layer name -> bias.
    """

    activations: Mapping[str, QuantParams]
    weights: Mapping[str, WeightEncoding]
    biases: Mapping[str, BiasEncoding | FloatBias]
