"""Intervals and tests of equivalence: coverage, closed forms, and the mistakes they must not make."""

import numpy as np
import pytest
from scipy import stats

from jaxsynth.errors import InputError
from jaxsynth.metrics import inference


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_intervals_cover_the_mean_as_often_as_they_say(method):
    rng = np.random.default_rng(0)
    trials = [
        inference.bootstrap_interval(rng.normal(0.7, 0.2, 40), level=0.9, num=400, seed=i, method=method)
        for i in range(300)
    ]
    covered = np.mean([one.low <= 0.7 <= one.high for one in trials])
    assert 0.84 < covered < 0.94  # 0.9, a little less for 40 images; standard error 0.017
    width = np.mean([one.high - one.low for one in trials])
    assert width == pytest.approx(2 * stats.norm.ppf(0.95) * 0.2 / np.sqrt(40), rel=0.05)


def test_seeds_of_an_image_are_resampled_together():
    rng = np.random.default_rng(1)
    images = rng.normal(0.5, 0.2, 30)
    one = inference.bootstrap_interval(images)
    # Copies of the same images know no more; independent images would narrow the interval by sqrt(3).
    three = inference.bootstrap_interval(np.stack([images] * 3))
    assert (three.estimate, three.low, three.high) == pytest.approx((one.estimate, one.low, one.high), abs=0.01)
    shifted = inference.bootstrap_interval(np.stack([images - 0.1, images + 0.1]))
    assert (shifted.low, shifted.high) == pytest.approx((one.low, one.high), abs=0.01)
    median = inference.bootstrap_interval(images, np.median)
    assert median.estimate == np.median(images) and median.low < median.estimate < median.high
    again = inference.bootstrap_interval(images)
    assert again == one and inference.bootstrap_interval(images, seed=1) != one


def test_ratios_are_pooled():
    below = np.array([1.0, 10.0, 100.0, 0.0])
    values = np.stack([0.5 * below, below])
    assert inference.bootstrap_interval(values, inference.ratio).estimate == 0.5
    # Constant ratios leave nothing uncertain, but for draws of nothing else than the image without cells.
    found = inference.bootstrap_interval(values[:, :3], inference.ratio)
    assert (found.low, found.high) == (0.5, 0.5)
    values[0, 2] = 0
    assert inference.bootstrap_interval(values, inference.ratio).estimate == pytest.approx(5.5 / 111)


def test_one_image_and_equal_images():
    found = inference.bootstrap_interval([0.3])
    assert found.estimate == 0.3 and np.isnan([found.low, found.high]).all()
    for method in ("percentile", "BCa"):
        found = inference.bootstrap_interval([0.3] * 5, method=method)
        assert found == inference.Interval(*[pytest.approx(0.3)] * 3)


def test_paired_differences_know_the_images():
    rng = np.random.default_rng(2)
    images, noise = rng.normal(0.5, 0.2, 25), rng.normal(0, 0.01, 25)
    found = inference.paired_difference(images + noise, images)
    assert found.estimate == pytest.approx(noise.mean()) and found.high - found.low < 0.02
    two = inference.paired_difference(np.stack([images + noise, images - noise]), images[None])
    assert two.estimate == pytest.approx(0, abs=1e-12)


def test_tost_has_its_closed_form():
    rng = np.random.default_rng(3)
    a = rng.normal(0.8, 0.1, 20)
    b = a + rng.normal(0.01, 0.04, 20)
    d = a - b
    error = d.std(ddof=1) / np.sqrt(20)
    found = inference.equivalence(a, b, 0.05)
    t = min((d.mean() + 0.05) / error, (0.05 - d.mean()) / error)
    assert found.p_value == pytest.approx(stats.t.sf(t, 19))
    half = stats.t.ppf(0.95, 19) * error
    assert (found.low, found.high) == pytest.approx((d.mean() - half, d.mean() + half))
    assert found.difference == pytest.approx(d.mean()) and found.num == 20 and found.margin == 0.05
    lower = inference.noninferiority(a, b, 0.05)
    assert lower.p_value == pytest.approx(stats.t.sf((d.mean() + 0.05) / error, 19))


@pytest.mark.parametrize("paired", [True, False])
def test_success_and_interval_say_the_same(paired):
    rng = np.random.default_rng(4)
    verdicts = set()
    for _ in range(40):
        a, b = rng.normal(0.6, 0.05, 15), rng.normal(0.6 + rng.uniform(-0.06, 0.06), 0.05, 15)
        found = inference.equivalence(a, b, 0.05, paired=paired)
        assert found.shown == (-0.05 < found.low and found.high < 0.05)
        better = inference.noninferiority(a, b, 0.05, paired=paired)
        assert better.shown == (better.low > -0.05) and (better.shown or not found.shown)
        verdicts.add(found.shown)
    assert verdicts == {True, False}


def test_unpaired_is_welchs():
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.6, 0.05, 15), rng.normal(0.62, 0.15, 40)
    error = np.sqrt(a.var(ddof=1) / 15 + b.var(ddof=1) / 40)
    free = error**4 / ((a.var(ddof=1) / 15) ** 2 / 14 + (b.var(ddof=1) / 40) ** 2 / 39)
    found = inference.equivalence(a, b, 0.1, paired=False)
    difference = a.mean() - b.mean()
    assert found.p_value == pytest.approx(stats.t.sf((0.1 - abs(difference)) / error, free))
    assert found.high == pytest.approx(difference + stats.t.ppf(0.95, free) * error)


def test_wrongly_claims_equivalence_no_more_often_than_alpha():
    rng = np.random.default_rng(6)
    # The true difference is the margin itself: the hardest case of things that are not equivalent.
    claims = [inference.equivalence(rng.normal(0.05, 0.05, 25), np.zeros(25), 0.05).shown for _ in range(600)]
    assert 0.02 < np.mean(claims) < 0.08


def test_is_no_rank_sum_test_read_backwards():
    rng = np.random.default_rng(7)
    # Few noisy images: no significant difference, and no evidence that there is none.
    a, b = rng.normal(0.6, 0.2, 5), rng.normal(0.7, 0.2, 5)
    assert stats.ranksums(a, b).pvalue > 0.05 and not inference.equivalence(a, b, 0.05, paired=False).shown
    # Many images: a difference that is certain, and too small to matter.
    a, b = rng.normal(0.6, 0.02, 2000), rng.normal(0.605, 0.02, 2000)
    assert stats.ranksums(a, b).pvalue < 1e-4 and inference.equivalence(a, b, 0.05, paired=False).shown


def test_identical_is_equivalent_and_a_large_shift_is_not():
    x = np.random.default_rng(8).uniform(size=12)
    for paired in (True, False):
        same, shifted = (inference.equivalence(x + off, x, 0.3, paired=paired) for off in (0.0, 0.5))
        assert same.difference == 0 and not shifted.shown and shifted.p_value > 0.9
        assert same.shown == (paired or same.high < 0.3)
    assert inference.equivalence(x, x, 1e-6).p_value == 0.0
    assert inference.equivalence(np.ones(3), np.ones(3), 0.1, paired=False).shown
    assert not inference.equivalence(x + 0.5, x, 0.3).shown
    assert inference.noninferiority(x + 0.5, x, 0.0).shown and not inference.noninferiority(x - 0.5, x, 0.1).shown
    assert inference.noninferiority(0.96 * x + 0.01, 0.95 * x, 0).shown
    assert not inference.noninferiority(0.94 * x, 0.95 * x, 0).shown


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inference.bootstrap_interval([]), "values"),
        (lambda: inference.bootstrap_interval([0.5, np.nan]), "1 of them not finite"),
        (lambda: inference.bootstrap_interval([0.5, 0.6], level=95), "level 95"),
        (lambda: inference.bootstrap_interval([0.5, 0.6], method="t"), "method 't'"),
        (lambda: inference.equivalence([0.5, 0.6], [0.5, 0.6], 0), "margin"),
        (lambda: inference.noninferiority([0.5, 0.6], [0.5, 0.6], -1), "margin"),
        (lambda: inference.equivalence([0.5, 0.6], [0.5, 0.6, 0.7], 0.1), "b: .*2 images of a, got 3"),
        (lambda: inference.equivalence([0.5], [0.6], 0.1), "a: .*two or more"),
        (lambda: inference.equivalence([0.5, 0.6], [0.5, np.inf], 0.1), "b: .*1 of them"),
        (lambda: inference.equivalence([0.5, 0.6], [0.5, 0.6], 0.1, alpha=0.6), "alpha"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
