"""Flags of a verb that an experiment declares as fields of its options, so that each flag and default stands once.

A command made here imports the room that declares its flags only when it is used or its help is shown.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

VALUES = "hotplate.flags"


@dataclass(frozen=True, slots=True)
class Flag:
    """One option of a verb; `name` is that of the field which declares it."""

    name: str
    kind: Any
    default: object
    help: str
    panel: str
    envvar: str | None

    def parameter(self) -> inspect.Parameter:
        """Return the flag as a parameter of a function that typer can read."""
        spelt = self.name.replace("_", "-")
        option = typer.Option(
            f"--{spelt}/--no-{spelt}" if self.kind is bool else f"--{spelt}",
            help=self.help, rich_help_panel=self.panel, envvar=self.envvar,
        )  # fmt: skip
        kind: Any = Annotated.__class_getitem__((self.kind, option))  # type: ignore[attr-defined]  # a kind known at run time
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=self.default, annotation=kind)


def command_with(flags: Callable[[], Iterable[Flag]]) -> type[TyperCommand]:
    """Make a class of commands that take *flags* beside their function's own; `values_of` returns their values."""

    class CommandWithFlags(TyperCommand):
        _flags: list[Any] | None = None

        def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 -- typer brings its own copy of click
            if self._flags is None:
                self._flags = _click_options(flags())
            return [*self._flags, *super().get_params(ctx)]

        def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 -- as get_params
            ctx.meta[VALUES] = {flag.name: ctx.params.pop(flag.name) for flag in self._flags or ()}
            return super().invoke(ctx)

    return CommandWithFlags


def values_of(context: typer.Context) -> dict[str, Any]:
    """Return the values of a command's flags by the names of their fields."""
    values: dict[str, Any] = context.meta[VALUES]
    return values


def _click_options(flags: Iterable[Flag]) -> list[Any]:
    """Let typer make options of flags, as it does of a function's parameters."""

    def accept() -> None:
        """Stand in for a verb."""

    accept.__signature__ = inspect.Signature([flag.parameter() for flag in flags])  # type: ignore[attr-defined]  # read by inspect
    app = typer.Typer(add_completion=False)
    app.command()(accept)
    return list(typer.main.get_command(app).params)
