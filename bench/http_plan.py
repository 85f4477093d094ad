"""The plan of a measurement over HTTP, from its options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hotplate.bench.errors import BenchMisused
from hotplate.bench.lists import first_users, popular_complaint
from hotplate.bench.loadgen.load import (
    KEY,
    Gets,
    InTurn,
    KeyDraw,
    Load,
    Posts,
    RequestKeys,
    Uniform,
    Zipf,
)
from hotplate.bench.loadgen.result import Result
from hotplate.bench.objective import Objective, parse_objective
from hotplate.bench.options import (
    FIND_MAX_OBJECTIVE,
    MAX_POPULAR,
    MAX_USERS,
    HttpOptions,
    parse_rate,
    parse_seconds,
    parse_share,
    require_positive,
)
from hotplate.bench.verdict import NOT_LISTS, Finding, Gravity
from hotplate.stores.connect import run_on
from hotplate.stores.store import Store
from hotplate.stores.urls import redacted

# Responses of a run to compare with the store.
COMPARED = 500
COMPARED_BATCHES = 64
SPARE = 1.25  # unknown users may exceed their share
HINT = "; give --store URL, so that its users are requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPlan:
    """Parsed options.

    With `find_max`, rounds run at the highest rate inside the objective. `batches` are POSTs of each size, of
    which the objective only bounds the errors. `keys` is None if the path names no user.
    """

    options: HttpOptions
    load: Load
    warmup_s: float
    objective: Objective
    batches: Sequence[Posts]
    keys: RequestKeys | None
    allowed_popular: float

    def popular_lists(self, results: Sequence[Result]) -> list[Finding]:
        """Return a finding if too many lists were popular ones."""
        complaint = popular_complaint(results, self.allowed_popular)
        if complaint is None:
            return []
        return [Finding(Gravity.POPULAR, complaint + ("" if self.options.store else HINT), NOT_LISTS)]


def make_plan(options: HttpOptions) -> HttpPlan:
    """Parse the options of a measurement over HTTP.

    The share of popular lists (the fallback for users without own ones) that is allowed grows with that of unknown
    users. Raises BenchMisused for invalid options, StoreError if the users cannot be read from a store.
    """
    _require_at_most_one({"--keys-file": options.keys_file, "--users": options.users})
    _require_at_most_one({"--find-max": options.find_max or None, "--batch": options.batch})
    if options.score and not options.batch:
        raise BenchMisused("--score needs the sizes of batches, as --batch 50,200,1000,2000")
    require_positive({"--repeat": options.repeat})

    keys = parse_keys(options) if options.batch or KEY in options.path else None
    allowed_popular = MAX_POPULAR if options.allow_popular is None else parse_share(options.allow_popular)
    if keys is not None:
        allowed_popular += SPARE * keys.unknown

    return HttpPlan(
        options=options,
        load=_load(options, keys),
        warmup_s=parse_seconds(options.warmup),
        objective=_objective(options),
        batches=_batches(options, keys),
        keys=keys,
        allowed_popular=min(1.0, allowed_popular),
    )


def _load(options: HttpOptions, keys: RequestKeys | None) -> Load:
    """Return the requests of a round, and their rate in requests/s.

    *keys* has the users to request; None for a path without users. With a store, a sample of the responses is
    kept, to be compared with its lists.
    """
    samples = 0
    if options.store and keys is not None:
        samples = COMPARED_BATCHES if options.batch else COMPARED

    return Load(
        url=options.url,
        requests=Gets(options.path, keys),
        rate=parse_rate(options.rate),
        seed=1 if options.poisson else None,
        duration_s=parse_seconds(options.duration),
        connections=options.connections,
        headers=_parse_headers(options.headers),
        timeout_s=parse_seconds(options.timeout),
        samples=samples,
    )


def _objective(options: HttpOptions) -> Objective:
    if options.slo is not None:
        return parse_objective(options.slo)
    return parse_objective(FIND_MAX_OBJECTIVE) if options.find_max else Objective({})


def _batches(options: HttpOptions, keys: RequestKeys | None) -> list[Posts]:
    """Return the POSTs of a sweep, one for each size of batches; none without `--batch`."""
    if not options.batch or keys is None:
        return []
    return [Posts(keys, size, score=options.score) for size in _parse_batch_sizes(options.batch)]


def parse_keys(options: HttpOptions) -> RequestKeys:
    """Return the ids of the users to request, and how they are drawn.

    The ids are the lines of a file, drawn in turn, or the numbers from 0 on, or the users of a store's live release,
    both drawn at random. `--zipf` draws some more often than others. Raises BenchMisused if no option names users, or
    the file cannot be read, StoreError if the store cannot be read.
    """
    default_draw: KeyDraw = Uniform()
    if options.keys_file is not None:
        ids: Sequence[str] = _read_ids(options.keys_file)
        default_draw = InTurn()
    elif options.users is not None:
        ids = [str(number) for number in range(options.users)]
    elif options.store is not None:
        ids = run_on(options.store, partial(_users_in, options.store))
    else:
        raise BenchMisused("give the users to request: --users N, --keys-file FILE or --store URL")

    draw = default_draw if options.zipf is None else Zipf(options.zipf)
    return RequestKeys(tuple(ids), draw, parse_share(options.unknown))


def _read_ids(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise BenchMisused(f"--keys-file: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BenchMisused(f"--keys-file: {path} is not UTF-8: {error}") from error
    return [line for line in text.splitlines() if line]


async def _users_in(url: str, store: Store) -> list[str]:
    """Return the first MAX_USERS users of the release that is live in the store at *url*."""
    live = (await store.catalogue()).live_ref
    if live is None:
        raise BenchMisused(f"nothing is live in {redacted(url)}, so it has no users to request lists for")
    return await first_users(store, live, MAX_USERS)


def _parse_headers(texts: Sequence[str]) -> Mapping[str, str]:
    """Return HTTP headers by name, each from a text as NAME:VALUE; raises BenchMisused."""
    pairs = [header.partition(":") for header in texts]
    if any(not colon for _, colon, _ in pairs):
        raise BenchMisused("a header is written NAME:VALUE")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _parse_batch_sizes(text: str) -> list[int]:
    """Return numbers of users in a batch, from a text such as 1,50,200; raises BenchMisused."""
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        raise BenchMisused(f"sizes of batch are whole numbers, as 1,50,200, not {text!r}") from None
    if min(sizes) < 1:
        raise BenchMisused("a batch has one user or more")
    return sizes


def _require_at_most_one(flags: Mapping[str, object]) -> None:
    names = [name for name, value in flags.items() if value is not None]
    if len(names) > 1:
        raise BenchMisused(f"{' and '.join(names)} exclude each other")
