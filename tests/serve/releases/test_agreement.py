"""Agreement with a store: which reads begin and settle a disagreement, and times that do not restart."""

from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.releases.agreement import ReadOutcome, StoreAgreement
from tests.support.virtual import VirtualLoop, in_virtual_time

STEPS = st.lists(st.sampled_from([*ReadOutcome, 1.0, 7.0]), max_size=50)
ENDS_OLDER = {ReadOutcome.CONFIRMED, ReadOutcome.EMPTY}


@given(STEPS)
def test_older_time_counts_from_the_first_older_read_also_over_failures(steps: list[ReadOutcome | float]) -> None:
    async def work(loop: VirtualLoop) -> None:
        agreement = StoreAgreement()
        older_since: float | None = None
        for step in steps:
            if isinstance(step, float):
                loop.advance(step)
                continue
            agreement.record_read(step)
            if step in ENDS_OLDER:
                older_since = None
            elif step is ReadOutcome.OLDER and older_since is None:
                older_since = loop.time()
            assert agreement.older_s == (0.0 if older_since is None else loop.time() - older_since)
            if older_since is not None:
                assert agreement.unsettled.is_set()

    in_virtual_time(work)


@given(STEPS, st.sampled_from([*ReadOutcome]))
def test_only_a_confirmation_settles_and_a_failure_changes_nothing(
    steps: list[ReadOutcome | float], last: ReadOutcome
) -> None:
    async def work(_loop: VirtualLoop) -> None:
        agreement = StoreAgreement()
        for step in steps:
            if isinstance(step, ReadOutcome):
                agreement.record_read(step)
        was_unsettled = agreement.unsettled.is_set()
        agreement.record_read(last)
        if last is ReadOutcome.FAILED:
            assert agreement.unsettled.is_set() == was_unsettled
        else:
            assert agreement.unsettled.is_set() == (last is not ReadOutcome.CONFIRMED)

    in_virtual_time(work)


@given(STEPS)
def test_time_of_agreement_stands_still_from_the_first_read_that_does_not_confirm(
    steps: list[ReadOutcome | float],
) -> None:
    async def work(_loop: VirtualLoop) -> None:
        agreement = StoreAgreement()
        is_current = False
        for step in steps:
            if not isinstance(step, ReadOutcome):
                continue
            agreement.record_read(step)
            if step is not ReadOutcome.ANOTHER:
                is_current = step is ReadOutcome.CONFIRMED
            first = agreement.current_at
            second = agreement.current_at
            assert (second > first) if is_current else (second == first)

    in_virtual_time(work)
