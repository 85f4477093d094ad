"""Verbs whose parameters are settings: an annotated dataclass field is a flag, a variable, a TOML key and a help line.

Typer parses the command line and prints the help; msgspec converts values of all three origins.
"""

import inspect
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
import typer

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


@dataclass(frozen=True, slots=True)
class Setting:
    """One annotated field or parameter, with *many* values of type *kind*, or one.

    *flag* is None for an argument, *variable* if the environment cannot set it.
    """

    name: str
    kind: Any
    many: bool
    default: Any
    shown: Flag | Argument
    flag: str | None
    variable: str | None

    @classmethod
    def of(cls, name: str, annotation: Any, default: Any, prefix: str) -> "Setting":  # noqa: ANN401 -- of any type
        """Return the setting of a field annotated with a Flag or an Argument."""
        kind, shown = get_args(annotation)[:2]
        if get_origin(kind) in (Union, UnionType):
            kind = next(each for each in get_args(kind) if each is not type(None))
        many = get_origin(kind) is list or (get_origin(kind) is tuple and get_args(kind)[-1] is ...)
        kind = get_args(kind)[0] if many else kind
        if isinstance(shown, Argument):
            return cls(name, kind, many, default, shown, None, None)
        flag = shown.name or name.replace("_", "-")
        flag = flag if flag.startswith("-") else f"--{flag}"
        plain = flag.partition("/")[0].strip("-").replace("-", "_").upper()
        variable = PREFIX + (prefix if shown.prefix is None else shown.prefix) + plain
        return cls(name, kind, many, default, shown, flag, variable if shown.env else None)

    @property
    def key(self) -> str:
        """The key in a TOML file: the name of the flag."""
        return self.name if self.flag is None else self.flag.partition("/")[0].strip("-").replace("-", "_")

    @property
    def is_one_url(self) -> bool:
        """Whether it is the URL of one store; a second URL is an error."""
        return not self.many and self.shown.metavar == "URL" and self.flag is not None

    def parameter(self) -> inspect.Parameter:
        """Return typer's parameter: a single URL as a list, to detect a second one."""
        choices = get_args(self.kind) if get_origin(self.kind) is Literal else ()
        kind: Any = str if choices else self.kind
        default = self.default
        if self.many or self.is_one_url:
            kind = list[kind]
            default = default if default is MISSING or self.is_one_url else list(default or ())
        if default is None:
            kind |= None
        default = inspect.Parameter.empty if default is MISSING else default
        annotation = Annotated[kind, self._info(choices)]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    def _info(self, choices: Sequence[str]) -> Any:  # noqa: ANN401 -- typer's own
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
        if not text or not self.many:
            return self.read(text) if text else None
        return tuple(map(self.read, text.split(os.pathsep) if self.kind is Path else text.split()))

    def from_toml(self, value: Any) -> Any:  # noqa: ANN401 -- of any type
        """Return a TOML key's value, in which a table equals the text `view=1,buy=5`; ValueError as `read`."""
        if isinstance(value, dict):
            value = ",".join(f"{key}={each}" for key, each in value.items())
        if self.many:
            return tuple(map(self.read, value if isinstance(value, list) else [value]))
        return self.read(value)

    def read(self, value: Any) -> Any:  # noqa: ANN401 -- of any type
        """Convert a text or TOML value to the setting's type; a ValueError names both."""
        kind = self.kind
        if kind is Path and not self.shown.urls:
            local_path(str(value))
        given = f"0{value}" if kind is float and str(value).startswith(".") else value  # msgspec reads no .5
        if kind in (int, float) and isinstance(self.shown, Flag):
            kind = Annotated[kind, msgspec.Meta(ge=self.shown.at_least, le=self.shown.at_most)]
        try:
            return msgspec.convert(given, kind, strict=False, dec_hook=lambda known, text: known(text))
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
        try:
            return self.read(text)
        except ValueError as error:
            if self.variable is None or os.environ.get(self.variable) != str(text):
                raise typer.BadParameter(str(error)) from error
            links = "; Kubernetes sets it for a service of that name: give pods enableServiceLinks: false"
            by_kubernetes = links if str(text).startswith("tcp://") else ""
            raise typer.BadParameter(f"{error}{by_kubernetes}", param_hint=f"the variable {self.variable}") from error


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
    """Return a function that takes *function*'s settings as typer parses them, and the help's epilog.

    Parameters with neither Flag nor Argument are unchanged.
    """
    own = inspect.signature(function).parameters.values()
    groups: dict[str, Any] = {one.name: one.annotation for one in own if is_dataclass(one.annotation)}
    settings = list[Setting]()
    parameters, rare = list[inspect.Parameter](), list[inspect.Parameter]()
    for one in own:
        found = list[Setting]()
        if one.name in groups:
            found = list(settings_of(one.annotation, prefix))
        elif _is_setting(one.annotation):
            default = MISSING if one.default is one.empty else one.default
            found = [Setting.of(one.name, one.annotation, default, prefix)]
        else:
            parameters.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        settings += found
        for setting in found:
            is_rare = isinstance(setting.shown, Flag) and setting.shown.panel == RARE
            (rare if is_rare else parameters).append(setting.parameter())

    in_groups = {each.name for kind in groups.values() for each in settings_of(kind)}

    @wraps(function)
    def verb(**given: Any) -> T:  # noqa: ANN401 -- typer converts each value to its field's type
        _warn_of_misspelt_variables(settings)
        parsed = given | {each.name: each.from_typer(given[each.name]) for each in settings}
        others = {name: value for name, value in parsed.items() if name not in in_groups}
        return function(**others, **{name: build(kind, parsed) for name, kind in groups.items()})

    return signed(verb, [*parameters, *rare]), _epilog(settings)


def signed(function: Callable[..., T], parameters: Iterable[inspect.Parameter]) -> Callable[..., T]:
    """Set the signature of a function, which typer inspects."""
    found = list(parameters)
    function.__signature__ = inspect.Signature(found)  # type: ignore[attr-defined]  # what inspect.signature looks for
    function.__annotations__ = {one.name: one.annotation for one in found}
    return function


def _is_setting(annotation: Any) -> bool:  # noqa: ANN401 -- of any type
    return get_origin(annotation) is Annotated and isinstance(get_args(annotation)[1], Flag | Argument)


def settings_of(settings: type, prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of fields with a Flag or an Argument, also of nested dataclasses."""
    for one in fields(settings):
        if isinstance(one.type, type) and is_dataclass(one.type):
            yield from settings_of(one.type, prefix)
        elif _is_setting(one.type):
            yield Setting.of(one.name, one.type, one.default, prefix)


def build(settings: type[T], given: Mapping[str, Any]) -> T:
    """Return an instance with the values *given* by field, including nested dataclasses."""
    values = dict[str, Any]()
    for one in fields(settings):  # type: ignore[arg-type]  # a dataclass
        if isinstance(one.type, type) and is_dataclass(one.type):
            values[one.name] = build(one.type, given)
        elif one.name in given:
            values[one.name] = given[one.name]
    return settings(**values)


def from_table(
    settings: type[T], table: Mapping[str, Any], where: str, folder: Path, without: Collection[str] = ()
) -> T:
    """Return settings from a TOML table with the flags as keys; the environment wins.

    Paths are relative to *folder*. Raises SettingError, beginning with *where*, for a key that is unknown, among
    *without* or missing, and for an invalid value.
    """
    from hotplate.offline.errors import SettingError

    known = {each.key: each for each in settings_of(settings) if each.name not in without}
    given = {key.replace("-", "_"): (key, value) for key, value in table.items()}
    for plain, (key, _) in given.items():
        if plain not in known:
            others = did_you_mean(plain, known) or f"it may have {', '.join(known)}."
            raise SettingError(f"{where} has no key {key}; {others}")
    _warn_of_misspelt_variables(known.values())
    values = dict[str, Any]()
    for key, each in known.items():
        try:
            found = each.from_environment()
        except ValueError as error:
            raise SettingError(f"{each.variable}: {error}.") from error
        try:
            if found is None and key in given:
                found = _anchored(each.from_toml(given[key][1]), folder)
        except ValueError as error:
            raise SettingError(f"{where}: {key}: {error}.") from error
        if each.default is MISSING and found in (None, ()):
            raise SettingError(f"{where} needs the key {key}.")
        if found is not None:
            values[each.name] = found
    return build(settings, values)


def _anchored(value: Any, folder: Path) -> Any:  # noqa: ANN401 -- of any type
    if isinstance(value, tuple):
        return tuple(_anchored(each, folder) for each in value)
    return folder / value if isinstance(value, Path) and url_of(value) is None else value


def _warn_of_misspelt_variables(settings: Iterable[Setting]) -> None:
    known = {each.variable for each in settings if each.variable}
    for name in sorted(os.environ.keys() - known):
        if name.startswith(PREFIX) and (nearest := did_you_mean(name, known, ALIKE)):
            typer.echo(f"hotplate: {name} sets no option here; {nearest}", err=True)


def _epilog(settings: list[Setting]) -> str:
    named = [each for each in settings if each.variable]
    return f"The environment sets options, too: {named[0].variable} is {named[0].flag}." if named else ""
