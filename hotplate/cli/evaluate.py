"""`hotplate evaluate`: measure lists, report on a model, and compare two."""

from pathlib import Path
from typing import Annotated

from hotplate.base.report import write_file
from hotplate.cli.flags import Verbs
from hotplate.cli.options import ListFlags
from hotplate.cli.terminal import out, require_file_path, run_interruptibly, show_report
from hotplate.stores.options import Argument, Flag

app = Verbs(
    help="Measure lists against the choices of users, report on a model, and compare two.\n\n"
    "Example: hotplate evaluate lists.parquet test.csv --train train.csv",
)
ORIGIN = "Rows as `import` reads them, also by URL, a model folder, or the URL of a store, with #RELEASE unless live."


@app.command()
def lists(
    origin: Annotated[str, Argument(ORIGIN, "LISTS")],
    truth: Annotated[Path, Argument("A file, or a folder, of user and item: the choices.", "TRUTH", urls=True)],
    flags: ListFlags,
    train: Annotated[
        Path | None, Flag("Earlier interactions, to measure popularity and coverage by.", urls=True)
    ] = None,
    rating_column: Annotated[
        str | None, Flag("Also measure the scores as predictions of this column.", metavar="COLUMN")
    ] = None,
) -> None:
    """Measure any lists against the choices of users; `lists` itself may be left out.

    Example: hotplate evaluate lists.parquet test.csv --train train.csv
    """
    from hotplate.cli import evaluate_work

    evaluate_work.measure(origin, truth, flags, train=train, rating=rating_column)


@app.command()
def report(
    model: Annotated[Path, Argument("A folder written by `hotplate train`.", "MODEL")],
    page: Annotated[Path, Flag("Write the page to this file.", name="out", env=False)] = Path("evaluation.html"),
) -> None:
    """Write an HTML page on the quality of a model, next to its baselines, with sample lists; with --json, no page.

    Example: hotplate evaluate report model --out report.html
    """
    from hotplate.offline.evaluate.model_report import model_report

    if out.quiet:
        show_report(run_interruptibly(lambda: model_report(model)))
        return
    from hotplate.base.report_page import page as html_page  # an extra

    require_file_path(page)
    quality = run_interruptibly(lambda: model_report(model))
    write_file(page, html_page(quality))
    show_report(quality)
    out.print(f"report written to {page}")


@app.command()
def compare(
    first: Annotated[str, Argument(f"The lists to compare with. {ORIGIN}", "A")],
    second: Annotated[str, Argument("The lists that may be better, given in the same way.", "B")],
    truth: Annotated[Path, Flag("Compare both with this file of user and item.", urls=True)],
    flags: ListFlags,
) -> int:
    """Test whether B is better than A, by the difference of each user's two lists.

    Exit codes: 0 B is not significantly worse; 1 failed; 3 B is worse.

    Example: hotplate evaluate compare old.parquet new.parquet --truth test.csv
    """
    from hotplate.cli import evaluate_work

    return evaluate_work.compare(first, second, truth, flags)
