"""Causes of a layer's error, and the option of `ptq quantize` that mends each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.analysis.diff.board import Site, Switch
from ptq.analysis.diff.measure import GridSeen, Measured, parts_of
from ptq.analysis.diff.weights import Restored
from ptq.analysis.kernels import Kernels
from ptq.analysis.metrics import sqnr_db

WIDE = 8.0
"""How many times wider than the median a channel, or than the smallest part of a Concat another, is worth a word."""

PEAKED = 24.0
"""Largest value over the root of the mean square from which on a few outliers set the range."""

FULL_BITS, ENOUGH_BITS = 8, 7
"""Bits of a full weight, and bits that are enough: without VNNI weights have 7, or 8 whose neighbors share room."""

LISTED = 3


@dataclass(frozen=True)
class Finding:
    """A fault that can be mended.

    Attributes:
        kind: `wrong-weights`, `wide-channel`, `few-bits`, `saturated-bias`, `uneven-concat`, `clipped`, `outliers`,
            `weights` and `grid` (plain rounding), `unfused`, `islands`.
        layer: The layer, or the operator for the last two.
        share: Of the final error, the mean of `alone` and `restored`, each within 0 and 1.
        alone: Error with only this rounded, over the final error; None for what costs time and no accuracy.
        restored: What of the final error goes when this is in float.
        text: What was seen.
        option: What to add to `ptq quantize`; empty if quantizing again is enough.
        command: The whole command; for islands, the one that says what they cost.
    """

    kind: str
    layer: str
    share: float
    alone: float | None
    restored: float | None
    text: str
    option: str
    command: str


@dataclass(frozen=True)
class Names:
    """Names by which the user calls the models and the data.

    Attributes:
        reference: The float model.
        quantized: The quantized model.
        data: The data.
    """

    reference: str
    quantized: str
    data: str

    @property
    def profile(self) -> str:
        """Command that measures the time of each operator."""
        return shlex.join(["ptq", "bench", self.reference, self.quantized, "--profile"])

    def command(self, option: str) -> str:
        """Return the command that quantizes again, with one more option."""
        words = ["ptq", "quantize", self.reference, "--data", self.data, "-o", self.quantized]
        return " ".join([shlex.join(words), option]).strip()


@dataclass(frozen=True)
class Symptom:
    """A symptom of one part of a layer.

    Attributes:
        kind: As in `Finding`.
        text: In words.
        option: What mends it.
    """

    kind: str
    text: str
    option: str = ""


def explain(site: Site, called: Site, measured: Measured, restored: Mapping[str, Restored]) -> Symptom:
    """Find the likely cause of what a site costs.

    Args:
        site: The site.
        called: The same by the names that a user knows.
        measured: What was measured, with the shares of its parts if it has two.
        restored: Its float numbers.

    Returns:
        The most telling symptom of the part that costs more.
    """
    of_weights, of_grids = parts_of(site)
    weights = bool(of_weights) and (not of_grids or share_of(measured, of_weights) >= share_of(measured, of_grids))
    if weights:
        return _of_weights(called, [restored[part.key] for part in site.parameters])
    worst = max(site.switches, key=lambda switch: _relative(measured.grids[switch.key]))
    return _of_grid(called, worst, measured.grids[worst.key], measured.parts[site.name])


def share_of(measured: Measured, keys: frozenset[str]) -> float:
    """Mean of the error that stays with these keys alone and of that which goes without them, shares within 0 and 1."""
    return float(np.mean([min(max(share, 0.0), 1.0) for share in measured.shares(keys)]))


def speed_findings(kernels: Kernels, names: Names) -> list[Finding]:
    """List what costs time, not accuracy."""
    again = names.command("")
    texts = [
        ("unfused", op, f"{count} {op} decode their weight on every run: a float kernel between Q/DQ pairs", again)
        for op, count in kernels.fallbacks.items()
    ]
    if not kernels.num_linear and not kernels.fallbacks:
        texts.append(("unfused", "all layers", "no layer became an integer kernel", again))
    texts += [
        ("islands", op, f"{count} {op} compute in float between codes: two conversions each", names.profile)
        for op, count in kernels.islands.items()
    ]
    return [Finding(kind, layer, 0.0, None, None, text, "", command) for kind, layer, text, command in texts]


def exclusion(names: Sequence[str]) -> str:
    """Return the options that leave layers in float."""
    return " ".join(f"--exclude {shlex.quote(_pattern(name))}" for name in names)


def _pattern(name: str) -> str:
    return f"re:{re.escape(name)}" if set(name) & set("*?[") else name


def _of_weights(site: Site, restored: Sequence[Restored]) -> Symptom:
    symptoms = [_wrong_features, _wide_feature, _few_bits, _saturated]
    for look in symptoms:
        for each in restored:
            found = look(site, each)
            if found is not None:
                return found
    return Symptom("weights", "plain rounding of its weights", exclusion([site.name]))


def _rows(array: NDArray[Any], axis: int) -> NDArray[np.float64]:
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)


def _wrong_features(site: Site, restored: Restored) -> Symptom | None:
    """Find features that do not resemble the float ones, while most do; biases may have been corrected."""
    if restored.out_axis is None or restored.value is None or restored.value.ndim < 2:
        return None
    codes, floats = _rows(restored.parameter.value, restored.out_axis), _rows(restored.value, restored.out_axis)
    power, error = np.square(floats).sum(1), np.square(codes - floats).sum(1)
    kept = np.array([sqnr_db(float(a), float(b)) for a, b in zip(power, error, strict=True)])
    wrong = np.flatnonzero((kept < -3) & (power > 0))
    if not wrong.size or np.median(kept) < 3:
        return None
    index = int(wrong[np.argmax(error[wrong])])
    gain = float(codes[index] @ floats[index] / power[index])
    more = f" (and {wrong.size - 1} more)" if wrong.size > 1 else ""
    text = f"weights of channel {index}{more} are {gain:.3g} times those of the float model: a wrong scale"
    return Symptom("wrong-weights", text)


def _wide_feature(site: Site, restored: Restored) -> Symptom | None:
    if restored.out_axis is None or restored.value is None or restored.parameter.num_scales != 1:
        return None
    reach = np.abs(_rows(restored.value, restored.out_axis)).max(1, initial=0.0)
    index, middle = int(reach.argmax()), float(np.median(reach))
    if reach[index] <= WIDE * middle:
        return None
    text = (
        f"weights of channel {index} are {reach[index] / max(middle, 1e-30):.0f} times wider than the median channel's"
    )
    return Symptom("wide-channel", f"{text}, and all share one scale", "--granularity per-channel")


def _few_bits(site: Site, restored: Restored) -> Symptom | None:
    bits = _num_bits(restored)
    if bits is None or bits >= ENOUGH_BITS:
        return None
    rule = shlex.quote(f"{_pattern(site.name)}:bits={FULL_BITS}")
    return Symptom("few-bits", f"its weights have {bits} bits", f"--layer {rule}")


def _num_bits(restored: Restored) -> int | None:
    """Estimate the word length from the finest step of any feature; None where features are too short to tell."""
    if restored.out_axis is None:
        return None
    levels = 0.0
    for row in _rows(restored.parameter.value, restored.out_axis):
        values = np.unique(row)
        if values.size > LISTED:
            levels = max(levels, float(values[-1] - values[0]) / float(np.diff(values).min()))
    return int(np.ceil(np.log2(levels + 1) - 1e-3)) if levels else None


def _saturated(site: Site, restored: Restored) -> Symptom | None:
    count = restored.parameter.saturated
    if not count:
        return None
    text = f"{count} biases are at the limit of 32 bits: the scales of their weights are too small"
    return Symptom("saturated-bias", text)


def _of_grid(site: Site, switch: Switch, grid: GridSeen, parts: NDArray[Any]) -> Symptom:
    readers = exclusion(site.readers[:LISTED] or [site.name])
    if switch.limits is None:
        return Symptom("weights", "rows of its table are rounded", exclusion([site.name]))
    if site.op_type == "Concat" and parts.size and parts.max() > WIDE * parts.min():
        ratio = parts.max() / max(float(parts.min()), 1e-30)
        text = f"joins ranges that differ {ratio:.0f}-fold on one grid"
        return Symptom("uneven-concat", text, exclusion([site.name, *site.readers[:LISTED]]))
    low, high = switch.limits
    beyond = f"{grid.outside / max(grid.count, 1):.2%} of {switch.name} is clipped to {low:.4g} .. {high:.4g}"
    if grid.clipped > grid.error / 2 and grid.outside:
        return Symptom("clipped", f"{beyond}, values reach {grid.peak:.4g}", "--activations minmax")
    if grid.channels is not None and grid.channels.size > LISTED:
        index, middle = int(grid.channels.argmax()), float(np.median(grid.channels))
        if grid.channels[index] > WIDE * middle:
            ratio = grid.channels[index] / max(middle, 1e-30)
            text = f"channel {index} of {switch.name} is {ratio:.0f} times wider than the median channel, on one grid"
            return Symptom("wide-channel", text, readers)
    bulk = float(np.sqrt(grid.signal / max(grid.count, 1)))
    if grid.peak > PEAKED * bulk and max(-low, high) > PEAKED * bulk:
        text = f"a few values of {switch.name} reach {grid.peak / max(bulk, 1e-30):.0f} times their root mean square"
        return Symptom("outliers", text, "--activations percentile")
    return Symptom("grid", f"plain rounding of {switch.name}", readers)


def _relative(grid: GridSeen) -> float:
    return grid.error / max(grid.signal, 1e-300)
