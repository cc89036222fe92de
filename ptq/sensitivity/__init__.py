"""Effects of shorter and longer words on the network's outputs: in one unit, whoever measured them."""

from __future__ import annotations

from ptq.sensitivity.feature_influence import FeatureInfluence
from ptq.sensitivity.restored_share import RestoredShare

SensitivityMethod = FeatureInfluence | RestoredShare
"""Every sensitivity. The contract suite is read from this union."""

__all__ = ["FeatureInfluence", "RestoredShare", "SensitivityMethod"]
