"""A pipeline file: TOML tables whose keys are the options of the verbs, read by the verbs' own parsers."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

TABLES = ("train", "publish", "gates", "registry", "run")


@dataclass(frozen=True, slots=True)
class PipelineFile:
    """A pipeline as it is written: its tables by name, empty where one is left out."""

    path: Path
    tables: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """What the pipeline is called in metrics and folders."""
        return self.path.stem

    def parameters(self, table: str, command: TyperCommand, taken: Mapping[str, Any]) -> dict[str, Any]:
        """
        Return the parameters of the verb *command* as its parser makes them of a table.

        Keys are options without their dashes, and arguments by name. What the environment says comes before the file,
        and *taken* before both: these parameters may not be in the file. Paths are meant from the folder of the file.
        Raises SettingError for a key that the verb lacks, and for a value that its parser refuses.
        """
        from typer.exceptions import TyperException

        from offline.errors import SettingError

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

    def values(self, table: str, command: TyperCommand, taken: Iterable[str]) -> dict[str, Any]:
        """Return the values of a table by parameter of *command*, as texts; SettingError for a key that is unknown."""
        from offline.errors import SettingError

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
        return self.path.absolute().parent / value if isinstance(value, Path) else value


def read_pipeline(path: Path) -> PipelineFile:
    """Read a pipeline file; SettingError for what is no TOML, or has other tables than a pipeline's."""
    from offline.errors import SettingError

    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingError(f"The pipeline {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"The pipeline {path} is not TOML: {error}.") from error
    for name, table in tables.items():
        if name not in TABLES or not isinstance(table, dict):
            close = get_close_matches(name, TABLES, n=1)
            hint = f"did you mean [{close[0]}]?" if close else f"it may have [{'], ['.join(TABLES)}]."
            raise SettingError(f"The pipeline {path} has no table [{name}]; {hint}")
    return PipelineFile(path, {name: tables.get(name, {}) for name in TABLES})


def _keys(command: TyperCommand) -> dict[str, Any]:
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
