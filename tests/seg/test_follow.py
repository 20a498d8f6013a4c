"""Labels from flows: round trips, invariances and edge cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxsynth.seg import flows, follow

CAPACITY = 64
targets = jax.jit(flows.targets, static_argnames=("kind", "capacity"))
segment = jax.jit(follow.segment, static_argnames=("max_points", "num_steps"))


def ellipsoid(shape, centre, axes):
    """The voxels of an ellipse or ellipsoid, bool [*S]."""
    grid = np.indices(shape)
    return sum(((g - c) / a) ** 2 for g, c, a in zip(grid, centre, axes, strict=True)) <= 1


def paint(shape, bodies):
    labels = np.zeros(shape, np.int32)
    for number, body in enumerate(bodies, start=1):
        labels[ellipsoid(shape, *body) & (labels == 0)] = number
    return labels


def flat():
    """Apart, touching, cut by the border, and down to one voxel."""
    bodies = [
        ((16, 20), (12, 8)),
        ((18, 40), (12, 12)),
        ((18, 60), (12, 12)),
        ((50, 0), (10, 14)),
        ((63, 40), (9, 12)),
        ((48, 62), (4, 9)),
    ]
    labels = paint((64, 72), bodies)
    labels[36, 36] = 7
    labels[30:32, 5:7] = 8
    labels[0, 0] = 9
    return labels


def deep():
    bodies = [
        ((8, 10, 10), (6, 8, 7)),
        ((9, 10, 24), (6, 8, 7)),
        ((9, 27, 12), (5, 9, 9)),
        ((0, 27, 32), (5, 6, 8)),
        ((16, 36, 36), (4, 5, 5)),
    ]
    labels = paint((18, 38, 40), bodies)
    labels[12, 1, 38] = 6
    return labels


def bananas():
    """Two crescents, one in the other's arms, whose centroids lie outside of them."""
    y = np.indices((64, 72))[0]
    upper = ellipsoid((64, 72), (34, 30), (26, 26)) & ~ellipsoid((64, 72), (38, 30), (19, 19)) & (y < 40)
    lower = ellipsoid((64, 72), (34, 50), (22, 19)) & ~ellipsoid((64, 72), (30, 50), (16, 12)) & (y > 28)
    return np.where(upper, 1, np.where(lower, 2, 0)).astype(np.int32)


def overlaps(reference, found):
    """The intersection over union of every reference cell with the cell it shares most voxels with."""
    scores = []
    for label in np.unique(reference[reference > 0]):
        mask = reference == label
        best = np.bincount(found[mask])[1:].argmax() + 1 if found[mask].any() else -1
        scores.append((mask & (found == best)).sum() / (mask | (found == best)).sum())
    return np.array(scores)


def run(output, fine=None, max_points=4096, **options):
    labels, count, overflow = segment(jnp.asarray(output), fine, max_points=max_points, **options)
    assert not overflow and labels.dtype == jnp.int32
    labels = np.asarray(labels)
    np.testing.assert_array_equal(np.unique(labels[labels > 0]), np.arange(1, count + 1))
    return labels


@functools.cache
def learnt(scene, kind):
    return np.asarray(targets(jnp.asarray(scene()), kind, CAPACITY))


@pytest.mark.parametrize(
    ("scene", "kind"), [(flat, "heat"), (flat, "centroid"), (deep, "heat"), (deep, "centroid"), (bananas, "heat")]
)
def test_labels_come_back_from_their_flows(scene, kind):
    labels = scene()
    found = run(learnt(scene, kind), max_points=8192)
    assert found.max() == labels.max()
    assert overlaps(labels, found).min() > 0.95
    np.testing.assert_array_equal(found > 0, labels > 0)


def test_many_cells_come_back():
    shape = (64, 72)
    centres = np.stack(np.meshgrid(np.arange(4, 64, 8), np.arange(4, 72, 8), indexing="ij"), -1).reshape(-1, 2)
    labels = paint(shape, [(centre, (4.4, 4.4)) for centre in centres])
    assert labels.max() == 72
    output = np.asarray(targets(jnp.asarray(labels), "heat", 128))
    found = run(output, max_points=8192)
    assert found.max() == 72 and overlaps(labels, found).min() > 0.95


@pytest.mark.parametrize("kind", flows.KINDS)
def test_labels_come_out_at_the_images_own_resolution(kind):
    """The network saw the image at 0.4 of its size; also where shapes are not that exactly."""
    shape, bodies = (101, 118), [((30, 30), (22, 14)), ((28, 58), (16, 14)), ((80, 0), (15, 25)), ((76, 88), (20, 25))]
    labels = paint(shape, bodies)
    small = (40, 47)
    zoom = [m / n for m, n in zip(small, shape, strict=True)]
    shrunk = paint(small, [([(c + 0.5) * z - 0.5 for c, z in zip(cs, zoom, strict=True)],
                            [a * z for a, z in zip(axes, zoom, strict=True)]) for cs, axes in bodies])  # fmt: skip
    output = targets(jnp.asarray(shrunk), kind, CAPACITY)
    found = run(output, jnp.asarray(labels > 0, jnp.float32), max_points=8192)
    assert found.shape == shape and found.max() == 4
    assert overlaps(labels, found).min() > 0.95
    stated = run(output, jnp.asarray(labels > 0, jnp.float32), 8192, scale=jnp.asarray(zoom, jnp.float32))
    np.testing.assert_array_equal(stated, found)
    # Its own foreground, enlarged, draws nearly the same outlines.
    fine = jax.jit(follow.enlarge, static_argnums=1)(output[..., 0], shape)
    assert overlaps(labels, run(output, fine, max_points=8192)).min() > 0.9
    np.testing.assert_array_equal(follow.shrink(jnp.asarray(found), small) > 0, labels[_nearest(shape, small)] > 0)


def _nearest(shape, small):
    return np.ix_(*[((np.arange(m) + 0.5) * n / m).astype(int) for n, m in zip(shape, small, strict=True)])


def test_enlarging_is_linear_interpolation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 6, 4)).astype(np.float32)
    shape = (9, 6, 10)
    places = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(shape, x.shape, strict=True)],
                                  indexing="ij"))  # fmt: skip
    expected = ndimage.map_coordinates(x, places, order=1, mode="nearest")
    np.testing.assert_allclose(follow.enlarge(jnp.asarray(x), shape), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 9), (5, 6, 7)])
def test_points_move_by_the_interpolated_field(shape):
    rng = np.random.default_rng(0)
    field = rng.uniform(-1, 1, (len(shape), *shape)).astype(np.float32)
    last = np.array(shape, np.float32) - 1
    points = (rng.uniform(size=(40, len(shape))) * last).astype(np.float32).T
    expected = points.astype(np.float64)
    for _ in range(3):
        step = [ndimage.map_coordinates(component, expected, order=1, mode="nearest") for component in field]
        expected = np.clip(expected + step, 0, last[:, None])
    ends = follow.follow(list(field), list(jnp.asarray(points)), jnp.asarray(last), 3)
    np.testing.assert_allclose(np.stack(ends), expected, atol=1e-4)


def test_points_are_no_different_in_chunks(monkeypatch):
    whole = run(learnt(flat, "heat"))
    monkeypatch.setattr(follow, "CHUNK", 1000)
    chunked, _, _ = jax.jit(lambda output: follow.segment(output, max_points=4096))(learnt(flat, "heat"))
    np.testing.assert_array_equal(chunked, whole)


@pytest.mark.parametrize("kind", flows.KINDS)
def test_noise_between_the_flows_makes_no_more_cells(kind):
    """Flows as a network tells them: blurred, noisy, without meaning in the background."""
    labels = paint((64, 72), [((18, 20), (13, 10)), ((18, 42), (13, 11)), ((46, 30), (11, 20))])
    output = np.array(targets(jnp.asarray(labels), kind, CAPACITY))
    rng = np.random.default_rng(0)
    for channel in range(3):
        noise = ndimage.gaussian_filter(rng.normal(size=labels.shape), 1)
        output[..., channel] = ndimage.gaussian_filter(output[..., channel], 0.7)
        output[..., channel] += (0.1 if channel else 0.05) * noise / noise.std()
    found = run(output)
    assert overlaps(labels, found).min() > 0.85
    assert (np.bincount(found.ravel())[1:] > 20).sum() == 3


def test_an_image_without_cells_has_none():
    found = run(np.zeros((64, 72, 3), np.float32))
    assert found.max() == 0


def test_too_many_points_are_told():
    output = learnt(flat, "heat")
    inside = int((output[..., 0] > 0.5).sum())
    program = functools.partial(follow.segment, num_steps=100)
    labels, count, overflow = jax.jit(lambda x: program(x, max_points=inside - 1))(output)
    assert overflow and count > 0 and (np.asarray(labels) > 0).sum() == inside - 1
    assert not jax.jit(lambda x: program(x, max_points=inside))(output)[2]


@pytest.mark.parametrize("scene", [flat, bananas])
def test_cells_move_and_turn_with_the_image(scene):
    output = learnt(scene, "heat")
    found = run(output)
    for axis in (0, 1):
        turned = np.flip(output, axis).copy()
        turned[..., 1 + axis] *= -1
        again = np.flip(run(turned), axis)
        np.testing.assert_array_equal(again > 0, found > 0)
        assert overlaps(found, again).min() > 0.98  # which of two voxels a point between them counts for may change
        assert again.max() == found.max()
    moved = np.pad(output, [(5, 0), (2, 6), (0, 0)])
    np.testing.assert_array_equal(run(moved), np.pad(found, [(5, 0), (2, 6)]))


def test_padding_is_not_seen():
    output = learnt(flat, "centroid")
    padded = np.pad(output, [(0, 6), (0, 8), (0, 0)])
    found = run(padded, size=jnp.asarray([64, 72]))
    np.testing.assert_array_equal(found[:64, :72], run(output))
    assert not found[64:].any() and not found[:, 72:].any()


def test_equal_heaps_next_to_each_other_are_one_cell():
    """Points on a level row of voxels, as from a cell whose flows come to rest early."""
    ends = [jnp.repeat(jnp.asarray([5.0, 5.0, 5.0, 12.0]), 10), jnp.repeat(jnp.asarray([4.0, 5.0, 6.0, 3.0]), 10)]
    valid = jnp.arange(40) < 38
    labels, count = follow.cluster(ends, valid, (16, 12))
    np.testing.assert_array_equal(labels, [1] * 30 + [2] * 8 + [0] * 2)
    assert count == 2


@pytest.mark.parametrize(("folder", "kind"), [("gowt1", "heat"), ("gowt1", "centroid"), ("embryo3d", "heat")])
def test_real_labels_come_back(real_data, folder, kind):
    from jaxsynth.data import volumes

    labels = volumes.read(sorted((real_data / folder / "masks").glob("*.tif"))[0]).astype(np.int32)
    if folder == "gowt1":
        labels = labels[_nearest(labels.shape, (512, 512))]
    else:
        labels = labels[:, :96, :96]
    output = targets(jnp.asarray(labels), kind, 256)
    found = run(output, max_points=1 << int((labels > 0).sum() - 1).bit_length())
    scores = overlaps(labels, found)
    assert len(scores) > 5 and scores.min() > 0.95
    assert (np.bincount(found.ravel())[1:] > 15).sum() == len(scores)
