"""How sure a score is: bootstrap intervals over images, tests of equivalence and of non-inferiority.

Images are what is drawn at random, not cells: those of one image are alike. Runs of several seeds on the same images
are resampled together. A test that finds no difference shows nothing but that there were too few images, and one that
finds a difference (a small p of a rank-sum test) shows the opposite of "comparable". To claim that two things are
alike, say beforehand how much they may differ and test that (`equivalence`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxsynth.errors import InputError

BATCH = 2**21  # values resampled at once


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval; NaN bounds where one image tells nothing of the spread."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A test of whether a differs from b by less than a margin.

    Attributes:
      difference: mean of a - mean of b.
      low, high: confidence interval of the difference, two-sided at 1 - 2 alpha: the test succeeds where it lies inside
        the margin.
      p_value: of the hypothesis that they differ by the margin or more.
      shown: p_value < alpha.
      margin, alpha: as given.
      num: images (of the smaller set where unpaired).
    """

    difference: float
    low: float
    high: float
    p_value: float
    shown: bool
    margin: float
    alpha: float
    num: int


def ratio(values: np.ndarray, axis) -> np.ndarray:
    """A statistic for `bootstrap_interval` of values [2, N], numerators and denominators: sum over sum, pooled over
    images of different size; 0 where the denominators are."""
    above, below = (np.sum(part, -1) for part in values)
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below > 0)


def bootstrap_interval(
    values: np.ndarray,
    statistic: Callable = np.mean,
    level: float = 0.95,
    num: int = 10_000,
    seed: int = 0,
    method: str = "percentile",
) -> Interval:
    """Bootstrap confidence interval over images.

    Args:
      values: [N], one per image, or [K, N]: K values of each image, as of K seeds or of a numerator and a denominator.
        Images are drawn with replacement, all K values of one together.
      statistic: called as statistic(values [..., N], axis=-1), or statistic(values [K, ..., N], axis=(0, -1)).
      level: of confidence, in (0, 1).
      num: resamples.
      seed: of the resamples.
      method: "percentile", or "BCa", bias-corrected and accelerated (Efron 1987), better with skewed values.

    Returns:
      The interval; without bounds (NaN) where N is 1.

    Raises:
      InputError: values of another rank, none, not finite; a level, number or method out of range.
    """
    from scipy import stats

    values = np.asarray(values, np.float64)
    if values.ndim not in (1, 2) or not values.size or not np.isfinite(values).all():
        raise InputError(f"values: expected finite numbers [N] or [K, N], got {values.shape}, {_not_finite(values)}")
    if not 0 < level < 1 or num < 1 or method not in ("percentile", "BCa"):
        told = f"level {level}, num {num}, method {method!r}"
        raise InputError(f"expected level in (0, 1), num of 1 or more, method percentile or BCa; got {told}")
    rows = values[None] if values.ndim == 1 else values
    estimate = float(statistic(values, axis=-1 if values.ndim == 1 else (0, -1)))
    if values.shape[-1] < 2:
        return Interval(estimate, np.nan, np.nan)
    if not np.ptp(values, axis=-1).any():
        return Interval(estimate, estimate, estimate)

    def pooled(*resampled, axis):
        if values.ndim == 1:
            return statistic(resampled[0], axis=axis)
        return statistic(np.stack(resampled), axis=(0, axis))

    batch = max(1, BATCH // values.size)
    found = stats.bootstrap(
        rows, pooled, n_resamples=num, batch=batch, vectorized=True, paired=len(rows) > 1, axis=-1,
        confidence_level=level, method=method, rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = (float(end) for end in found.confidence_interval)
    return Interval(estimate, low, high)


def paired_difference(a: np.ndarray, b: np.ndarray, **options) -> Interval:
    """`bootstrap_interval` of the mean of a - b, both of the same images: [N], or [K, N] of K seeds, averaged first."""
    return bootstrap_interval(np.subtract(*_samples(a, b, paired=True)), **options)


def equivalence(a: np.ndarray, b: np.ndarray, margin: float, *, paired: bool = True, alpha: float = 0.05) -> Comparison:
    """Whether the means of a and b differ by less than the margin: two one-sided t-tests (TOST, Schuirmann 1987).

    Args:
      a, b: [N] one value per image, or [K, N] of K seeds, which are averaged first: the images are the sample.
      margin: > 0, in the values' unit, to be chosen before looking at the values.
      paired: value i of both is of the same image; otherwise Welch's test.
      alpha: level of the test.

    Raises:
      InputError: fewer than two images, paired sets of different length, a margin that is not positive.
    """
    if not 0 < margin < np.inf:
        raise InputError(f"margin: expected a positive number, got {margin}")
    above, low = _one_sided(a, b, -margin, paired, alpha)
    below, high = _one_sided(b, a, -margin, paired, alpha)
    return _comparison(a, b, (low, 0.0 - high), max(above, below), margin, alpha, paired)


def noninferiority(
    a: np.ndarray, b: np.ndarray, margin: float, *, paired: bool = True, alpha: float = 0.05
) -> Comparison:
    """Whether the mean of a is above that of b less the margin, by a one-sided t-test; margin 0 tests superiority.

    "At least 95 % of b" is noninferiority(a, 0.95 * b, 0). Arguments as in `equivalence`, margin >= 0; only `low` of
    the interval matters.
    """
    if not 0 <= margin < np.inf:
        raise InputError(f"margin: expected 0 or more, got {margin}")
    p_value, low = _one_sided(a, b, -margin, paired, alpha)
    _, high = _one_sided(b, a, -margin, paired, alpha)
    return _comparison(a, b, (low, 0.0 - high), p_value, margin, alpha, paired)


def _comparison(a, b, ends, p_value, margin, alpha, paired) -> Comparison:
    a, b = _samples(a, b, paired)
    shown = bool(p_value < alpha)
    num = min(len(a), len(b))
    return Comparison(float(a.mean() - b.mean()), *ends, p_value, shown, float(margin), alpha, num)


def _one_sided(a, b, bound: float, paired: bool, alpha: float) -> tuple[float, float]:
    """(p of mean(a) - mean(b) <= bound, lower confidence limit of the difference at 1 - alpha)."""
    from scipy import stats

    a, b = _samples(a, b, paired)
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha: expected a number in (0, 0.5), got {alpha}")
    difference = a.mean() - b.mean()
    spread = np.ptp(a - b) if paired else max(np.ptp(a), np.ptp(b))
    if spread <= 1e-12 * max(np.abs(a).max(), np.abs(b).max()):  # the difference is known, and t-tests divide by zero
        return float(difference <= bound), float(difference)
    if paired:
        found = stats.ttest_1samp(a - b, bound, alternative="greater")
        low = found.confidence_interval(1 - alpha).low
    else:
        found = stats.ttest_ind(a - bound, b, equal_var=False, alternative="greater")
        low = found.confidence_interval(1 - alpha).low + bound
    return float(found.pvalue), float(low)


def _samples(a, b, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    """Both as one value per image, seeds averaged."""
    found = []
    for name, values in (("a", a), ("b", b)):
        values = np.asarray(values, np.float64)
        if values.ndim not in (1, 2) or values.shape[-1] < 2 or not np.isfinite(values).all():
            told = f"{values.shape}, {_not_finite(values)}"
            raise InputError(f"{name}: expected finite values [N] or [K, N] of two or more images, got {told}")
        found.append(values if values.ndim == 1 else values.mean(0))
    if paired and len(found[0]) != len(found[1]):
        raise InputError(f"b: expected a value for each of the {len(found[0])} images of a, got {len(found[1])}")
    return found[0], found[1]


def _not_finite(values: np.ndarray) -> str:
    return f"{np.count_nonzero(~np.isfinite(values))} of them not finite"
