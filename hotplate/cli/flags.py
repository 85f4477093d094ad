"""Verbs whose parameters are settings: an annotated dataclass field is a flag, a variable, a TOML key and a help line.

click parses the command line, `help_pages` writes the help, and msgspec converts values of all three origins.
"""

import inspect
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
import msgspec
from click.core import ParameterSource
from click.types import BoolParamType, FuncParamType

from hotplate.cli.help_pages import ARGUMENTS, OPTIONS, Entry, help_page
from hotplate.cli.terminal import out
from hotplate.offline.errors import SettingError
from hotplate.stores.errors import did_you_mean
from hotplate.stores.options import RARE, TIMES_IN_WORDS, Flag, format_seconds, parse_seconds
from hotplate.stores.urls import local_path, url_of

PREFIX = "HOTPLATE_"
# Similarity from which a variable counts as misspelt.
ALIKE = 0.9
# Added to the error of a number as HOTPLATE_PORT=tcp://10.0.0.1:80.
KUBERNETES = "; Kubernetes sets it for a service of that name: give pods enableServiceLinks: false"
JSON = "as_json"
Json = Annotated[bool, Flag("Print one JSON object instead of text.", name="json")]
T = TypeVar("T")


class FolderOrUrl(str):
    """The type of a setting: a folder of this machine, or a URL of an fsspec file system."""

    __slots__ = ()


METAVARS = {int: "N", float: "NUMBER", str: "TEXT", Path: "FILE", FolderOrUrl: "FOLDER|URL"}


class Setting:
    """One annotated field or parameter.

    name         of the field
    value_type   the type of a value: str, int, float, bool, Path, FolderOrUrl or a Literal
    is_list      whether it has any number of values
    default      MISSING if it is required
    declaration  its help, bounds and place in the help
    flag         as click takes it, `--cache` or `--cache/--no-cache`; None for an argument
    variable     its environment variable, None without one
    """

    def __init__(self, name: str, annotation: Any, default: Any, prefix: str) -> None:  # noqa: ANN401 -- of any type
        """Describe the field *name*, declared by *annotation*: Annotated[type, Flag(...)].

        A Flag becomes an option such as --max-ru and, unless it declares otherwise, an environment variable such as
        HOTPLATE_MAX_RU; *prefix* follows HOTPLATE_ in its name. An Argument, a parameter by position, has neither.
        """
        annotated, declaration = get_args(annotation)[:2]
        self.name = name
        self.default = default
        self.declaration: Flag = declaration
        self.value_type, self.is_list = _value_type_of(annotated)
        self.flag: str | None = None
        self.variable: str | None = None
        if declaration.is_argument:
            return

        flag = declaration.name or name.replace("_", "-")
        if not flag.startswith("-"):
            flag = f"--{flag}"
        if annotated is bool and default is not False and "/" not in flag:
            flag += f"/--no-{flag.removeprefix('--')}"
        self.flag = flag
        if declaration.env:
            own_prefix = prefix if declaration.prefix is None else declaration.prefix
            self.variable = declaration.variable or f"{PREFIX}{own_prefix}{_key_of(flag).upper()}"

    @property
    def key(self) -> str:
        """The key in a TOML file: the name of the flag."""
        return self.name if self.flag is None else _key_of(self.flag)

    @property
    def is_time(self) -> bool:
        """Whether its text is a time, as 30s."""
        return self.declaration.is_time

    @property
    def is_one_url(self) -> bool:
        """Whether it is the URL of one store; a second URL is an error."""
        return not self.is_list and self.declaration.metavar == "URL" and self.flag is not None

    def parameter(self) -> click.Parameter:
        """Return the parameter that makes click parse the setting; the URL of a store also if it is given twice."""
        more: dict[str, Any] = {"required": self.default is MISSING}
        if self.default not in (MISSING, None):
            more["default"] = self.default
        if self.flag is None:
            count = -1 if self.is_list else 1
            metavar = self.declaration.metavar
            return click.Argument([self.name], type=self._click_type, nargs=count, metavar=metavar, **more)
        return _Option(
            [self.flag, self.name],
            type=self._click_type,
            multiple=self.is_list or self.is_one_url,
            callback=_only_url if self.is_one_url else None,
            is_flag=self.value_type is bool or None,
            envvar=self.variable,
            **more,
        )

    @property
    def _click_type(self) -> Any:  # noqa: ANN401 -- whatever click takes for a type
        if self.value_type is bool:
            return _Switch()
        if get_origin(self.value_type) is tuple:  # several words, such as a region and a currency
            return get_args(self.value_type)
        return _ListedPaths(self.read) if self.value_type is Path else self.read

    def help_entry(self) -> Entry:
        """Return the line of the help: the names, with the metavar, and the text, with the default."""
        declaration = self.declaration
        if self.flag is None:
            name = f"{declaration.metavar}{'...' if self.is_list else ''}"
            return Entry(ARGUMENTS, name, declaration.help)

        name = self.flag
        if self.value_type is not bool:
            choices = "|".join(get_args(self.value_type)) if get_origin(self.value_type) is Literal else ""
            metavar = "TIME" if self.is_time else choices or METAVARS.get(self.value_type)
            name += f" {declaration.metavar or metavar}"
        text = declaration.help
        if self.default is MISSING:
            text += " [required]"
        elif self._shown_default:
            text += f" [default: {self._shown_default}]"
        return Entry(declaration.panel or OPTIONS, name, text)

    @property
    def _shown_default(self) -> str:
        """The default as the help shows it, with the unit of a time; empty without one."""
        default = self.default
        if default is MISSING or default is None or (default is False and "/" not in str(self.flag)):
            return ""
        if isinstance(default, bool):
            turns_on, _, turns_off = str(self.flag).partition("/")
            return turns_on if default else turns_off
        if self.is_time and not isinstance(default, str):
            return format_seconds(default)
        if isinstance(default, tuple):
            return ", ".join(map(str, default))
        return f"{default:,g}" if isinstance(default, float) else str(default)

    def from_environment(self) -> Any:  # noqa: ANN401 -- of any type
        """Return the variable's value, None if unset; ValueError as `read`."""
        text = os.environ.get(self.variable or "")
        if not text:
            return None
        if not self.is_list:
            return self.read(text)
        separator = os.pathsep if self.value_type is Path else None  # None: blanks
        return tuple(map(self.read, text.split(separator)))

    def from_toml(self, value: Any) -> Any:  # noqa: ANN401 -- of any type
        """Return a TOML key's value, in which a table equals the text `view=1,buy=5`; ValueError as `read`."""
        if isinstance(value, dict):
            value = ",".join(f"{key}={cell}" for key, cell in value.items())
        if not self.is_list:
            return self.read(value)
        values = value if isinstance(value, list) else [value]
        return tuple(map(self.read, values))

    def read(self, value: Any) -> Any:  # noqa: ANN401 -- of any type
        """Return a text, or a value of TOML, as the setting's type.

        Raises ValueError with the value and what it must be, also for a number outside of the setting's bounds, and for
        a URL where only a local path is allowed. A time is returned in seconds, or unchanged if the type is a text.
        """
        value_type = self.value_type
        if "\0" in str(value):  # from TOML
            raise ValueError(f"{value!r} has a NUL character")
        if value == "" and value_type in (Path, FolderOrUrl):  # else it would be the working folder
            raise ValueError("an empty text names no file; leave it out, or write . for this folder")
        if value_type is Path and not self.declaration.urls:
            local_path(str(value))
        readable = value
        if self.is_time:
            seconds = parse_seconds(str(value))
            readable = str(value) if value_type is str else seconds
        elif value_type is float and str(value).startswith("."):
            readable = f"0{value}"  # msgspec reads no .5
        if value_type in (int, float):
            bounds = msgspec.Meta(ge=self.declaration.at_least, le=self.declaration.at_most)
            value_type = Annotated[value_type, bounds]

        try:
            result = msgspec.convert(readable, value_type, strict=False, dec_hook=lambda place, text: place(text))
        except msgspec.ValidationError as error:
            cause = KUBERNETES if str(value).startswith("tcp://") else ""
            raise ValueError(f"{value!r} {self._describe_mismatch(str(error))}{cause}") from error
        if isinstance(result, float) and not math.isfinite(result):
            raise ValueError(f"{value!r} {self._describe_mismatch('not finite')}")
        return result

    def _describe_mismatch(self, reason: str) -> str:
        """Return how a value fails the type and bounds of the setting, as "is not a number of at least 1".

        For types other than numbers and choices, that is msgspec's *reason*.
        """
        if get_origin(self.value_type) is Literal:
            return f"is not one of {', '.join(get_args(self.value_type))}"
        if self.value_type not in (int, float):
            return f"cannot be read: {reason}"

        number = "a whole number" if self.value_type is int else "a number"
        if self.is_time:
            number += " of seconds"
        low = self.declaration.at_least
        high = self.declaration.at_most
        bounds = ""
        if low is not None:
            bounds = f" of at least {low:,.10g}"
        if high is not None:
            bounds = f" of at most {high:,.10g}" if low is None else f" from {low:,.10g} to {high:,.10g}"
        return f"is not {number}{bounds}"


def _value_type_of(annotated: Any) -> tuple[Any, bool]:  # noqa: ANN401 -- of any type
    """Return the type of a setting's value, and whether it is a list of such values.

    The type is str for `str | None`, and for `tuple[str, ...] | None`, which is a list.
    """
    value_type = annotated
    if get_origin(value_type) in (Union, UnionType):
        value_type = next(member for member in get_args(value_type) if member is not type(None))
    origin = get_origin(value_type)
    is_list = origin is Sequence or (origin is tuple and get_args(value_type)[-1] is ...)
    return (get_args(value_type)[0], True) if is_list else (value_type, False)


def _key_of(flag: str) -> str:
    """Return the name of a flag as a key: `keep_seen` of `--keep-seen/--no-keep-seen`."""
    return flag.partition("/")[0].strip("-").replace("-", "_")


class _ListedPaths(FuncParamType[Any, Any]):
    """Paths, which a variable separates as PATH does."""

    envvar_list_splitter = os.pathsep


class _Switch(BoolParamType):
    """True or false, in the words that click reads in a variable."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:  # noqa: ANN401 -- of any type
        """Return the value; BadParameter for other words, which click lists with an empty one."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is neither true nor false", param, ctx)


class _Option(click.Option):
    """An option; an error in the value of its environment variable names the variable."""

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Return the name in errors."""
        if ctx is not None and ctx.get_parameter_source(self.name) is ParameterSource.ENVIRONMENT:
            return f"the variable {self.envvar}"
        return super().get_error_hint(ctx)


def _only_url(context: click.Context, option: click.Parameter, urls: Sequence[str]) -> str | None:
    """Return the URL of an option, None without one; BadParameter for several."""
    if len(urls) > 1:
        raise click.BadParameter(f"it takes one URL, but is given {len(urls)} times", context, option)
    return urls[0] if urls else None


def _print_help(context: click.Context, _: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        out.print_line(context.get_help())
        context.exit()


class Verb(click.Command):
    """A function as a verb of the command: its parameters are settings, and groups of them (dataclasses).

    *prefix* follows HOTPLATE_ in the names of environment variables. With *has_json*, `--json` sets `out.quiet`.
    """

    def __init__(
        self,
        name: str | None,
        function: Callable[..., Any],
        *,
        help: str,
        prefix: str = "",
        has_json: bool = False,
        **more: Any,  # noqa: ANN401 -- click's own
    ) -> None:
        self._function = function
        self._settings = list(settings_of(function, prefix))
        if has_json:
            self._settings.append(Setting(JSON, Json, default=False, prefix=""))
        parameters = [setting.parameter() for setting in self._settings]
        super().__init__(name, callback=self._call, params=parameters, help=help, **more)

    def get_help_option(self, ctx: click.Context) -> click.Option:  # noqa: ARG002 -- as of click
        """Return the option that prints the help; click's own fails if nobody reads it."""
        return click.Option(["--help"], is_flag=True, is_eager=True, expose_value=False, callback=_print_help)

    def _call(self, **values: Any) -> Any:  # noqa: ANN401 -- of any type
        _warn_of_misspelt_variables(self._settings)
        out.quiet = values.get(JSON, False)
        try:
            return build(self._function, values)
        finally:
            out.quiet = False

    def get_help(self, ctx: click.Context) -> str:
        """Return the help, in which rare settings are the last."""
        settings = sorted(self._settings, key=lambda setting: setting.declaration.panel == RARE)
        entries = [setting.help_entry() for setting in settings]
        words = [ctx.command_path, "[OPTIONS]"]
        for setting, entry in zip(settings, entries, strict=True):
            if setting.flag is None:
                words.append(entry.name if setting.default is MISSING else f"[{entry.name}]")
        if isinstance(self, click.Group):
            words.append("VERB ...")
            for name, verb in self.commands.items():
                entries.append(Entry("Verbs", name, (verb.help or "").partition("\n\n")[0]))
        return help_page(" ".join(words), self.help or "", entries, self.epilog or _end_of_help(settings))


class Verbs(Verb, click.Group):
    """A group of verbs, with options of its own if it has a *function*."""

    def __init__(
        self,
        *,
        help: str,
        prefix: str = "",
        function: Callable[..., Any] = lambda: None,
        **more: Any,  # noqa: ANN401 -- click's own
    ) -> None:
        super().__init__(None, function, help=help, no_args_is_help=True, **more)
        self._prefix = prefix

    def add(self, function: Callable[..., Any], name: str, also: str = "", *, has_json: bool = True) -> None:
        """Add a function as a `Verb`; *also* follows its docstring in the help."""
        help_text = inspect.cleandoc((function.__doc__ or "") + also)
        self.add_command(Verb(name, function, help=help_text, prefix=self._prefix, has_json=has_json))

    def command(  # type: ignore[override]
        self, name: str | None = None, *, also: str = ""
    ) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Return a decorator that adds a function as a verb, by default with its name, and returns it unchanged."""

        def register(function: Callable[..., T]) -> Callable[..., T]:
            self.add(function, name or function.__name__, also)
            return function

        return register


def _members(owner: Callable[..., Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, annotation and default of each parameter of a function, or of each field of a dataclass."""
    for parameter in inspect.signature(owner).parameters.values():
        default = MISSING if parameter.default is parameter.empty else parameter.default
        yield parameter.name, parameter.annotation, default


def _is_group(annotation: Any) -> bool:  # noqa: ANN401 -- of any type
    return isinstance(annotation, type) and is_dataclass(annotation)


def _is_setting(annotation: Any) -> bool:  # noqa: ANN401 -- of any type
    return get_origin(annotation) is Annotated and isinstance(get_args(annotation)[1], Flag)


def settings_of(owner: Callable[..., Any], prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a function or a dataclass, those with a Flag, also of nested dataclasses."""
    for name, annotation, default in _members(owner):
        if _is_group(annotation):
            yield from settings_of(annotation, prefix)
        elif _is_setting(annotation):
            yield Setting(name, annotation, default, prefix)


def build(owner: Callable[..., T], values: Mapping[str, Any], base: T | None = None) -> T:
    """Call a function, or make an instance of a dataclass, with *values* by name; other fields are those of *base*.

    *values* has the fields of nested dataclasses, too, side by side with the others; so names of fields are unique in a
    verb.
    """
    arguments = dict[str, Any]()
    for name, annotation, _ in _members(owner):
        if _is_group(annotation):
            arguments[name] = build(annotation, values, getattr(base, name, None))
        elif name in values:
            arguments[name] = values[name]
    return owner(**arguments) if base is None else replace(base, **arguments)  # type: ignore[type-var]  # a dataclass


def settings_from_table(
    settings: type[T],
    table: Mapping[str, Any],
    *,
    where: str,
    folder: Path,
    without: Collection[str] = (),
    base: T | None = None,
) -> T:
    """Return an instance of the dataclass *settings* from a TOML table, whose keys are the names of flags.

    Variables of the environment win over the table. With *base*, other values are those of *base*, and the environment
    is read for keys of the table only. Relative paths are below *folder*. Raises SettingError, beginning with *where*,
    for a key that is unknown or among *without*, for a missing one, and for an invalid value.
    """
    setting_by_key = {setting.key: setting for setting in settings_of(settings) if setting.name not in without}
    written = _known_keys(table, setting_by_key, where)
    _warn_of_misspelt_variables(setting_by_key.values())

    values = dict[str, Any]()
    for key, setting in setting_by_key.items():
        if base is not None and key not in written:
            continue  # the value of *base* stays
        value = _value_of(setting, written.get(key), where=where, folder=folder)
        if setting.default is MISSING and value in (None, ()):
            raise SettingError(f"{where} needs the key {key}.")
        if value is not None:
            values[setting.name] = value
    return build(settings, values, base)


def _known_keys(table: Mapping[str, Any], known: Collection[str], where: str) -> dict[str, Any]:
    """Return a table whose keys have underscores; SettingError for an unknown key."""
    written = dict[str, Any]()
    for key, value in table.items():
        plain = key.replace("-", "_")
        if plain not in known:
            advice = did_you_mean(plain, known) or f"it may have {', '.join(known)}."
            raise SettingError(f"{where} has no key {key}; {advice}")
        if value is False and f"no_{plain}" in known:
            raise SettingError(f"{where}: {key} = false is written no_{plain} = true.")
        written[plain] = value
    return written


def _value_of(setting: Setting, written: Any, *, where: str, folder: Path) -> Any:  # noqa: ANN401 -- of any type
    """Return a setting's value by the environment, else as *written* in a table, None without either."""
    try:
        value = setting.from_environment()
    except ValueError as error:
        raise SettingError(f"{setting.variable}: {error}.") from error
    if value is not None or written is None:
        return value
    try:
        return _below_folder(setting.from_toml(written), folder)
    except ValueError as error:
        raise SettingError(f"{where}: {setting.key}: {error}.") from error


def _below_folder(value: Any, folder: Path) -> Any:  # noqa: ANN401 -- of any type
    """Return a value with its relative paths below *folder*."""
    if isinstance(value, tuple):
        return tuple(_below_folder(member, folder) for member in value)
    return folder / value if isinstance(value, Path) and url_of(value) is None else value


def _warn_of_misspelt_variables(settings: Iterable[Setting]) -> None:
    """Print a warning for each variable that begins with HOTPLATE_ and resembles one of *settings*."""
    known = {setting.variable for setting in settings if setting.variable}
    for name in sorted(os.environ.keys() - known):
        if name.startswith(PREFIX) and (nearest := did_you_mean(name, known, ALIKE)):
            click.echo(f"hotplate: {name} sets no option here; {nearest}", err=True)


def _end_of_help(settings: list[Setting]) -> str:
    """Return how times are written, if a setting is one, and an example of an environment variable."""
    sentences = list[str]()
    if any(setting.is_time for setting in settings):
        sentences.append(TIMES_IN_WORDS)
    named = [setting for setting in settings if setting.variable]
    if named:
        sentences.append(f"The environment sets options, too: {named[0].variable} is {named[0].flag}.")
    return " ".join(sentences)
