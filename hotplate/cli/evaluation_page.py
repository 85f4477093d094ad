"""The report of a model's evaluation as one HTML file that loads nothing else; the first line is the verdict."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, NullFormatter

from hotplate.bench.report import text
from hotplate.bench.report.plots import COUNT, FAINT, LINES, Frames, count_scale, plot
from hotplate.bench.report.text import (
    caution,
    escaped,
    grouped_table,
    html_paragraphs,
    section,
    table,
    tiles,
    whole_page,
)
from hotplate.offline.evaluate.evaluation import with_interval

Facts = Mapping[str, Any]

# Names of metrics as people write them; others are shown as they are.
NAMES = {
    "ndcg": "nDCG", "map": "MAP", "recall_at_k": "recall, of k at most", "mrr": "MRR", "hit_rate": "hit rate",
}  # fmt: skip
RANKING = ("ndcg", "precision", "recall", "map", "mrr", "hit_rate")
LONGEST = 80
HALF = "± is half of the 95 % interval."
LONG_TAIL = (
    "Items from the most popular one to the rarest. The share of all interactions that the first so many have, and the "
    "share of all places in lists: where the second line is above the first, lists are more popular than histories are."
)
REACHED = "How many different items stand in the first so many places of all lists."
TRIALS = "Each cell that the search tried, on a split within what was learnt from; the test was not touched."
SAMPLES = (
    "From the least to the most active user. Of histories the latest come first, or the heaviest if there are no times."
)
METHOD = """
Metrics are averages over users who have something held back; who has no list counts with zeros. As served, who has no
list gets the popular one, as from the service. An item is liked or not, and nothing between.

A 95 % interval is of chance in who was drawn as a user, by Student's t over those who were tested. It says nothing of
another split, another month or another catalogue.

What is held back is what users chose of what they were shown; a list that would have been better may have hit less of
it.
"""


def page(facts: Facts) -> str:
    """Lay out the whole file, of what `hotplate.offline.evaluate.report` gathers."""
    verdict = facts["verdict"]
    described = facts["description"]
    parts = [_verdict(verdict), _tiles(facts)]
    if facts["subjects"]:
        parts.append(_metrics(facts))
    if facts["random"]:
        parts.append(_at_random(facts["random"]))
    parts += [_catalogue(facts["catalogue"])]
    if facts["live"]:
        parts.append(_live(facts["live"]))
    if (facts["tuning"] or {}).get("trials"):
        parts.append(_tuning(facts["tuning"]))
    parts += [_samples(facts["samples"]), _data(facts)]
    parts.append(section("What is measured, and what is not", html_paragraphs(text.paragraphs(METHOD))))
    below = f"hotplate evaluate report {facts['model']} · trained {described['created_at']}"
    return whole_page(f"{verdict['sentence']}.", below, parts)


def write_page(facts: Facts, path: Path) -> None:
    """Write the page, whole or not at all."""
    text.write(path, page(facts))


def _verdict(verdict: Facts) -> str:
    if not verdict["good"]:
        return caution("Look out:", verdict["remarks"] or [f"{verdict['sentence']}."])
    remarks = "".join(f"<p>{escaped(remark)}</p>" for remark in verdict["remarks"])
    return f'<div class="verdict"><strong>Better than every baseline.</strong>{remarks}</div>'


def _tiles(facts: Facts) -> str:
    shown: list[tuple[str, str]] = []
    if facts["subjects"]:
        metrics = facts["subjects"][0]["metrics"]
        shown = [(f"{metrics[name]:.3f}", f"{_name(name)} at {facts['k']}") for name in ("ndcg", "recall")]
    catalogue = facts["catalogue"]
    without = catalogue["users_without_list"] / max(1, catalogue["users"])
    shown += [
        (f"{catalogue['metrics']['coverage']:.1%}", "of all items are in a list"),
        (f"{without:.1%}".replace("0.0%", "none" if not without else "0.0%"), "of the users have no list"),
    ]
    if (facts["live"] or {}).get("overlap") is not None:
        shown.append((f"{facts['live']['overlap']:.0%}", "of a list is as in the live one"))
    return tiles(shown)


def _metrics(facts: Facts) -> str:
    subjects, k = facts["subjects"], facts["k"]
    lines: list[Facts] = []
    for group, metrics, intervals in (
        ("own lists", "metrics", "intervals"),
        ("as served", "as_served", "served_intervals"),
    ):
        for name in dict.fromkeys(name for each in subjects for name in each[metrics]):
            cells = [with_interval(each[metrics].get(name), each[intervals].get(name)) for each in subjects]
            lines.append({"group": f"{group}, at {k}", "name": _name(name), "cells": cells})
    heading = [_subject(each) for each in subjects]
    shown = [name for name in RANKING if name in subjects[0]["metrics"]]
    drawn = metric_intervals(dict(zip(heading, subjects, strict=True)), {name: _name(name) for name in shown})
    return section("Metrics", drawn + grouped_table(heading, lines), f"{facts['split']} {HALF}")


def _at_random(random: Facts) -> str:
    lines = [
        {"group": who, "name": _name(name), "cells": [f"{each[name]:.4f}" for each in both]}
        for who, both in random["metrics"].items()
        for name in RANKING
        if all(name in each for each in both)
    ]
    heading = ["by time", "at random: flatters"]
    return section("By time and at random", grouped_table(heading, lines), f"As served. {random['split']}")


def _catalogue(catalogue: Facts) -> str:
    rows = [[_name(name), with_interval(value, None)] for name, value in catalogue["metrics"].items()]
    of = f"Of the lists of {catalogue['users']:,} users, over {catalogue['items']:,} items."
    parts = [
        section("The long tail", long_tail(catalogue), LONG_TAIL),
        section("Coverage", reached(catalogue) + table(["", ""], rows, (1,)), f"{REACHED} {of} {HALF}"),
    ]
    return "".join(parts)


def _live(live: Facts) -> str:
    if live["overlap"] is None:
        words = "No user has a list in both."
    else:
        words = (
            f"{live['overlap']:.1%} of the items of a user's list are in the live one, too: the mean over "
            f"{live['users']:,} users, of the longer of the two lists."
        )
    return section(f"Beside the live release {live['release']}", html_paragraphs([words]))


def _tuning(tuning: Facts) -> str:
    best = tuning["trials"][tuning["best"]]
    ordered = sorted(tuning["trials"], key=lambda each: -each["ndcg"])
    rows = [
        [
            each["engine"], _described(each["params"]), str(each["iterations"]),
            f"{each['ndcg']:.4f} ± {each['se']:.4f}", f"{each['seconds']:.1f} s",
        ]
        for each in ordered
    ]  # fmt: skip
    left_out = [f"{each['engine']} {_described(each['params'])}" for each in tuning.get("left_out", ())]
    dear = f" Too dear to be tried: {'; '.join(left_out)}." if left_out else ""
    lead = f"{TRIALS}{dear} The best: {best['engine']}, {_described(best['params'])}."
    shown = table(["engine", "parameters", "iterations", "nDCG, one standard error", "took"], rows, (2, 3, 4))
    return section("The search for parameters", trials(tuning["trials"]) + shown, lead)


def _samples(samples: Sequence[Facts]) -> str:
    parts = []
    for each in samples:
        columns = [map(_item, each["history"]), map(_item, each["list"])]
        headings = [f"history, of {each['activity']:,}", "list"]
        if each["live"] is not None:
            headings.append("live list")
            columns.append(map(_item, each["live"]))
        rows = [list(row) for row in zip_longest(*columns, fillvalue="")]
        parts.append(f"<p><strong>{escaped(_clean(each['user']))}</strong></p>{table(headings, rows)}")
    return section("Sample lists", "".join(parts), SAMPLES)


def _data(facts: Facts) -> str:
    described = facts["description"]
    data, versions = described["data"], described["versions"]
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in data.get("left_out", {}).items())
    shown = {
        "source": data.get("source"),
        "rows": f"{data['rows']:,}" if "rows" in data else None,
        "left out": left_out or "nothing",
        "users, items, pairs": ", ".join(f"{described[name]:,}" for name in ("users", "items", "pairs")),
        "from, to": None if not data.get("time_range") else " to ".join(data["time_range"]),
        "fingerprint": data.get("fingerprint"),
        "engine": described["engine"],
        "parameters": _described(described["params"]),
        **{name: _plain(value) for name, value in data.items() if name not in _SHOWN_DATA},
        "versions": _described(versions),
    }
    rows = [[name.replace("_", " "), _clean(value, 400)] for name, value in shown.items() if value]
    return section("Data, parameters and versions", table(["", ""], rows))


_SHOWN_DATA = frozenset({"source", "rows", "left_out", "time_range", "fingerprint"})


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return _described({name: one for name, one in value.items() if one is not None})
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _described(params: Facts) -> str:
    return ", ".join(f"{name} {value}" for name, value in params.items()) or "nothing to choose"


def _subject(subject: Facts) -> str:
    if subject["role"] == "live":
        return "live, otherwise drawn" if subject["note"] else "live"
    return f"{subject['name']} ({'this model' if subject['role'] == 'model' else 'baseline'})"


def _name(metric: str) -> str:
    return NAMES.get(metric, metric.replace("_", " "))


def _item(item: Facts) -> str:
    identifier = _clean(item["id"], 40)
    return f"{_clean(item['title'])} ({identifier})" if item["title"] else identifier


def _clean(value: str, longest: int = LONGEST) -> str:
    """Return a text of a user in a form that cannot disturb the page: no control characters, and not too long."""
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in value)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


@plot(high=1.15)
def metric_intervals(frames: Frames, subjects: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, str]) -> None:
    """Draw the metrics of all subjects, each a row, with their intervals if they have some; both come by name."""
    (axes,) = frames
    step = 0.7 / max(1, len(subjects))
    for number, ((label, each), colour) in enumerate(zip(subjects.items(), LINES * len(subjects), strict=False)):
        for row, name in enumerate(metrics):
            value, at = each["metrics"].get(name), row + number * step - 0.35 + step / 2
            if value is None:
                continue
            low, high = each["intervals"].get(name, (value, value))
            axes.plot([low, high], [at, at], color=colour, linewidth=2.4)
            axes.plot([value], [at], marker="o", markersize=5, color=colour, linestyle="none")
        axes.plot([], [], marker="o", color=colour, linestyle="none", label=label)
    axes.set_yticks(range(len(metrics)), list(metrics.values()))
    axes.invert_yaxis()
    axes.set_xlim(left=0)


@plot()
def long_tail(frames: Frames, found: Mapping[str, Any]) -> None:
    """Draw the share that the first items have, from the most popular to the rarest, of histories and of lists."""
    (axes,) = frames
    axes.plot(found["ranks"], found["history"], color=LINES[2], label="of all interactions")
    axes.plot(found["ranks"], found["lists"], color=LINES[0], label="of all places in lists")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_formatter(COUNT)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel(f"the most popular of {found['items']:,} items")


@plot(high=0.8)
def reached(frames: Frames, found: Mapping[str, Any]) -> None:
    """Draw how many different items stand in the first so many places of all lists."""
    (axes,) = frames
    depths = range(1, len(found["reached"]) + 1)
    axes.plot(depths, found["reached"], color=LINES[0], marker="o")
    count_scale(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("first places of each list")


@plot()
def trials(frames: Frames, found: Sequence[Mapping[str, Any]]) -> None:
    """Draw the trials of a search in their order, each with a standard error, and the best so far as a line."""
    (axes,) = frames
    for engine, colour in zip(dict.fromkeys(each["engine"] for each in found), LINES, strict=False):
        own = [(number, each) for number, each in enumerate(found, 1) if each["engine"] == engine]
        axes.errorbar(
            [number for number, _ in own],
            [each["ndcg"] for _, each in own],
            yerr=[each["se"] for _, each in own],
            color=colour, marker="o", linestyle="none", elinewidth=1, label=engine,
        )  # fmt: skip
    axes.step(
        range(1, len(found) + 1), np.maximum.accumulate([each["ndcg"] for each in found]), where="post", color=FAINT
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel("nDCG")
