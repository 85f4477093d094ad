"""Progress of long work: a bar with rate and time left on a terminal, silence everywhere else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hotplate.cli.terminal import err


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        """Render the rate of *task*, once there is one."""
        return Text(f"{task.speed:,.0f}/s" if task.speed and task.speed >= 1 else "")


class _Aside(ProgressColumn):
    """What else there is to say of the work, asked anew each time."""

    def __init__(self, said: Callable[[], str]) -> None:
        super().__init__()
        self._said = said

    def render(self, task: Task) -> Text:
        """Render it, beside every stage."""
        del task
        return Text(self._said())


@contextmanager
def bars(aside: Callable[[], str] = str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield `tell(stage, done, total)`; each stage gets a line, which goes when the work is done."""
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        _Aside(aside),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        tasks = dict[str, TaskID]()

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(
                    stage, total=None if total == 1 else total
                )  # one step: no share to tell
            if total == 1 and done == 1:
                steps = next(task.total for task in progress.tasks if task.id == tasks[stage]) or 1
                progress.update(tasks[stage], completed=steps, total=steps)
            elif total > 1:
                progress.update(tasks[stage], completed=done, total=total)

        yield tell
