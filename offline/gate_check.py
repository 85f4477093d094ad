"""The gates of a release: its lists are measured while they are written, and judged once."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hotplate.offline.gates import (
    AS_FLAGS,
    Gate,
    Subject,
    check,
    check_names,
    gates_of,
    parse_gates,
    with_defaults,
)
from hotplate.offline.measurement import Measurement
from hotplate.offline.options import PublishSettings
from hotplate.offline.sources import NamedLists, Source, sources_by_name, stored_names
from hotplate.offline.standing import refusal_by_gates
from hotplate.offline.steps import timed
from hotplate.offline.verdicts import NewList, compare_names, evaluation_of, judge
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import ITEM, POPULAR, prefix_of
from hotplate.stores.manifest import Manifest, Tally, count_in_list
from hotplate.stores.origin import GateRecord, GateVerdict, Origin, OriginRecord
from hotplate.stores.store import Reader


def bounds_of(settings: PublishSettings) -> Sequence[Gate]:
    """Return the gates; raises SettingError."""
    return parse_gates(settings.gates, "gates") if isinstance(settings.gates, Mapping) else settings.gates


class _Judged(NamedTuple):
    """The release that lists were compared with, and the verdicts."""

    live: ReleaseRef | None
    verdicts: list[GateVerdict]


class GateCheck:
    """Measures the lists of a release, and judges them by their gates, once.

    `lists` are the new lists by name; their counts are filled while the lists are written. *reader* has the live
    release to compare with. *steps* gets the seconds of judging.
    """

    def __init__(
        self,
        source: Source | NamedLists,
        settings: PublishSettings,
        reader: Reader,
        steps: dict[str, float],
    ) -> None:
        """Read the gates of each list; raises SettingError for one that cannot be judged."""
        self._settings = settings
        self._about = source.about()
        self._origin = Origin.of(self._about)
        self._reader = reader
        self._steps = steps
        self.lists = dict[str, NewList]()
        self._judged: _Judged | None = None

        bounds = bounds_of(settings)
        sources = sources_by_name(source)
        check_names(bounds, sources)
        for name, stored_name in stored_names(sources).items():
            gates = gates_of(bounds, name)
            items = sources[name].items()

            # The origin of the default list is that of the release.
            origin = self._origin.lists[name] if stored_name else self._origin
            evaluation = evaluation_of(origin)
            metrics = () if evaluation is None else evaluation.metrics
            check(gates, metrics, knows_catalogue=items.catalogue is not None)
            depths = [gate.depth for gate in with_defaults(gates) if gate.subject == Subject.OVERLAP]
            self.lists[name] = NewList(
                name=name,
                stored_name=stored_name,
                gates=gates,
                evaluation=evaluation,
                list_length=origin.list_length,
                counts=Measurement(items, max(depths)),
            )

    async def about(self, tally: Tally) -> OriginRecord:
        """Return what the manifest says of the release: its origin, and the verdicts of its gates.

        *tally* counts the rows of the release, which are all written.
        """
        live, verdicts = await self._judge_once(tally.counts, tally.popular)
        if not verdicts:
            return self._about
        against = None if live is None else live.id
        gates = GateRecord(forced=self._settings.force, against=against, verdicts=tuple(verdicts))
        about = self._about.copy()
        about["gates"] = gates.to_record()
        return about

    async def refused_by(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the names of the gates (bounds for lists) that failed, now or when writing the release was begun.

        *manifest* is that of the written release. Gates that fail now do not count if the release goes live by force.
        """
        failed = list[str]()
        if not self._is_forced(manifest):
            judged = await self._judge_once(manifest.counts, manifest.popular_keys)
            failed = [verdict.gate for verdict in judged.verdicts if not verdict.passed]
        return tuple(dict.fromkeys((*manifest.refused_by, *failed)))

    async def refusal(self, manifest: Manifest) -> str:
        """Return a sentence on why the written release may not go live, and on what to do; empty if it may."""
        live, verdicts = await self._judge_once(manifest.counts, manifest.popular_keys)
        if self._is_forced(manifest):
            return ""
        return refusal_by_gates(
            manifest.release,
            verdicts,
            arm=self._settings.arm,
            live=None if live is None else live.id,
            options=AS_FLAGS,
        )

    def _is_forced(self, manifest: Manifest) -> bool:
        """Whether this publish, and the one that began the draft, go live despite failed gates."""
        return self._settings.force and manifest.origin.gates.forced

    async def _judge_once(self, counts: Mapping[str, int], popular_keys: Sequence[str]) -> _Judged:
        """Judge all gates (bounds for lists) on all lists, and return the verdicts; later calls return the same.

        The lists are compared with the release that is live at the first call, or with that of the arm of an experiment
        that gets the new release. *counts* are the numbers of rows of the new release by kind, and *popular_keys* the
        keys of its popular lists.
        """
        if self._judged is None:
            with timed(self._steps, "gates"):
                live = (await self._reader.catalogue()).ref_of(self._settings.arm)
                verdicts = list[GateVerdict]()
                for new in self.lists.values():
                    written = _with_counted_rows(new, counts, popular_keys)
                    verdicts += await judge(written, self._reader, live)

                if live is not None:
                    columns = self._origin.item_attributes.columns
                    verdicts += await compare_names(self.lists, columns, self._reader, live)

                self._judged = _Judged(live, verdicts)
        return self._judged


def _with_counted_rows(new: NewList, counts: Mapping[str, int], popular_keys: Sequence[str]) -> NewList:
    """Return a list with its number of lists of similar items, and its segments with a popular list.

    *counts* are the numbers of rows of the release by kind, such as `item` or, of a named list, `item@basket`.
    *popular_keys* are the keys of all popular lists.
    """
    prefix = prefix_of(POPULAR, new.stored_name)
    return new._replace(
        similar_lists=count_in_list(counts, ITEM, new.stored_name),
        segments={key.removeprefix(prefix) for key in popular_keys if key.startswith(prefix)},
    )
