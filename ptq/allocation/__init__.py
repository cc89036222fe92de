"""Allocation of bits and of products to layers."""

from __future__ import annotations

from ptq.allocation.bit_plan import BitPlan
from ptq.allocation.greedy import Greedy
from ptq.allocation.more_bits import MoreBits

AllocationMethod = Greedy | MoreBits
"""Every allocator. The contract suite is read from this union."""

__all__ = ["AllocationMethod", "BitPlan", "Greedy", "MoreBits"]
