"""What the manifest of a release says, in text: its record of lists, model and gates."""

from collections.abc import Iterator

from hotplate.cli.terminal import format_time, out, table
from hotplate.stores.manifest import Manifest
from hotplate.stores.origin import GateRecord


def rule_counts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the name of each rule of a release, and what it counted, as "3 items, 12 users"."""
    for name, counts in manifest.origin.rules.items():
        # Names with blanks hold ids.
        words = {counted: counted if " " in counted else counted.replace("_", " ") for counted in counts}
        texts = [f"{count:,} {words[counted]}" for counted, count in counts.items()]
        yield name.replace("_", " "), ", ".join(texts)


def manifest_facts(manifest: Manifest, state: str) -> list[tuple[str, object]]:
    """Return pairs of a heading and a value for the table of a release, by its manifest, the description of a release.

    *state* is that of the release, in words. Of `about`, facts by name, texts and numbers are shown, except "engine",
    which `origin` has with its parameters.
    """
    origin = manifest.origin
    params = ", ".join(f"{name} {value}" for name, value in origin.params.items())
    facts: list[tuple[str, object]] = [
        ("release", manifest.release),
        ("state", state),
        ("written", format_time(manifest.created_at)),
        ("engine", ": ".join(filter(None, (origin.engine, params)))),
        ("rows", ", ".join(f"{count:,} {kind}" for kind, count in manifest.counts.items())),
        ("bytes", f"{manifest.bytes:,}, {manifest.encoding}"),
        ("digest", manifest.digest),
    ]
    for name, value in manifest.about.items():
        if name != "engine" and isinstance(value, str | int | float):
            facts.append((name.replace("_", " "), value))
    facts += [(f"rule: {name}", counts) for name, counts in rule_counts(manifest)]
    return facts


def print_quality(manifest: Manifest) -> None:
    """Print the metrics of the model."""
    quality = manifest.origin.quality
    figures = {**quality.model, **quality.as_served}
    metrics = [(name, f"{value:.4f}") for name, value in figures.items() if isinstance(value, float)]
    if metrics:
        out.print(table((f"quality at {quality.k}", ""), metrics))


def print_metrics(manifest: Manifest) -> None:
    """Print metrics of the published lists and, in parentheses, of the lists in training, which rules have changed.

    Without `as_trained`, the metrics in training, rules changed nothing, and nothing is printed. Only metrics that both
    have are printed, and that of new items only if both count items of as many days.
    """
    quality = manifest.origin.quality
    if quality.as_trained is None:
        return
    published = {**quality.model, **quality.as_served}
    trained = {**quality.as_trained.model, **quality.as_trained.as_served}

    out.print(f"  as published, nDCG@{quality.k} is {published['ndcg']:.4f}; in training it was {trained['ndcg']:.4f}")
    names = {"coverage": "coverage", "list_similarity": "similarity within a list"}
    if quality.new_days == quality.as_trained.new_days:
        names["new_items"] = f"items of the last {quality.new_days} days"
    pairs = [
        f"{name} {published[metric]:.4f} ({trained[metric]:.4f})"
        for metric, name in names.items()
        if metric in published and metric in trained
    ]
    out.print(f"  {', '.join(pairs)}")


def print_attributes(manifest: Manifest) -> None:
    """Print the item attributes of a release, with notes on doubtful cells."""
    attributes = manifest.origin.item_attributes
    if attributes.columns:
        kinds = ", ".join(f"{name} ({kind})" for name, kind in attributes.columns.items())
        out.print(f"  item attributes: {kinds}")
        if attributes.shown:
            out.print(f"  shown in answers: {', '.join(attributes.shown)}")
        for note in attributes.notes:
            out.print(f"  note: {note}")


def print_gates(gates: GateRecord) -> None:
    """Print a line for each gate of a release, a bound that a metric must keep: measured value, bound, and verdict."""
    failed = "forced" if gates.forced else "failed"
    rows = list[tuple[str, ...]]()
    for verdict in gates.verdicts:
        measured = "" if verdict.measured is None else f"{verdict.measured:.4g}"
        side = "≤" if verdict.at_most else "≥"
        state = "passed" if verdict.passed else failed
        rows.append((verdict.gate, measured, f"{side} {verdict.bound:.4g}", state, verdict.note))
    if rows:
        out.print(table(("gate", "measured", "bound", "", ""), rows))
