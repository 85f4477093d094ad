"""A pipeline file: TOML tables whose keys are the options of the verbs, read by the verbs' own parsers."""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import typer
import xxhash

from hotplate.cli import publish, train
from hotplate.cli.options import Verbs, build
from hotplate.cli.terminal import chosen_store

if TYPE_CHECKING:
    from typer.core import TyperCommand

    from hotplate.offline.gates import Gate
    from hotplate.offline.job import Job
    from hotplate.offline.training import TrainSettings

# What a run decides itself, and a pipeline has no say in.
_OF_TRAIN: dict[str, Any] = {"model": Path(), "master": None, "as_json": False}
_OF_PUBLISH: dict[str, Any] = {
    "model": Path(), "resume": None, "master": None, "dry_run": False, "as_json": False,
}  # fmt: skip
TABLES = ("train", "publish", "gates", "run")


@dataclass(frozen=True, slots=True)
class PipelineFile:
    """A pipeline as it is written: its tables by name, empty if one is left out."""

    path: Path
    tables: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """What the pipeline is called in metrics and folders."""
        return self.path.stem

    def parameters(self, table: str, command: "TyperCommand", taken: Mapping[str, Any]) -> dict[str, Any]:
        """Parse a *table* of the file as the parameters of the verb *command*.

        A key is the name of an option without its dashes, or that of an argument. A variable of the environment wins
        over the file, and *taken* over both; parameters in *taken* may not be in the file. Paths are relative to the
        folder of the file. Raises SettingError for a key that the verb lacks, and for a value that its parser refuses.
        """
        from typer.exceptions import TyperException

        from hotplate.offline.errors import SettingError

        values = self.values(table, command, taken)
        try:
            context = command.make_context(table, [], default_map={**values, **taken})
        except TyperException as error:
            raise SettingError(f"{self.path}, [{table}]: {error.format_message().rstrip('.')}.") from error
        parsed = dict(context.params)
        for name in values:
            source = context.get_parameter_source(name)
            if source is not None and source.name == "DEFAULT_MAP":  # else the environment said it
                parsed[name] = self.anchored(parsed[name])
        return parsed | dict(taken)

    def values(self, table: str, command: "TyperCommand", taken: Iterable[str]) -> dict[str, Any]:
        """Return the values of a table by parameter of *command*, as texts; SettingError for a key that is unknown."""
        from hotplate.offline.errors import SettingError

        known = {key: one for key, one in _keys(command).items() if one.name not in set(taken)}
        values = dict[str, Any]()
        for key, value in self.tables[table].items():
            plain = key.replace("-", "_")
            if plain not in known:
                close = get_close_matches(plain, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"it may have {', '.join(known)}."
                raise SettingError(f"{self.path}, [{table}] has no key {key}; {hint}")
            values[known[plain].name] = _as_typed(value, known[plain])
        return values

    def anchored(self, value: Any) -> Any:  # noqa: ANN401 -- whatever the parser makes
        """Return a path, or each of a list of them, as it is meant from the folder of the file."""
        if isinstance(value, list | tuple):
            return [self.anchored(each) for each in value]
        from hotplate.offline.input.files import url_of

        is_local = isinstance(value, Path) and url_of(value) is None
        return self.path.absolute().parent / value if is_local else value


def read_pipeline(path: Path) -> PipelineFile:
    """Read a pipeline file; SettingError for what is not TOML, or has other tables than a pipeline's."""
    from hotplate.offline.errors import SettingError

    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingError(f"The pipeline {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"The pipeline {path} is not TOML: {error}.") from error
    for name, table in tables.items():
        if name in TABLES and not isinstance(table, dict):
            raise SettingError(
                f"The pipeline {path} has {name}, but no table of that name; write [{name}] above its keys."
            )
        if name not in TABLES:
            close = get_close_matches(name, TABLES, n=1)
            hint = f"did you mean [{close[0]}]?" if close else f"it may have [{'], ['.join(TABLES)}]."
            raise SettingError(f"The pipeline {path} has no table [{name}]; {hint}")
    return PipelineFile(path, {name: tables.get(name, {}) for name in TABLES})


def read_job(pipeline: PipelineFile) -> "Job":
    """Return what a file says to do; SettingError for what makes no sense."""
    from hotplate.offline.errors import SettingError
    from hotplate.offline.gates import parse_gates
    from hotplate.offline.input.filters import parse_half_life
    from hotplate.offline.job import Job
    from hotplate.offline.lists import ListSettings
    from hotplate.offline.rules import require_both

    trained = pipeline.parameters("train", command_of(train.train), _OF_TRAIN)
    published = pipeline.parameters("publish", command_of(publish.publish), _OF_PUBLISH)
    flags = build(publish.PublishFlags, published)
    publishing = flags.to_options()
    bounds = parse_gates(pipeline.tables["gates"], f"{pipeline.path}, [gates]")
    gates = tuple({gate.name: gate for gate in (*publishing.settings.bounds, *bounds)}.values())
    if trained["engine"] == "spark":
        raise SettingError(f"{pipeline.path}: a run learns on this machine; on Spark, train and publish by themselves.")
    if trained["register"] is not None or trained["track"]:
        from hotplate.offline.mlflow_models import Target  # and it is said now if MLflow is not installed

        Target.of(trained["register"] or "any")
    training = train.settings_of(build(train.TrainOptions, trained))
    _check_gates(gates, training)
    if flags.fold_in:
        _check_factors(training, f"{pipeline.path}, [publish]")
    require_both(flags.max_per_category, flags.categories)
    if flags.freshness is not None:
        parse_half_life(flags.freshness)
    url = chosen_store(publishing.store)
    inputs = [*_paths_in(trained.values()), *_paths_in(published.values())]
    if any(path.name == "-" for path in inputs):
        raise SettingError(
            f"{pipeline.path}: a run reads files, because it may read them again; standard input cannot be."
        )
    options = orjson.dumps([trained, published, gates, url], default=str, option=orjson.OPT_SORT_KEYS)
    return Job(
        name=pipeline.name,
        store=url,
        training=training,
        publishing=replace(publishing.settings, gates=gates),
        lists=ListSettings(flags.list_length, flags.keep_seen, fold_in=flags.fold_in, force=flags.force),
        rules=flags.read_rules,
        track=trained["track"],
        register=trained["register"],
        inputs=inputs,
        options=xxhash.xxh3_128_hexdigest(options),
    )


def _check_gates(gates: "Iterable[Gate]", training: "TrainSettings") -> None:
    """Raise SettingError for gates on metrics that no training measures, rather than when one is over."""
    from hotplate.offline.evaluate.evaluation import metric_names
    from hotplate.offline.gates import check

    is_evaluated = bool(training.test) or training.split is not None
    measured = {table: dict.fromkeys(names, 0.0) for table, names in metric_names().items()} if is_evaluated else None
    check(list(gates), measured, knows_catalogue=True)


def _check_factors(training: "TrainSettings", where: str) -> None:
    """Raise SettingError if a training may end with an engine that has no factors to fold visitors in with."""
    from hotplate.offline.errors import SettingError
    from hotplate.offline.train.als import ALSParams

    searched = training.tuning
    has_factors = isinstance(training.params, ALSParams) if searched is None else searched.engine == "als"
    if not has_factors:
        raise SettingError(
            f'{where}: fold_in takes the factors of items, which only ALS learns; write engine = "als" in [train].'
        )


def _paths_in(values: Iterable[Any]) -> list[Path]:
    flat = (each for value in values for each in (value if isinstance(value, list | tuple) else [value]))
    return [each for each in flat if isinstance(each, Path) and each != Path()]


def command_of(verb: Callable[..., None]) -> "TyperCommand":
    """Return the parser of a verb."""
    alone = Verbs(add_completion=False)
    alone.command()(verb)
    return typer.main.get_command(alone)  # type: ignore[return-value]  # of one verb it makes a command, and no group


def _keys(command: "TyperCommand") -> dict[str, Any]:
    """Return the parameters of a verb by what they are called in a file."""
    longest = {max(one.opts, key=len).lstrip("-").replace("-", "_"): one for one in command.params}
    return {key: one for key, one in longest.items() if key != "help"}


def _as_typed(value: Any, parameter: Any) -> Any:  # noqa: ANN401 -- whatever TOML holds, and typer's own
    """Return a value as it would be typed: `view=1,buy=5` for a table; yes or no for a flag; a list for what is one."""
    if isinstance(value, dict):
        value = ",".join(f"{key}={each}" for key, each in value.items())
    if isinstance(value, bool) and getattr(parameter, "is_flag", False):
        return value
    if isinstance(value, list):
        return [str(each) for each in value]
    is_many = parameter.nargs == -1 or getattr(parameter, "multiple", False)
    return [str(value)] if is_many else str(value)
