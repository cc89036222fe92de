"""The default floor: how near a model has to come to float although nobody set a goal."""

from __future__ import annotations

from dataclasses import dataclass

from ptq.analysis.compare import Comparison
from ptq.analysis.metrics import OutputMetrics
from ptq.core.interval import share_text

FLOOR_DB = 15.0
"""SQNR of an output: 3 % of its energy is error. In a classifier a class or two in a hundred change here."""

FLOOR_AGREEMENT = 0.9
"""Share of equal decisions, where an output holds decisions: those may stay right below `FLOOR_DB`."""

CHANCE_DB = 3.0
"""SQNR below which half of an output's energy is error: decisions that are equal then are equal by chance."""


@dataclass(frozen=True)
class Standing:
    """Standing of an output against the default floor.

    Attributes:
        name: The output.
        holds: Whether it is at the floor or above.
        text: Figure, number of samples, interval where it is a share, and floor.
    """

    name: str
    holds: bool
    text: str


def standing_of(row: OutputMetrics, num_samples: int) -> Standing:
    """Compare an output with the floor: by its decisions where it holds any, else by its SQNR.

    Args:
        row: The output.
        num_samples: Samples that it was seen on; decisions within one are not independent.
    """
    near = row.sqnr_db >= FLOOR_DB
    decides = row.agreement is not None and row.varied
    if row.agreement is None or not decides or (near and row.agreement < FLOOR_AGREEMENT):
        text = f"SQNR {row.sqnr_db:.2f} dB on {num_samples} samples, the floor is {FLOOR_DB:g} dB"
        return Standing(row.name, near, text)
    text = f"agreement {share_text(row.agreement, num_samples)} on {num_samples} samples, the floor is 90 %"
    if not near and row.sqnr_db < CHANCE_DB and row.agreement >= FLOOR_AGREEMENT and row.is_float:
        text = f"SQNR {row.sqnr_db:.2f} dB on {num_samples} samples, decisions need {CHANCE_DB:g} dB"
        return Standing(row.name, False, text)
    return Standing(row.name, near or row.agreement >= FLOOR_AGREEMENT, text)


def worst_standing(comparison: Comparison) -> Standing:
    """Return the standing of the output that is farthest from float's, those below the floor first."""
    rows = sorted(comparison.outputs, key=lambda row: row.sqnr_db)
    standings = [standing_of(row, comparison.num_samples) for row in rows]
    return next((each for each in standings if not each.holds), standings[0])
