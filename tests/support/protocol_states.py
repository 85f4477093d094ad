"""All states of a small model of the protocol: the real functions of the catalogue, and data planes of two rows.

Two writers bring back a release under an id that an erased-to-be incarnation still has, while a pruner marks and
erases, and a reader follows. One transition is one primitive of the store, with what its process computes from the
reply, or: a writer dies, the reply of a swap is lost, or TICK_S pass, which is a lease and a grace. States that differ
in names and ages that nothing depends on are one. A reader changes nothing, and sees nothing but what is live and the
rows: so it is walked through all the ways of these in a second search.

    the change of a process     read ──▶ swap ──▶ done      to read again where others swapped first
    a writer                    claim ▶ create ▶ put 1 ▶ put 2 ▶ seal ▶ verify ▶ commit ▶ activate
                                   └──────── abandon ▶ erase ▶ forget: what raises, and the draft is its own
    the pruner                  list ▶ mark ▶ (erase ▶ forget) for each
    the reader                  read ▶ row 1 ▶ row 2 ▶ serve; of two catalogues that it may have in hand
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from stores import catalogue as changes
from stores.catalogue import Catalogue, DraftRef, Release, ReleaseId, ReleaseRef, State
from stores.errors import ReleaseConflict, ReleaseNotFound, StoreError

TICK_S = 60.0
assert TICK_S == changes.LEASE_S

BACK, OTHER = ReleaseId("back"), ReleaseId("other")

WRITERS = ("w1", "w2")

# What a process holds once others have swapped since it read: its own swap will lose.
STALE = Catalogue("stale")

# What a writer does next when a change of the catalogue is made.
NEXT = {
    "begin": "create",
    "take over": "create",
    "commit": "activate",
    "activate": "done",
    "abandon": "erase",
    "forget": "done",
}


class Violation(AssertionError):
    """A state that must not be."""


class Data(NamedTuple):
    """What a store has of one incarnation: who claimed it, whose rows lie in it, and whether it is sealed."""

    writer: str
    rows: tuple[str, str]
    """By whom each was put; empty where it was not."""

    sealed: bool = False


class Process(NamedTuple):
    """A writer or the pruner: where it stands, and what it has in hand."""

    at: str
    incarnation: str = ""
    swaps: Catalogue | None = None
    """What it made of the catalogue that it read; STALE where others have swapped since."""

    unclear: bool = False
    """Whether the reply of its last swap was lost."""

    alone: bool = False
    """Whether there was no row when it claimed the draft."""

    todo: tuple[str, ...] = ()
    """What the pruner has found in the store, and then what it is to erase."""


class Seen(NamedTuple):
    """A catalogue in a reader's hand."""

    generation: int
    live: str


class ReaderState(NamedTuple):
    served: str = ""
    rows: tuple[str, str] = ("", "")
    seen: int = 0
    """The generation of the catalogue that is followed."""

    held: tuple[Seen | None, Seen | None] = (None, None)
    """What was read, in two requests at the same time."""

    loading: tuple[Seen, str] | None = None
    """What is to be followed, and its first row."""


class Shown(NamedTuple):
    """What a reader can see of the store."""

    live: str
    data: tuple[tuple[str, Data], ...]


class World(NamedTuple):
    catalogue: Catalogue
    """With times relative to now."""

    data: tuple[tuple[str, Data], ...]
    writers: tuple[Process, Process]
    pruner: Process
    deaths: int
    losses: int
    """How many more there may be."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may go wrong in one history."""

    deaths: int = 1
    losses: int = 1
    same_rows: bool = True
    """Whether both writers write the same rows, as copies do; or each its own."""

    renewals: bool = True


@dataclass(slots=True)
class Found:
    """What a search came to."""

    states: int = 0
    transitions: int = 0
    reader_states: int = 0
    """Of a reader, with what it can see of the store."""

    ends: int = 0
    """Different catalogues with data, from each of which a prune came to a clean end."""


def start(bounds: Bounds) -> World:
    """Something is live; what is to be brought back was, and is no longer needed."""
    entries = (
        Release(BACK, "old", State.SUPERSEDED, 0.0, superseded_at=-TICK_S),
        Release(OTHER, "other", State.LIVE, 0.0),
    )
    whole = Data("", ("x", "x"), sealed=True)
    return World(
        Catalogue("store", 1, "", entries),
        (("old", whole), ("other", whole)),
        (Process("look"), Process("look")),
        Process("list"),
        bounds.deaths,
        bounds.losses,
    )


class Search:
    """Walks all states, breadth first; lives as long as one search."""

    def __init__(self, bounds: Bounds, *, keep: int = 0) -> None:
        self._bounds = bounds
        self._keep = keep
        self._clean = set[tuple[Catalogue, tuple[tuple[str, Data], ...]]]()
        self._ways = dict[Shown, set[tuple[Shown, bool]]]()
        """Where each leads of what a reader can see, and whether by a swap."""

    def run(self, most: int) -> Found:
        """Return the counts; raises Violation for a state that must not be, AssertionError for more than *most*."""
        first = _canonical(start(self._bounds))
        seen, waiting, found = {first}, deque([first]), Found()
        while waiting:
            world = waiting.popleft()
            self._check_end(world)
            shown = _shown(world)
            ways = self._ways.setdefault(shown, set())
            for after in self._next(world):
                found.transitions += 1
                swapped = after.catalogue.generation > world.catalogue.generation
                if swapped or after.data is not world.data:
                    ways.add((_shown(after), swapped))
                reached = _canonical(after)
                if reached not in seen:
                    _check(reached)
                    seen.add(reached)
                    waiting.append(reached)
                    assert len(seen) <= most, f"more than {most} states"
        found.states, found.ends = len(seen), len(self._clean)
        found.reader_states = self._follow(_shown(first))
        return found

    def _follow(self, first: Shown) -> int:
        """Walk a reader through all that it may see, and return the count of states."""
        begin = (first, 1, ReaderState())
        seen, waiting = {begin}, deque([begin])
        while waiting:
            shown, generation, reader = waiting.popleft()
            after = [(shown, generation, moved) for moved in _reader(shown, generation, reader)]
            after += [(then, generation + swapped, reader) for then, swapped in self._ways[shown]]
            for reached in map(_canonical_reader, after):
                if reached not in seen:
                    _check_reader(reached[0], reached[2])
                    seen.add(reached)
                    waiting.append(reached)
        return len(seen)

    # Transitions

    def _next(self, world: World) -> Iterator[World]:
        yield _tick(world)
        for index, writer in enumerate(world.writers):
            if writer.at in ("done", "dead"):
                continue
            for after, moved in self._writer(world, WRITERS[index], writer):
                yield _with_writer(after, index, moved)
            if world.deaths:
                yield _with_writer(world._replace(deaths=world.deaths - 1), index, Process("dead"))
        for after, pruner in self._pruner(world, world.pruner):
            yield after._replace(pruner=pruner)
        if world.deaths:
            yield world._replace(deaths=world.deaths - 1, pruner=Process("list"))

    def _writer(self, world: World, name: str, writer: Process) -> Iterator[tuple[World, Process]]:
        if writer.at == "look":
            yield world, _look(world.catalogue)
        elif writer.at in NEXT:
            if writer.at == "begin" and writer.swaps is None and not _has_begun(world.catalogue, name):
                writer = writer._replace(incarnation=drawn(name, world))
            for after, moved, error in self._change(world, writer, name, _step(writer, name)):
                yield after, moved if error is None else _failed(writer, error)
        elif writer.at == "erase":
            known = world.catalogue.entry(writer.incarnation) is not None
            yield erased(world, writer.incarnation), Process("forget" if known else "done", writer.incarnation)
        else:
            try:
                yield self._write(world, name, writer)
            except StoreError:
                yield world, Process("abandon", writer.incarnation)
            if self._bounds.renewals:
                yield from self._renew(world, name, writer)

    def _renew(self, world: World, name: str, writer: Process) -> Iterator[tuple[World, Process]]:
        def renew(found: Catalogue) -> Catalogue:
            return changes.renew(found, DraftRef(BACK, writer.incarnation, name))

        for after, moved, error in self._change(world, writer, name, renew, lossy=False):
            if error is None:
                yield after, moved

    def _write(self, world: World, name: str, writer: Process) -> tuple[World, Process]:
        """Do the next primitive on the draft; raises what a store raises."""
        data, at = dict(world.data), writer.at
        found, label = data.get(writer.incarnation), "both" if self._bounds.same_rows else name
        if at == "create":
            found = found or Data(name, ("", ""))
            if found.sealed:
                return world, writer._replace(at="verify" if found.rows == (label, label) else "done", swaps=None)
            alone = found.rows == ("", "")
            data[writer.incarnation] = found._replace(writer=name)
            return world._replace(data=_sorted(data)), writer._replace(at="put 1", alone=alone)
        if found is None:
            raise ReleaseNotFound("erased")
        if at == "verify":
            if is_verified(found, label):
                return world, writer._replace(at="commit", swaps=None)
            entry = world.catalogue.entry(writer.incarnation)
            owns = entry is not None and entry.state is State.DRAFT and entry.writer == name
            if owns and (writer.alone or self._bounds.same_rows):
                raise Violation(f"{name} finds other rows than it has put: {found}")
            raise ReleaseConflict("other rows")
        if at == "seal" and found.sealed:
            return world, writer._replace(at="verify")
        check_claim(found, name)
        if at == "seal":
            data[writer.incarnation] = found._replace(sealed=True)
            return world._replace(data=_sorted(data)), writer._replace(at="verify")
        first, second = found.rows
        # What lies before the resume point is not put again.
        rows = (first or label, second) if at == "put 1" else (first, second or label)
        data[writer.incarnation] = found._replace(rows=rows)
        return world._replace(data=_sorted(data)), writer._replace(at="put 2" if at == "put 1" else "seal")

    def _pruner(self, world: World, pruner: Process) -> Iterator[tuple[World, Process]]:
        if pruner.at == "list":
            yield world, Process("mark", todo=tuple(name for name, _ in world.data))
        elif pruner.at == "erase":
            yield erased(world, pruner.todo[0]), pruner._replace(at="forget")
        elif pruner.at == "mark":
            mark = lambda found: changes.prune(found, self._keep, TICK_S, None, pruner.todo)  # noqa: E731 -- as in `_step`
            for after, moved, _ in self._change(world, pruner, "pruner", mark):
                if moved.at == "mark":
                    yield after, moved
                else:
                    dropped = (one.incarnation for one in after.catalogue.releases if one.state is State.DROPPING)
                    yield after, _erasing(tuple(dropped))
        else:
            forget = lambda found: changes.forget(found, ReleaseRef(BACK, pruner.todo[0]))  # noqa: E731 -- as in `_step`
            for after, moved, _ in self._change(world, pruner, "pruner", forget):
                yield after, moved if moved.at == "forget" else _erasing(pruner.todo[1:])

    def _change(
        self, world: World, process: Process, name: str, step: Callable[[Catalogue], Catalogue], *, lossy: bool = True
    ) -> Iterator[tuple[World, Process, StoreError | None]]:
        """Do the next primitive of `lifecycle.change`, and move on where the change is made."""
        made = process._replace(at=NEXT.get(process.at, process.at + " done"), swaps=None, unclear=False)
        if not lossy:
            made = process._replace(swaps=None)  # a renewal, beside what the writer is at
        if process.swaps is None:
            if process.unclear and world.catalogue.token == name:
                yield world, made, None
                return
            try:
                changed = step(world.catalogue)
            except StoreError as error:
                yield world, process, error
                return
            held = process._replace(swaps=replace(changed, token=name), unclear=False)
            yield world, made if changed == world.catalogue else held, None
        elif process.swaps is STALE:
            yield world, process._replace(swaps=None), None
        else:
            _check_swap(world, process.swaps)
            after = _swapped(world, process.swaps)
            yield after, made, None
            if lossy and world.losses:
                yield after._replace(losses=world.losses - 1), process._replace(swaps=None, unclear=True), None

    # The end

    def _check_end(self, world: World) -> None:
        """Whoever still runs may die now: once lease and grace have passed, a prune leaves what is needed."""
        if (end := (world.catalogue, world.data)) in self._clean:
            return
        self._clean.add(end)
        found, data = _aged(_aged(world.catalogue)), dict(world.data)
        marked = changes.prune(found, 1, TICK_S, None, tuple(data))
        for entry in marked.releases:
            if entry.state is State.DROPPING:
                data.pop(entry.incarnation, None)
                marked = changes.forget(marked, entry.ref)
        left = {entry.incarnation for entry in marked.releases}
        states = [entry.state for entry in marked.releases]
        if left != set(data) or states.count(State.LIVE) != 1 or State.DRAFT in states or State.DROPPING in states:
            raise Violation(f"no clean end: {marked} with {data}")
        changes.begin(marked, DraftRef(ReleaseId("new"), "new", "new"))


def check_claim(found: Data, writer: str) -> None:
    """Refuse what a store refuses: a write by another than who claimed the draft last, or to a sealed release."""
    if found.writer != writer or found.sealed:
        raise ReleaseConflict("sealed, or claimed by another")


def _look(found: Catalogue) -> Process:
    """Decide as a copy does: begin a draft, take one over, or find the release there."""
    try:
        entry = found.find(BACK)
    except ReleaseNotFound:
        return Process("begin")
    return Process("take over", entry.incarnation) if entry.state is State.DRAFT else Process("activate")


def drawn(name: str, world: World) -> str:
    """Return an incarnation that was never begun: without a lost reply, no begin that was made is repeated."""
    return f"{name}.{world.losses}"


def _has_begun(found: Catalogue, name: str) -> bool:
    return any(entry.writer == name and entry.state is State.DRAFT for entry in found.releases)


def _failed(writer: Process, error: StoreError) -> Process:
    """Return what a writer does whose change of the catalogue was refused."""
    if writer.at in ("begin", "take over"):
        return Process("look")
    if writer.at == "commit":
        return Process("abandon", writer.incarnation)
    if writer.at == "abandon" and isinstance(error, ReleaseNotFound):
        return Process("erase", writer.incarnation)  # dropped by others: what was put is nobody's
    return Process("done")


def _step(writer: Process, name: str) -> Callable[[Catalogue], Catalogue]:
    draft = DraftRef(BACK, writer.incarnation, name)
    steps: dict[str, Callable[[Catalogue], Catalogue]] = {
        "begin": lambda found: changes.begin(found, draft),
        "take over": lambda found: changes.take_over(found, draft),
        "commit": lambda found: changes.commit(found, draft),
        "activate": lambda found: changes.activate(found, BACK),
        "abandon": lambda found: changes.abandon(found, draft),
        "forget": lambda found: changes.forget(found, draft.release),
    }
    return steps[writer.at]


def _erasing(dropped: tuple[str, ...]) -> Process:
    return Process("erase", todo=dropped) if dropped else Process("list")


def is_verified(found: Data, label: str) -> bool:
    """Whether the sums of what is stored are those of what was to be written."""
    return found.rows == (label, label)


def _reader(shown: Shown, generation: int, reader: ReaderState) -> Iterator[ReaderState]:
    data = dict(shown.data)
    for index in (0, 1):
        held = list(reader.held)
        if (found := held[index]) is None:
            held[index] = Seen(generation, shown.live)
            yield reader._replace(held=(held[0], held[1]))
        elif reader.loading is None:
            held[index] = None
            dropped = reader._replace(held=(held[0], held[1]))
            if not changes.follows(_as_catalogue(found.generation), _as_catalogue(reader.seen)):
                yield dropped
            elif found.live in ("", reader.served):
                yield dropped._replace(seen=found.generation)
            elif (release := data.get(found.live)) is None or not release.rows[0]:
                yield dropped  # it cannot be loaded, and will be tried again
            else:
                yield dropped._replace(loading=(found, release.rows[0]))
    if reader.loading is not None:
        (found, first), given_up = reader.loading, reader._replace(loading=None)
        release = data.get(found.live)
        if release is None or not release.rows[1]:
            yield given_up
        else:
            if found.generation < reader.seen:
                raise Violation("a reader went back to an older catalogue")
            yield given_up._replace(served=found.live, rows=(first, release.rows[1]), seen=found.generation)


def _as_catalogue(generation: int) -> Catalogue:
    return Catalogue("store" if generation else "", generation)


def _swapped(world: World, changed: Catalogue) -> World:
    """Return the world with a changed catalogue: what others hold of the one before has become stale."""

    def stale(process: Process) -> Process:
        return process if process.swaps is None else process._replace(swaps=STALE)

    one, other = world.writers
    return world._replace(
        catalogue=replace(changed, generation=world.catalogue.generation + 1),
        writers=(stale(one), stale(other)),
        pruner=stale(world.pruner),
    )


def erased(world: World, incarnation: str) -> World:
    entry = world.catalogue.entry(incarnation)
    if entry is not None and entry.state is not State.DROPPING:
        raise Violation(f"{incarnation} was erased, which is {entry.state}")
    return world._replace(data=tuple(one for one in world.data if one[0] != incarnation))


def _tick(world: World) -> World:
    def older(process: Process) -> Process:
        held = process.swaps
        return process if held is None or held is STALE else process._replace(swaps=_aged(held))

    one, other = world.writers
    return world._replace(
        catalogue=_aged(world.catalogue), writers=(older(one), older(other)), pruner=older(world.pruner)
    )


def _aged(catalogue: Catalogue) -> Catalogue:
    return replace(
        catalogue,
        releases=tuple(
            replace(
                entry,
                lease_until=None if entry.lease_until is None else max(0.0, entry.lease_until - TICK_S),
                superseded_at=None if entry.superseded_at is None else -TICK_S,
            )
            for entry in catalogue.releases
        ),
    )


def _with_writer(world: World, index: int, writer: Process) -> World:
    one, other = world.writers
    return world._replace(writers=(writer, other) if index == 0 else (one, writer))


def _sorted(data: dict[str, Data]) -> tuple[tuple[str, Data], ...]:
    return tuple(sorted(data.items()))


def _shown(world: World) -> Shown:
    live = world.catalogue.live_ref
    return Shown("" if live is None else live.incarnation, world.data)


def _canonical(world: World) -> World:
    """Return the one state of all that differ in generations, and in tokens that nobody looks for."""
    unclear = {name for name, writer in zip(WRITERS, world.writers, strict=True) if writer.unclear}
    unclear |= {"pruner"} if world.pruner.unclear else set()
    token = world.catalogue.token if world.catalogue.token in unclear else ""
    return world._replace(catalogue=replace(world.catalogue, generation=1, token=token))


def _canonical_reader(state: tuple[Shown, int, ReaderState]) -> tuple[Shown, int, ReaderState]:
    """Number the generations that a reader knows of from 1."""
    shown, generation, reader = state
    hands = [one for one in (*reader.held, None if reader.loading is None else reader.loading[0]) if one is not None]
    known = sorted({reader.seen, generation, *(one.generation for one in hands)} - {0})
    rank = {generation: place for place, generation in enumerate(known, 1)} | {0: 0}
    held = [one and one._replace(generation=rank[one.generation]) for one in reader.held]
    held.sort(key=lambda one: one or Seen(-1, ""))
    loading = reader.loading and (
        reader.loading[0]._replace(generation=rank[reader.loading[0].generation]),
        reader.loading[1],
    )
    return (
        shown,
        rank[generation],
        reader._replace(seen=rank[reader.seen], held=(held[0], held[1]), loading=loading),
    )


# What must hold


def _check(world: World) -> None:
    data, live = dict(world.data), world.catalogue.live_ref
    if live is None or not _is_whole(data.get(live.incarnation)):
        raise Violation(f"what is live is not whole: {world}")


def _check_reader(shown: Shown, reader: ReaderState) -> None:
    data = dict(shown.data)
    if reader.served and reader.served in data and data[reader.served].rows != reader.rows:
        raise Violation(f"what is served is not what was followed: {reader} of {shown}")
    if len(set(reader.rows)) != 1:
        raise Violation(f"a reader mixes rows: {reader}")


def _check_swap(world: World, changed: Catalogue) -> None:
    data = dict(world.data)
    for entry in changed.releases:
        was = world.catalogue.entry(entry.incarnation)
        if was is None:
            continue
        runs = was.state is State.DRAFT and (was.lease_until or 0.0) > 0
        if entry.writer != was.writer and runs:
            raise Violation(f"{entry} was taken over under a running lease")
        if entry.state is State.DROPPING and runs and changed.token != was.writer:
            raise Violation(f"{entry} was dropped by another under a running lease")
        if entry.state is State.DROPPING and was.state is State.LIVE:
            raise Violation(f"{entry} was dropped while it was live")
        if was.state is State.DRAFT and entry.state not in (State.DRAFT, State.DROPPING):
            if changed.token != was.writer:
                raise Violation(f"{entry} was committed by another than its writer")
            if not _is_whole(data.get(entry.incarnation)):
                raise Violation(f"{entry} was committed, and is not whole: {data}")


def _is_whole(data: Data | None) -> bool:
    return data is not None and data.sealed and len(set(data.rows)) == 1 and "" not in data.rows
