"""Gates: measurements, verdicts, and that bad lists do not go live."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotplate.offline.errors import SettingError
from hotplate.offline.evaluate.records import EvaluationRecord
from hotplate.offline.evaluate.splits import SplitOptions
from hotplate.offline.gates.bounds import check, parse_gates, read_gates
from hotplate.offline.gates.table import DROP, KINDS, METRIC
from hotplate.offline.list_import import ImportedLists, ImportSettings
from hotplate.offline.lists import ListSettings, ModelLists
from hotplate.offline.measurement import Items, Measurement
from hotplate.offline.model import Model
from hotplate.offline.options import PublishSettings
from hotplate.offline.publish import publish_source
from hotplate.offline.sources import NamedLists
from hotplate.offline.train.als import ALSParams
from hotplate.stores.errors import ReleaseCorrupt, StoreUnavailable
from tests.support.interactions import checkerboard_model, evaluate, evaluated
from tests.support.memory_store import MemoryStore
from tests.support.paths import ROOT
from tests.support.stores import lapse

# Lists of item numbers, of eight items, by user; the order within each is the ranking.
LISTS = st.lists(st.lists(st.integers(0, 7), max_size=6, unique=True), max_size=20)


@cache
def model() -> Model:
    """A good model, with an nDCG of 0.5, and of 0.4 as served."""
    return replace(checkerboard_model(), evaluation=evaluated())


def source(of: Model, length: int = 5) -> ModelLists:
    return ModelLists.of(of, ListSettings(length))


def gates(**bounds: object) -> tuple[Any, ...]:
    return parse_gates({name.replace("__", "."): bound for name, bound in bounds.items()}, "test")


# measurements


def measured(lists: Sequence[Sequence[int]], cuts: int, depth: int) -> Measurement:
    """Measure lists of numbered users, a few at a time."""
    measurement = Measurement(Items([f"i{item}" for item in range(8)], np.array([2, 5], dtype=np.int32), 10), depth)
    for start in range(0, len(lists), cuts):
        part = lists[start : start + cuts]
        items = np.array([item for row in part for item in row], dtype=np.int32)
        lengths = np.array([len(row) for row in part], dtype=np.int32)
        measurement.add([f"u{start + index}" for index in range(len(part))], items, lengths)
    return measurement


@settings(max_examples=40)
@given(LISTS, st.integers(1, 5))
def test_counts_do_not_depend_on_batches(lists: list[list[int]], cuts: int) -> None:
    counts = measured(lists, cuts, depth=3)
    slots = [item for row in lists for item in row]
    assert (counts.users, counts.users_with_lists) == (len(lists), sum(map(bool, lists)))
    assert counts.shortest == min((len(row) for row in lists if row), default=None)
    assert counts.coverage == len(set(slots)) / 10
    assert counts.popular_share(1) == slots.count(2) / max(len(slots), 1)
    assert counts.popular_share(9) == (slots.count(2) + slots.count(5)) / max(len(slots), 1)
    expected = {f"u{user}": [f"i{item}" for item in row[:3]] for user, row in enumerate(lists) if row}
    assert counts.sample() == expected


@settings(max_examples=40)
@given(LISTS, st.integers(1, 5), st.integers(1, 20))
def test_sample_does_not_depend_on_batches(lists: list[list[int]], cuts: int, other_cuts: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hotplate.offline.measurement.SAMPLED_USERS", 4)
        sample, other = (measured(lists, parts, depth=3).sample() for parts in (cuts, other_cuts))
    assert sample == other
    assert len(sample) == min(4, sum(map(bool, lists)))


def test_import_coverage_counts_items_named_in_files(tmp_path: Path) -> None:
    (tmp_path / "lists.csv").write_text("user,item,score\na,x,2\na,y,1\nb,x,1\n")
    (tmp_path / "titles.csv").write_text("item,title\nx,X\nz,Z\n")
    catalogues = []
    for number, titles in enumerate((None, tmp_path / "titles.csv")):
        (tmp_path / f"{number}").mkdir()
        lists = ImportedLists(
            ImportSettings(tmp_path / "lists.csv", titles=titles), tmp_path / f"{number}", lambda *_: None
        )
        measurement = Measurement(lists.items(), 1)
        list(lists.batches(measurement.add))
        assert (measurement.users, measurement.users_with_lists, measurement.shortest) == (2, 2, 1)
        assert measurement.popular_share(1) == 2 / 3
        assert measurement.sample() == {"a": ["x"], "b": ["x"]}
        catalogues.append(lists.items().catalogue)
    assert catalogues == [None, 3]


# verdicts


@pytest.mark.parametrize(
    ("table", "part"),
    [
        ({"coverage": 1.5}, "gates.toml: the bound of coverage is 1.5; it must lie between 0 and 1"),
        ({"shortest_list": 0}, "between 1 and 1000"),
        ({"ndcg": math.nan}, "the bound of ndcg is nan; it must be a number"),
        ({"overlap": True}, "the bound of overlap is True"),
        ({"overlap@0": 0.2}, "overlap@0 is of 0 items"),
        ({"popular_share@1001": 0.2}, "1 to 1000"),
        ({"replaced_lists@3": 1.2}, "between 0 and 1"),
    ],
)
def test_invalid_gate_bound_is_named(table: dict[str, object], part: str) -> None:
    with pytest.raises(SettingError, match=part):
        parse_gates(table, "gates.toml")


def test_gate_without_its_evaluation_or_catalogue_is_reported_by_name() -> None:
    with pytest.raises(SettingError, match=r"no gate ndcg .* have no evaluation"):
        check(gates(ndcg=0.1), (), knows_catalogue=True)
    with pytest.raises(SettingError, match="coverage: the number of items is unknown"):
        check(gates(coverage=0.1), evaluated().metrics, knows_catalogue=False)
    with pytest.raises(SettingError, match=r"no gate  \(0\.1\); known are coverage, "):
        check(parse_gates({"": 0.1}, "gates.toml"), evaluated().metrics, knows_catalogue=True)


def test_bounds_of_the_command_come_before_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "gates.toml"
    path.write_text('ndcg = 0.2\n"overlap@20" = 0.3\ndrop.as_served.ndcg = 0.1\n')
    bounds = {gate.name: gate.bound for gate in read_gates(path, ["ndcg=0.3", "overlap = 0.4"])}
    assert bounds == {"ndcg": 0.3, "overlap@20": 0.3, "drop.as_served.ndcg": 0.1, "overlap@10": 0.4}
    path.write_text("\ufeffndcg = 0.2\n")  # by Windows
    assert [gate.bound for gate in read_gates(path)] == [0.2]
    path.write_text("ndcg 0.2")
    with pytest.raises(SettingError, match="is not TOML"):
        read_gates(path)
    with pytest.raises(SettingError, match=r"absent\.toml cannot be read: No such file"):
        read_gates(tmp_path / "absent.toml")
    for text in ("ndcg", "=0.1", "ndcg=0_2", "ndcg >= 0.99", "ndcg > 0.99", "ndcg == 0.99"):
        with pytest.raises(SettingError, match=f"'{text}' is not NAME=BOUND, such as coverage=0.3"):
            read_gates(None, [text])


def test_every_gate_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text()
    names = KINDS.keys() - {METRIC.name, DROP.name}
    assert {name for name in names if f"`{name}`" not in page} == set()


# what goes live


async def test_all_failing_gates_are_named_and_no_live_release_skips_comparison() -> None:
    store = MemoryStore()
    bounds = gates(ndcg=0.6, model__ndcg=0.4, drop__ndcg=0.1, shortest_list=6, overlap=1, popular_share=0)
    failed = await publish_source(source(model()), store, PublishSettings(gates=bounds))
    assert str(failed.refused).startswith(
        "gate ndcg: 0.5 is below 0.6; gate shortest_list: 5 is below 6; gate popular_share@10: 0.38 is above 0; "
    )
    assert (await store.catalogue()).live is None
    notes = {verdict.gate: verdict.note for verdict in failed.result.manifest.origin.gates.verdicts if verdict.passed}
    assert notes == {"model.ndcg": "", "drop.ndcg": "nothing is live yet", "overlap@10": "nothing is live yet"}


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (evaluated(0.48), ""),
        (evaluated(0.6), ""),
        (evaluated(0.0), "gate drop.ndcg: 1 is above 0.05"),
        (evaluated(split=SplitOptions("by-item", seed=2)), ""),
        (evaluated(0.4), "gate drop.ndcg: 0.2 is above 0.05 (0.4 after 0.5 in "),
        (evaluated(k=20), "evaluated differently: k was 10 and is 20;"),
        (evaluated(split=SplitOptions("by-time", seed=1)), "evaluated differently: split was {'kind': 'by-item', "),
    ],
)
async def test_metric_drop_gate_compares_equal_measurements(now: EvaluationRecord, says: str) -> None:
    store = MemoryStore()
    await publish_source(source(model()), store)
    later = source(replace(model(), evaluation=now))
    written = await publish_source(later, store, PublishSettings(gates=gates(drop__ndcg=0.05)))
    assert (says in str(written.refused)) if says else (written.refused is None)


async def test_coverage_of_an_earlier_version_is_compared_with_no_other() -> None:
    store = MemoryStore()
    record = evaluate(model().matrix, ALSParams(factors=4, iterations=2))
    now = source(replace(model(), evaluation=record))
    earlier = source(replace(model(), evaluation=msgspec.structs.replace(record, coverage_of=msgspec.UNSET)))
    await publish_source(earlier, store)
    for metric in ("coverage", "model.coverage"):
        written = await publish_source(now, store, PublishSettings(gates=parse_gates({f"drop.{metric}": 0.05}, "test")))
        assert "coverage_of was 'all items' and is 'items of train'" in str(written.refused)
    by_coverage = PublishSettings(gates=gates(drop__coverage=0.05))
    assert (await publish_source(earlier, store, by_coverage)).refused is None
    assert (await publish_source(now, store, PublishSettings(gates=gates(drop__ndcg=0.05)))).refused is None
    assert (await publish_source(now, store, by_coverage)).refused is None


async def test_incomparable_live_release_fails_comparison_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    live = (await publish_source(source(replace(model(), evaluation=None)), store)).result.manifest.release
    failed = await publish_source(source(model()), store, PublishSettings(gates=gates(drop__ndcg=0.05)))
    assert f"gate drop.ndcg: it cannot be judged, as the live release {live} was publ" in str(failed.refused)
    other_model = model()
    named_anew = replace(other_model.matrix, user_ids=[f"x{user}" for user in other_model.matrix.user_ids])
    how = PublishSettings(gates=gates(overlap=0.1))
    failed = await publish_source(source(replace(other_model, matrix=named_anew)), store, how)
    assert "none of 20 users with a list has one in the live release" in str(failed.refused)

    async def damaged(*_: object, **__: object) -> object:
        raise ReleaseCorrupt("its manifest is damaged")

    monkeypatch.setattr("hotplate.offline.gates.judgement.load_manifest", damaged)
    failed = await publish_source(source(other_model), store, how)
    assert f"the live release {live} cannot be read (its manifest is damaged)" in str(failed.refused)


ROWS = [(f"u{user:03}", f"i{(user * 5 + place) % 400:03}", 9 - place) for user in range(100) for place in range(10)]


def imported(
    folder: Path,
    rows: Sequence[tuple[str, str, int]],
    popular: int = 100,
    length: int = 20,
    *,
    similar: Path | None = None,
    name: str = "",
    segments: Sequence[str] = ("",),
) -> ImportedLists:
    """Import rows of user, item and score, and popular items from the first on."""
    folder.mkdir(exist_ok=True)
    files = folder / "lists.csv", folder / "popular.csv"
    for file, heading, lines in zip(
        files,
        ("user,item,score", "segment,item,score"),
        (rows, [(segment, f"i{item:03}", 400 - item) for segment in segments for item in range(popular)]),
        strict=True,
    ):
        file.write_text("\n".join([heading, *(",".join(map(str, row)) for row in lines)]) + "\n")
    settings = ImportSettings(files[0], popular=files[1], similar=similar, length=length)
    return ImportedLists(settings, folder, lambda *_: None, name)


@pytest.mark.parametrize(
    ("rows", "popular", "says"),
    [
        ([row for row in ROWS if row[0] < "u080"], 100, ""),
        ([(user, f"i{int(item[1:]) + 150:03}", score) for user, item, score in ROWS], 50, ""),
        ([row for row in ROWS if row[0] < "u040"], 100, "gate users_kept: 0.4 is below 0.5 (about 40 of 100 users"),
        ([(f"x{user}", item, score) for user, item, score in ROWS], 100, "gate users_kept: 0 is below 0.5"),
        ([(user, f"x{item}", score) for user, item, score in ROWS], 100, "gate items_kept: 0.25 is below 0.5 (100 of"),
        ([row for row in ROWS if row[2] > 6], 100, "gate length_kept: 0.3 is below 0.5 (3.0 items in a list after 10"),
        (ROWS, 40, "gate popular_length_kept: 0.4 is below 0.5 (40 popular items after 100)"),
    ],
)
async def test_large_losses_are_refused_and_usual_changes_go_live(
    tmp_path: Path, rows: Sequence[tuple[str, str, int]], popular: int, says: str
) -> None:
    store = MemoryStore()
    first = await publish_source(imported(tmp_path / "live", ROWS), store)
    assert "gates" not in first.result.manifest.about
    written = await publish_source(imported(tmp_path / "new", rows, popular), store)
    assert (says in str(written.refused)) if says else (written.refused is None)
    verdicts = {verdict.gate: verdict for verdict in written.result.manifest.origin.gates.verdicts}
    assert verdicts["overlap@10"].passed
    assert verdicts["popular_kept"].measured == min(popular, 100) / 100


async def test_only_bounds_on_common_items_compare_more_than_500_users(tmp_path: Path) -> None:
    store = MemoryStore()
    rows = [(f"u{user:03}", f"i{item:03}", 9 - item) for user in range(600) for item in range(5)]
    lists = imported(tmp_path / "lists", rows)
    await publish_source(lists, store)
    for bounds, users in (
        ({"popular_share": 1.0, "overlap": 0.0}, 500),
        ({"overlap": 0.1}, 600),
        ({"replaced_lists": 0.0, "overlap": 0.0}, 600),
    ):
        written = await publish_source(lists, store, PublishSettings(gates=bounds))
        notes = {verdict.gate: verdict.note for verdict in written.result.manifest.origin.gates.verdicts}
        assert notes["overlap@10"].startswith(f"of {users} users, with "), bounds


async def test_users_whose_lists_are_replaced_are_limited(tmp_path: Path) -> None:
    """Of 100 users, 30 get other items, 10 of whom keep two of ten; the mean overlap says little of that."""
    store = MemoryStore()
    await publish_source(imported(tmp_path / "live", ROWS), store)
    rows = [
        (user, f"{'new' if user < 'u030' and (user >= 'u010' or score < 8) else ''}{item}", score)
        for user, item, score in ROWS
    ]
    lists = imported(tmp_path / "new", rows)
    refused = (await publish_source(lists, store, PublishSettings(gates={"replaced_lists": 0.25}))).refused
    assert "gate replaced_lists@3: 0.3 is above 0.25 (of 100 users, with " in str(refused)
    bounds = {"replaced_lists@2": 0.2, "replaced_lists": 0.3, "overlap": 0.7}
    assert (await publish_source(lists, store, PublishSettings(gates=bounds))).refused is None


async def test_shorter_live_list_is_replaced_only_if_items_are_lost(tmp_path: Path) -> None:
    store = MemoryStore()
    pairs = [row for row in ROWS if row[2] > 7]
    await publish_source(imported(tmp_path / "live", pairs), store)
    everything = imported(tmp_path / "new", ROWS)
    bounds = PublishSettings(gates={"replaced_lists": 0.0})
    assert (await publish_source(everything, store, bounds)).refused is None


async def test_much_larger_release_is_not_judged_by_few_common_users(tmp_path: Path) -> None:
    store = MemoryStore()
    settings = PublishSettings(gates={"users_kept": 1})
    await publish_source(imported(tmp_path / "live", ROWS), store)
    grown = [*ROWS, *((f"v{user:04}", item, score) for user in range(3_000) for _, item, score in ROWS[:5])]
    written = await publish_source(imported(tmp_path / "grown", grown), store, settings)
    assert written.refused is None
    assert "too little to judge: about " in written.result.manifest.origin.gates.verdicts[0].note


async def test_a_release_without_the_lists_of_similar_items_or_segments_is_refused(tmp_path: Path) -> None:
    store = MemoryStore()
    similar = tmp_path / "similar.csv"
    similar.write_text("item,other,score\n" + "".join(f"i{item:03},i000,1\n" for item in range(1, 81)))
    lists = imported(tmp_path / "live", ROWS, similar=similar)
    email = imported(tmp_path / "email", ROWS, similar=similar, name="email", segments=["", "DE", "FR", "IT"])
    both = NamedLists({"": lists, "email": email})
    await publish_source(both, store)
    fewer = imported(tmp_path / "fewer", ROWS, name="email", segments=["", "de", "FR", "it"])
    refused = (await publish_source(NamedLists({"": lists, "email": fewer}), store)).refused
    assert "gate email:segments_kept: 0.3333 is below 0.5 (1 of 3 segments)" in str(refused)
    assert "gate email:similar_kept: 0 is below 0.5 (0 lists of similar items after 80)" in str(refused)
    assert (await publish_source(both, store)).refused is None


async def test_default_list_that_gets_a_name_is_compared(tmp_path: Path) -> None:
    store = MemoryStore()
    await publish_source(imported(tmp_path / "live", ROWS), store)
    few = imported(tmp_path / "few", [row for row in ROWS if row[0] < "u040"])
    written = await publish_source(NamedLists({"home": few}), store)
    assert "gate users_kept: 0.4 is below 0.5" in str(written.refused)


async def test_requested_short_lists_and_damaged_live_release_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    await publish_source(imported(tmp_path / "live", ROWS), store)
    assert (await publish_source(imported(tmp_path / "short", ROWS, length=2), store)).refused is None
    with monkeypatch.context() as patch:
        for value in store.releases.values():
            patch.setattr(value, "rows", {key: row[:-1] for key, row in value.rows.items()})
        written = await publish_source(imported(tmp_path / "tiny", ROWS[:100]), store)
    assert written.refused is None
    assert all("cannot be read" in verdict.note for verdict in written.result.manifest.origin.gates.verdicts)
    written = await publish_source(imported(tmp_path / "tinier", ROWS[:20]), store)
    assert written.refused is None
    assert "too little to judge: about 2 of 10 users" in written.result.manifest.origin.gates.verdicts[0].note


async def test_resumed_publish_is_judged_by_all_its_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotplate.offline.lists.LISTS_AT_ONCE", 5)
    store = MemoryStore()
    bounds = gates(users_with_lists=1, coverage=1, overlap=0.9)
    await publish_source(source(model()), store)
    put = store.put
    left = 7

    async def put_some(*arguments: Any, **options: Any) -> None:  # noqa: ANN401 -- handed through
        nonlocal left
        left -= 1
        if left == 0:
            raise StoreUnavailable("the store went away")
        await put(*arguments, **options)

    monkeypatch.setattr(store, "put", put_some)
    with pytest.raises(StoreUnavailable):
        await publish_source(source(model()), store, PublishSettings(gates=bounds))
    draft = (await store.catalogue()).releases[-1].id
    result = (await publish_source(source(model()), store, PublishSettings(gates=bounds, resume=draft))).result
    assert result.skipped > 20
    assert [verdict.measured for verdict in result.manifest.origin.gates.verdicts[:3]] == [1, 1, 1]


async def test_resumed_complete_draft_is_gated_unless_it_was_begun_with_force(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    bounds = gates(shortest_list=6)

    async def unavailable(_: object) -> None:
        raise StoreUnavailable("the store went away")

    for begun_with_force in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(store, "seal", unavailable)
            with pytest.raises(StoreUnavailable):
                await publish_source(source(model()), store, PublishSettings(gates=bounds, force=begun_with_force))
        draft = (await store.catalogue()).releases[-1].id
        await lapse(store)
        written = await publish_source(source(model()), store, PublishSettings(gates=bounds, force=True, resume=draft))
        assert ("gate shortest_list: 5 is below 6" in str(written.refused)) == (not begun_with_force)
        assert (await store.catalogue()).live == (draft if begun_with_force else None)
