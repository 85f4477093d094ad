"""The report of a model's evaluation: metrics beside the baselines, the long tail, the search, and sample lists."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from hotplate.report import Curve, Plot, Report, Row, TextTable

Facts = Mapping[str, Any]

# Names of metrics as people write them; others are shown as they are.
NAMES = {"ndcg": "nDCG", "map": "MAP", "recall_at_k": "recall of at most k", "mrr": "MRR", "hit_rate": "hit rate"}
MAIN = ("ndcg", "recall", "precision", "map", "mrr", "hit_rate")
LONGEST = 80
METHOD = (
    "Metrics are means over users who have something held back; a user without a list counts with zeros. As served, a "
    "user without a list gets the popular one. An interval (95 %, Student's t over users) speaks of the users drawn, "
    "not of another split, month or catalogue."
)
LONG_TAIL = "The share of all interactions, and of all places in lists, that the most popular items have."
SAMPLES = "From the least to the most active user; histories begin with the latest or the heaviest interaction."


def evaluation_report(facts: Facts) -> Report:
    """Make the report of what `hotplate.offline.evaluate.report.gather` returned."""
    verdict, description = facts["verdict"], facts["description"]
    remarks = tuple(verdict["remarks"])
    method = (facts["split"], METHOD) if facts["split"] else (METHOD,)
    return Report(
        kind=f"evaluate report {facts['model']}",
        sentence=f"{verdict['sentence']}.",
        rows=(*_metrics(facts), *_catalogue(facts["catalogue"]), *_random(facts["random"])),
        plots=(*_tail_plots(facts["catalogue"]), *_search_plot(facts["tuning"])),
        tables=(*_search_table(facts["tuning"]), *map(_sample, facts["samples"])),
        notes=(*(remarks if verdict["good"] else ()), *_live(facts["live"]), *method),
        broken=() if verdict["good"] else remarks or ("no baseline was beaten",),
        configuration={name: value for name, value in description.items() if name != "data"},
        machine={"date": description["created_at"], **description["data"]},
    )


def _metrics(facts: Facts) -> Iterator[Row]:
    for subject in facts["subjects"]:
        name = _subject(subject)
        for kind, suffix, intervals in (("metrics", "", "intervals"), ("as_served", ", as served", "served_intervals")):
            for metric, value in subject[kind].items():
                low, high = subject[intervals].get(metric, (None, None))
                figure = f"{NAMES.get(metric, metric.replace('_', ' '))}@{facts['k']}{suffix}"
                yield Row(name, figure, "", value, low=low, high=high, main=metric in MAIN and not suffix)


def _catalogue(catalogue: Facts) -> Iterator[Row]:
    subject = f"lists of {catalogue['users']:,} users"
    yield Row(subject, "users without a list", "", catalogue["users_without_list"], main=False)
    for name, value in catalogue["metrics"].items():
        yield Row(subject, name.replace("_", " "), "", value, main=False)


def _random(random: Facts | None) -> Iterator[Row]:
    """Yield the metrics by time and of a random draw, which flatters."""
    for subject, both in (random or {"metrics": {}})["metrics"].items():
        for metric in (each for each in MAIN if all(each in one for one in both)):
            for where, one in zip(("by time", "at random, which flatters"), both, strict=True):
                yield Row(f"{subject}, {where}", f"{NAMES.get(metric, metric)}, as served", "", one[metric], main=False)


def _live(live: Facts | None) -> Iterator[str]:
    if live and live["overlap"] is not None:
        yield (
            f"{live['overlap']:.1%} of the items of a list are in the live release {live['release']}, too (mean over "
            f"{live['users']:,} users)."
        )


def _tail_plots(catalogue: Facts) -> Iterator[Plot]:
    ranks = tuple(map(float, catalogue["ranks"]))
    curves = (
        Curve("of all interactions", ranks, tuple(catalogue["history"])),
        Curve("of all places in lists", ranks, tuple(catalogue["lists"])),
    )
    most = f"the most popular of {catalogue['items']:,} items"
    yield Plot("The long tail", most, "share", curves, y_unit="share", log_x=True, caption=LONG_TAIL)
    depths = tuple(float(depth) for depth in range(1, len(catalogue["reached"]) + 1))
    reached = (Curve("items", depths, tuple(map(float, catalogue["reached"]))),)
    yield Plot("Coverage", "first places of each list", "different items", reached, points=True)


def _search_plot(tuning: Facts | None) -> Iterator[Plot]:
    trials = (tuning or {}).get("trials", ())
    curves = list[Curve]()
    for engine in dict.fromkeys(each["engine"] for each in trials):
        found = {float(number): each["ndcg"] for number, each in enumerate(trials, 1) if each["engine"] == engine}
        curves.append(Curve(engine, tuple(found), tuple(found.values())))
    if curves:
        yield Plot("The search for parameters", "trial", "nDCG", tuple(curves), points=True)


def _search_table(tuning: Facts | None) -> Iterator[TextTable]:
    found = tuning or {}
    lines = list[tuple[str, ...]]()
    for each in sorted(found.get("trials", ()), key=lambda each: -each["ndcg"]):
        ndcg = f"{each['ndcg']:.4f} ± {each['se']:.4f}"
        lines.append(
            (each["engine"], _plain(each["params"]), str(each["iterations"]), ndcg, f"{each['seconds']:.1f} s")
        )
    if lines:
        left_out = "; ".join(f"{each['engine']} {_plain(each['params'])}" for each in found.get("left_out", ()))
        headings = ("engine", "parameters", "iterations", "nDCG, one standard error", "took")
        caption = f"Left out, as they cost too much: {left_out}." if left_out else ""
        yield TextTable("Trials", headings, tuple(lines), caption)


def _sample(sample: Facts) -> TextTable:
    live = {} if sample["live"] is None else {"live list": sample["live"]}
    columns = {f"history, of {sample['activity']:,}": sample["history"], "list": sample["list"], **live}
    lines = zip_longest(*([_item(item) for item in items] for items in columns.values()), fillvalue="")
    return TextTable(f"User {_clean(sample['user'])}", tuple(columns), tuple(lines), SAMPLES)


def _subject(subject: Facts) -> str:
    if subject["role"] == "live":
        return "live, of another draw" if subject["note"] else "live"
    return f"{subject['name']} ({'this model' if subject['role'] == 'model' else 'baseline'})"


def _item(item: Facts) -> str:
    identifier = _clean(item["id"], 40)
    return f"{_clean(item['title'])} ({identifier})" if item["title"] else identifier


def _plain(params: Facts) -> str:
    return ", ".join(f"{name} {value}" for name, value in params.items())


def _clean(value: str, longest: int = LONGEST) -> str:
    """Return a text of the data without control characters, cut to *longest*."""
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in value)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
