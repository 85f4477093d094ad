"""`hotplate import`: from lists that somebody else computed to a live release."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.costs import DryRun, MaxRu, limit_ru
from hotplate.cli.publish import (
    Activate,
    ChosenEncoding,
    EndCanary,
    Force,
    GateBounds,
    GatesFile,
    Keep,
    ListLength,
    PublishOptions,
    Resume,
    publish_lists,
)
from hotplate.cli.terminal import (
    Delimiter,
    Header,
    Json,
    NullValues,
    StoreUrl,
    Titles,
    column_option,
    option,
    text_format,
)

if TYPE_CHECKING:
    from types import FrameType


def import_lists(
    lists: Annotated[
        list[Path],
        typer.Argument(
            metavar="LISTS",
            help="CSV, TSV, JSON lines (all three .gz and .zst too) or Parquet files of user, item and score, or "
            "folders of files of one kind; - is standard input.",
        ),
    ],
    store: StoreUrl = None,
    user_column: Annotated[str | None, column_option("user")] = None,
    item_column: Annotated[str | None, column_option("item")] = None,
    score_column: Annotated[str | None, column_option("score")] = None,
    title_column: Annotated[str | None, column_option("title")] = None,
    titles: Titles = None,
    popular: Annotated[
        Path | None,
        option(
            "--popular",
            "Take the popular lists from this file of item, score and perhaps segment. By default items are ranked by "
            "the number of lists that they are in.",
        ),
    ] = None,
    similar: Annotated[
        Path | None,
        option("--similar", "Take the lists of similar items from this file of item, other item, score."),
    ] = None,
    delimiter: Delimiter = None,
    header: Header = None,
    null_values: NullValues = None,
    list_length: ListLength = 20,
    encoding: ChosenEncoding = None,
    activate: Activate = True,
    keep: Keep = 1,
    resume: Resume = None,
    gates: GatesFile = None,
    gate: GateBounds = None,
    force: Force = False,
    end_canary: EndCanary = False,
    max_ru: MaxRu = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Publish lists that you have already: rows of user, item and score, in any order, as many as the disk holds.

    Rows are sorted in a temporary folder (TMPDIR); each user's list keeps the highest scores. Exits with 3 if a gate,
    or a canary that runs, keeps the release from going live.

    Example: hotplate import lists.parquet --titles titles.csv --store file:///var/lib/hotplate

    Before you pay: hotplate import lists.parquet --store cosmos://ACCOUNT/DATABASE --max-ru 4000 --dry-run
    """
    from offline.gates import read_gates
    from offline.input.files import named_paths
    from offline.list_import import ImportedLists, ImportSettings
    from offline.publish import PublishSettings
    from stores.folders import temporary_folder

    url, bounds = limit_ru(store, max_ru), read_gates(gates, gate or ())
    how = PublishSettings(encoding, activate, keep, resume, bounds, force, end_canary)
    options = PublishOptions(url, how, dry_run, as_json)
    columns = {"user": user_column, "item": item_column, "score": score_column, "title": title_column}
    form = text_format(delimiter, header, null_values)
    settings = ImportSettings(lists[0], lists[1:], popular, similar, titles, columns, form, list_length)
    with _exit_on_sigterm(), temporary_folder("import") as scratch:
        publish_lists(lambda on_progress: ImportedLists(settings, scratch, on_progress), options, named_paths(lists))


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """End by an exception, so the temporary folder is removed and the draft given up."""

    def stop(number: int, _: "FrameType | None") -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
