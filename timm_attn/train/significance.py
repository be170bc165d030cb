"""Whether two networks differ: the interval of the difference between their means over the seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Difference of a network's mean to that of the reference.

    Attributes:
        mean: The difference.
        low: Lower end of its interval, None where there are too few seeds for one.
        high: Upper end.
    """

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def differs(self) -> bool | None:
        """Whether the interval excludes zero; None where there is no interval, so that nothing can be claimed."""
        return None if self.low is None or self.high is None else not self.low <= 0 <= self.high

    @property
    def words(self) -> str:
        """The verdict: higher, lower, no clear difference, or too few seeds to tell."""
        if self.differs is None:
            return 'too few seeds to tell'
        return ('higher' if self.mean > 0 else 'lower') if self.differs else 'no clear difference'


def difference(values: Sequence[float], reference: Sequence[float], step: float = 0.0) -> Difference:
    """Welch's interval (95 %) of the difference between two means.

    Runs with one seed are not paired: networks of other shapes draw other weights from it, and differ no less than runs
    with two seeds. Welch's interval does not assume that the networks vary equally. With unequal numbers of seeds its
    degrees of freedom are those of the smaller one, which is on the safe side.

    Args:
        values: A result of each seed.
        reference: Those of the reference.
        step: Step between possible results, such as 1 / n for a share of n images. Few seeds may agree by chance to
            within a step; the variance counts as no smaller than that of rounding to steps.

    Returns:
        The difference, without an interval if either has fewer than two seeds.
    """
    mean = statistics.fmean(values) - statistics.fmean(reference)
    if min(len(values), len(reference)) < 2:
        return Difference(mean)
    from scipy.stats import t

    rounding = step**2 / 12
    parts = [max(statistics.variance(v), rounding) / len(v) for v in (values, reference)]
    if not sum(parts):
        return Difference(mean, mean, mean)
    if len(values) == len(reference):  # Welch and Satterthwaite's degrees of freedom
        freedom = sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (values, reference), strict=True))
    else:  # theirs tell identical networks apart too often where one of them has two or three seeds
        freedom = min(len(values), len(reference)) - 1
    half = float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(sum(parts))
    return Difference(mean, mean - half, mean + half)
