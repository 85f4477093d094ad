"""The table of agreement with a store: complete, every state reachable, and times that do not restart."""

from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.releases.agreement import CURRENT, TRANSITIONS, UNSETTLED, Agreement, ReadOutcome, StoreAgreement
from tests.support.virtual import VirtualLoop, in_virtual_time


def test_table_names_every_read_and_state_and_reaches_each() -> None:
    assert TRANSITIONS.keys() == set(ReadOutcome)
    for row in TRANSITIONS.values():
        assert row.keys() == set(Agreement)
    reached = {state for row in TRANSITIONS.values() for state in row.values()}
    assert reached == set(Agreement)


def test_confirmation_ends_every_disagreement() -> None:
    assert set(TRANSITIONS[ReadOutcome.CONFIRMED].values()) == {Agreement.CONFIRMED}
    assert Agreement.CONFIRMED not in UNSETTLED


@given(st.lists(st.sampled_from([*ReadOutcome, 1.0, 7.0]), max_size=50))
def test_older_time_counts_from_the_first_older_read_also_over_failures(steps: list[ReadOutcome | float]) -> None:
    async def work(loop: VirtualLoop) -> None:
        agreement = StoreAgreement()
        older_since: float | None = None
        for step in steps:
            if isinstance(step, float):
                loop.advance(step)
                continue
            agreement.record_read(step)
            if step in {ReadOutcome.CONFIRMED, ReadOutcome.EMPTY}:
                older_since = None
            elif step is ReadOutcome.OLDER and older_since is None:
                older_since = loop.time()
            assert agreement.older_s == (0.0 if older_since is None else loop.time() - older_since)
            assert agreement.is_unsettled == (agreement.state in UNSETTLED)
            if older_since is not None:
                assert agreement.state not in CURRENT

    in_virtual_time(work)
