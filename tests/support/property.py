"""Property tests at two depths: a few examples in the fast suite, thousands with a new seed in the soak."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.support.soak import SEED, scaled


def depths(quick: int, soak: int) -> pytest.MarkDecorator:
    """Run a test with so many *examples* in the fast suite, and with so many in a soak of ten minutes."""
    deep = pytest.param(scaled(soak), id="soak", marks=pytest.mark.soak)
    return pytest.mark.parametrize("examples", [pytest.param(quick, id="quick"), deep])


def explore(check: Callable[..., None], examples: int, **strategies: SearchStrategy[Any]) -> None:
    """Call *check* with *examples* draws of each strategy, by keyword."""
    run: Callable[[], None] = given(**strategies)(check)
    settings(max_examples=examples, deadline=None)(seed(SEED)(run))()
