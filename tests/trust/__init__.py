"""Broken, hostile and odd input, case by case: `python -m tests.trust` prints the table, pytest decides."""

from __future__ import annotations

from importlib import import_module

from tests.trust.cases import CASES, Case

FILES = (
    "broken_files",
    "broken_graphs",
    "broken_tensors",
    "broken_external",
    "broken_data",
    "broken_images",
    "broken_usage",
    "odd_layers",
    "odd_values",
    "odd_names",
    "odd_graphs",
    "odd_bodies",
)


def all_cases() -> list[Case]:
    """Every case of every file."""
    for name in FILES:
        import_module(f"tests.trust.{name}")
    return CASES
