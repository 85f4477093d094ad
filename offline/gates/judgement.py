"""The gates of a release: its lists are measured while they are written, and judged once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hotplate.offline.gates.bounds import bounds_of, check, check_names, gates_of
from hotplate.offline.gates.table import DEPTH, KINDS, Gate, Need, NewList, evaluation_of
from hotplate.offline.measurement import COMPARED_USERS, SAMPLED_USERS, Measurement, read_live
from hotplate.offline.options import PublishSettings
from hotplate.offline.release_status import PLACES, activation_command
from hotplate.offline.sources import NamedLists, Source, sources_by_name, stored_names
from hotplate.offline.steps import timed
from hotplate.stores.catalogue import Arm, ReleaseId, ReleaseRef
from hotplate.stores.encoding import ITEM, POPULAR, prefix_of
from hotplate.stores.errors import ReleaseCorrupt, ReleaseNotFound
from hotplate.stores.manifest import Manifest, Tally, count_in_list
from hotplate.stores.origin import GateRecord, GateVerdict, Origin, OriginRecord, failures
from hotplate.stores.store import Reader
from hotplate.stores.verification import load_manifest

# Gates of each list over a live release, against accidents, unless the user gives others of their kinds.
DEFAULTS = tuple(kind.gate(kind.default, kind.depth) for kind in KINDS.values() if kind.default is not None)

# Names of options in remedies: of a command, and in a pipeline.
AS_FLAGS = {
    "lists": "--list NAME=SOURCE",
    "attributes": "--item-attributes",
    "kind": "--attribute NAME=number, text, date or list",
    "show": "--show",
    "gate": "--gate {name}=0.1",
}
AS_KEYS = {
    "lists": "a table [lists.NAME]",
    "attributes": "item_attributes in [publish]",
    "kind": "attribute in [publish]",
    "show": "show in [publish]",
    "gate": "{name} = 0.1 in [gates]",
}


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
        self._reader = reader
        self._steps = steps
        self.lists = dict[str, NewList]()
        self._record: GateRecord | None = None

        bounds = bounds_of(settings)
        release_origin = Origin.of(self._about)
        sources = sources_by_name(source)
        check_names(bounds, sources)
        for name, stored_name in stored_names(sources).items():
            gates = gates_of(bounds, name)
            items = sources[name].items()

            # The origin of the default list is that of the release.
            origin = release_origin.lists[name] if stored_name else release_origin
            evaluation = evaluation_of(origin)
            metrics = () if evaluation is None else evaluation.metrics
            check(gates, metrics, knows_catalogue=items.catalogue is not None)
            depths = [gate.depth for gate in gates if gate.kind.needs is Need.LIVE_LISTS]
            self.lists[name] = NewList(
                name=name,
                stored_name=stored_name,
                gates=gates,
                evaluation=evaluation,
                list_length=origin.list_length,
                counts=Measurement(items, max([DEPTH, *depths])),
                siblings=sources.keys(),
                attributes=release_origin.item_attributes,
            )

    async def about(self, tally: Tally) -> OriginRecord:
        """Return what the manifest says of the release: its origin, and the verdicts of its gates.

        *tally* counts the rows of the release, which are all written.
        """
        about = self._about.copy()
        gates = await self._judge_once(tally.counts, tally.popular)
        if gates.verdicts:
            about["gates"] = gates.to_record()
        return about

    async def refused_by(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the names of the gates (bounds for lists) that failed, now or when writing the release was begun.

        *manifest* is that of the written release. Gates that fail now do not count if the release goes live by force.
        """
        gates = await self._judge_written(manifest)
        return tuple(dict.fromkeys((*manifest.refused_by, *gates.refusing)))

    async def refusal(self, manifest: Manifest) -> str:
        """Return a sentence on why the written release may not go live, and on what to do; empty if it may."""
        gates = await self._judge_written(manifest)
        if gates.forced:
            return ""
        return refusal_by_gates(manifest.release, gates, self._settings.arm, AS_FLAGS)

    async def _judge_written(self, manifest: Manifest) -> GateRecord:
        """Return the verdicts, forced if both this publish and the one that began the draft are."""
        gates = await self._judge_once(manifest.counts, manifest.popular_keys)
        return replace(gates, forced=gates.forced and manifest.origin.gates.forced)

    async def _judge_once(self, counts: Mapping[str, int], popular_keys: Sequence[str]) -> GateRecord:
        """Judge all gates (bounds for lists) on all lists, and return the verdicts; later calls return the same.

        The lists are compared with the release that is live at the first call, or with that of the arm of an experiment
        that gets the new release. *counts* are the numbers of rows of the new release by kind, and *popular_keys* the
        keys of its popular lists.
        """
        if self._record is None:
            with timed(self._steps, "gates"):
                live = (await self._reader.catalogue()).ref_of(self._settings.arm)
                verdicts = list[GateVerdict]()
                for new in self.lists.values():
                    written = _with_counted_rows(new, counts, popular_keys)
                    verdicts += await _judge(written, self._reader, live)

            against = None if live is None else live.id
            self._record = GateRecord(forced=self._settings.force, against=against, verdicts=tuple(verdicts))
        return self._record


def refusal_by_gates(release: ReleaseId, gates: GateRecord, arm: Arm, options: Mapping[str, str]) -> str:
    """Return a sentence on the *gates* (bounds for lists) that keep *release* from going live, and on what to do.

    Empty if all passed. *arm* is the arm of an experiment that it was meant for. *options* are the names of options in
    the advice: AS_FLAGS or AS_KEYS.
    """
    failed = [verdict for verdict in gates.verdicts if not verdict.passed]
    if not failed:
        return ""
    remedies = dict.fromkeys(_remedy(verdict, options) for verdict in failed)  # in order, without repeats
    # In the past tense, as the summary of a run is printed again later.
    kept = "" if gates.against is None else f", and {gates.against} stayed {PLACES[arm]}"
    return (
        f"{failures(failed)}; release {release} was written and is not {PLACES[arm]}{kept}; {''.join(remedies)}"
        f"only if it may go live as it is: {activation_command(release, arm, force=True)}"
    )


def _remedy(verdict: GateVerdict, options: Mapping[str, str]) -> str:
    """Return a sentence on how to mend a failed verdict, with a semicolon; empty if no remedy is known."""
    _, _, name = verdict.gate.rpartition(":")  # a verdict on a named list has the gate `basket:coverage`
    kind = KINDS.get(name)
    if kind is None or not kind.remedy:
        return ""
    # A remedy names options by their role, such as {gate}, and the text of an option may name the gate.
    return kind.remedy.format(**options).format(name=verdict.gate) + "; "


async def _judge(new: NewList, reader: Reader, live: ReleaseRef | None) -> list[GateVerdict]:
    """Judge the gates of the list *new*, and return a verdict for each, in order.

    If a release is *live*, read from *reader*, those in DEFAULTS are judged, too. Gates that compare with it pass
    without one, and without a list of the same name. If it is damaged, only those in DEFAULTS pass. A verdict has the
    name of its gate, with the name of the list before it (`basket:coverage`) unless it is the default list. Raises
    StoreError.
    """
    gates = new.gates
    is_damaged = False
    reason = "nothing is live yet"
    if live is not None:
        own = {gate.subject for gate in gates}
        gates = [*gates, *(gate for gate in DEFAULTS if gate.subject not in own)]
        try:
            new, reason = await _with_live_list(new, gates, reader, live)
        except (ReleaseCorrupt, ReleaseNotFound) as error:
            is_damaged = True
            reason = f"the live release {live.id} cannot be read ({error})"

    prefix = "" if new.is_default else f"{new.name}:"
    verdicts = list[GateVerdict]()
    for gate in gates:
        if gate.kind.is_compared and reason:
            verdict = gate.verdict(None, reason, passed=not is_damaged or gate in DEFAULTS)
        else:
            verdict = gate.kind.judge(gate, new)

        # The names in a release are compared once, with the default list, and mentioned only if some are missing.
        is_of_names = gate.kind.needs is Need.LIVE_NAMES
        if not is_of_names or (new.is_default and not verdict.passed):
            verdicts.append(replace(verdict, gate=prefix + gate.name))
    return verdicts


async def _with_live_list(new: NewList, gates: Sequence[Gate], reader: Reader, live: ReleaseRef) -> tuple[NewList, str]:
    """Return a list with that of the release *live* to compare it with, or the reason why there is none.

    That is the list of the same name, or for the default list the live default list. Raises ReleaseCorrupt,
    ReleaseNotFound and StoreError.
    """
    manifest = await load_manifest(reader, live)

    # The name of the live list in its keys: empty for the default list, None if there is none.
    stored_name = manifest.stored_name(new.name)
    if stored_name is None and new.is_default:
        stored_name = ""
    if stored_name is None:
        return new, f"the live release {live.id} has no list {new.name}"

    # A bound on a share of a user's items needs a more precise estimate than a report of it.
    is_precise = any(gate.depth and gate.kind.is_compared and not gate.only_reports for gate in gates)
    sampled = new.counts.sample(SAMPLED_USERS if is_precise else COMPARED_USERS)
    return new._replace(live=await read_live(reader, live, manifest, sampled, stored_name)), ""


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
