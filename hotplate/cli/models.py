"""`hotplate models`: the registry of models, from what they were made and what was published from them."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from hotplate.cli.options import Verbs
from hotplate.cli.terminal import Json, interruptible, out, print_json, print_result, table
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotplate.offline.registry import ModelVersion, Registry

T = TypeVar("T")

RegistryUrl = Annotated[str | None, Flag("The registry: a folder, az://… or s3://….", metavar="URL")]
Tags = Annotated[list[str] | None, Flag("Add a tag, as owner=search; repeatable.", env=False, metavar="KEY=VALUE")]
Stage = Annotated[str | None, Flag("Give it this stage, which another version loses.", env=False)]
Reference = Annotated[
    str, typer.Argument(metavar="NAME@VERSION", help="A version, or a stage: shop@3, shop@production.")
]

app = Verbs(
    no_args_is_help=True,
    help="Keep models by name, version and stage, with what they were made of.\n\n"
    "Example: hotplate models register model shop --stage staging",
)


@app.command()
def register(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, as `hotplate train` writes it.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name under which it is one more version.")],
    tag: Tags = None,
    stage: Stage = None,
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """Copy a model into the registry, as the next version of a name.

    Example: hotplate models register model shop --tag owner=search --stage staging
    """
    tags = parse_tags(tag or [])
    _show(in_registry(registry, lambda opened: opened.register(model, name, tags, stage)), as_json=as_json)


@app.command("list")
def list_models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="List the versions of this model alone.")] = None,
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """List models and their versions.

    Example: hotplate models list shop
    """
    entries = in_registry(registry, lambda opened: opened.entries(name))
    headings = ("model", "version", "stages", "registered", "engine", "nDCG", "releases")
    text = table(headings, map(_row, entries)) if entries else "the registry holds no models"
    print_result({"models": entries}, text, as_json=as_json)


@app.command()
def show(
    model: Annotated[str, typer.Argument(metavar="NAME", help="NAME, NAME@VERSION or NAME@STAGE.")],
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """Show what a model was made of, how good it is, and what was published from it.

    Example: hotplate models show shop@production
    """
    _show(in_registry(registry, lambda opened: opened.find(model)), as_json=as_json)


@app.command()
def tag(
    model: Reference,
    tags: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="Tags to add or to change.")] = None,
    stage: Stage = None,
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """Add tags to a version, or give it a stage.

    Example: hotplate models tag shop@3 approved=yes --stage production
    """
    from hotplate.offline.errors import SettingError

    if not tags and stage is None:
        raise SettingError("there is nothing to change; give tags, as approved=yes, or --stage")
    parsed = parse_tags(tags or [])
    _show(in_registry(registry, lambda opened: opened.change(model, parsed, stage)), as_json=as_json)


@app.command()
def pull(
    model: Reference,
    folder: Annotated[Path, typer.Option("--out", help="Write the model to this folder.")],
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """Copy a model out of the registry into a folder.

    Example: hotplate models pull shop@production --out model
    """
    entry = in_registry(registry, lambda opened: opened.pull(model, folder))
    print_result(entry, f"{entry.reference} written to {folder}", as_json=as_json)


def in_registry(url: str | None, act: "Callable[[Registry], T]") -> T:
    """Do something with the registry at *url*, by default the one in the user's own data folder."""
    from hotplate.offline.registry import Registry

    return interruptible(lambda: act(Registry(url)))


def is_reference(model: Path) -> bool:
    """Return whether what stands in the place of a model folder names one in the registry."""
    return "@" in str(model) and not model.exists()


def parse_tags(given: list[str]) -> dict[str, str]:
    """Read tags as KEY=VALUE; SettingError for anything else."""
    from hotplate.offline.errors import SettingError

    tags = dict[str, str]()
    for each in given:
        key, equals, value = each.partition("=")
        if not equals:
            raise SettingError(f"the tag {each!r} has no value; write it as KEY=VALUE")
        tags[key] = value
    return tags


def _row(entry: "ModelVersion") -> tuple[object, ...]:
    ndcg = _metrics(entry).get("ndcg")
    quality, stages = "" if ndcg is None else f"{ndcg:.4f}", ", ".join(entry.stages)
    engine = entry.origin["engine"]
    return entry.name, entry.version, stages, entry.registered_at, engine, quality, len(entry.releases)


def _show(entry: "ModelVersion", *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(entry))
        return
    origin, data = entry.origin, entry.origin["data"] or {}
    params = ", ".join(f"{name} {value}" for name, value in origin["params"].items())
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in _metrics(entry).items())
    libraries = ", ".join(f"{name} {number}" for name, number in origin["versions"].items())
    out.print(f"{entry.reference}, registered {entry.registered_at}")
    rows = [
        ("stages", ", ".join(entry.stages) or "none"),
        ("tags", ", ".join(f"{key}={value}" for key, value in sorted(entry.tags.items())) or "none"),
        ("data", f"{data.get('source', 'not recorded')}, fingerprint {data.get('fingerprint')}"),
        ("", f"{origin['users']:,} users, {origin['items']:,} items, {origin['pairs']:,} pairs"),
        ("parameters", f"{origin['engine']}: {params}" if params else origin["engine"]),
        ("metrics", metrics or "not evaluated"),
        ("code", f"commit {origin['commit'] or 'not known'}, Python {origin['python']}, {libraries}"),
        *([("", f"at its registration other {', '.join(other)}")] if (other := origin.get("registered_with")) else []),
        *(("release", f"{each.id} in {each.store}, {each.published_at}") for each in entry.releases),
    ]
    out.print(table(("", ""), rows))


def _metrics(entry: "ModelVersion") -> dict[str, float]:
    """Return the model's own metrics by name, as far as they are fractions."""
    found = (entry.origin["metrics"] or {}).get("model", {})
    return {name: value for name, value in found.items() if isinstance(value, float)}
