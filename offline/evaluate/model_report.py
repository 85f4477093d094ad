"""How good a model is: the answer, one table and the split, for `hotplate train` and `hotplate evaluate report`."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hotplate.base.report import Column, Report, Row, TextTable, format_count
from hotplate.offline.evaluate.metrics import ListMetrics, RankingMetrics
from hotplate.offline.evaluate.records import (
    BaselineRecord,
    EvaluationRecord,
    Lead,
    RepeatSearch,
    json_values,
)
from hotplate.offline.input.pairs import Indices, items_per_user
from hotplate.offline.model import Model
from hotplate.offline.model_folder import describe, load
from hotplate.offline.train.engine import as_options, described, name_of, params_from

_SHOWN_USERS = 10
_SHOWN_HISTORY = 20
_LONGEST = 80
_RANDOM_SPLITS = frozenset({"by-item", "by-user", "random"})
_RANDOM_SPLIT_FLATTERS = "a random split trains on interactions from after the test, which flatters a model"
_METHOD_NOTE = (
    "Metrics are means over users with held-back items, as served: a user without a list gets the popular one. "
    "Personal lists only: such a user counts with zeros. Intervals (95 %, Student's t over users) hold for the users "
    "drawn, not for another split, month or catalogue."
)
_TABLES_NOTE = "From the least to the most active user; histories begin with the latest or the heaviest interaction."
_NOT_EVALUATED = "It is not known how good this model is: it was trained without an evaluation."
THESE_LISTS = "these lists"
PERSONAL_ONLY = ", personal lists only"
_POPULARITIES = {"popularity": "the most popular items", "recent popularity": "what is popular now"}
# Facts of a model that are shown elsewhere, or only about files.
_SHOWN_ELSEWHERE = frozenset({"metrics", "tuning", "files", "format", "data"})


class Metric(NamedTuple):
    """A metric in reports.

    name         in records
    figure       its name in rows, before `@` and the length of the lists
    column       the heading of its column; without, it is not in the table
    unit         `share`, or empty
    is_personal  whether it is measured of personal lists alone: there is no figure as served
    """

    name: str
    figure: str
    column: str = ""
    unit: str = ""
    is_personal: bool = False

    def rows(self, subject: str, metrics: RankingMetrics, k: int, suffix: str = "") -> Iterator[Row]:
        """Yield the row of the metric with its interval, named as `nDCG@10` and *suffix*; none if not measured."""
        value: float | None = getattr(metrics, self.name, None)
        if value is not None:
            low, high = metrics.intervals.get(self.name, (None, None))
            is_main = bool(self.column) and not suffix
            yield Row(subject, f"{self.figure}@{k}{suffix}", self.unit, value, low=low, high=high, main=is_main)


# In the order of tables.
METRICS = (
    Metric("ndcg", "nDCG", "nDCG\n@{k}"),
    Metric("recall", "recall", "recall"),
    Metric("precision", "precision", "precision"),
    Metric("map", "MAP", "MAP"),
    Metric("mrr", "MRR", "MRR"),
    Metric("hit_rate", "hit rate", "hit rate\n%", "share"),
    Metric("recall_at_k", "recall, of k at most"),
    Metric("coverage", "coverage", "coverage\n%", "share", is_personal=True),
    Metric("list_similarity", "similarity within a list", is_personal=True),
    Metric("new_items", "new items", unit="share", is_personal=True),
)


def columns_of(rows: Iterable[Row], k: int) -> tuple[Column, ...]:
    """Return the columns of the table of *rows* of lists measured at *k*; shares are shown in %."""
    figures = {row.figure for row in rows}
    columns = list[Column]()
    for metric in METRICS:
        figure = f"{metric.figure}@{k}"
        if metric.column and figure in figures:
            shown = ("%", 2) if metric.unit else ("", 3)
            columns.append(Column(figure, metric.column.format(k=k), *shown))
    return tuple(columns)


def rows_of(subject: str, served: RankingMetrics, personal: ListMetrics | None, k: int) -> Iterator[Row]:
    """Yield the rows of one subject: ranking as *served*, then what is known of its *personal* lists alone."""
    for metric in METRICS:
        yield from metric.rows(subject, personal if personal and metric.is_personal else served, k)
    if personal is not None:
        for metric in METRICS:
            if not metric.is_personal:
                yield from metric.rows(subject, personal, k, PERSONAL_ONLY)


def answer_in_words(record: EvaluationRecord, lists: str = "The lists") -> str:
    """Return sentences on how good *lists* are, compared with popular items, for whom, and how personal.

    Both are measured as served: users without a list get the popular one.
    """
    served = record.as_served
    name = name_of(record.engine, record.params)
    if record.engine == "popularity":
        lists = f"Everybody gets {_POPULARITIES[name]} ({name}); these lists"
    users = format_count(served.users, "user")
    hits = f"Of {users}, {100 * served.hit_rate:.0f} % chose an item of their list of {served.k} in the test"
    better = better_popularity(record)
    if better is None:
        advice = "; with earlier interactions, they are compared with popular items"
        if record.engine == "popularity":
            advice = ""
        return f"{lists} have nDCG@{served.k} {served.ndcg:.3f}. {hits}{advice}."

    popularity_name, baseline = better
    popular = baseline.as_served
    of_popular = f"{popularity_name}, {_POPULARITIES[popularity_name]}"
    if popularity_name == name:
        of_popular = f"{name} with a half-life of {baseline.params['half_life_days']:g} days"
    difference = difference_in_words(of_popular, baseline.model_leads_by, popular.ndcg)
    return (
        f"{lists} are {difference}: nDCG@{served.k} {served.ndcg:.3f} against {popular.ndcg:.3f}. "
        f"{_groups_in_words(record, *better)}{hits} ({100 * popular.hit_rate:.0f} % with {popularity_name}). "
        f"{_spread_in_words(record.model, *better)}"
    )


def better_popularity(record: EvaluationRecord) -> tuple[str, BaselineRecord] | None:
    """Return the baseline with the higher nDCG as served of popularity of all time and recent popularity, by name.

    None without such a baseline; popularity is none of itself.
    """
    known = [
        (name, baseline)
        for name, baseline in _baselines(record)
        if name in _POPULARITIES and (record.engine, record.params) != ("popularity", baseline.params)
    ]
    return max(known, key=lambda pair: pair[1].as_served.ndcg, default=None)


def _groups_in_words(record: EvaluationRecord, popularity_name: str, popularity: BaselineRecord) -> str:
    """Return a sentence on users with a list, and one on those without, who are served the popular list.

    Empty if the groups of *popularity* are others.
    """
    model = record.model
    missing = model.users - model.users_with_lists
    if popularity.users_with_lists != model.users_with_lists:
        return ""
    if not missing:
        return "All users of the test are returning ones. "
    returning, new = ndcg_by_group(model, record.as_served)
    popular_returning, popular_new = ndcg_by_group(popularity, popularity.as_served)
    against = "as" if math.isclose(new, popular_new, abs_tol=1e-6) else f"against {popular_new:.3f}"
    of_new = (
        f"for {format_count(missing, 'new user')}, {new:.3f} with the popular list that they are served, {against} "
        f"with {popularity_name}. "
    )
    if not model.users_with_lists:
        return of_new.capitalize()
    of_returning = f"For {format_count(model.users_with_lists, 'returning user')} it is {returning:.3f}"
    return f"{of_returning} against {popular_returning:.3f}; {of_new}"


def ndcg_by_group(personal: ListMetrics, served: RankingMetrics) -> tuple[float, float]:
    """Return the nDCG of users with a list, and as served of those without; 0 of a group without users."""
    users = personal.users
    with_list = personal.users_with_lists
    of_new = (served.ndcg - personal.ndcg) * users / max(users - with_list, 1)
    return personal.ndcg * users / max(with_list, 1), of_new


def _spread_in_words(lists: ListMetrics, popularity_name: str, popular: ListMetrics) -> str:
    """Return a sentence on how personal *lists* are, beside *popular* ones; empty if that was not measured."""
    if lists.shared_items is None or popular.shared_items is None:
        return ""
    return (
        f"Two users share {lists.shared_items:.1f} of {lists.k} items, and half of all places go to "
        f"{lists.half_places:,.0f} items (with {popularity_name}, {popular.shared_items:.1f} and "
        f"{popular.half_places:,.0f})."
    )


def metric_rows(record: EvaluationRecord) -> Iterator[Row]:
    """Yield the metrics of the lists and of each baseline, with intervals."""
    model = replace(record.model, intervals=record.intervals)
    yield from rows_of(THESE_LISTS, record.as_served, model, record.k)
    for name, baseline in _baselines(record):
        yield from rows_of(name, baseline.as_served, baseline, record.k)


def certainty(record: EvaluationRecord) -> str:
    """Return the 95 % interval of the lists' nDCG as served, and the lead over each baseline with its interval."""
    interval = record.as_served.intervals.get("ndcg")
    if interval is None:
        return "no interval is known, as it takes two users"
    low, high = interval
    parts = [f"{low:.4f} to {high:.4f} (95 %, over users)"]
    parts += [difference_in_words(name, baseline.model_leads_by) for name, baseline in _baselines(record)]
    return "; ".join(parts)


def difference_in_words(name: str, lead: Lead, baseline_ndcg: float = 0.0) -> str:
    """Return the lead over the baseline *name* in words: `0.0123 better than popularity (95 %: 0.0100 to 0.0150)`.

    With the nDCG of the baseline, it is in percent of that: `4 % better than popularity (95 %: 2 to 6 %)`.
    """
    if lead.verdict == "equal":
        return f"as good as {name} for every user"
    if lead.interval is None:
        return f"not proven better or worse than {name}"
    scale, digits, unit = (100 / baseline_ndcg, 0, " %") if baseline_ndcg else (1.0, 4, "")
    low, high = (scale * bound for bound in lead.interval)
    if lead.verdict == "cannot tell":
        return f"not proven better or worse than {name} (95 %: {low:+.{digits}f} to {high:+.{digits}f}{unit})"
    least, most = sorted((abs(low), abs(high)))
    lead_in_words = f"{scale * abs(lead.ndcg):.{digits}f}{unit} {lead.verdict} than {name}"
    return f"{lead_in_words} (95 %: {least:.{digits}f} to {most:.{digits}f}{unit})"


def warnings_of(record: EvaluationRecord) -> Iterator[str]:
    """Yield sentences about lists that hardly differ between users, and a baseline that is certainly better."""
    shared = record.model.shared_items
    if record.engine != "popularity" and shared is not None and shared >= record.k / 2:
        yield (
            "these are popular lists in all but name: two users share half of their items; --prefer variety has lists "
            "that differ more"
        )

    # A lead is the model's nDCG minus the baseline's, so the best baseline has the lowest.
    baselines = record.baselines.items()
    name, best = min(baselines, key=lambda pair: pair[1].model_leads_by.ndcg, default=("", None))
    if best is not None and best.model_leads_by.verdict == "worse":
        params = params_from(name.removeprefix("recent "), best.params)
        yield (
            f"{described(params)} ranks better than this model on the test: nDCG@{record.k} "
            f"{best.as_served.ndcg:.4f} against {record.as_served.ndcg:.4f}; train with {as_options(params)}"
        )


def split_in_words(record: EvaluationRecord) -> str:
    """Return a sentence on the test of an evaluation: the kind of split, its pairs and users, and what limits it."""
    split = "given split"
    if record.split is not None:
        split = f"{record.split.kind} split (test share {record.split.test_share:g})"

    model = record.model
    pairs = format_count(record.train_pairs + record.test_pairs, "pair")
    users = format_count(model.users, "user")
    held_back = "" if record.split is None else " held back from training"
    parts = [f"{split}: {record.test_pairs:,} of {pairs}{held_back}, of {users}"]
    if record.users_drawn_from:
        parts.append(f"drawn at random from {format_count(record.users_drawn_from, 'user')}")
    if missing := model.users - model.users_with_lists:
        is_served = record.as_served.users_with_lists == model.users
        parts.append(f"{missing:,} of {users} have no list" + (" and get the popular one" if is_served else ""))
    if record.cold_pairs and record.train_pairs:  # else all items are new
        parts.append(f"{format_count(record.cold_pairs, 'pair')} of items that were new")
    if record.split is not None and record.split.kind in _RANDOM_SPLITS:
        parts.append(_RANDOM_SPLIT_FLATTERS)
    return "; ".join(parts)


def variety_in_words(record: EvaluationRecord) -> str:
    """Return how much the lists vary, empty if that was not measured."""
    model = record.model
    parts = []
    if model.list_similarity is not None:
        parts.append(f"similarity of two items of a list {model.list_similarity:.2f}")
    if model.new_items is not None:
        parts.append(f"{100 * model.new_items:.1f} % of places have items of the last {record.new_days} days")
    return "; ".join(parts)


def repeats_in_words(repeats: RepeatSearch) -> str:
    """Return what a search found about repeats."""
    share = f"{100 * repeats.share:.0f} % of test interactions are repeats"
    if repeats.blended <= repeats.without:
        return f"{share}; allowing them does not help"
    gain = f"nDCG@{repeats.k} from {repeats.without:.4f} to {repeats.blended:.4f}"
    return f"{share}; allowing them (publish --keep-seen) raises {gain}"


def _baselines(record: EvaluationRecord) -> Iterator[tuple[str, BaselineRecord]]:
    """Yield the baselines by their names in tables."""
    for engine, baseline in record.baselines.items():
        yield name_of(engine, baseline.params), baseline


def findings_in_words(record: EvaluationRecord) -> Iterator[tuple[str, str]]:
    """Yield findings below the table, each a name and a sentence: certainty of nDCG, the test and variety."""
    yield "nDCG", certainty(record)
    yield "test", split_in_words(record)
    if variety := variety_in_words(record):
        yield "variety", variety


def evaluation_report(kind: str, record: EvaluationRecord, lists: str = "The lists") -> Report:
    """Return the report of an evaluation of *lists*: how good they are, their metrics, and findings."""
    rows = tuple(metric_rows(record))
    return Report(
        kind=kind,
        sentence=answer_in_words(record, lists),
        rows=rows,
        columns=columns_of(rows, record.k),
        origins=dict(findings_in_words(record)),
    )


def quality_report(model: Model) -> Report:
    """Return a report of a model: how good its lists are, its parameters, and the findings of its evaluation.

    Without an evaluation, it has no metrics.
    """
    record = model.evaluation
    report = Report(kind="train", sentence=_NOT_EVALUATED)
    if record is not None:
        report = evaluation_report("train", record)
    origins = {"model": described(model.params), **report.origins}
    if model.search is not None and model.search.repeats is not None:
        origins["repeats"] = repeats_in_words(model.search.repeats)
    return replace(report, origins=origins)


def model_report(path: Path) -> Report:
    """Return the report of the model folder *path*: its parameters, evaluation, and lists of a few users.

    The same folder gives the same report. Raises DataError for a folder that holds no model of this version.
    """
    model = load(path)
    description = describe(path)
    record = model.evaluation
    return replace(
        quality_report(model),
        kind=f"evaluate report {path}",
        tables=tuple(_user_tables(model, n=10 if record is None else record.k)),
        method=(_METHOD_NOTE,),
        broken=() if record is None else tuple(warnings_of(record)),
        configuration={name: fact for name, fact in description.to_json().items() if name not in _SHOWN_ELSEWHERE},
        machine={"date": description.created_at, **json_values(description.data)},
    )


def _user_tables(model: Model, n: int) -> Iterator[TextTable]:
    """Yield a table for each of a few users, from the least to the most active: history, and a list of *n* items."""
    user_items = model.matrix.user_items
    least_active_first = np.argsort(items_per_user(user_items), kind="stable")
    shown_users = min(_SHOWN_USERS, len(least_active_first))
    places = np.linspace(0, len(least_active_first) - 1, shown_users).round().astype(np.int32)
    users = least_active_first[places].astype(np.int32)

    lists = model.ranker.recommend(user_items, users, n).items
    for user, items in zip(users.tolist(), lists, strict=True):
        yield _user_table(model, user, items)


def _user_table(model: Model, user: int, items: Indices) -> TextTable:
    """Return a table of one *user*: the latest items of the history, and the list *items*, -1 after the end.

    Without times, the items with the largest weights come first.
    """
    matrix = model.matrix
    start, end = matrix.user_items.indptr[user : user + 2].tolist()  # the user's pairs in the data
    order = matrix.user_items.data if matrix.times is None else matrix.times
    latest_first = np.argsort(-order[start:end].astype(np.float64), kind="stable")
    history_items = matrix.user_items.indices[start:end][latest_first[:_SHOWN_HISTORY]]

    history = [_item_in_words(model, item) for item in history_items.tolist()]
    listed = [_item_in_words(model, item) for item in items[items >= 0].tolist()]
    return TextTable(
        f"User {_printable(matrix.user_ids[user])}",
        (f"history, of {end - start:,}", "list"),
        tuple(zip_longest(history, listed, fillvalue="")),
        _TABLES_NOTE,
    )


def _item_in_words(model: Model, item: int) -> str:
    identifier = model.matrix.item_ids[item]
    title = model.titles.get(identifier)
    return f"{_printable(title)} ({_printable(identifier, 40)})" if title else _printable(identifier, 40)


def _printable(value: str, longest: int = _LONGEST) -> str:
    """Return a text without control characters, of *longest* characters at most."""
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in value)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
