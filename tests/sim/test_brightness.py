"""Brightness of cells: drawn as measured, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxsynth.data import intensity, volumes
from jaxsynth.errors import InputError
from jaxsynth.sim import brightness, sketch

RNG = np.random.default_rng(0)


def test_a_background_goes_with_its_images_table():
    tables, background = jnp.array([[0.0, 0.1], [0.9, 1.0]]), jnp.array([-0.25, 0.5])
    found = set()
    for number in range(12):
        key = jax.random.key(number)
        table, ground = brightness.of_one_image(key, tables, background)
        np.testing.assert_array_equal(brightness.draw(key, tables, 5), brightness.draw(key, table, 5))
        cells = np.asarray(brightness.of_ranks(key, 5, tables, background))
        row = int(cells[0] > 0)
        assert cells[0] == background[row] and tables[row, 0] <= cells[1:].min() <= cells[1:].max() <= tables[row, 1]
        found |= {(row, "of ranks"), (int(ground > 0), "of one image")}
        assert (table == tables[int(ground > 0)]).all()
    assert len(found) == 4
    assert brightness.of_ranks(jax.random.key(0), 5, tables)[0] == 0  # the usual one


def test_uniform_draws_are_uniform():
    draw = jax.jit(jax.vmap(lambda key: brightness.draw(key, brightness.uniform(0.2, 0.7), 500)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 20))).ravel()
    assert drawn.dtype == np.float32
    assert stats.kstest(drawn, stats.uniform(0.2, 0.5).cdf).pvalue > 1e-3
    np.testing.assert_allclose(brightness.draw(jax.random.key(0), brightness.uniform(0.4, 0.4), 5), 0.4, rtol=1e-6)


def test_draws_follow_the_measured_distribution():
    """Two groups of cells and a tail: the greys drawn through a sketch are distributed as the cells' means."""
    means = np.concatenate([RNG.normal(-0.5, 0.05, 300), RNG.normal(0.2, 0.1, 150), [0.8, 0.95]])
    fitted = brightness.fit(means, -0.9)
    assert fitted.levels == (-0.9, means.min(), means.max())
    assert (np.diff(fitted.table) >= 0).all() and fitted.table[0] == 0 and fitted.table[-1] == 1
    num = 400
    labels = jnp.arange(num + 1)

    @jax.jit
    @jax.vmap
    def greys(key):
        relative = brightness.draw(key, fitted.table, num)
        return sketch.sketch(labels, jnp.pad(relative, (1, 0)), levels=fitted.levels)

    drawn = np.asarray(greys(jax.random.split(jax.random.key(0), 50)))
    assert (drawn[:, 0] == np.float32(-0.9)).all()
    # 20000 draws against the measured sample; the table blurs steps of less than 1 / 257.
    cells = drawn[:, 1:].ravel()
    at = np.sort(means)
    share = np.searchsorted(np.sort(cells), at, side="right") / cells.size
    assert np.abs(share - (np.arange(at.size) + 0.5) / at.size).max() < 0.015
    assert cells.min() >= means.min() - 1e-6 and cells.max() <= means.max() + 1e-6


def test_sketches_of_a_fit_have_the_images_cell_means():
    """Round trip: images drawn from the table, fitted again, give the table and the levels back."""
    truth = brightness.fit(np.linspace(-0.6, 0.9, 50) ** 3, -0.8)
    labels = np.repeat(np.arange(81).reshape(9, 9), 4, 0).repeat(4, 1)
    pairs = []
    for seed in range(6):
        relative = jnp.pad(brightness.draw(jax.random.key(seed), truth.table, 80), (1, 0))
        # Ids as in files: large, sparse.
        ids = np.where(labels, 1000 + 7 * labels, 0)
        pairs.append((ids, np.asarray(sketch.sketch(jnp.asarray(labels), relative, levels=truth.levels))))
    found = brightness.fit_images(iter(pairs))
    np.testing.assert_allclose(found.levels, truth.levels, atol=0.02)
    greys = [np.asarray(b.table) * (b.levels[2] - b.levels[1]) + b.levels[1] for b in (found, truth)]
    assert np.abs(greys[0] - greys[1]).mean() < 0.03


def test_one_cell_and_labels_without_background():
    fitted = brightness.fit(np.array([0.3]), -1.0)
    assert fitted.levels == (-1.0, 0.3, 0.3)
    np.testing.assert_array_equal(brightness.draw(jax.random.key(0), fitted.table, 3), 0)
    full = brightness.fit_images([(np.array([[5, 5], [9, 9]]), np.array([[0.1, 0.3], [0.5, 0.7]]))])
    np.testing.assert_allclose(full.levels, (0.1, 0.2, 0.6), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: brightness.fit(np.zeros(0), 0.0), "at least one cell; got none"),
        (lambda: brightness.fit(np.array([0.1, np.nan]), 0.0), "greys in"),
        (lambda: brightness.fit(np.array([0.1, 140.0]), 0.0), "got 0 to 140"),
        (lambda: brightness.fit_images([]), "at least one cell"),
        (lambda: brightness.fit_images([(np.zeros((2, 2), int), np.zeros((2, 2)))]), "at least one cell"),
        (lambda: brightness.fit_images([(np.ones((2, 2), int), np.zeros((2, 3)))]), r"\(2, 3\); got \(2, 2\)"),
        (lambda: brightness.uniform(0.8, 0.2), "got 0.8 to 0.2"),
    ],
)
def test_mistakes_are_named(call, text):
    with pytest.raises(InputError, match=text):
        call()


def test_real_cells_brightness_is_drawn(real_data):
    """Mouse stem cells: quantiles of drawn greys are those of the means of annotated cells."""
    files = volumes.find_files(real_data / "gowt1" / "images")[::12]
    scale = intensity.fit([volumes.read(file) for file in files], "asinh")
    pairs = [(volumes.read_labels(real_data / "gowt1" / "masks" / file.name),
              intensity.normalise(volumes.read(file), scale)) for file in files]  # fmt: skip
    fitted = brightness.fit_images(pairs)
    means = np.concatenate([[image[labels == i].mean() for i in np.unique(labels)[1:]] for labels, image in pairs])
    assert len(means) > 80
    drawn = np.asarray(brightness.draw(jax.random.key(0), fitted.table, 20_000))
    background, dim, bright = fitted.levels
    assert background < dim < bright
    probabilities = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(np.quantile(dim + drawn * (bright - dim), probabilities),
                               np.quantile(means, probabilities), atol=0.02)  # fmt: skip
