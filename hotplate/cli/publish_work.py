"""The work of `hotplate publish` and `hotplate import`.

Both make a source of lists (of a model, of files, or several by name) and hand it to `publish_lists`. Lists are kept by
name; the first one is the default list, which is stored without a name, and may have the name "".
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from hotplate.base.report import format_count
from hotplate.cli.costs import RequestUnitMeter, limit_ru
from hotplate.cli.flags import settings_from_table, settings_of
from hotplate.cli.manifests import print_attributes, print_gates, print_metrics, rule_counts
from hotplate.cli.options import ImportFlags, PublishFlags, ReleaseFlags
from hotplate.cli.terminal import (
    err,
    out,
    print_json,
    print_rows_read,
    progress_bars,
    run_interruptibly,
    run_on_store,
    shown_store_url,
    store_url_or_default,
)
from hotplate.offline.attributes import parse_kinds, parse_names
from hotplate.offline.errors import DataError, GateFailed, SettingError, read_toml
from hotplate.offline.gates.bounds import read_gates
from hotplate.offline.input.files import named_paths
from hotplate.offline.list_import import ImportedLists, ImportSettings
from hotplate.offline.lists import ListSettings, ModelLists, load_lists
from hotplate.offline.options import PublishSettings
from hotplate.offline.publish import Written, not_recorded, publish_source
from hotplate.offline.release_status import PLACES
from hotplate.offline.rule_files import read_rules
from hotplate.offline.sources import NamedLists, PartedSource, stored_names
from hotplate.offline.training import OnStage
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.change_warnings import warn, with_warnings
from hotplate.stores.compression import default_encoding
from hotplate.stores.encoding import check_list
from hotplate.stores.errors import HeldBack, ReleaseWithdrawn, StoreMisused
from hotplate.stores.folders import temporary_folder
from hotplate.stores.manifest import Manifest
from hotplate.stores.origin import failures
from hotplate.stores.rehearsal import plan_of, stand_in_for
from hotplate.stores.store import Store, warnings_of
from hotplate.stores.verification import OnProgress

AnyLists = NamedLists | PartedSource
R = TypeVar("R", bound=ReleaseFlags)
F = TypeVar("F", PublishFlags, ImportFlags)
# Options that a named list cannot have.
OF_THE_RELEASE = {setting.name for setting in settings_of(ReleaseFlags)} - {"list_length", "force"}
OF_THE_RELEASE |= {"fold_in", "master"}


def with_gates_and_ru_limit(flags: R) -> R:
    """Return the flags with their gates read, and with the limit of request units in the URL of the store.

    Raises SettingError for invalid gates, StoreMisused for an invalid URL, and for a dry run of a draft.
    """
    settings = replace(flags.settings, gates=read_gates(flags.gate_file, flags.gate))
    if flags.dry_run and settings.resume is not None:
        raise StoreMisused("--dry-run cannot rehearse the rest of a draft; leave out --resume")
    return replace(flags, settings=settings, store=limit_ru(flags.store, flags.max_ru))


def list_settings(flags: PublishFlags) -> ListSettings:
    """Return the settings of a list; raises as `read_rules`."""
    return ListSettings(
        length=flags.list_length,
        keep_seen=flags.keep_seen,
        rules=read_rules(flags.rules),
        force=flags.settings.force,
        fold_in=flags.fold_in,
        attributes=flags.item_attributes,
        attribute_kinds=parse_kinds(flags.attribute),
        shown=parse_names(flags.show),
    )


def read_flags_by_list(flags: F) -> dict[str, F]:
    """Return the flags of each `--list NAME=SOURCE`, by its name.

    A list has the same *flags* as the others, but its own source: a model, or a file of lists. If the source is a TOML
    file, its keys replace flags. Raises SettingError for an invalid or repeated name, and for invalid flags.
    """
    flags_by_list = dict[str, F]()
    for text in flags.named:
        name, equals, source = text.partition("=")
        if not equals or not source or name in flags_by_list:
            raise SettingError(f"--list: {text!r} is not NAME=SOURCE with a new name, such as basket=model2.")

        path = Path(source)
        if path.suffix == ".toml":
            keys = read_toml(path)
            flags_by_list[name] = flags_of_table(flags, name, keys, where=source, folder=path.absolute().parent)
        else:
            flags_by_list[name] = _flags_of_source(flags, name, path)
    return flags_by_list


def flags_of_table(flags: F, name: str, keys: Mapping[str, Any], *, where: str, folder: Path) -> F:
    """Return the flags of the list *name*: those in a table's *keys*, and else *flags*.

    Raises SettingError as `settings_from_table`.
    """
    base = _flags_of_source(flags, name)
    return settings_from_table(type(flags), keys, where=where, folder=folder, without=OF_THE_RELEASE, base=base)


def _flags_of_source(flags: F, name: str, source: Path | None = None) -> F:
    """Return *flags* for the list *name* from one model or file, *source*; SettingError for an invalid name."""
    try:
        check_list(name)
    except StoreMisused as error:
        raise SettingError(f"--list: {error}.") from error
    if isinstance(flags, PublishFlags):
        return replace(flags, model=source or flags.model)
    return replace(flags, lists=() if source is None else (source,), similar=None, popular=None)


def publish_models(flags: PublishFlags) -> None:
    """Publish the lists of models as one release: the unnamed list, and those of `--list NAME=MODEL`.

    The unnamed list, or without one the first named list, is the default list. Models are folders or MLflow's URIs;
    with `--master` Spark computes the lists. Raises SettingError for invalid or contradicting options, and as
    `publish_lists`.
    """
    flags = with_gates_and_ru_limit(flags)
    flags_by_list = read_flags_by_list(flags)  # of named lists
    if flags.model is not None:
        flags_by_list = {"": flags} | flags_by_list
    if not flags_by_list or any(list_flags.model is None for list_flags in flags_by_list.values()):
        raise SettingError("There is nothing to publish; give a model, or --list NAME=MODEL.")
    if flags.master is not None and flags.named:
        raise SettingError("Named lists are computed in this process; leave out --master.")

    settings_by_list = {name: list_settings(list_flags) for name, list_flags in flags_by_list.items()}
    models = {name: str(list_flags.model) for name, list_flags in flags_by_list.items()}
    # `on_spark` returns lists that Spark computes, or without --master the same lists.
    with _local_folders(models) as (folders, mlflow_uris), _on_spark_if_wanted(flags) as on_spark:
        publish_lists(
            lambda report: on_spark(_load_model_lists(folders, settings_by_list, report)),
            flags,
            on_written=partial(_record_in_mlflow, mlflow_uris, store_url_or_default(flags.store)),
        )


def _load_model_lists(folders: Mapping[str, Path], settings: Mapping[str, ListSettings], report: OnStage) -> NamedLists:
    """Load the models in *folders*, by the name of a list, and measure their lists; *report* gets the progress."""
    sources = dict[str, ModelLists]()
    for name, lists in load_lists(folders, settings).items():
        sources[name] = lists.measure(partial(report, "measure"))
    return NamedLists(sources)


@contextmanager
def _local_folders(models: Mapping[str, str]) -> Iterator[tuple[dict[str, Path], list[str]]]:
    """Yield the folder of each list's model by the list's name, and the URIs, with versions, of those from MLflow.

    *models* are folders or MLflow's URIs (`models:/` or `runs:/`) by list. Models in MLflow are downloaded to a
    temporary folder, which is removed at the end.
    """
    folders = {name: Path(model) for name, model in models.items()}
    in_mlflow = {name: uri for name, uri in models.items() if uri.startswith(("models:/", "runs:/"))}
    if not in_mlflow:
        yield folders, []
        return

    from hotplate.offline import mlflow_models  # an extra

    resolved_uris = {name: run_interruptibly(partial(mlflow_models.resolve, uri)) for name, uri in in_mlflow.items()}
    with temporary_folder("model") as scratch:
        for number, (name, uri) in enumerate(resolved_uris.items()):
            folders[name] = run_interruptibly(partial(mlflow_models.fetch, uri, scratch / str(number)))
        yield folders, [*resolved_uris.values()]


def _record_in_mlflow(uris: Sequence[str], store: str, release: ReleaseId) -> None:
    """Tag the models of MLflow with the release that is made of them; a failure is a warning."""
    for uri in uris:
        from hotplate.offline import mlflow_models  # an extra

        try:
            mlflow_models.record_release(uri, store, release)
        except DataError as error:
            warn(not_recorded(release, error))


def import_lists(flags: ImportFlags) -> None:
    """Publish lists that were computed elsewhere, from files: the unnamed list, and those of `--list NAME=FILE`.

    The unnamed list, or without one the first named list, is the default list. Raises SettingError for invalid options,
    and as `publish_lists`.
    """
    flags = with_gates_and_ru_limit(flags)
    flags_by_list = read_flags_by_list(flags)
    has_unnamed_list = bool(flags.lists or flags.similar or flags.popular)
    if has_unnamed_list or not flags_by_list:  # without any files, reading the unnamed list fails
        flags_by_list = {"": flags} | flags_by_list

    settings_by_list = {name: _import_settings(list_flags) for name, list_flags in flags_by_list.items()}
    # The report names the files of the first list.
    first = next(iter(flags_by_list.values()))
    files = [path for path in (*first.lists, first.similar, first.popular) if path is not None]
    with temporary_folder("import") as folder:
        publish_lists(partial(_read_imported_lists, settings_by_list, folder), flags, named_paths(files))


def _read_imported_lists(settings: Mapping[str, ImportSettings], folder: Path, report: OnStage) -> NamedLists:
    """Return a source of lists from files, by the *settings* of each list, with scratch files in *folder*.

    *report* is called with the progress. `stored_names` gives each list the name by which rows are stored, "" for the
    default list.
    """
    sources = dict[str, ImportedLists]()
    for number, (name, stored_name) in enumerate(stored_names(settings).items()):
        scratch = folder / str(number)
        scratch.mkdir()
        sources[name] = ImportedLists(settings[name], scratch, report, stored_name)
    return NamedLists(sources)


def _import_settings(flags: ImportFlags) -> ImportSettings:
    """Return the settings to read a list from files, by the flags of `import`."""
    return ImportSettings(
        lists=flags.lists[0] if flags.lists else None,
        more=flags.lists[1:],
        popular=flags.popular,
        similar=flags.similar,
        titles=flags.titles,
        columns={**asdict(flags.columns), "title": flags.title_column},
        form=flags.text,
        length=flags.list_length,
        attributes=flags.item_attributes,
        attribute_kinds=parse_kinds(flags.attribute),
        shown=parse_names(flags.show),
    )


@contextmanager
def _on_spark_if_wanted(flags: PublishFlags) -> Iterator[Callable[[NamedLists], AnyLists]]:
    """Yield a function that makes Spark compute lists if `--master` names a cluster, else returns them unchanged.

    Spark's session ends with the context. Raises SettingError for a dry run with --master.
    """
    if flags.master is None:
        yield lambda lists: lists
        return
    from hotplate.offline.spark import SparkLists, check_store  # an extra
    from hotplate.offline.train.spark import spark_session

    if flags.dry_run:
        raise SettingError("A dry run computes all lists in this process; leave out --master.")
    url = store_url_or_default(flags.store)
    check_store(url)
    with spark_session(flags.master) as session:
        yield lambda lists: SparkLists(cast("ModelLists", lists.sources[""]), session, url)  # the only list


def publish_lists(
    read_lists: Callable[[OnStage], AnyLists],
    flags: ReleaseFlags,
    imported: str | None = None,
    on_written: Callable[[ReleaseId], None] = lambda _: None,
) -> None:
    """Publish lists as a release and print the result, or rehearse that for a dry run.

    read_lists  returns a source of the lists; it is called with a function to report progress to
    imported    the names of the files of imported lists
    on_written  is called with the release, live or not, but not in a dry run

    Raises GateFailed or HeldBack, after printing the result, if the release was refused, held back or withdrawn.
    """
    meter = RequestUnitMeter()
    written = _publish(read_lists, flags, meter)
    if flags.dry_run:
        _print_rehearsal(written.result.manifest, flags)
    else:
        try:
            on_written(written.result.manifest.release)
        finally:  # the release is written, whatever fails after it
            _print_result(written, flags, meter, imported)
    if written.refused is not None:
        raise written.refused


def _publish(read_lists: Callable[[OnStage], AnyLists], flags: ReleaseFlags, meter: RequestUnitMeter) -> Written:
    """Write lists as a release, make it live, and prune old releases; a dry run does so in a stand-in for the store.

    *meter* counts request units (RU) of Cosmos DB. The other parameters are those of `publish_lists`. If the release
    may not go live, the result has the error that says why, and it is not raised.
    """
    run_on_store(flags.store, check_store, may_be_new=True)
    with progress_bars(meter.progress) as on_progress:
        lists = run_interruptibly(lambda: read_lists(on_progress))
        publish = partial(
            publish_source,
            lists,
            settings=flags.settings,
            observer=meter,
            on_progress=partial(on_progress, "publish"),
        )
        if flags.dry_run:
            publish = partial(_rehearse, lists, flags, partial(on_progress, "dry run"))
        return run_on_store(flags.store, publish, meter, may_be_new=True)


async def check_store(store: Store) -> None:
    """Raise StoreError if the store cannot be read, before lists are computed, and print its warnings."""
    await store.catalogue()
    for sentence in await warnings_of(store):
        err.print(f"warning: {sentence}")


async def _rehearse(lists: AnyLists, flags: ReleaseFlags, report: OnProgress, store: Store) -> Written:
    """Publish *lists* to a stand-in for *store*, a temporary folder; nothing is written to the store.

    Gates, bounds that a release must meet to go live, compare with the live release of the store itself. They refuse
    nothing; their verdicts are read from the manifest, the description of the release, afterwards.
    """
    settings = replace(flags.settings, force=True)
    if settings.encoding is None:
        settings = replace(settings, encoding=default_encoding(store))
    async with stand_in_for(store) as stand_in:
        written = await publish_source(lists, stand_in, settings, rehearsal_of=store, on_progress=report)
    simulated = written.result

    refused: GateFailed | HeldBack | None = simulated.held_back
    failed = failures(simulated.manifest.origin.gates.verdicts)
    if failed and not flags.settings.force:
        refused = GateFailed(f"{failed}; this is a dry run, and nothing was written", simulated)
    return replace(written, refused=refused)


def _print_rehearsal(manifest: Manifest, flags: ReleaseFlags) -> None:
    """Print the rows and bytes that the release of a dry run would take, its rules, metrics and gates."""
    plan = plan_of(manifest)
    facts: dict[str, object] = {
        "dry_run": True,
        "store": shown_store_url(flags.store),
        "rows": plan.rows,
        "bytes": plan.payload_bytes,
    }
    for name in ("item_attributes", "rules", "metrics"):
        if value := manifest.about.get(name):
            facts[name] = value
    print_json(facts | _gates_json(manifest))

    size = f"{plan.rows:,} rows, {plan.payload_bytes / 1e6:,.1f} MB"
    out.print(f"dry run, nothing is written: {size}, into {shown_store_url(flags.store)}")
    print_attributes(manifest)
    print_metrics(manifest)
    print_gates(replace(manifest.origin.gates, forced=flags.settings.force))  # the rehearsal itself is forced


def _was_activated(written: Written, settings: PublishSettings) -> bool:
    """Return whether a written release is live now, or the release of its arm in an experiment."""
    return settings.activate and written.refused is None


def _gates_json(manifest: Manifest) -> dict[str, object]:
    verdicts = manifest.origin.gates.verdicts
    return {"gates": verdicts} if verdicts else {}


def _written_json(written: Written, flags: ReleaseFlags, *, is_import: bool) -> dict[str, object]:
    """Return what `--json` prints of a published release; with *is_import* also the rows read and left out.

    An experiment gives arm A, a group of users, the live release, and arm B another one. Without an experiment, the arm
    is A.
    """
    manifest = written.result.manifest
    arm = flags.settings.arm
    facts = dict[str, object]()
    if is_import:
        origin = manifest.origin
        facts = {"rows": origin.rows, "left_out": origin.left_out, "notes": origin.notes}

    facts |= {
        "store": shown_store_url(flags.store),
        "release": manifest,
        "live": _was_activated(written, flags.settings) and arm == "A",
        "arm": arm,
        "seconds": round(written.seconds, 3),
        "rows_written_before": written.result.skipped,
        "erased": written.erased,
    }
    return facts | _gates_json(manifest)


def _print_result(written: Written, flags: ReleaseFlags, meter: RequestUnitMeter, imported: str | None) -> None:
    """Print a published release as JSON or text; of an import, whose files are *imported*, also the rows read."""
    facts = _written_json(written, flags, is_import=imported is not None) | meter.to_json()
    print_json(with_warnings(facts))
    if imported is not None:
        origin = written.result.manifest.origin
        print_rows_read(imported, origin.rows, origin.left_out, origin.notes)
    print_written(written, flags.settings, meter, shown_store_url(flags.store))


def print_written(written: Written, settings: PublishSettings, meter: RequestUnitMeter, store: str) -> None:
    """Print a published release: its state in *store*, a URL as shown, its rules, attributes, metrics and gates.

    Then the releases that were erased, and the request units (RU) of Cosmos DB. *settings* are those of the publish.
    """
    manifest = written.result.manifest
    counts = ", ".join(f"{count:,} {kind}" for kind, count in manifest.counts.items() if kind != "meta")
    size = f"{manifest.bytes / 1e6:,.1f} MB"
    state = "ready"
    if isinstance(written.refused, ReleaseWithdrawn):
        state = "withdrawn"
    elif _was_activated(written, settings):
        state = PLACES[settings.arm]
    out.print(f"release {manifest.release} is {state} in {store}: {counts} lists, {size}, in {written.seconds:.1f} s")
    if written.result.skipped:
        out.print(f"{format_count(written.result.skipped, 'row')} had been written before, and not again")

    for rule, counted in rule_counts(manifest):
        out.print(f"  {rule}: {counted}")
    print_attributes(manifest)
    print_metrics(manifest)
    print_gates(manifest.origin.gates)

    for release in written.erased:
        out.print(f"erased {release}, which is no longer needed, in {store}")
    meter.print_totals(manifest.rows)
