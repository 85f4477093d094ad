"""Whether a release is worse than another, by errors, fallbacks and slow reads of both.

A release is judged every second, so the evidence must not grow by looking often. It is a likelihood ratio: how much
better the counts are explained by a share that is worse, by the bound or more, than by the share of the live release,
averaged over the shares that the live counts leave possible (Jeffreys' prior). While both are alike, this ratio is a
martingale, and exceeds N at any of its looks in at most one of N cases (Ville's inequality).
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import exp, log, log1p
from typing import NamedTuple

from hotplate.serve.metrics import BUCKETS_S
from hotplate.serve.releases.counts import ReleaseCounts

# Minimum of lookups or reads for a judgement.
MIN_LOOKUPS = 100
# Bounds: shares of what the live release answers well.
MORE_FALLBACKS = 0.05
MORE_ERRORS = 0.01
MORE_SLOW = 0.05
# The share of good releases that each comparison may call worse: together one in 1,000.
ERRS_BY_FALLBACKS = 0.0008
ERRS_BY_ERRORS = 0.0001
ERRS_BY_SLOW = 0.0001
# Alternatives, as multiples of the bound, and their prior probabilities.
ALTERNATIVES = ((1, 0.9), (4, 0.08), (16, 0.02))
ALIKE = ((0, 1.0),)
# A share this many standard deviations below the bound is within it.
WITHIN = 2.5
# Nodes of the integral over the share of the live release, in standard deviations of its logit.
_NODES = tuple(number / 4 for number in range(-32, 33))
# Slow reads take over SLOW_S and twice this quantile of the live release.
USUAL = 0.95
SLOW_S = 0.01


class _Tally(NamedTuple):
    """How many of all lookups or reads of a release had a bad outcome."""

    bad: float
    total: float

    @property
    def share(self) -> float:
        return self.bad / self.total


class _Rule(NamedTuple):
    """A bad outcome, and when a release has too many of it."""

    outcome: str
    """In the plural and the past, as `lookups could not be read`."""

    bound: float
    """The smallest share to detect of what the reference answers well."""

    errs: float
    """The share of good releases that may be called worse."""

    tally: Callable[[ReleaseCounts], _Tally]
    """Returns how many of the lookups or reads of a release had this outcome."""


class _Comparison(NamedTuple):
    """One bad outcome of the judged release and of the reference."""

    rule: _Rule
    judged: _Tally
    reference: _Tally

    def is_worse(self, factor: float) -> bool:
        """Return whether the judged release has more bad outcomes than the reference, and not by chance.

        Two conditions must hold. The difference of the shares of bad outcomes is at least the bound, or not more than
        WITHIN standard deviations below it. And the likelihood ratio of `evidence` exceeds *factor* / `rule.errs`,
        where `errs` is the share of good releases that may be called worse.
        """
        if self.judged.total < MIN_LOOKUPS or not self.reference.total:
            return False

        loss = self.judged.share - self.reference.share
        bound = self.rule.bound * (1 - self.reference.share)  # a share of what the reference answers well
        deviation: float = (self.rule.bound * (1 - self.rule.bound) / self.judged.total) ** 0.5
        if loss <= 0 or loss < bound - WITHIN * deviation:
            return False

        needed_evidence = log(factor / self.rule.errs)
        return self.evidence > needed_evidence

    @property
    def evidence(self) -> float:
        """The logarithm of the likelihood that the judged release is worse, divided by the one that it is alike.

        If p is the share of bad outcomes of the reference, an alike release has the share p, and a worse one
        p + loss (1 - p). The loss is a multiple of the bound; ALTERNATIVES has the multiples and their probabilities.
        """
        return self._log_likelihood(ALTERNATIVES) - self._log_likelihood(ALIKE)

    def _log_likelihood(self, alternatives: Sequence[tuple[int, float]]) -> float:
        """Return the logarithm of the likelihood that the loss is one of *alternatives*.

        As p is known only by the outcomes of the reference, it is an average over p, weighted by how well it explains
        these. The integral over p is a sum over _NODES of its logit, log(p / (1 - p)), at equal distances: they are in
        standard deviations from the estimate. Half an outcome is added to each kind (Jeffreys' prior).
        """
        bad = self.judged.bad
        good = self.judged.total - bad
        reference_bad = self.reference.bad + 0.5
        reference_good = self.reference.total - self.reference.bad + 0.5

        # The estimate of the logit, and its standard deviation.
        center = log(reference_bad / reference_good)
        deviation: float = (1 / reference_bad + 1 / reference_good) ** 0.5

        terms = list[float]()  # their logarithms
        for node in _NODES:
            logit = center + node * deviation
            # The logarithms of p and 1 - p: `exp` does not overflow for either sign.
            log_bad = -log1p(exp(-logit)) if logit > 0 else logit - log1p(exp(logit))
            log_good = log_bad - logit

            # How well this p explains the outcomes of the reference; then, times that, those of the judged release.
            log_weight = reference_bad * log_bad + reference_good * log_good
            for multiple, probability in alternatives:
                loss = multiple * self.rule.bound
                log_judged_bad = log(loss + (1 - loss) * exp(log_bad))
                log_judged_good = log1p(-loss) + log_good
                terms.append(log(probability) + log_weight + bad * log_judged_bad + good * log_judged_good)

        # The logarithm of the sum; the largest term is taken out of it, as it may be too small for `exp`.
        largest = max(terms)
        return largest + log(sum(exp(term - largest) for term in terms))

    def sentence(self, baseline: str) -> str:
        """Return the comparison in words; *baseline* says whose share the second one is."""
        judged = f"{_percent(self.judged.share)} of its {self.judged.total:,.0f} {self.rule.outcome}"
        return f"{judged}, compared with {_percent(self.reference.share)} {baseline}"


def _percent(share: float) -> str:
    return "less than 0.1%" if 0 < share < 0.001 else f"{share:.1%}"


def find_regression(
    reference: ReleaseCounts, judged: ReleaseCounts, *, factor: float = 1.0, baseline: str = "in the live release"
) -> str | None:
    """Return a sentence on how a release is worse than the reference, by a bound and not by chance; None if it is not.

    *reference* and *judged* are the counts of both releases: of lookups by outcome, and of reads by their time. Called
    any number of times while the counts grow, this calls at most one of 1,000 good releases worse, or one of
    1,000 times *factor*, which multiplies the required evidence. *baseline* names the reference in the sentence.
    """
    slow_after_s = slow_s(reference.reads)
    first_slow = BUCKETS_S.index(slow_after_s) + 1  # the first bucket of reads that count as slow
    slow_reads = f"reads took more than {slow_after_s * 1000:g} ms"
    rules = (
        _Rule(
            "lookups could not be read",
            MORE_ERRORS,
            ERRS_BY_ERRORS,
            lambda counts: _Tally(counts.error, counts.lookups),
        ),
        _Rule(
            "lookups got the popular list",
            MORE_FALLBACKS,
            ERRS_BY_FALLBACKS,
            lambda counts: _Tally(counts.miss + counts.error, counts.lookups),
        ),
        _Rule(
            slow_reads,
            MORE_SLOW,
            ERRS_BY_SLOW,
            lambda counts: _Tally(sum(counts.reads[first_slow:]), sum(counts.reads)),
        ),
    )
    for rule in rules:
        comparison = _Comparison(rule, rule.tally(judged), rule.tally(reference))
        if comparison.is_worse(factor):
            return comparison.sentence(baseline)
    return None


def slow_s(reads: tuple[float, ...]) -> float:
    """Return the time over which a read is slow by those of the live release: SLOW_S, and twice the 95th percentile.

    *reads* is a histogram: the number of reads in each bucket of their time. BUCKETS_S are the upper bounds of the
    buckets, in seconds, and a last bucket has all slower reads. The result is one of the bounds: reads of the bucket
    that ends there are not all slow.
    """
    total = sum(reads)
    percentile_bucket = next((bucket for bucket, count in enumerate(accumulate(reads)) if count >= USUAL * total), 0)
    percentile_s = BUCKETS_S[min(percentile_bucket, len(BUCKETS_S) - 1)]
    slow_after_s = max(SLOW_S, 2 * percentile_s)
    return next((bound for bound in BUCKETS_S if bound >= slow_after_s), BUCKETS_S[-1])
