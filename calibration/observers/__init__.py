"""Observers choose a range from statistics; they never see the data. One file each, one verb: `choose_range`."""

from __future__ import annotations

from ptq.calibration.observers.auto import Auto
from ptq.calibration.observers.dynamic import Dynamic
from ptq.calibration.observers.kl import Kl
from ptq.calibration.observers.kl_cfws import KlCfws
from ptq.calibration.observers.minmax import MinMax
from ptq.calibration.observers.mse import Mse
from ptq.calibration.observers.percentile import Percentile

Observer = Auto | MinMax | Percentile | Mse | Kl | KlCfws | Dynamic
"""Every observer. Recipe tags, command-line choices, contract tests and `ptq methods` are read from this union."""

__all__ = ["Auto", "Dynamic", "Kl", "KlCfws", "MinMax", "Mse", "Observer", "Percentile"]
