"""Decisions from statistics: choices, grids, and every weight in dataflow order."""
