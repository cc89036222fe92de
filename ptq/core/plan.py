"""The whole decision about a model, outside the graph: the only input of lowering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import QuantParams
from ptq.core.encoding import WeightEncoding


@dataclass(frozen=True)
class BiasEncoding:
    """An integer bias: real = scale * codes, scale = input scale * weight scale.

    Attributes:
        codes: int32. Shape [out].
        scale: float32, real units per code. Shape [out].
    """

    codes: NDArray[np.int32]
    scale: NDArray[np.float32]


@dataclass(frozen=True)
class FloatBias:
    """A bias that is added in float, behind a product whose result is float.

    Attributes:
        values: float32, real units. Shape [out].
    """

    values: NDArray[np.float32]


@dataclass(frozen=True)
class QuantPlan:
    """What every tensor becomes; immutable.

    Attributes:
        activations: Value name -> grid. Values that share data without arithmetic share the grid.
        weights: Layer name -> weight.
        biases: Layer name -> bias.
        tables: Embedding table -> its rows, one scale each.
        stored: Weight that float kernels read -> its rows, one scale each.
    """

    activations: Mapping[str, QuantParams]
    weights: Mapping[str, WeightEncoding]
    biases: Mapping[str, BiasEncoding | FloatBias]
    tables: Mapping[str, WeightEncoding] = field(default_factory=dict)
    stored: Mapping[str, WeightEncoding] = field(default_factory=dict)
