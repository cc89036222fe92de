"""Sites of codes in a graph: weights of layers, embedding tables, weights that float kernels read."""

from __future__ import annotations

from typing import assert_never

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.layer import LinearLayer
from ptq.passes.graph import initializer_of
from ptq.passes.stored import StoredWeight, tensor_of, value_in
from ptq.passes.tables import Table

WeightSite = LinearLayer | Table | StoredWeight
"""A place where a weight is read; its `name` is its own among all sites of a model."""


def matrix_of(model: ir.Model, site: WeightSite) -> NDArray[np.float32]:
    """Return the float weight of a site. Shape [rows, columns], rows with scales of their own.

    Raises:
        KeyError: The model has no such weight.
    """
    match site:
        case LinearLayer():
            return site.layout.to_matrix(initializer_of(model, site.weight))
        case Table():
            return _numbers(model, site.name)
        case StoredWeight():
            return np.asarray(site.to_matrix(_numbers(model, site.name)))
        case never:
            assert_never(never)


def rows_and_columns(site: WeightSite) -> tuple[int, int]:
    """Return the shape of the matrix of a site."""
    match site:
        case LinearLayer():
            return site.layout.shape[site.layout.out_axis], site.fan_in
        case Table():
            return site.shape
        case StoredWeight():
            return site.num_rows, int(np.prod(site.shape)) // site.num_rows
        case never:
            assert_never(never)


def _numbers(model: ir.Model, name: str) -> NDArray[np.float32]:
    """Return the numbers of a constant of any graph."""
    tensor = tensor_of(value_in(model, name))
    if tensor is None:
        raise KeyError(f"weight {name} lost its values")
    return np.asarray(tensor.numpy(), np.float32)
