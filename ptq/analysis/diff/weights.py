"""Search for the float numbers behind what a quantized model decodes: found by name, believed if they explain codes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.analysis.diff.board import Parameter, Switchboard
from ptq.analysis.diff.names import FloatNodes
from ptq.analysis.metrics import sqnr_db
from ptq.passes.linear import constant
from ptq.target import LINEAR_OPS

Array = NDArray[Any]

BELIEVED_DB = 1.5
"""SQNR from which on decoded weights count as those of the float model; two bits have some 6 dB."""

LOST_DB = 10.0
"""How much better medians of quotients have to fit than squares, dB: squares are the better estimate otherwise."""

BIAS_DB = 20.0
"""SQNR from which on a bias is taken as found; what corrects rounding is smaller than that."""

WORTH_DB = 3.0
"""Gain in SQNR from scales per channel, dB, from which on weights count as evened out."""

UNCERTAIN = 0.01
"""Relative error of a scale that is estimated from rounded weights."""

TINY = 0.1
"""Width of a channel, relative to the median one, below which all its weights may have been rounded to zero."""

ROUNDS = 12
FAR = 3.0
"""Times the usual distance at which a number counts half."""


@dataclass(frozen=True)
class Restored:
    """Constant of the float network, as it was found.

    Attributes:
        parameter: Constant that the quantized model has in its place.
        value: The float numbers, with the scales that evening out has moved into them; None if none were found.
        plain: The float numbers as they are.
        rows: Scale of each output feature that was moved in. Shape [out]; all 1 where nothing was.
        out_axis: Axis of the output features; None where there is none.
        is_ambiguous: Both features and channels have scales, so that a common factor may be of either.
    """

    parameter: Parameter
    value: Array | None
    plain: Array | None = None
    rows: Array | None = None
    out_axis: int | None = None
    is_ambiguous: bool = False

    @property
    def best(self) -> Array:
        """Numbers that the float network computes with, as far as they are known."""
        return self.parameter.value if self.value is None else self.value

    def without(self, features: Sequence[int]) -> Restored:
        """Return the constant where scales of some features, being faults and no evening out, are the median."""
        if self.value is None or self.rows is None:
            return self
        rows = self.rows.copy()
        rows[list(features)] = np.median(rows)
        shape = [-1 if axis == self.out_axis else 1 for axis in range(self.value.ndim)]
        return replace(self, value=(self.value * (rows / self.rows).reshape(shape)).astype(np.float32), rows=rows)

    @property
    def outliers(self) -> list[int]:
        """Find the features whose scale is far from the others', the farthest first."""
        if self.rows is None:
            return []
        away = np.abs(np.log(self.rows / np.median(self.rows)))
        return [int(index) for index in np.argsort(-away) if away[index] > np.log(2)]


def restore(board: Switchboard, floats: FloatNodes) -> dict[str, Restored]:
    """Find the float numbers of every parameter.

    Args:
        board: Quantized model.
        floats: Float model.

    Returns:
        Key of the parameter -> constant that was found.
    """
    found: dict[str, Restored] = {}
    for site in board.sites:
        weight = None
        for parameter in sorted(site.parameters, key=lambda each: each.value.ndim, reverse=True):
            node = board.node(parameter.node)
            is_bias = parameter.value.ndim == 1 and node.op_type in (*LINEAR_OPS, "Add", "Sum")
            if is_bias and weight is not None:
                found[parameter.key] = _restore_bias(parameter, node, floats, weight)
                continue
            found[parameter.key] = _restore(parameter, node, floats)
            if node.op_type in LINEAR_OPS and weight is None:
                weight = found[parameter.key]
    return found


def _restore_bias(parameter: Parameter, node: ir.Node, floats: FloatNodes, weight: Restored) -> Restored:
    """Restore a bias with its weight; one that the float model does not have corrects rounding."""
    if weight.value is None or weight.rows is None or len(weight.rows) != parameter.value.size:
        return Restored(parameter, None)
    plain = next(_candidates(parameter, node, floats), np.zeros_like(parameter.value))
    value = plain * weight.rows
    if weight.parameter.value.shape[1] == 1 and node.op_type == "Conv":
        value = _beside_depthwise(parameter.value, plain, value)
    # Where both sides of a weight have scales, a factor common to all features is known from the bias alone.
    seen = np.abs(value) > np.abs(value).max(initial=0.0) * UNCERTAIN
    common = float(np.median(parameter.value[seen] / value[seen])) if weight.is_ambiguous and seen.any() else 1.0
    value = value * (common if common > 0 else 1.0)
    silent = ~np.moveaxis(weight.parameter.value, weight.out_axis or 0, 0).reshape(len(value), -1).any(1)
    value = np.where(silent, parameter.value, value)  # all weights rounded to zero: no scale is known of such a feature
    return Restored(parameter, value.astype(np.float32), plain, weight.rows, 0)


def _beside_depthwise(decoded: Array, plain: Array, scaled: Array) -> Array:
    """Restore a bias whose weight has one scale per feature for what came in and what goes out: it has the latter.

    Nothing came in scaled, nothing goes out scaled, or both: then the bias alone tells.
    """
    ratio = np.divide(decoded, plain, out=np.ones_like(plain), where=plain != 0)
    best = max((scaled, plain), key=lambda each: _db(each, decoded))
    return best if _db(best, decoded) > BIAS_DB else plain * np.where(ratio > 0, ratio, 1.0)


def _restore(parameter: Parameter, node: ir.Node, floats: FloatNodes) -> Restored:
    if parameter.index < 0:  # a table: it came from the float model
        return Restored(parameter, parameter.value, parameter.value)
    fits = [_fit(parameter, array, node) for array in _candidates(parameter, node, floats)]
    best = max(fits, key=_likeness, default=None)
    return best if best is not None and _likeness(best) > BELIEVED_DB else Restored(parameter, None)


def _candidates(parameter: Parameter, node: ir.Node, floats: FloatNodes) -> Iterator[Array]:
    for other in () if parameter.node in floats.refitted else floats.named(parameter.node, node.op_type):
        yield from _constants(other, parameter, node)


def _likeness(fit: Restored) -> float:
    """Return the SQNR of the decoded numbers: over all, or of the median feature, as some may be faulty alone. dB."""
    whole = _db(fit.best, fit.parameter.value)
    if fit.out_axis is None:
        return whole
    features = [np.moveaxis(array, fit.out_axis, 0) for array in (fit.best, fit.parameter.value)]
    return max(whole, float(np.median([_db(*pair) for pair in zip(*features, strict=True)])))


def _db(reference: Array, value: Array) -> float:
    difference = reference.astype(np.float64) - value
    return sqnr_db(float(np.square(reference, dtype=np.float64).sum()), float(np.square(difference).sum()))


def _constants(other: ir.Node, parameter: Parameter, node: ir.Node) -> list[Array]:
    """Find the constants of the float node in the shape of the parameter."""
    if node.op_type in ("Add", "Sum", "MatMul"):  # either side
        values = list(other.inputs)
    else:
        values = [other.inputs[parameter.index]] if parameter.index < len(other.inputs) else []
    arrays = [array for array in map(constant, values) if array is not None and array.dtype == np.float32]
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != other.attributes.get_int("transB", 0):
        arrays = [array.T for array in arrays]
    return [array for array in arrays if array.shape == parameter.value.shape]


def _fit(parameter: Parameter, plain: Array, node: ir.Node) -> Restored:
    """Return the float weight, or rows and columns of it scaled where that explains much more."""
    axis = _out_axis(parameter, node)
    if axis is None:
        return Restored(parameter, plain, plain)
    groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
    decoded, original = (_in_groups(array, axis, groups) for array in (parameter.value, plain))
    rows, columns = _scales(decoded, original)
    scaled = (original * rows * columns).astype(np.float32)
    ones = Restored(parameter, plain, plain, np.ones(plain.shape[axis]), axis)
    if _db(scaled, decoded) < _db(original, decoded) + WORTH_DB:
        return ones
    value = np.moveaxis(scaled.reshape(np.moveaxis(plain, axis, 0).shape), 0, axis)
    both = min(_spread(rows), _spread(columns)) > UNCERTAIN
    return replace(ones, value=np.ascontiguousarray(value), rows=rows.reshape(-1), is_ambiguous=both)


def _out_axis(parameter: Parameter, node: ir.Node) -> int | None:
    if parameter.value.ndim < 2:
        return None
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}.get(node.op_type) if parameter.index == 1 else None


def _in_groups(weight: Array, axis: int, groups: int) -> Array:
    """Arrange a weight by groups. Shape [groups, features, channels, taps]."""
    first = np.moveaxis(weight, axis, 0).astype(np.float64)
    return first.reshape(groups, len(first) // groups, first.shape[1], -1)


def _scales(decoded: Array, original: Array) -> tuple[Array, Array]:
    """Fit positive scales of features and channels: alternating least squares that believe those who fit.

    A method that sees data may have moved single weights far, where inputs hardly vary; they say nothing about scales.
    """
    reach, dead = np.abs(original).max((1, 3), keepdims=True), np.abs(decoded).max((1, 3), keepdims=True) == 0
    taken_out = dead & (reach > np.median(reach) * TINY)  # they are computed elsewhere, as outliers
    original = np.where(taken_out, 0.0, original)
    rows, columns = np.ones((*original.shape[:2], 1, 1)), np.ones((original.shape[0], 1, original.shape[2], 1))
    trust = np.ones_like(original)
    for _ in range(ROUNDS):
        rows = _positive(decoded, original * columns, trust, (2, 3))
        if original.shape[2] > 1:  # else a channel is its feature
            even = 1 / np.maximum(np.sqrt(np.square(original * rows).sum((2, 3), keepdims=True)), 1e-30)
            columns = _positive(decoded * even, original * rows * even, trust, (1, 3))
        trust = _trust(decoded, original * rows * columns)
    rows = _positive(decoded, original * columns, trust, (2, 3))
    others = _scales_by_quotients(decoded, original)
    if _db(original * others[0] * others[1], decoded) > _db(original * rows * columns, decoded) + LOST_DB:
        rows, columns = others
    common = np.median(rows) if _spread(rows) < _spread(columns) else 1 / np.median(columns)
    return rows / common, np.where(taken_out, 0.0, columns * common)


def _scales_by_quotients(decoded: Array, original: Array) -> tuple[Array, Array]:
    """Fit scales of features and channels by medians of quotients: where they differ by powers of ten, squares fail."""
    told = decoded * original > 0
    quotients = np.full(original.shape, np.nan)
    np.log(np.divide(decoded, original, where=told, out=np.ones(original.shape)), where=told, out=quotients)
    rows, columns = np.zeros((*original.shape[:2], 1, 1)), np.zeros((original.shape[0], 1, original.shape[2], 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a feature of zeros alone has no median
        for _ in range(ROUNDS):
            rows = np.nan_to_num(np.nanmedian(quotients - columns, (2, 3), keepdims=True))
            if original.shape[2] > 1:
                columns = np.nan_to_num(np.nanmedian(quotients - rows, (1, 3), keepdims=True))
    return np.exp(rows), np.exp(columns)


def _spread(scales: Array) -> float:
    """Return the median distance from the median, which is 1 for the side that was left alone."""
    return float(np.median(np.abs(np.log(np.maximum(scales / np.median(scales), 1e-30)))))


def _trust(decoded: Array, fitted: Array) -> Array:
    """Return weights of a robust fit: small where a number is many times farther off than its feature's median."""
    away = np.abs(decoded - fitted)
    usual = np.median(away, (2, 3), keepdims=True)
    return np.asarray(1 / (1 + np.square(away / np.maximum(usual * FAR, 1e-30))))


def _positive(wanted: Array, given: Array, trust: Array, axes: tuple[int, int]) -> Array:
    dot = (trust * wanted * given).sum(axes, keepdims=True)
    power = (trust * np.square(given)).sum(axes, keepdims=True)
    return np.where((dot > 0) & (power > 0), dot / np.maximum(power, 1e-300), 1.0)
