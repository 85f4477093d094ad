"""Verbs whose parameters are settings: an annotated dataclass field is a flag, a variable, a TOML key and a help line.

Typer parses the command line, `help_pages` prints the help, and msgspec converts values of all three origins.
"""

import inspect
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from hotplate.cli.help_pages import print_help
from hotplate.offline.errors import SettingError
from hotplate.stores.errors import did_you_mean
from hotplate.stores.options import RARE, TIMES_IN_WORDS, Argument, Flag, format_seconds, parse_seconds
from hotplate.stores.urls import local_path, url_of

PREFIX = "HOTPLATE_"
# Similarity from which a variable counts as misspelt.
ALIKE = 0.9
METAVARS = {int: "N", float: "NUMBER", str: "TEXT", Path: "FILE"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One annotated field or parameter.

    name         of the field
    value_type   the type of a value: str, int, float, bool, Path or a Literal
    is_list      whether it has any number of values
    default      MISSING if it is required
    declaration  its help, bounds and place in the help
    flag         as typer takes it, `--cache` or `--cache/--no-cache`; None for an argument
    variable     its environment variable, None without one
    """

    name: str
    value_type: Any
    is_list: bool
    default: Any
    declaration: Flag | Argument
    flag: str | None = None
    variable: str | None = None

    @classmethod
    def of(cls, name: str, annotation: Any, default: Any, prefix: str) -> "Setting":  # noqa: ANN401 -- of any type
        """Return the setting of a field with the name *name*, declared by *annotation*: Annotated[type, Flag(...)].

        A Flag becomes an option such as --max-ru and, unless it declares otherwise, an environment variable such as
        HOTPLATE_MAX_RU; *prefix* follows HOTPLATE_ in its name. An Argument, a parameter by position, has neither.
        """
        annotated, declaration = get_args(annotation)[:2]
        value_type, is_list = _value_type_of(annotated)

        flag = None
        variable = None
        if isinstance(declaration, Flag):
            flag = declaration.name or name.replace("_", "-")
            if not flag.startswith("-"):
                flag = f"--{flag}"
            if declaration.env:
                own_prefix = prefix if declaration.prefix is None else declaration.prefix
                variable = f"{PREFIX}{own_prefix}{_key_of(flag).upper()}"

        return cls(
            name=name,
            value_type=value_type,
            is_list=is_list,
            default=default,
            declaration=declaration,
            flag=flag,
            variable=variable,
        )

    @property
    def key(self) -> str:
        """The key in a TOML file: the name of the flag."""
        return self.name if self.flag is None else _key_of(self.flag)

    @property
    def is_rare(self) -> bool:
        """Whether it stands last in the help."""
        return isinstance(self.declaration, Flag) and self.declaration.panel == RARE

    @property
    def is_time(self) -> bool:
        """Whether its text is a time, as 30s."""
        return isinstance(self.declaration, Flag) and self.declaration.is_time

    @property
    def is_one_url(self) -> bool:
        """Whether it is the URL of one store; a second URL is an error."""
        return not self.is_list and self.declaration.metavar == "URL" and self.flag is not None

    def parameter(self) -> inspect.Parameter:
        """Return the parameter of a function that makes typer parse the setting.

        Typer gets the choices of a Literal as texts, and the URL of a store as a list, to detect a second one.
        """
        choices = get_args(self.value_type) if get_origin(self.value_type) is Literal else ()
        typer_type: Any = str if choices else self.value_type
        if self.is_list or self.is_one_url:
            typer_type = list[typer_type]

        default = self.default
        if default is None:
            typer_type |= None
        elif default is MISSING:
            default = inspect.Parameter.empty
        elif self.is_list:
            default = list(default)
        annotation = Annotated[typer_type, self._typer_declaration(choices)]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    def _typer_declaration(self, choices: Sequence[str]) -> Any:  # noqa: ANN401 -- typer's own
        """Return the typer.Option or typer.Argument that declares the setting: its names, help and parser.

        *choices* are the values of a Literal, empty for other types. Texts of bool and str are parsed by typer.
        """
        if isinstance(self.declaration, Argument):
            return typer.Argument(
                metavar=self.declaration.metavar,
                help=self.declaration.help,
                parser=self._parse_option if self.value_type is Path else None,
                show_default=False,
            )

        flag = str(self.flag)
        if self.value_type is bool and "/" not in flag and self.default is not False:
            flag += f"/--no-{flag.removeprefix('--')}"
        default_metavar = "TIME" if self.is_time else "|".join(choices) or METAVARS.get(self.value_type)
        return typer.Option(
            flag,
            metavar=self.declaration.metavar or default_metavar,
            envvar=self.variable,
            show_envvar=False,
            help=self.declaration.help,
            parser=self._parse_option if choices or self.is_time or self.value_type in (int, float, Path) else None,
            rich_help_panel=self.declaration.panel,
            show_default=self._shown_default or False,
        )

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

    def from_typer(self, value: Any) -> Any:  # noqa: ANN401 -- of any type
        """Return the field's value; BadParameter for a second URL of one store."""
        if self.is_one_url:
            if value and len(value) > 1:
                raise typer.BadParameter(f"it takes one URL, but is given {len(value)} times", param_hint=self.flag)
            return value[0] if value else None
        return tuple(value or ()) if self.is_list else value

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
        if value_type is Path and not self.declaration.urls:
            local_path(str(value))
        readable = value
        if self.is_time:
            seconds = parse_seconds(str(value))
            readable = str(value) if value_type is str else seconds
        elif value_type is float and str(value).startswith("."):
            readable = f"0{value}"  # msgspec reads no .5
        if value_type in (int, float) and isinstance(self.declaration, Flag):
            bounds = msgspec.Meta(ge=self.declaration.at_least, le=self.declaration.at_most)
            value_type = Annotated[value_type, bounds]

        try:
            result = msgspec.convert(readable, value_type, strict=False, dec_hook=lambda path, text: path(text))
        except msgspec.ValidationError as error:
            raise ValueError(f"{value!r} {self._describe_mismatch(str(error))}") from error
        if isinstance(result, float) and not math.isfinite(result):
            raise ValueError(f"{value!r} {self._describe_mismatch('not finite')}")
        return result

    def _describe_mismatch(self, reason: str) -> str:
        """Return how a value fails the type and bounds of the setting, as "is not a number of at least 1".

        For types other than numbers and choices, that is msgspec's *reason*.
        """
        if get_origin(self.value_type) is Literal:
            return f"is not one of {', '.join(get_args(self.value_type))}"
        if self.value_type not in (int, float) or not isinstance(self.declaration, Flag):
            return f"cannot be read: {reason}"

        number = "a whole number" if self.value_type is int else "a number"
        if self.is_time:
            number += " of seconds"
        low = self.declaration.at_least
        high = self.declaration.at_most
        if low is None and high is None:
            return f"is not {number}"
        if high is None:
            return f"is not {number} of at least {low:,.10g}"
        if low is None:
            return f"is not {number} of at most {high:,.10g}"
        return f"is not {number} from {low:,.10g} to {high:,.10g}"

    def _parse_option(self, text: Any) -> Any:  # noqa: ANN401 -- typer parses defaults, too
        """Return the value of an option's text, like `read`. Raises typer.BadParameter for an invalid one.

        Typer does not tell whether a text is from the command line or from the setting's environment variable. If the
        variable has the same text, the error names it.
        """
        try:
            return self.read(text)
        except ValueError as error:
            if self.variable is None or os.environ.get(self.variable) != str(text):
                raise typer.BadParameter(str(error)) from error
            reason = str(error)
            if str(text).startswith("tcp://"):
                reason += "; Kubernetes sets it for a service of that name: give pods enableServiceLinks: false"
            raise typer.BadParameter(reason, param_hint=f"the variable {self.variable}") from error


def _value_type_of(annotated: Any) -> tuple[Any, bool]:  # noqa: ANN401 -- of any type
    """Return the type of a setting's value, and whether it is a list of such values.

    The type is str for `str | None`, and for `tuple[str, ...] | None`, which is a list.
    """
    value_type = annotated
    if get_origin(value_type) in (Union, UnionType):
        value_type = next(member for member in get_args(value_type) if member is not type(None))
    origin = get_origin(value_type)
    is_list = origin is list or (origin is tuple and get_args(value_type)[-1] is ...)
    return (get_args(value_type)[0], True) if is_list else (value_type, False)


def _key_of(flag: str) -> str:
    """Return the name of a flag as a key: `keep_seen` of `--keep-seen/--no-keep-seen`."""
    return flag.partition("/")[0].strip("-").replace("-", "_")


def local_path_option(text: str | Path) -> Path:
    """Parse an option of typer's own that is a path of this machine; BadParameter for a URL."""
    try:
        return local_path(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


class _Verb(TyperCommand):
    """A verb, with our help and errors."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401, ARG002 -- of typer, which prints here, too
        """Print the help."""
        print_help(self, ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 -- of typer
        """Parse the command line and the environment; an error names the variable of a switch, which has no value."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            option = error.param
            if not (isinstance(option, TyperOption) and option.is_flag and isinstance(option.envvar, str)):
                raise
            reason = f"{os.environ.get(option.envvar)!r} is neither true nor false"
            raise typer.BadParameter(reason, param_hint=f"the variable {option.envvar}") from error


class _Group(TyperGroup):
    """A group of verbs, with our help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401, ARG002 -- as of `_Verb`
        """Print the help."""
        print_help(self, ctx)


class Verbs(typer.Typer):
    """A typer app whose verbs take dataclasses of settings; variables begin with HOTPLATE_ and *prefix*."""

    def __init__(self, *, prefix: str = "", **more: Any) -> None:  # noqa: ANN401 -- typer's own
        super().__init__(cls=_Group, **more)
        self._prefix = prefix

    def command(  # type: ignore[override]
        self,
        name: str | None = None,
        *,
        also: str = "",
        **more: Any,  # noqa: ANN401 -- typer's own
    ) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Return a decorator that registers a function as a verb of the command, and returns it unchanged.

        name  of the verb, by default the function's
        also  a text after the function's docstring in the help of the verb
        more  parameters of `typer.Typer.command`
        """

        def register(function: Callable[..., T]) -> Callable[..., T]:
            verb, epilog = verb_with_flags(function, self._prefix)
            help_text = inspect.cleandoc((function.__doc__ or "") + also)
            super(Verbs, self).command(name, cls=_Verb, help=help_text, epilog=epilog, **more)(verb)
            return function

        return register


def verb_with_flags(function: Callable[..., T], prefix: str) -> tuple[Callable[..., T], str]:
    """Return *function* as a verb for typer, with a keyword parameter for each setting, and the end of its help.

    A parameter of *function* is one of three: a setting, annotated with a Flag or an Argument; a group, a dataclass of
    settings, which the verb builds from the settings' values; or an option of typer's own, which stays unchanged.
    *prefix* follows HOTPLATE_ in the names of environment variables. Rare settings are the last in the help.
    """
    function_parameters = list(inspect.signature(function).parameters.values())
    settings = list[Setting]()
    parameters = list[inspect.Parameter]()
    for parameter in function_parameters:
        own_settings = list(_settings_in(parameter, prefix))
        if own_settings:
            settings += own_settings
            parameters += [setting.parameter() for setting in own_settings]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    rare_names = {setting.name for setting in settings if setting.is_rare}
    parameters.sort(key=lambda parameter: parameter.name in rare_names)

    @wraps(function)
    def verb(**values: Any) -> T:  # noqa: ANN401 -- typer converts each value to its field's type
        _warn_of_misspelt_variables(settings)
        for setting in settings:
            values[setting.name] = setting.from_typer(values[setting.name])
        return function(**{parameter.name: _argument_of(parameter, values) for parameter in function_parameters})

    return with_signature(verb, parameters), _end_of_help(settings)


def _argument_of(parameter: inspect.Parameter, values: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- of any type
    """Return the argument for a parameter of a verb's function: its own value, or its group, built of values."""
    annotation: Any = parameter.annotation
    if isinstance(annotation, type) and is_dataclass(annotation):
        return build_settings(annotation, values)
    return values[parameter.name]


def _settings_in(parameter: inspect.Parameter, prefix: str) -> Iterator[Setting]:
    """Yield the settings of a parameter: of its group, itself, or none."""
    if is_dataclass(parameter.annotation):
        yield from settings_of(parameter.annotation, prefix)  # type: ignore[arg-type]  # a class
    elif _is_setting(parameter.annotation):
        default = MISSING if parameter.default is parameter.empty else parameter.default
        yield Setting.of(parameter.name, parameter.annotation, default, prefix)


def with_signature(function: Callable[..., T], parameters: Sequence[inspect.Parameter]) -> Callable[..., T]:
    """Return *function* with another signature, which typer inspects; the function itself is changed."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect.signature looks for
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


def _is_setting(annotation: Any) -> bool:  # noqa: ANN401 -- of any type
    return get_origin(annotation) is Annotated and isinstance(get_args(annotation)[1], Flag | Argument)


def settings_of(settings: type, prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of fields with a Flag or an Argument, also of nested dataclasses."""
    for member in fields(settings):
        if isinstance(member.type, type) and is_dataclass(member.type):
            yield from settings_of(member.type, prefix)
        elif _is_setting(member.type):
            yield Setting.of(member.name, member.type, member.default, prefix)


def values_of(settings: Any) -> Iterator[tuple[Setting, Any]]:  # noqa: ANN401 -- any dataclass
    """Yield each setting of `settings_of` with its value."""
    for member in fields(settings):
        value = getattr(settings, member.name)
        if is_dataclass(member.type):
            yield from values_of(value)
        elif _is_setting(member.type):
            yield Setting.of(member.name, member.type, member.default, ""), value


def build_settings(settings: type[T], values: Mapping[str, Any], base: T | None = None) -> T:
    """Return an instance of the dataclass *settings* from *values* by field; other values are those of *base*.

    *values* has the fields of nested dataclasses, too, side by side with the others; so names of fields are unique in a
    verb.
    """
    own_values = dict[str, Any]()
    for member in fields(settings):  # type: ignore[arg-type]  # a dataclass
        if isinstance(member.type, type) and is_dataclass(member.type):
            own_values[member.name] = build_settings(member.type, values, getattr(base, member.name, None))
        elif member.name in values:
            own_values[member.name] = values[member.name]
    return settings(**own_values) if base is None else replace(base, **own_values)  # type: ignore[type-var]  # as above


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
    return build_settings(settings, values, base)


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
            typer.echo(f"hotplate: {name} sets no option here; {nearest}", err=True)


def _end_of_help(settings: list[Setting]) -> str:
    """Return how times are written, if a setting is one, and an example of an environment variable."""
    sentences = list[str]()
    if any(setting.is_time for setting in settings):
        sentences.append(TIMES_IN_WORDS)
    named = [setting for setting in settings if setting.variable]
    if named:
        sentences.append(f"The environment sets options, too: {named[0].variable} is {named[0].flag}.")
    return " ".join(sentences)
