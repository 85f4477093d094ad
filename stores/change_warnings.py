"""Warnings about changes that took place: a later step failed, or a failover may lose them.

Such a change is not an error. Its warnings arise in backends and in the life of releases. The command, the run or the
request to the admin listener that makes the change collects them for its answer; a context variable carries them there.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from hotplate.stores.errors import StoreError

log = logging.getLogger(__name__)

_collected: ContextVar[list[str] | None] = ContextVar("_collected", default=None)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Yield a list to which the warnings of changes in the block are added, also of those in tasks that it starts."""
    warnings = list[str]()
    token = _collected.set(warnings)
    try:
        yield warnings
    finally:
        _collected.reset(token)


def with_warnings(facts: Mapping[str, object]) -> dict[str, object]:
    """Return the facts about a change for JSON, with its `warnings` if `collected_warnings` has collected any."""
    warnings = _collected.get()
    return {**facts, "warnings": warnings} if warnings else {**facts}


def warn(sentence: str) -> None:
    """Log a warning about a change that took place, and add it to those that are collected, once."""
    log.warning("%s", sentence)
    warnings = _collected.get()
    if warnings is not None and sentence not in warnings:
        warnings.append(sentence)


@contextmanager
def failure_as_warning(changed: str) -> Iterator[None]:
    """Warn of a StoreError in the block, instead of raising it, after the sentence on what was *changed*.

    For steps after a change: a raised error would say that the change has failed.
    """
    try:
        yield
    except StoreError as error:
        warn(f"{changed}: {error}")
