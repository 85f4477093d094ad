"""Figures of the embedded store, `file://`: publishing, size on disk, opening, warm reads, and memory per worker."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bench.lists import Shape
from bench.micro import reading, sharing
from bench.micro.publishing import Published, publish_once
from bench.micro.rounds import Effort, Figure, Outcome, Unmeasured, at_most, figures, interleave

MAIN = "20 items"
TITLED = "20 titled items"
USUAL = {MAIN, TITLED}
ROOM = 2.0
"""Bytes that must be free per byte of keys and values: pages that are cut off at large values, and some to spare."""

CPU_US_PER_LIST = 5
FILE_RATIO = 1.2
UP_TO_BYTES = 600


def measure(effort: Effort) -> list[Outcome]:
    """Publish, then read what was published; skipped where the disk has too little room for it."""
    shapes = shapes_for(effort.users)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        needed = ROOM * sum(shape.plan.payload_bytes for shape in shapes.values())
        free = shutil.disk_usage(folder).free
        if free < needed:
            return [Unmeasured("embedded", f"{made} has {free / 1e6:,.0f} MB free; {needed / 1e6:,.0f} MB are needed")]
        values = {name: shape.values() for name, shape in shapes.items()}
        published = interleave(
            {name: partial(publish_once, shape, values[name], folder / name) for name, shape in shapes.items()},
            effort.rounds,
        )
        return [
            Figure(
                f"{named(shapes[MAIN], MAIN)}, rows' making not counted: wall time",
                "s",
                [one.wall_s for one in published[MAIN]],
            ),
            *(figure for name, shape in shapes.items() for figure in publishing_figures(shape, name, published[name])),
            *sharing.compare(folder / MAIN, effort.users, effort.rounds),
            *reading.compare(shapes[MAIN], values[MAIN], folder / MAIN, effort.rounds),
        ]


def shapes_for(users: int) -> Mapping[str, Shape]:
    """Choose what is published: all users' lists at about 600 bytes, and other sizes of value with a tenth of them."""
    tenth = max(users // 10, 1)
    return {
        MAIN: Shape(users, items=20),
        "10 items": Shape(tenth, items=10),
        TITLED: Shape(tenth, items=20, title_chars=19),
        "20 long-titled items": Shape(tenth, items=20, title_chars=84),
    }


def named(shape: Shape, name: str) -> str:
    """Name the publish of *shape* in a figure."""
    return f"file://, publish {shape.users:,} lists of {name}, {shape.value_bytes:,} B"


def publishing_figures(shape: Shape, name: str, published: Sequence[Published]) -> list[Figure]:
    """Tell of the publishes of one shape; the goals are for the two usual lists, and for values of up to 600 bytes."""
    what = named(shape, name)
    cpu_goal = at_most(CPU_US_PER_LIST) if name in USUAL else None
    size_goal = at_most(FILE_RATIO) if shape.value_bytes <= UP_TO_BYTES else None
    samples = [one.sample for one in published]
    return [
        *figures(f"{what}, rows' making not counted", samples, each="list", cpu_goal=cpu_goal),
        Figure(f"{what}: file / keys and values", "ratio", [one.file_ratio for one in published], size_goal),
    ]
