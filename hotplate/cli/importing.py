"""`hotplate import`: from lists that somebody else computed to a live release."""

import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli import foretelling
from hotplate.cli import publish as publishing
from hotplate.cli.foretelling import DryRun
from hotplate.cli.opening import with_store
from hotplate.cli.progress import bars
from hotplate.cli.publish import Activate, ChosenEncoding, Keep, ListLength, Resume
from hotplate.cli.spending import MaxRu, Spending, within
from hotplate.cli.terminal import Json, StoreUrl, out, print_json

if TYPE_CHECKING:
    from types import FrameType

    from offline.importing import ImportSettings
    from offline.publish import PublishReport
    from stores.catalogue import ReleaseId
    from stores.store import Store

SCRATCH = "hotplate-import-"


def _column(role: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        f"--{role}-column",
        envvar=f"HOTPLATE_{role.upper()}_COLUMN",
        help=f"The {role} column; guessed from common names.",
        show_default=False,
    )
    return option


def import_lists(
    lists: Annotated[
        Path,
        typer.Argument(
            metavar="LISTS",
            help="A CSV, TSV or Parquet file of user, item and score (.gz and .zst too), or a folder of one kind.",
        ),
    ],
    store: StoreUrl = None,
    user_column: Annotated[str | None, _column("user")] = None,
    item_column: Annotated[str | None, _column("item")] = None,
    score_column: Annotated[str | None, _column("score")] = None,
    title_column: Annotated[str | None, _column("title")] = None,
    titles: Annotated[
        Path | None, typer.Option(envvar="HOTPLATE_TITLES", help="A file of item and title.", show_default=False)
    ] = None,
    popular: Annotated[
        Path | None,
        typer.Option(
            envvar="HOTPLATE_POPULAR",
            help="A file of item, score and perhaps segment; by default items count by the lists that they are in.",
            show_default=False,
        ),
    ] = None,
    similar: Annotated[
        Path | None,
        typer.Option(envvar="HOTPLATE_SIMILAR", help="A file of item, other item and score.", show_default=False),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(envvar="HOTPLATE_DELIMITER", help="Between fields of CSV; guessed.", show_default=False),
    ] = None,
    list_length: ListLength = 20,
    encoding: ChosenEncoding = None,
    activate: Activate = True,
    keep: Keep = 1,
    resume: Resume = None,
    max_ru: MaxRu = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Publish lists that you have already: rows of user, item and score, in any order, as many as the disk holds.

    Rows are sorted in a temporary folder (TMPDIR); a user's lists keep their highest scores.

    Example: hotplate import lists.parquet --titles titles.csv --store file:///var/lib/hotplate

    Before you pay: hotplate import lists.parquet --store cosmos://ACCOUNT/DATABASE --max-ru 4000 --dry-run
    """
    from offline.importing import Imported, ImportSettings
    from offline.publish import publish_rows
    from stores.catalogue import ReleaseId
    from stores.lifecycle import prune

    store = within(store, max_ru)
    columns = {"user": user_column, "item": item_column, "score": score_column, "title": title_column}
    split = delimiter.replace("\\t", "\t") if delimiter else None
    settings = ImportSettings(lists, popular, similar, titles, columns, split, list_length)
    if dry_run:
        _foresee(settings, store, publishing.encoding_of(encoding, store), activate, keep, resume, as_json=as_json)
        return
    with_store(store, lambda opened: opened.catalogue())  # a store that is away is better known now than after the sort
    signal.signal(signal.SIGTERM, _stop)
    spending = Spending()
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch, bars(spending.progress) as tell:
        imported = Imported(settings, Path(scratch), tell)

        async def act(opened: "Store") -> "tuple[PublishReport, list[ReleaseId]]":
            spending.watch(opened, imported.plan(), quiet=as_json)
            done = await publish_rows(
                imported.batches(),
                opened,
                plan=imported.plan(),
                about=imported.about(),
                encoding=publishing.encoding_of(encoding, store),
                live=activate,
                resume=ReleaseId(resume) if resume else None,
                on_progress=lambda done, total: tell("publish", done, total),
            )
            return done, await prune(opened, keep=keep)

        report, erased = with_store(store, act, spending)
    if as_json:
        print_json(
            {"rows": imported.rows, "left_out": imported.left_out}
            | publishing.to_json(report, erased)
            | spending.to_json(),
        )
        return
    out.print(f"read {imported.rows:,} rows of {lists}", markup=False)
    for reason, count in imported.left_out.items():
        out.print(f"  {count:,} left out: {reason}", markup=False)
    publishing.show(report, erased)
    spending.show(publishing.plan_of(report.manifest))


def _foresee(
    settings: "ImportSettings",
    store: str | None,
    encoding: str,
    activate: bool,
    keep: int,
    resume: str | None,
    *,
    as_json: bool,
) -> None:
    """Read and sort as an import does, and say what it would come to."""
    from offline.foreseeing import foresee_rows
    from offline.importing import Imported

    foretelling.whole(resume)
    signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch, bars() as tell:
        imported = Imported(settings, Path(scratch), tell)
        found = with_store(
            store,
            lambda opened: foresee_rows(
                imported.batches(),
                opened,
                plan=imported.plan(),
                about=imported.about(),
                encoding=encoding,
                live=activate,
                keep=keep,
                on_progress=lambda done, total: tell("dry run", done, total),
            ),
        )
    foretelling.tell(found, store, as_json=as_json)


def _stop(number: int, _: "FrameType | None") -> None:
    """End by an exception, so that the temporary folder goes and the draft is given up."""
    sys.exit(128 + number)
