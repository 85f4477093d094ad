"""The table of documented charges beside ours, for the test and for the README of the emulator.

`python -m tests.support.charge_table` prints it.
"""

import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hotplate.stores.cosmos.charges import KB, OURS, Charges, load


@dataclass(frozen=True, slots=True)
class Row:
    """One documented charge and ours."""

    operation: str
    note: str
    size_kb: float
    documented_ru: float
    ours_ru: float
    source: str
    date: str
    superseded: bool

    def __str__(self) -> str:
        return f"{self.operation} {self.size_kb:g} KB {self.note} ({self.source})"


def documented() -> list[dict[str, Any]]:
    """Return what the documents say, as the file of charges lists it."""
    listed: list[dict[str, Any]] = tomllib.loads(OURS.read_text())["documented"]
    return listed


def compare(charges: Charges, entries: Sequence[dict[str, Any]]) -> list[Row]:
    """Compute our charge for each documented one."""
    return [
        Row(
            entry["operation"], entry.get("note", ""), size_kb, ru, _ours(charges, entry, round(size_kb * KB)),
            entry["source"], entry["date"], entry.get("superseded", False),
        )
        for entry in entries
        for size_kb, ru in zip(entry["sizes_kb"], entry["ru"], strict=True)
    ]  # fmt: skip


def _ours(charges: Charges, entry: dict[str, Any], size: int) -> float:
    terms, sizes = entry.get("terms", 0), [size] * entry.get("items", 1)
    return {
        "read": lambda: charges.read(size, strong=entry.get("strong", False)),
        "create": lambda: charges.create(size, terms),
        "replace": lambda: charges.replace(size, size, terms, terms),
        "delete": lambda: charges.delete(size, terms),
        "feed": lambda: charges.feed(sizes),
        "query": lambda: charges.query(sizes, scanned=[size] * entry.get("scanned", 0)),
    }[entry["operation"]]()


def markdown(rows: Sequence[Row]) -> str:
    """Return the table as Markdown, by operation and size, the newest source first."""
    ordered = sorted(rows, key=lambda row: row.date, reverse=True)
    ordered.sort(key=lambda row: (row.operation, row.note, row.size_kb))
    lines = ["| operation | KB | documented RU | ours | off by | source | date |", "|---|---:|---:|---:|---:|---|---|"]
    for row in ordered:
        off = f"{row.ours_ru / row.documented_ru - 1:+.1%}"
        mark = " (superseded)" if row.superseded else ""
        name = f"{row.operation}, {row.note}" if row.note else row.operation
        lines.append(
            f"| {name} | {row.size_kb:g} | {row.documented_ru:,.2f} | {row.ours_ru:,.2f} | {off} | {row.source}{mark} "
            f"| {row.date or 'older'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{markdown(compare(load(), documented()))}\n")
