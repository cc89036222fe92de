"""Blame for a quantized model's error: every weight and grid with what it costs, as rows that bits are allocated to."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ptq.allocation.bit_plan import LayerBits
from ptq.analysis.diff import Diff, LayerDiff, Pair, Say, diff
from ptq.analysis.diff.causes import Finding, Names
from ptq.analysis.diff.network import SwitchedNetwork
from ptq.calibration.reader import Sample
from ptq.core.errors import PtqError
from ptq.core.layer_row import LayerRow
from ptq.job import Job, Result
from ptq.recipe import LayerRule
from ptq.sensitivity import RestoredShare
from ptq.sensitivity.problem import RoundedLayer
from ptq.sensitivity.table import FLOAT, SensitivityTable

BYTE = 8
BITS = (*range(2, BYTE + 1), FLOAT)
"""Word lengths that a row may have: of a grid a byte, or float."""

DIVIDED = 24
"""Sites whose error is told apart by measuring: weights, and the grid of the result."""

RESULT = "result of "
"""What the name of a grid's row begins with."""


@dataclass(frozen=True)
class Prices:
    """Cost in bytes of words of weights, and of leaving a grid out: weights of float kernels have whole bytes.

    Attributes:
        num_weights: Layer -> how many weights it has.
        beside: Row of a grid -> bytes that the weights of its layers take more then, and as many as time is worth.
    """

    num_weights: Mapping[str, int]
    beside: Mapping[str, float]

    @property
    def unit(self) -> str:
        """Name of the unit that is counted."""
        return "bytes"

    def of(self, layer: str, bits: LayerBits) -> float:
        """Return the bytes of a row."""
        longest = max(bits) if isinstance(bits, tuple) else bits
        if layer in self.num_weights:
            return self.num_weights[layer] * longest / 8
        return self.beside[layer] if longest == FLOAT else 0.0


@dataclass(frozen=True)
class Blame:
    """Where the error of a quantized model comes from, and what taking it away costs.

    Attributes:
        table: Error of each row by word length: weights of a layer under its name, grids under `RESULT` and theirs.
        prices: What words cost.
        nodes: Row of a grid -> nodes that are left in float with it.
        findings: Causes that `ptq diff` names, the greatest first.
        layers: Everything that could be switched, likewise.
    """

    table: SensitivityTable
    prices: Prices
    nodes: Mapping[str, tuple[str, ...]]
    findings: tuple[Finding, ...] = ()
    layers: tuple[LayerDiff, ...] = ()

    def rules(self, bits: Mapping[str, LayerBits]) -> tuple[LayerRule, ...]:
        """Return the rules that give rows their bits; with a grid go its nodes, layers with their weights on codes."""
        rules = [_rule(name, own) for name, own in bits.items() if name not in self.nodes]
        floats = dict.fromkeys(node for name in bits for node in self.nodes.get(name, ()))
        return (*rules, *(self._kernel(name) for name in floats if bits.get(name) != FLOAT))

    def _kernel(self, name: str) -> LayerRule:
        """Return the rule that leaves a node to a float kernel."""
        if name in self.prices.num_weights:
            return LayerRule(glob.escape(name), bits=BYTE, float_kernel=True)
        return _rule(name, FLOAT)

    def leaves_nothing(self, bits: Mapping[str, LayerBits]) -> bool:
        """Whether every layer would stay in float."""
        floats = {name for name, own in bits.items() if own == FLOAT and name not in self.nodes}
        floats |= {node for name in bits for node in self.nodes.get(name, ())}
        return self.prices.num_weights.keys() <= floats


def blame(job: Job, result: Result, samples: Iterable[Sample], say: Say) -> Blame:
    """Find out what each weight and each grid does to the outputs.

    Args:
        job: What was run.
        result: What came of it.
        samples: Data; a few do.
        say: Called with the name of each step.
    """
    found: Diff | None = None
    if result.delivery.data is not None:
        names = Names("the float model", "the quantized model", job.data.description)
        pair = Pair(job.source, result.delivery.data, names, result.custom_ops)
        with suppress(PtqError):  # of a form in which nothing can be switched
            found = diff(pair, samples, say, divided=DIVIDED)
    shown = [] if found is None else [layer for layer in found.layers if layer.share]
    total, rows = error_of(result), result.report.layers
    return _measured(rows, total, shown, found) if shown and found is not None else _guessed(rows, total)


@dataclass
class _Shares:
    """Shares of the error, divided between weights and grids."""

    weights: dict[str, float] = field(default_factory=dict)
    grids: dict[str, float] = field(default_factory=dict)
    nodes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, layer: LayerDiff, known: Mapping[str, LayerRow]) -> None:
        """Add a site: what nobody measured apart is its weights' where those have few bits, else half of each."""
        row, share = known.get(layer.name), layer.share or 0.0
        part = 1.0 if row is not None and row.num_bits < BYTE else 0.5
        if layer.of_weights is not None and layer.of_grids is not None:
            part = layer.of_weights / max(layer.of_weights + layer.of_grids, 1e-300)
        part = 1.0 if not layer.has_grids else 0.0 if row is None else part
        if row is not None:
            self.weights[layer.name] = share * part
        if layer.has_grids and share * (1 - part) > 0:
            name = RESULT + layer.name
            own = () if layer.op_type == "input" or layer.is_new else (layer.name,)
            if nodes := (*own, *layer.readers):
                self.grids[name], self.nodes[name] = share * (1 - part), nodes


def _measured(rows: Sequence[LayerRow], total: float, layers: Sequence[LayerDiff], found: Diff) -> Blame:
    """Tabulate measured shares; together they are never more than the whole error."""
    known, shares = {row.name: row for row in rows}, _Shares()
    for layer in layers:
        shares.add(layer, known)
    scale = max(sum(shares.weights.values()) + sum(shares.grids.values()), 1.0)
    rounded = [RoundedLayer(row.name, row.num_bits, np.ones(1)) for row in rows]
    scaled = {name: share / scale for name, share in shares.weights.items()}
    table = RestoredShare().measure(rounded, BITS, SwitchedNetwork(total, scaled)).among(_allowed(rows))
    grids = np.array([[total * share / scale] * (len(BITS) - 1) + [0.0] for share in shares.grids.values()])
    error = np.concatenate([table.error, grids.reshape(-1, len(BITS))])
    rest = max(table.rest - float(grids[:, 0].sum() if grids.size else 0.0), 0.0)
    whole = SensitivityTable((*table.layers, *shares.grids), BITS, error, rest=rest)
    allowed = _allowed(rows) | {name: [BYTE, FLOAT] for name in shares.grids}
    longer = {row.name: row.num_weights * (1 - row.num_bits / BYTE) for row in rows}
    slower = sum(row.num_weights for row in rows) / max(len(rows), 1)  # what is left out costs time: a layer's bytes
    beside = {name: slower + sum(longer.get(node, 0.0) for node in nodes) for name, nodes in shares.nodes.items()}
    prices = Prices({row.name: row.num_weights for row in rows}, beside)
    return Blame(whole.among(allowed), prices, shares.nodes, found.findings, found.layers)


def _guessed(rows: Sequence[LayerRow], total: float) -> Blame:
    """Divide the error by the errors of weights and inputs, where nothing could be switched."""
    layers = [RoundedLayer(row.name, row.num_bits, *_errors(row)) for row in rows]
    table = RestoredShare().measure(layers, BITS, SwitchedNetwork(total, {}).or_guessed(layers))
    return Blame(table.among(_allowed(rows)), Prices({row.name: row.num_weights for row in rows}, {}), {})


def error_of(result: Result) -> float:
    """Return the energy of the error at the worst output, relative."""
    return float(10 ** (-result.report.proof.comparison.sqnr_db / 10))


def _allowed(rows: Sequence[LayerRow]) -> dict[str, list[int]]:
    return {row.name: [bits for bits in BITS if bits >= row.num_bits] for row in rows}


def _errors(row: LayerRow) -> tuple[NDArray[np.float64], float]:
    """Return the energies of the errors of a layer's weight and input, relative to theirs."""
    return np.array([10 ** (-row.weight_sqnr_db / 10)]), 10 ** (-row.input_sqnr_db / 10)


def _rule(name: str, bits: LayerBits) -> LayerRule:
    if bits == FLOAT:
        return LayerRule(glob.escape(name), skip=True)
    return LayerRule(glob.escape(name), bits=max(bits) if isinstance(bits, tuple) else bits)
