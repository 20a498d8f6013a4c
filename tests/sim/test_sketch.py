"""Sketches, their shades and the Gaussian blur, against closed forms and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from jaxsynth.records import Cells
from jaxsynth.sim import ellipsoids, grid, sketch

RNG = np.random.default_rng(0)
# Whole programs: one by one the operations would take longer to compile.
RASTERISE = jax.jit(ellipsoids.rasterise, static_argnums=1)
FROM_LABELS = jax.jit(sketch.cells_from_labels, static_argnums=2)
NUCLEOLI = jax.jit(sketch.nucleoli, static_argnames=("number", "size", "darkness"))


def test_levels():
    labels = jnp.array([[0, 1], [2, 3]])
    drawn = sketch.sketch(labels, jnp.array([0.0, 0.0, 1.0, 0.5]), levels=(-0.9, -0.5, 0.5))
    np.testing.assert_allclose(drawn, [[-0.9, -0.5], [0.5, 0.0]], atol=1e-6)
    assert drawn.dtype == jnp.float32
    # A background brighter than usual, and one that would be darker than any; cells are as bright as before.
    for entry, background in ((0.25, -0.65), (-0.5, -1.0)):
        bright = jnp.array([entry, 0.0, 1.0, 0.5])
        drawn = sketch.sketch(labels, bright, levels=(-0.9, -0.5, 0.5))
        np.testing.assert_allclose(drawn, [[background, -0.5], [0.5, 0.0]], atol=1e-6)
        shaded = sketch.sketch(labels, bright, levels=(-0.9, -0.5, 0.5), shade=jnp.ones((2, 2)))
        np.testing.assert_allclose(shaded, drawn, atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 50), (6, 20, 30)])
def test_cell_means_equal_scipy(shape):
    labels = RNG.integers(0, 9, shape)
    labels[labels == 5] = 0
    image = (33000 + 50 * labels + RNG.normal(0, 20, shape)).astype(np.float32)
    means, background = jax.jit(sketch.cell_means, static_argnums=2)(labels, image, 12)
    present = [1, 2, 3, 4, 6, 7, 8]
    expected = ndimage.mean(image.astype(np.float64), labels, present)
    np.testing.assert_allclose(np.asarray(means)[np.array(present) - 1], expected, atol=0.01)
    np.testing.assert_array_equal(np.asarray(means)[[4, 8, 9, 10, 11]], 0)
    np.testing.assert_allclose(background, image[labels == 0].mean(dtype=np.float64), atol=0.01)


def test_background_mean_keeps_its_digits_over_many_voxels():
    image = np.full((2048, 1024), 60000.0, np.float32)
    image[::2] += 1
    _, background = sketch.cell_means(jnp.zeros(image.shape, jnp.int32), image, 4)
    assert float(background) == pytest.approx(60000.5, abs=0.01)


def test_labels_without_background_take_the_darkest_value():
    labels = np.array([[1, 1], [2, 2]])
    means, background = sketch.cell_means(labels, np.array([[1.0, 3.0], [5.0, 7.0]]), 2)
    np.testing.assert_allclose(means, [2, 6])
    assert background == 1


def test_sketch_from_image_gives_each_cell_its_mean():
    labels = np.zeros((12, 12), np.int32)
    labels[2:5, 2:5], labels[7:10, 6:11] = 1, 3
    image = RNG.uniform(-1, 1, labels.shape).astype(np.float32)
    drawn = np.asarray(sketch.sketch_from_image(labels, image, 4))
    for label in (0, 1, 3):
        np.testing.assert_allclose(drawn[labels == label], image[labels == label].mean(), atol=1e-6)


@pytest.mark.parametrize("shape", [(31, 40), (5, 21, 18), (1, 16, 16)])
@pytest.mark.parametrize("sigma", [1.0, 2.3, 0.0])
def test_blur_equals_scipy(shape, sigma):
    x = RNG.normal(size=shape).astype(np.float32)
    expected = ndimage.gaussian_filter(x.astype(np.float64), sigma, mode="reflect", truncate=4)
    np.testing.assert_allclose(jax.jit(sketch.blur, static_argnums=1)(x, sigma), expected, atol=1e-5)


def test_blur_by_axis_equals_scipy():
    x = RNG.normal(size=(9, 16, 20)).astype(np.float32)
    sigma = (0.4, 1.0, 2.0)
    np.testing.assert_allclose(sketch.blur(x, sigma), ndimage.gaussian_filter(x, sigma, mode="reflect"), atol=1e-5)


# ---- shades and layers ----


def test_shade_scales_the_light_above_the_background():
    labels = jnp.array([[0, 1], [2, 2]])
    shade = jnp.array([[0.5, 0.5], [0.0, 3.0]])
    drawn = sketch.sketch(labels, jnp.array([0, 0.0, 1.0]), levels=(-1.0, -0.5, 0.5), shade=shade)
    # 3 times 1.5 above the background exceeds the range.
    np.testing.assert_allclose(drawn, [[-1, -0.75], [-1, 1]], atol=1e-6)


def test_layers_add_up_and_one_layer_is_the_plain_sketch():
    labels = RNG.integers(0, 4, (3, 20, 30))
    brightness, levels = np.array([0, 0.1, 0.5, 0.9], np.float32), (-0.9, -0.7, 0.1)
    drawn = sketch.sketch(labels, jnp.asarray(brightness), levels=levels, stacked=True)
    above = np.where(labels > 0, -0.7 + brightness[labels] * 0.8 + 0.9, 0).sum(0)
    assert (above > 1.9).any()
    np.testing.assert_allclose(drawn, np.minimum(above - 0.9, 1.0), atol=1e-6)
    one = sketch.sketch(labels[:1], jnp.asarray(brightness), levels=levels, stacked=True)
    np.testing.assert_allclose(one, sketch.sketch(labels[0], jnp.asarray(brightness), levels=levels), atol=1e-6)


def test_decay():
    depth = jnp.array([-3.0, 0.0, 5.0, 10.0, 40.0])
    np.testing.assert_allclose(sketch.decay(depth, 10.0), np.exp([0, 0, -0.5, -1, -4]), rtol=1e-6)
    linear = sketch.decay(depth, 10.0, profile="linear", floor=0.2)
    np.testing.assert_allclose(linear, [1, 1, 0.6, 0.2, 0.2], rtol=1e-6)
    with pytest.raises(ValueError, match="exponential, linear; got 'cubic'"):
        sketch.decay(depth, 10.0, profile="cubic")


def test_membranes_fade_linearly_towards_the_inside():
    inside = np.zeros((40, 40), bool)
    inside[4:36, 4:36] = True
    membrane = inside & ((np.arange(40) % 8 == 4)[:, None] | (np.arange(40) % 8 == 4))
    depth = ndimage.distance_transform_edt(inside)
    shade = sketch.decay(depth, 20.0, profile="linear")
    drawn = np.asarray(sketch.membrane_sketch(membrane, shade, inside=inside, interior=0.5, levels=(-1.0, -0.6, 1.0)))
    np.testing.assert_allclose(drawn[membrane], 1 - 1.6 * depth[membrane] / 20, atol=1e-5)
    assert (drawn[~inside] == -1).all()
    np.testing.assert_allclose(drawn[inside & ~membrane], -0.8, atol=1e-6)
    plain = np.asarray(sketch.membrane_sketch(membrane))
    assert (plain == np.where(membrane, 1, -1)).all()
    with pytest.raises(ValueError, match="inside"):
        sketch.membrane_sketch(membrane, interior=0.5)


def test_texture_has_mean_one_and_the_contrast_asked_for():
    made = np.stack(jax.jit(jax.vmap(lambda k: sketch.texture(k, (32, 32), (0.5, 0.25), 1.0, 0.4)))(
        jax.random.split(jax.random.key(0), 400)))  # fmt: skip
    assert made.mean() == pytest.approx(1, abs=0.01)
    assert np.log(made).std() == pytest.approx(0.4, rel=0.03)


# ---- cells from labels, and their nucleoli ----


def population(shape, spacing, centres, radii, num_empty=1):
    """Cells at given places, semi-axes and random rotations, and empty slots; their labels."""
    count, ndim = len(centres) + num_empty, len(shape)
    cells = Cells(
        centre_um=jnp.zeros((count, ndim)).at[: len(centres)].set(jnp.asarray(centres)),
        radii_um=jnp.broadcast_to(jnp.asarray(radii), (count, ndim)),
        rotation=grid.random_rotation(jax.random.key(5), count, ndim),
        brightness=jnp.ones(count),
        valid=jnp.arange(count) < len(centres),
        overflow=jnp.zeros((), bool),
    )
    labels, overflow = RASTERISE(cells, shape, jnp.asarray(spacing))
    assert not overflow
    return cells, labels


FLAT = ((80, 110), (0.5, 0.4), [[13.0, 14.0], [26.0, 31.0]], [6.0, 9.0])
DEEP = ((20, 60, 64), (1.0, 0.5, 0.5), [[10.0, 15.0, 16.0]], [5.0, 7.0, 9.0])


@pytest.mark.parametrize(("shape", "spacing", "centres", "radii"), [FLAT, DEEP])
def test_ellipsoids_come_back_from_their_labels(shape, spacing, centres, radii):
    cells, labels = population(shape, spacing, centres, radii)
    found = FROM_LABELS(labels, jnp.asarray(spacing), 4)
    num = len(centres)
    np.testing.assert_array_equal(found.valid, np.arange(4) < num)
    assert not found.overflow
    np.testing.assert_allclose(found.centre_um[:num], centres, atol=0.06)
    np.testing.assert_allclose(found.radii_um[:num], np.broadcast_to(radii, (num, len(shape))), rtol=0.02)
    np.testing.assert_allclose(np.linalg.det(found.rotation[:num]), 1, atol=1e-5)
    same = np.abs(np.einsum("nki,nki->nk", found.rotation[:num], cells.rotation[:num]))
    np.testing.assert_allclose(same, 1, atol=0.01)


def test_cells_of_one_voxel_and_labels_beyond_the_capacity():
    labels = jnp.zeros((6, 8), jnp.int32).at[2, 3].set(2).at[4, 4].set(7)
    found = FROM_LABELS(labels, jnp.array([1.0, 0.5]), 3)
    np.testing.assert_array_equal(found.valid, [False, True, False])
    np.testing.assert_allclose(found.centre_um[1], [2.5, 1.75], atol=1e-6)
    np.testing.assert_allclose(found.radii_um[1], np.array([0.5, 1.0]) / np.sqrt(3), rtol=1e-5)
    assert found.overflow and np.isfinite(found.radii_um).all()


@pytest.mark.parametrize(("shape", "spacing", "centres", "radii"), [FLAT, DEEP])
def test_nucleoli_are_balls_inside_their_nucleus(shape, spacing, centres, radii):
    cells, labels = population(shape, spacing, centres, radii)
    draw = jax.jit(lambda key, size: sketch.nucleoli(key, labels, cells, jnp.asarray(spacing), number=(1, 1),
                                                     size=(size, size), darkness=0.7))  # fmt: skip
    drawn = np.stack([draw(key, 0.3) for key in jax.random.split(jax.random.key(0), 8)])
    dark = drawn < 1
    np.testing.assert_allclose(drawn[dark], 0.3, atol=1e-6)
    assert not dark[:, np.asarray(labels) == 0].any()
    # Whole balls of the radius asked for, nothing cut off, one per nucleus.
    radius, ndim = 0.3 * min(radii), len(shape)
    ball = {2: np.pi, 3: 4 / 3 * np.pi}[ndim] * radius**ndim / np.prod(spacing)
    sizes = ndimage.sum(dark, np.broadcast_to(labels, dark.shape), range(1, len(centres) + 1)) / len(dark)
    np.testing.assert_allclose(sizes, ball, rtol=0.05)
    many = jax.vmap(draw, (0, None))(jax.random.split(jax.random.key(0), 8)[:2], 0.3)
    np.testing.assert_array_equal(many, drawn[:2])
    assert (drawn[0] != drawn[1]).any()


def test_each_number_of_nucleoli_is_as_likely():
    """A row of nuclei with tiny nucleoli, far smaller than their distance: holes are counted."""
    centres = [[5.0, 5.0 + 10 * i] for i in range(30)]
    cells, labels = population((50, 1500), (0.2, 0.2), centres, [4.9, 4.9])
    seen = []
    for seed in range(4):
        dark = np.asarray(NUCLEOLI(jax.random.key(seed), labels, cells, jnp.array([0.2, 0.2]), size=(0.05, 0.06))) < 1
        holes, num = ndimage.label(dark)
        owner = ndimage.maximum(np.asarray(labels), holes, range(1, num + 1)).astype(int)
        seen.append(np.bincount(owner, minlength=31)[1:31])
    counts = np.bincount(np.concatenate(seen), minlength=3)
    assert len(counts) == 3
    # Two nucleoli that touch look like one: less than 1 % of the pairs.
    assert stats.chisquare(counts).pvalue > 1e-3


def test_nucleoli_of_stacked_labels_and_of_cells_known_by_their_labels():
    shape, spacing, centres, radii = FLAT
    cells, labels = population(shape, spacing, centres, radii)
    key, spacing = jax.random.key(3), jnp.asarray(spacing)
    plain = NUCLEOLI(key, labels, cells, spacing, number=(2, 2))
    stacked = NUCLEOLI(key, jnp.stack([labels, jnp.zeros_like(labels)]), cells, spacing, number=(2, 2))
    np.testing.assert_array_equal(stacked[0], plain)
    assert (np.asarray(stacked[1]) == 1).all()
    found = FROM_LABELS(labels, spacing, 3)
    again = np.asarray(NUCLEOLI(key, labels, found, spacing, number=(2, 2)))
    assert np.unique(np.asarray(labels)[again < 1]).tolist() == [1, 2]
    assert (np.asarray(NUCLEOLI(key, labels, cells, spacing, number=(0, 0))) == 1).all()
    with pytest.raises(ValueError, match="number"):
        NUCLEOLI(key, labels, cells, spacing, number=(2, 1))
