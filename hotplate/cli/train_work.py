"""The work of `hotplate train`: `train_model` trains, and `print_training` prints the report."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from hotplate.base.report import format_count, print_report
from hotplate.cli.options import TrainFlags
from hotplate.cli.terminal import err, out, print_json, progress_bars, run_interruptibly, table
from hotplate.offline.errors import SettingError
from hotplate.offline.evaluate.splits import SplitOptions
from hotplate.offline.input.columns import parse_event_weights, parse_half_life
from hotplate.offline.options import ReadOptions
from hotplate.offline.search.trials import count_stored
from hotplate.offline.search.tuning import Search, TuneOptions
from hotplate.offline.train.engine import read_params
from hotplate.offline.training import TrainReport, TrainSettings, train, trials_folder

if TYPE_CHECKING:
    from hotplate.offline.mlflow_models import Tracking


def train_verb(flags: TrainFlags, model: Path, *, master: str | None) -> None:
    """Train, write the folder *model*, print the report, and log the model to MLflow if *flags* say so.

    *master* is the URL of a Spark cluster, only for the engine Spark. Raises SettingError for invalid options.
    """
    settings = train_settings(flags)
    tracking = tracking_of(flags)

    session: AbstractContextManager[object] = nullcontext()
    if flags.engine == "spark":
        from hotplate.offline.train.spark import spark_session  # an extra

        session = spark_session(master)
    elif master is not None:
        raise SettingError(f"--master {master} is for --engine spark; give both or none.")
    with session:
        report = train_model(settings, model)

    print_training(report)
    if tracking is not None:
        logged = run_interruptibly(lambda: tracking.log(model))
        logged.set_alias()
        err.print(f"hotplate: the model is {logged.uri} in MLflow")


def tracking_of(flags: TrainFlags) -> "Tracking | None":
    """Return how the model is logged to MLflow, None if it is not.

    Raises an error before any work if MLflow, an extra, is not installed; SettingError for an invalid NAME[@ALIAS].
    """
    if flags.register is None and not flags.track:
        return None
    from hotplate.offline.mlflow_models import Tracking  # an extra

    return Tracking.of(flags.register)


def train_settings(flags: TrainFlags) -> TrainSettings:
    """Return the settings of a training by the flags of `train`; SettingError for invalid or contradicting ones.

    Without --split, the training chooses a split for the test by the data; with "none" there is no test. Without
    --params, it searches for parameters.
    """
    params = read_params(flags.engine or "als", flags.params or "", flags.seed)

    split = None
    if flags.split != "none":
        split = SplitOptions(flags.split or "auto", test_share=flags.test_share, seed=flags.seed)

    return TrainSettings(
        path=flags.data[0],
        more=flags.data[1:],
        **{option.name: getattr(flags.reading, option.name) for option in fields(ReadOptions)},
        event_weights=parse_event_weights(flags.event_weights) if flags.event_weights else None,
        half_life=None if flags.half_life is None else parse_half_life(flags.half_life),
        split=split,
        k=flags.k,
        params=params,
        tuning=_tune_options(flags),
    )


def _tune_options(flags: TrainFlags) -> TuneOptions | None:
    """Return the options of the search for a model's parameters; None if an option replaces the search.

    Raises SettingError if an option of the search is given together with such an option.
    """
    reasons = {"--no-tune": flags.no_tune, "--params": flags.params, "--engine spark": flags.engine == "spark"}
    replacing = [reason for reason, value in reasons.items() if value not in {None, False}]
    if not replacing:
        return TuneOptions(engine=flags.engine, budget_s=flags.tune, prefer=flags.prefer)
    for flag, is_given in {"--tune": flags.tune is not None, "--prefer": flags.prefer != "balance"}.items():
        if is_given:
            raise SettingError(f"{flag} and {replacing[0]} contradict each other; leave out one of them.")
    return None


def train_and_print(settings: TrainSettings, model: Path) -> TrainReport:
    """Train, write the folder *model*, and print and return the report."""
    report = train_model(settings, model)
    print_training(report)
    return report


def train_model(settings: TrainSettings, model: Path) -> TrainReport:
    """Train and write the folder *model*, with progress bars, and return the report.

    After Ctrl-C, prints what is kept for the next training.
    """
    try:
        with progress_bars() as on_progress:
            return run_interruptibly(lambda: train(settings, model, on_progress, err.print))
    except KeyboardInterrupt:
        err.print(f"hotplate: stopped; {_kept_in_words(model)}")
        raise


def _kept_in_words(model: Path) -> str:
    """Return what a training of the folder *model* that was stopped leaves to the next one."""
    folder = trials_folder(model)
    trials = count_stored(folder)
    if not trials:
        return "nothing is kept, so the same command starts from the beginning"
    kept = format_count(trials, "trial")
    return f"the folder {folder} keeps {kept}, from which a search of the same data and settings continues"


def print_training(report: TrainReport) -> None:
    """Print how good the lists are beside baselines, the model and its search, and what was read and written."""
    print_json(report.to_json())

    print_report(report.report, out)
    if report.search is not None:
        _print_choices(report.search)


def _print_choices(search: Search) -> None:
    """Print what each --prefer would choose, if they differ."""
    if len({trial.params for trial in search.choices.values()}) == 1:
        return

    rows = []
    for prefer, trial in search.choices.items():
        spread = trial.spread
        label = f"{prefer}, chosen" if prefer == search.prefer else prefer
        rows.append(
            (label, f"{trial.ndcg:.4f}", f"{spread.shared_items:.1f} of {search.k}", f"{spread.half_places:,.0f} items")
        )
    out.print("What --prefer chooses from, by the users of the inner split, not of the test:")
    out.print(table(("--prefer", f"nDCG@{search.k}", "two users share", "half of all places"), rows))
