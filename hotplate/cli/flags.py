"""Verbs whose parameters are settings: an annotated dataclass field is a flag, a variable, a TOML key and a help line.

Typer parses the command line and prints the help; msgspec converts values of all three origins.
"""

import inspect
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
import typer

from hotplate.offline.errors import SettingError
from hotplate.stores.errors import did_you_mean
from hotplate.stores.options import RARE, Argument, Flag
from hotplate.stores.urls import local_path, url_of

PREFIX = "HOTPLATE_"
# Similarity from which a variable counts as misspelt.
ALIKE = 0.9
METAVARS = {bool: " ", int: "N", float: "X", str: "TEXT", Path: "PATH"}
# Typer keeps line breaks within a paragraph.
LINE_BREAK = re.compile(r"(?<!\n)\n *(?!\n)")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One annotated field or parameter.

    name      of the field
    kind      the type of a value: str, int, float, bool, Path or a Literal
    many      whether it has any number of values
    default   MISSING if it is required
    shown     how the help shows it
    flag      as typer takes it, `--cache` or `--cache/--no-cache`; None for an argument
    variable  its environment variable, None without one
    """

    name: str
    kind: Any
    many: bool
    default: Any
    shown: Flag | Argument
    flag: str | None = None
    variable: str | None = None

    @classmethod
    def of(cls, name: str, annotation: Any, default: Any, prefix: str) -> "Setting":  # noqa: ANN401 -- of any type
        """Return the setting of a field annotated with a Flag or an Argument; *prefix* is of the verb's variables."""
        annotated, shown = get_args(annotation)[:2]
        kind, many = _kind_of(annotated)
        if isinstance(shown, Argument):
            return cls(name=name, kind=kind, many=many, default=default, shown=shown)
        flag = shown.name or name.replace("_", "-")
        if not flag.startswith("-"):
            flag = f"--{flag}"
        variable = None
        if shown.env:
            own_prefix = prefix if shown.prefix is None else shown.prefix
            variable = f"{PREFIX}{own_prefix}{_plain(flag).upper()}"
        return cls(name=name, kind=kind, many=many, default=default, shown=shown, flag=flag, variable=variable)

    @property
    def key(self) -> str:
        """The key in a TOML file: the name of the flag."""
        return self.name if self.flag is None else _plain(self.flag)

    @property
    def is_rare(self) -> bool:
        """Whether it stands last in the help."""
        return isinstance(self.shown, Flag) and self.shown.panel == RARE

    @property
    def is_one_url(self) -> bool:
        """Whether it is the URL of one store; a second URL is an error."""
        return not self.many and self.shown.metavar == "URL" and self.flag is not None

    def parameter(self) -> inspect.Parameter:
        """Return typer's parameter: a single URL as a list, to detect a second one."""
        choices = get_args(self.kind) if get_origin(self.kind) is Literal else ()
        kind: Any = str if choices else self.kind
        if self.many or self.is_one_url:
            kind = list[kind]
        default = self.default
        if default is None:
            kind |= None
        elif default is MISSING:
            default = inspect.Parameter.empty
        elif self.many:
            default = list(default)
        annotation = Annotated[kind, self._info(choices)]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    def _info(self, choices: Sequence[str]) -> Any:  # noqa: ANN401 -- typer's own
        """Return typer's description: name, variable, help and parser; *choices* are the values of a Literal."""
        if isinstance(self.shown, Argument):
            return typer.Argument(
                metavar=self.shown.metavar,
                help=self.shown.help,
                parser=self._parse if self.kind is Path else None,
                show_default=False,
            )
        flag = str(self.flag)
        if self.kind is bool and "/" not in flag and self.default is not False:
            flag += f"/--no-{flag.removeprefix('--')}"
        return typer.Option(
            flag,
            metavar=self.shown.metavar or "|".join(choices) or METAVARS.get(self.kind),
            envvar=self.variable,
            show_envvar=False,
            help=self.shown.help,
            parser=self._parse if choices or self.kind in (int, float, Path) else None,
            rich_help_panel=self.shown.panel,
            show_default=self.default not in (MISSING, None, ()),
        )

    def from_typer(self, value: Any) -> Any:  # noqa: ANN401 -- of any type
        """Return the field's value; BadParameter for a second URL of one store."""
        if self.is_one_url:
            if value and len(value) > 1:
                raise typer.BadParameter(f"it takes one URL, but is given {len(value)} times", param_hint=self.flag)
            return value[0] if value else None
        return tuple(value or ()) if self.many else value

    def from_environment(self) -> Any:  # noqa: ANN401 -- of any type
        """Return the variable's value, None if unset; ValueError as `read`."""
        text = os.environ.get(self.variable or "")
        if not text:
            return None
        if not self.many:
            return self.read(text)
        separator = os.pathsep if self.kind is Path else None  # None: blanks
        return tuple(map(self.read, text.split(separator)))

    def from_toml(self, value: Any) -> Any:  # noqa: ANN401 -- of any type
        """Return a TOML key's value, in which a table equals the text `view=1,buy=5`; ValueError as `read`."""
        if isinstance(value, dict):
            value = ",".join(f"{key}={cell}" for key, cell in value.items())
        if not self.many:
            return self.read(value)
        values = value if isinstance(value, list) else [value]
        return tuple(map(self.read, values))

    def read(self, value: Any) -> Any:  # noqa: ANN401 -- of any type
        """Convert a text or TOML value to the setting's type; a ValueError names both."""
        kind = self.kind
        if kind is Path and not self.shown.urls:
            local_path(str(value))
        readable = value
        if kind is float and str(value).startswith("."):
            readable = f"0{value}"  # msgspec reads no .5
        if kind in (int, float) and isinstance(self.shown, Flag):
            kind = Annotated[kind, msgspec.Meta(ge=self.shown.at_least, le=self.shown.at_most)]
        try:
            return msgspec.convert(readable, kind, strict=False, dec_hook=lambda path, text: path(text))
        except msgspec.ValidationError as error:
            raise ValueError(f"{value!r} {self._expected(str(error))}") from error

    def _expected(self, reason: str) -> str:
        """Say what a value must be, by the type and bounds of the setting; else msgspec's *reason*."""
        if get_origin(self.kind) is Literal:
            return f"is not one of {', '.join(get_args(self.kind))}"
        if self.kind not in (int, float) or not isinstance(self.shown, Flag):
            return f"cannot be read: {reason}"
        number = "a whole number" if self.kind is int else "a number"
        low, high = self.shown.at_least, self.shown.at_most
        if low is None and high is None:
            return f"is not {number}"
        if high is None:
            return f"is not {number} of at least {low:,g}"
        if low is None:
            return f"is not {number} of at most {high:,g}"
        return f"is not {number} from {low:,g} to {high:,g}"

    def _parse(self, text: Any) -> Any:  # noqa: ANN401 -- typer parses defaults, too
        """Return the value of a text as `read`; BadParameter names the variable that it is from."""
        try:
            return self.read(text)
        except ValueError as error:
            if self.variable is None or os.environ.get(self.variable) != str(text):
                raise typer.BadParameter(str(error)) from error
            reason = str(error)
            if str(text).startswith("tcp://"):
                reason += "; Kubernetes sets it for a service of that name: give pods enableServiceLinks: false"
            raise typer.BadParameter(reason, param_hint=f"the variable {self.variable}") from error


def _kind_of(annotated: Any) -> tuple[Any, bool]:  # noqa: ANN401 -- of any type
    """Return the type of a value, and whether there may be many: str and True of `tuple[str, ...] | None`."""
    kind = annotated
    if get_origin(kind) in (Union, UnionType):
        kind = next(member for member in get_args(kind) if member is not type(None))
    many = get_origin(kind) is list or (get_origin(kind) is tuple and get_args(kind)[-1] is ...)
    return (get_args(kind)[0], True) if many else (kind, False)


def _plain(flag: str) -> str:
    """Return the name of a flag as a key: `keep_seen` of `--keep-seen/--no-keep-seen`."""
    return flag.partition("/")[0].strip("-").replace("-", "_")


def local_path_option(text: str | Path) -> Path:
    """Parse an option of typer's own that is a path of this machine; BadParameter for a URL."""
    try:
        return local_path(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


class Verbs(typer.Typer):
    """A typer app whose verbs take dataclasses of settings; variables begin with HOTPLATE_ and *prefix*."""

    def __init__(self, *, prefix: str = "", **more: Any) -> None:  # noqa: ANN401 -- typer's own
        super().__init__(**more)
        self._prefix = prefix

    def command(  # type: ignore[override]
        self,
        name: str | None = None,
        *,
        also: str = "",
        **more: Any,  # noqa: ANN401 -- typer's own
    ) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Register a function as a verb, with *also* at the end of its help; returns it unchanged."""

        def register(function: Callable[..., T]) -> Callable[..., T]:
            verb, epilog = with_flags(function, self._prefix)
            help_text = LINE_BREAK.sub(" ", inspect.cleandoc((function.__doc__ or "") + also))
            super(Verbs, self).command(name, help=help_text, epilog=epilog, **more)(verb)
            return function

        return register


def with_flags(function: Callable[..., T], prefix: str) -> tuple[Callable[..., T], str]:
    """Return *function* as a verb for typer, with a keyword parameter for each setting, and the epilog of its help.

    A parameter of *function* is one setting (annotated with a Flag or an Argument); a group, a dataclass of settings,
    which the verb builds from the settings' values; or typer's own, which stays unchanged. *prefix* follows HOTPLATE_
    in the names of environment variables. Rare settings are the last in the help.
    """
    own = list(inspect.signature(function).parameters.values())
    groups: dict[str, Any] = {
        parameter.name: parameter.annotation for parameter in own if is_dataclass(parameter.annotation)
    }
    settings = list[Setting]()
    parameters = list[inspect.Parameter]()
    for parameter in own:
        added = list(_settings_in(parameter, prefix))
        settings += added
        parameters += [setting.parameter() for setting in added]
        if not added:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    rare = {setting.name for setting in settings if setting.is_rare}
    parameters.sort(key=lambda parameter: parameter.name in rare)

    @wraps(function)
    def verb(**values: Any) -> T:  # noqa: ANN401 -- typer converts each value to its field's type
        _warn_of_misspelt_variables(settings)
        values |= {setting.name: setting.from_typer(values[setting.name]) for setting in settings}
        arguments = dict[str, Any]()
        for parameter in own:
            group = groups.get(parameter.name)
            arguments[parameter.name] = values[parameter.name] if group is None else build(group, values)
        return function(**arguments)

    return signed(verb, parameters), _epilog(settings)


def _settings_in(parameter: inspect.Parameter, prefix: str) -> Iterator[Setting]:
    """Yield the settings of a parameter: of its group, itself, or none."""
    if is_dataclass(parameter.annotation):
        yield from settings_of(parameter.annotation, prefix)  # type: ignore[arg-type]  # a class
    elif _is_setting(parameter.annotation):
        default = MISSING if parameter.default is parameter.empty else parameter.default
        yield Setting.of(parameter.name, parameter.annotation, default, prefix)


def signed(function: Callable[..., T], parameters: Sequence[inspect.Parameter]) -> Callable[..., T]:
    """Set the signature of a function, which typer inspects."""
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


def build(settings: type[T], values: Mapping[str, Any], base: T | None = None) -> T:
    """Return an instance with *values* by field, including nested dataclasses; other values are those of *base*.

    *values* has the fields of all nesting levels side by side, so field names are unique in a verb.
    """
    own = dict[str, Any]()
    for member in fields(settings):  # type: ignore[arg-type]  # a dataclass
        if isinstance(member.type, type) and is_dataclass(member.type):
            own[member.name] = build(member.type, values, getattr(base, member.name, None))
        elif member.name in values:
            own[member.name] = values[member.name]
    return settings(**own) if base is None else replace(base, **own)  # type: ignore[type-var]  # as above


def from_table(
    settings: type[T],
    table: Mapping[str, Any],
    *,
    where: str,
    folder: Path,
    without: Collection[str] = (),
    base: T | None = None,
) -> T:
    """Return settings from a TOML table with the flags as keys; the environment wins.

    With *base*, the table only replaces values of it. Paths are relative to *folder*. Raises SettingError, beginning
    with *where*, for a key that is unknown, among *without* or missing, and for an invalid value.
    """
    known = {setting.key: setting for setting in settings_of(settings) if setting.name not in without}
    written = _known_keys(table, known, where)
    _warn_of_misspelt_variables(known.values())
    values = dict[str, Any]()
    for key, setting in known.items():
        if base is not None and key not in written:
            continue
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
        return _anchored(setting.from_toml(written), folder)
    except ValueError as error:
        raise SettingError(f"{where}: {setting.key}: {error}.") from error


def _anchored(value: Any, folder: Path) -> Any:  # noqa: ANN401 -- of any type
    """Return a value with its relative paths below *folder*."""
    if isinstance(value, tuple):
        return tuple(_anchored(member, folder) for member in value)
    return folder / value if isinstance(value, Path) and url_of(value) is None else value


def _warn_of_misspelt_variables(settings: Iterable[Setting]) -> None:
    """Print a warning for each variable that begins with HOTPLATE_ and resembles one of *settings*."""
    known = {setting.variable for setting in settings if setting.variable}
    for name in sorted(os.environ.keys() - known):
        if name.startswith(PREFIX) and (nearest := did_you_mean(name, known, ALIKE)):
            typer.echo(f"hotplate: {name} sets no option here; {nearest}", err=True)


def _epilog(settings: list[Setting]) -> str:
    named = [setting for setting in settings if setting.variable]
    return f"The environment sets options, too: {named[0].variable} is {named[0].flag}." if named else ""
