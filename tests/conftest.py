"""Fixtures that several suites use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True)
settings.register_profile("deep", deadline=None, max_examples=2000)
settings.load_profile("ci")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regen", action="store_true", help="Write golden files anew instead of comparing with them.")


@pytest.fixture
def regen(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--regen"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def shared() -> Path:
    """Real models and data beside the checkout; tests that need them skip where they are absent."""
    if not SHARED.is_dir():
        pytest.skip("no shared models and data beside the checkout")
    return SHARED
