"""Solver of one layer with everything that decides what becomes of it: solved once or twice, judged, reported."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ptq.allocation.bit_plan import LayerBits
from ptq.core.affine import QuantParams
from ptq.core.channel_mean import ChannelMean
from ptq.core.damping import LayerMoments
from ptq.core.decibels import NO_ERROR_DB, decibels
from ptq.core.distribution import distribution_of_weight
from ptq.core.encoding import WeightEncoding
from ptq.core.family import tag_of
from ptq.core.layer import LinearLayer
from ptq.core.layer_row import LayerRow
from ptq.core.plan import BiasEncoding
from ptq.core.problem import LayerProblem
from ptq.core.solved_layer import SolvedLayer
from ptq.core.widths import MAX_BITS, Widths
from ptq.sensitivity.float_network import PlacedLayer
from ptq.solving.bias import InputMeans
from ptq.solving.choices import Choices, LayerChoice
from ptq.solving.grids import Grids
from ptq.solving.layer import InputStatistics, LayerArrays, hold, problem_of, solve_layer
from ptq.solving.splits import choose_split
from ptq.weights import Rtn
from ptq.weights.given import Given


@dataclass(frozen=True)
class LayerSolver:
    """Solver of one layer."""

    arrays: LayerArrays
    layer: LinearLayer
    settings: Choices
    grids: Grids
    rows: NDArray[np.int8] | None = None

    @property
    def choice(self) -> LayerChoice:
        """Choice for the layer's weight."""
        return self.settings.choice(self.layer)

    def with_bits(self, bits: LayerBits) -> LayerSolver:
        """Return the solver of the layer with words of these lengths."""
        rows = np.broadcast_to(np.array(bits, np.int8), len(self.arrays.weight))
        return replace(self, rows=rows)

    def start(self, seen: ChannelMean | None) -> SolvedLayer:
        """Solve from the weight and the means of the input; for a method that needs more, only to start its walk."""
        waits = bool(self.choice.method.needs)
        return self._started(replace(self.choice, method=Rtn(), split="never") if waits else self.choice, seen)

    def take(self, encoding: WeightEncoding, seen: ChannelMean | None) -> SolvedLayer:
        """Take a weight that a stage for all layers has chosen, and find its bias."""
        return self._started(replace(self.choice, method=Given(encoding), split="never"), seen)

    def problem(self, moments: LayerMoments | None = None) -> LayerProblem:
        """Return the problem that a method for all layers is given."""
        saturates = self.settings.saturates
        held = None if moments is None else hold(moments, self.arrays, self._grid)
        return problem_of(self.arrays, self.choice, held, self._widths, saturates=saturates)

    def _started(self, choice: LayerChoice, seen: ChannelMean | None) -> SolvedLayer:
        means = None if seen is None else InputMeans.of_channels(self.layer, seen)
        return self._best(choice, InputStatistics(None, means))

    def solve(self, moments: LayerMoments) -> SolvedLayer:
        """Solve with the moments of the input, which are used up."""
        product = self.layer.adds_bias_in_float
        # A product without a grid is asked to undo earlier errors by its weights; its bias would undo them once more.
        corrects = self.settings.bias_correction and not (product and self._grid is None)
        means = InputMeans.of_moments(moments, own=product) if corrects else None
        return self._best(self.choice, InputStatistics.of(moments, means, self.arrays, self._grid))

    def settled(self, moments: LayerMoments) -> SolvedLayer:
        """Solve with the moments of the input, and drop what is as large as the weight and no longer needed."""
        return self.solve(moments).settled()

    def _best(self, choice: LayerChoice, seen: InputStatistics) -> SolvedLayer:
        """With words of one length, or with the longer ones that were asked for where they err less."""
        own = self._widths
        single = solve_layer(self.arrays, choice, self._grid, seen, own, saturates=self.settings.saturates)
        split = choose_split(self.layer, self.arrays.weight, choice)
        if isinstance(split, str):
            return replace(single, note=split)
        merged = split if own is None else split.merge(own)
        both = solve_layer(self.arrays, choice, self._grid, seen, merged, saturates=self.settings.saturates)
        gain = decibels(single.excess, both.excess)
        if gain <= 0 or (choice.split == "auto" and gain < WORTH_DB):
            return replace(single, note=f"split rejected ({gain:+.1f} dB)")
        return replace(both, note=f"split ({gain:+.1f} dB)")

    def rounded(self, solved: SolvedLayer) -> PlacedLayer:
        """Describe its errors, for a look at what they do to the network's outputs.

        Raises:
            RuntimeError: It was solved from its weight alone.
        """
        output, num_bits = solved.output, solved.encoding.num_bits
        if output is None:
            raise RuntimeError(f"{self.layer.name} was solved without its output")
        centered = self.settings.bias_correction and self.arrays.takes_bias
        return PlacedLayer(
            self.layer.name,
            num_bits,
            output.row_error,
            layer=self.layer,
            rounding=output.rounding,
            centered=centered,
        )

    @property
    def _widths(self) -> Widths | None:
        """Bits of each weight, where those of some output feature are longer than the choice says."""
        rows = self.rows
        longer = rows is not None and (rows > self.choice.spec.num_bits).any()
        return Widths.in_rows(rows, self.layer.fan_in) if rows is not None and longer else None

    @property
    def _grid(self) -> QuantParams | None:
        return self.grids.of_value.get(self.layer.source)

    def row(self, solved: SolvedLayer, output_size: int) -> LayerRow:
        """Describe the layer for the report."""
        macs = output_size * self.layer.fan_in
        error, signal = solved.weight_error
        encoding, output = solved.encoding, solved.output
        extra = 0 if encoding.widths is None else encoding.widths.extra_words(encoding.num_bits)
        weight_sqnr_db = decibels(signal, error)
        return LayerRow(
            self.layer.name,
            self.layer.op_type,
            encoding.num_bits,
            self.arrays.weight.size,
            _described(solved),
            0 if self.layer.name in self.settings.coarse else macs,
            macs if self.layer.name in self.settings.coarse else macs * extra // self.arrays.weight.size,
            macs if self.layer.name in self.settings.coarse else 0,
            weight_sqnr_db,
            self.grids.sqnr_db.get(self.layer.source, NO_ERROR_DB),
            solved.bias_guarded,
            tag_of(type(self.choice.method)),
            None if output is None else decibels(output.signal, output.error),
            None if output is None else decibels(output.signal, output.bound),
            encoding.num_levels(),
            encoding.zeros() / self.arrays.weight.size,
            self._accumulator(solved),
            self.grids.group.get(self.layer.source, ""),
            distribution_of_weight(self.arrays.weight, encoding, weight_sqnr_db),
        )

    def _accumulator(self, solved: SolvedLayer) -> int:
        grid = self._grid
        if grid is None:
            return 0
        sums = solved.encoding.reach()
        low, high = grid.spec.limits
        reach = max(int(grid.zero_point) - low, high - int(grid.zero_point))
        bias = np.abs(solved.bias.codes.astype(np.int64)) if isinstance(solved.bias, BiasEncoding) else 0
        return int((sums * reach + bias).max(initial=0))


def start_layer(_common: None, task: tuple[LayerSolver, ChannelMean | None]) -> SolvedLayer:
    """Solve a layer for its walk to start from, on whatever machine this runs."""
    job, seen = task
    return job.start(seen)


def _described(solved: SolvedLayer) -> str:
    """Say where the longer words are, counted in points as the paper does where they are sums of points."""
    widths, num_bits = solved.encoding.widths, solved.encoding.num_bits
    several = "" if widths is None else _longer(widths.rows, num_bits)
    return ", ".join(part for part in (several, solved.note) if part)


def _longer(rows: NDArray[np.int8], num_bits: int) -> str:
    points = -(-rows // np.int8(num_bits))
    if (np.minimum(points * num_bits, MAX_BITS) != rows).any():
        return f"{rows.min()} to {rows.max()} bits by feature"
    return f"up to {points.max()} points in {(points > 1).sum()} of {len(rows)} features" if points.max() > 1 else ""


WORTH_DB = 3.0
"""Gain that a split needs at the layer's output to be made without being asked for, dB."""
