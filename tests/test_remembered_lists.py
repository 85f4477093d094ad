"""The popular lists that a client remembers: which ones, and for how long."""

from types import SimpleNamespace

import pytest

from hotplate import remembered_lists
from hotplate.base.recommendations import Recommendations
from hotplate.remembered_lists import REMEMBERED_LISTS, UNUSED_S, Options, RememberedLists
from tests.support.clock import FakeClock

BUDGET_S = 1.0


async def read(options: Options, _deadline: float) -> Recommendations:
    return Recommendations(items=[{"id": options.get("segment", "overall")}], source="popular", release="r", tier="t")


async def renew(lists: RememberedLists[Recommendations], clock: FakeClock, segment: str) -> None:
    await lists.renew({"segment": segment}, clock.now + BUDGET_S, read)


def first_item(lists: RememberedLists[Recommendations], segment: str) -> str:
    remembered = lists.replacement({"segment": segment}, 1)
    assert remembered is not None
    return remembered.items[0]["id"]


async def test_unused_lists_make_room_for_others(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first hundred lists were remembered for ever, and no other one, such as that of a new campaign."""
    monkeypatch.setattr(remembered_lists, "time", SimpleNamespace(monotonic=clock))
    lists = RememberedLists[Recommendations]()
    for number in range(REMEMBERED_LISTS):
        await renew(lists, clock, f"campaign-{number}")
    await renew(lists, clock, "new")
    assert first_item(lists, "new") == "overall", "there is no room"
    assert first_item(lists, "campaign-7") == "campaign-7"

    clock.now += 2 * UNUSED_S
    await renew(lists, clock, "new")
    assert first_item(lists, "new") == "new"
    assert first_item(lists, "campaign-7") == "overall"
