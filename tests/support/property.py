"""Property tests at two depths: a few examples in the fast suite, thousands with a new seed in the soak."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.support.soak import SEED, in_soak, scaled


def depths(quick: int, soak: int) -> pytest.MarkDecorator:
    """Run a test with *examples* examples in the fast suite, and with this many in a soak of ten minutes."""
    deep = in_soak(scaled(soak))
    return pytest.mark.parametrize("examples", [pytest.param(quick, id="quick"), deep])


def explored(
    quick: int, soak: int, **strategies: SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a property a test of as many draws of each strategy as `depths` says; other arguments are pytest's."""

    def make(holds: Callable[..., None]) -> Callable[..., None]:
        def test(examples: int, **fixtures: Any) -> None:  # noqa: ANN401 -- whatever pytest gives
            def check(**drawn: Any) -> None:  # noqa: ANN401 -- whatever is drawn
                holds(**fixtures, **drawn)

            explore(check, examples, **strategies)

        signature = inspect.signature(holds)
        fixtures = [parameter for name, parameter in signature.parameters.items() if name not in strategies]
        number = inspect.Parameter("examples", inspect.Parameter.KEYWORD_ONLY)
        test.__signature__ = signature.replace(parameters=[*fixtures, number])  # type: ignore[attr-defined]  # pytest reads it
        return depths(quick, soak)(test)  # type: ignore[no-any-return]  # a mark returns what it marks

    return make


def explore(check: Callable[..., None], examples: int, **strategies: SearchStrategy[Any]) -> None:
    """Call *check* with *examples* draws of each strategy, by keyword."""
    run: Callable[[], None] = given(**strategies)(check)
    settings(max_examples=examples, deadline=None)(seed(SEED)(run))()


def depth(examples: int, steps: int, **options: Any) -> settings:  # noqa: ANN401 -- handed through
    """Return the settings of a state machine: the number of histories, and of steps in each."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )
