"""Where the organism is: nuclei with gaps between them become one body, cells that touch stay what they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxsynth.sim import extent

closed = jax.jit(extent.closed, static_argnums=1)


@pytest.mark.parametrize("shape", [(40, 50), (12, 20, 24)])
@pytest.mark.parametrize("share", [0.05, 0.45, 0.62])
def test_holes_are_those_of_scipy(shape, share):
    """Mazes of random voxels, so that the way out is long."""
    mask = np.random.default_rng(len(shape)).random(shape) < share
    np.testing.assert_array_equal(jax.jit(extent.fill_holes)(mask), ndimage.binary_fill_holes(mask))


def balls(shape, centres, radius, spacing):
    labels = np.zeros(shape, np.int32)
    grid = np.indices(shape)
    for number, centre in enumerate(centres, 1):
        squared = sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, spacing, strict=True))
        labels[squared <= radius**2] = number
    return labels


def test_nuclei_of_one_organism_are_bridged_and_others_are_not():
    ring = [(40 + 22 * np.sin(a), 40 + 22 * np.cos(a)) for a in np.arange(8) * np.pi / 4]
    labels = balls((80, 160), [*ring, (40, 145)], 5, (1, 1))
    body = np.asarray(closed(labels, (1.0, 1.0)))
    assert body[labels > 0].all()
    parts, count = ndimage.label(body)
    assert count == 2 and parts[40, 40] == parts[40, 62] > 0  # the ring's middle is enclosed
    lone = parts == parts[40, 145]
    assert lone[labels == 9].all() and lone.sum() < 1.15 * (labels == 9).sum()  # a ball closed by a ball is itself


def test_a_closed_body_is_that_of_scipy():
    """Closing by a ball of the same radius, far from the edge, with voxels longer along z."""
    spacing = (2.0, 1.0, 1.0)
    labels = balls((24, 48, 48), [(9, 20, 16), (12, 28, 27), (14, 18, 30)], 6, spacing)
    depth = sum(ndimage.distance_transform_edt(labels == n, sampling=spacing) for n in (1, 2, 3))
    reach = 2 * 4 * depth[labels > 0].mean()
    assert 10 < reach < 18  # about the diameter of 12
    away = ndimage.distance_transform_edt(np.pad(labels, 40) == 0, sampling=spacing)
    inner = ndimage.distance_transform_edt(away <= reach, sampling=spacing)
    wanted = (inner > reach)[(slice(40, -40),) * 3]
    assert wanted.sum() > 1.2 * (labels > 0).sum()
    np.testing.assert_array_equal(closed(labels, spacing), wanted)


def test_cells_that_fill_the_volume_and_none_at_all():
    full = np.ones((10, 12), np.int32)
    assert np.asarray(closed(full, (1.0, 1.0))).all()
    assert not np.asarray(closed(0 * full, (1.0, 1.0))).any()


def test_touching_cells_keep_their_surface_and_walls_belong_to_it():
    labels = balls((64, 64), [(32, 32)], 24, (1, 1))
    cells = np.where(labels, 1 + np.indices(labels.shape)[0] // 8 * 8 + np.indices(labels.shape)[1] // 8, 0)
    body = np.asarray(closed(cells, (1.0, 1.0)))
    assert body[labels > 0].all() and body.sum() < 1.04 * (labels > 0).sum()
    walls = labels.astype(bool) & (np.indices(labels.shape) % 8 == 0).any(0)
    shown = closed(jnp.where(walls, 0, cells), (1.0, 1.0), walls=walls)
    assert np.asarray(shown)[labels > 0].all() and shown.sum() < 1.04 * (labels > 0).sum()
