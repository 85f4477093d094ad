"""`hotplate import`: from lists that somebody else computed to a live release."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from hotplate.cli.publish import ReleaseFlags, publish_lists
from hotplate.cli.terminal import TextFormat
from hotplate.stores.options import Argument, Flag

if TYPE_CHECKING:
    from types import FrameType


# The panel of `--help`.
INPUT = "How the lists are read"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFlags(ReleaseFlags):
    """What `import` is given."""

    user_column: Annotated[str | None, Flag("The column of the user.", INPUT)] = None
    item_column: Annotated[str | None, Flag("The column of the item.", INPUT)] = None
    score_column: Annotated[str | None, Flag("The column of the score.", INPUT)] = None
    title_column: Annotated[str | None, Flag("The column of the title.", INPUT)] = None
    titles: Annotated[Path | None, Flag("A file of item and title, if the lists have no titles.", INPUT)] = None
    popular: Annotated[Path | None, Flag("A file of popular items: item, score and perhaps segment.", INPUT)] = None
    similar: Annotated[Path | None, Flag("A file of similar items: item, other item, score.", INPUT)] = None
    text: TextFormat = field(default_factory=TextFormat)


def import_lists(
    lists: Annotated[
        list[Path],
        Argument(
            "Files of user, item and score: CSV, TSV, JSON lines (.gz and .zst too), Parquet, or folders of them; - is "
            "standard input.",
            "LISTS",
        ),
    ],
    flags: ImportFlags,
) -> None:
    """Publish lists that you have already: rows of user, item and score, in any order, as many as the disk holds.

    Rows are sorted in a temporary folder (TMPDIR); each user's list keeps the highest scores. Exits with 3 if a gate,
    or a canary that runs, keeps the release from going live.

    Example: hotplate import lists.parquet --titles titles.csv --store file:///var/lib/hotplate

    Before you pay: hotplate import lists.parquet --store cosmos://ACCOUNT/DATABASE --max-ru 4000 --dry-run
    """
    from hotplate.offline.input.files import named_paths
    from hotplate.offline.list_import import ImportedLists, ImportSettings
    from hotplate.stores.folders import temporary_folder

    options = flags.to_options()
    columns = {role: getattr(flags, f"{role}_column") for role in ("user", "item", "score", "title")}
    settings = ImportSettings(
        *(lists[0], lists[1:], flags.popular, flags.similar, flags.titles),
        *(columns, flags.text.to_format(), flags.list_length),
    )
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
