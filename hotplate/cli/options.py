"""Verbs made of settings: an annotated field of a dataclass is a flag, a variable, a key of TOML and a line of help.

Typer parses and prints; here is what it is given.
"""

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from typer.core import TyperCommand

from hotplate.cli.terminal import option
from hotplate.stores.options import Argument, Flag

PREFIX = "HOTPLATE_"
# How alike two names are, of 1, if one is taken for a misspelling of the other.
ALIKE = 0.9

T = TypeVar("T")
# What a whole number may end with, and what stands for a value of a type in the help.
THOUSANDS = {"k": 1_000, "M": 1_000_000}
METAVARS = {bool: " ", int: "N", float: "X", str: "TEXT", Path: "PATH"}
COUNT = re.compile(rf"(\d+(?:\.\d+)?)([{''.join(THOUSANDS)}])")
# How pydantic, which typer parses by, begins to refuse a value, and what people are told.
PLAIN_WORDS = (
    ("Value error, ", ""),
    ("Input should be greater than or equal to", "it must be at least"),
    ("Input should be less than or equal to", "it must be at most"),
    ("Input should be a valid integer.*", "it must be a whole number"),
    ("Input should be a (valid|finite) number.*", "it must be a number"),
    ("Input should be a valid boolean.*", "it must be true or false"),
)


class Verb(TyperCommand):
    """A verb whose whole numbers may be 2k or 20M, and whose help has a line for each option.

    An option of one URL is refused if it is given again: else the last store would be used, and nobody told.
    """

    def __init__(self, *args: Any, **more: Any) -> None:  # noqa: ANN401 -- typer's own
        super().__init__(*args, **more)
        for one in self.params:
            process = partial(_process, one.process_value, is_count=_kind_of(one) is int)
            one.process_value = process  # type: ignore[method-assign]  # typer has no hook

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 -- of a type that typer keeps private
        """Parse the arguments, as typer does."""
        given: Sequence[Any] = self.make_parser(ctx).parse_args(args=list(args))[2]
        for one in {one.name: one for one in given}.values():
            if given.count(one) > 1 and one.metavar == "URL" and not one.multiple:
                raise typer.BadParameter(f"it takes one URL, and is given {given.count(one)} times", ctx, one)
        self._warn_of_misspelt_variables(ctx)
        return super().parse_args(ctx, args)

    def _warn_of_misspelt_variables(self, ctx: Any) -> None:  # noqa: ANN401 -- of a type that typer keeps private
        known = {one.envvar for one in self.get_params(ctx) if isinstance(one.envvar, str)}
        for name in sorted(os.environ.keys() - known):
            if name.startswith(PREFIX) and (nearest := get_close_matches(name, known, 1, ALIKE)):
                typer.echo(
                    f"hotplate: {name} sets no option of {ctx.command_path}; did you mean {nearest[0]}?", err=True
                )

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 -- of types that typer keeps private
        """Print the help; the rule of the environment is said once, at its end, with the variables that it misses."""
        options: list[Any] = [one for one in self.get_params(ctx) if one.opts[0].startswith("-")]
        named = [one for one in options if one.envvar]
        if named:
            without = ", ".join(_longest(one) for one in self.params if one in options and one not in named)
            prefix = named[0].envvar.removesuffix(_variable(named[0]))
            said = [named[0], *(one for one in named[1:] if one.envvar != prefix + _variable(one))]
            pairs = ", ".join(f"{one.envvar} is {_longest(one)}" for one in said)
            self.epilog = f"The environment sets options, too: {pairs}."
            self.epilog += f" It cannot set {without}." if without else ""
        for one in options:
            one.metavar = one.metavar or METAVARS.get(_kind_of(one))
            one.show_envvar, one._get_number_range_help_str = False, lambda: None  # noqa: SLF001 -- the error says the range
            if one.secondary_opts:
                one.opts, one.secondary_opts = [f"--[no-]{_longest(one)[2:]}"], []
        super().format_help(ctx, formatter)


class Verbs(typer.Typer):
    """Verbs whose parameters may be settings: each annotated field of these is an option or an argument."""

    def command(self, name: str | None = None, **more: Any) -> Callable[[Callable[..., T]], Callable[..., T]]:  # type: ignore[override]  # noqa: ANN401 -- typer's own
        """Register a function as a verb, and return it as it is."""

        def register(function: Callable[..., T]) -> Callable[..., T]:
            super(Verbs, self).command(name, cls=Verb, **more)(with_flags(function))
            return function

        return register


def with_flags(function: Callable[..., T]) -> Callable[..., T]:
    """Return a function that takes the fields of settings, as typer is to parse them, in place of *function*'s own."""
    own = inspect.signature(function).parameters.values()
    settings: dict[str, Any] = {one.name: one.annotation for one in own if is_dataclass(one.annotation)}
    parameters = list[inspect.Parameter]()
    for one in own:
        if one.name in settings:
            parameters += parameters_of(one.annotation)
        else:
            default = MISSING if one.default is one.empty else one.default
            parameters.append(parameter(one.name, one.annotation, default))

    @wraps(function)
    def verb(**given: Any) -> T:  # noqa: ANN401 -- typer converts each value to its field's type
        others = {one.name: given[one.name] for one in own if one.name not in settings}
        return function(**others, **{name: build(kind, given) for name, kind in settings.items()})

    return signed(verb, parameters)


def signed(function: Callable[..., T], parameters: list[inspect.Parameter]) -> Callable[..., T]:
    """Give a function the signature that typer is to see."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect.signature looks for
    function.__annotations__ = {one.name: one.annotation for one in parameters}
    return function


def parameters_of(settings: type, prefix: str = "", defaults: object = None) -> Iterator[inspect.Parameter]:
    """Yield a parameter for each field with a Flag or an Argument, and for those of settings within the settings.

    Defaults are those of the fields, or of *defaults*. Variables begin with HOTPLATE_ and *prefix*.
    """
    for one in fields(settings):
        if isinstance(one.type, type) and is_dataclass(one.type):
            yield from parameters_of(one.type, prefix)
        elif get_origin(one.type) is Annotated:  # else it is not for the command
            default = one.default if defaults is None else getattr(defaults, one.name)
            yield parameter(one.name, one.type, default, prefix)


def build(settings: type[T], given: Mapping[str, Any]) -> T:
    """Return settings of parsed parameters, by the names of their fields."""
    values = dict[str, Any]()
    for one in fields(settings):  # type: ignore[arg-type]  # a dataclass
        if isinstance(one.type, type) and is_dataclass(one.type):
            values[one.name] = build(one.type, given)
        elif one.name in given:
            value = given[one.name]
            values[one.name] = tuple(value) if isinstance(value, list) else value
    return settings(**values)


def parameter(name: str, annotation: Any, default: Any, prefix: str = "") -> inspect.Parameter:  # noqa: ANN401 -- of any type
    """Make the parameter of a field; what has an annotation of typer's own keeps it."""
    kind, shown = get_args(annotation)[:2]
    if isinstance(shown, Argument):
        shown = typer.Argument(metavar=shown.metavar, help=shown.help, show_default=False)
    elif isinstance(shown, Flag):
        flag = shown.name or name.replace("_", "-")
        flag = flag if flag.startswith("-") else f"--{flag}"
        if kind == bool | None or (kind is bool and default is not False):
            flag += f"/--no-{flag.removeprefix('--')}"
        shown = option(
            flag,
            shown.help,
            prefix=shown.prefix or prefix,
            panel=shown.panel,
            env=shown.env,
            metavar=shown.metavar,
            at_least=shown.at_least,
            at_most=shown.at_most,
        )
    if get_origin(kind) is tuple:
        kind, default = list[get_args(kind)[0]], [] if default == () else default  # type: ignore[misc]  # of the type's own
    default = inspect.Parameter.empty if default is MISSING else default
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=default, annotation=Annotated[kind, shown])


def _process(process: Callable[[Any, Any], Any], ctx: Any, value: Any, *, is_count: bool) -> Any:  # noqa: ANN401 -- typer's own
    """Parse a value; a number may end with a letter. What its parser refuses is refused in plain words."""
    found = COUNT.fullmatch(value) if is_count and isinstance(value, str) else None
    plain = value if found is None else f"{float(found[1]) * THOUSANDS[found[2]]:.15g}"
    try:
        return process(ctx, plain)
    except typer.BadParameter as error:
        for refused, words in PLAIN_WORDS:
            error.message = re.sub(refused, words, error.message, count=1)
        raise


def _kind_of(parameter: Any) -> Any:  # noqa: ANN401 -- typer's own
    """Return the type of an option, or of each of its values."""
    kind = parameter.type_descriptor.annotation
    return get_args(kind)[0] if get_origin(kind) is list else kind


def _longest(parameter: Any) -> str:  # noqa: ANN401 -- typer's own
    """Return the name of an option as people would spell it."""
    names: list[str] = parameter.opts
    return max(names, key=len)


def _variable(parameter: Any) -> str:  # noqa: ANN401 -- typer's own
    """Return the variable of an option, without what all variables of its verb begin with."""
    return _longest(parameter).strip("-").replace("-", "_").upper()
