"""Solidity of cells against closed forms and scikit-image's hulls."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import convex_hull_image

from jaxsynth.seg import convexity


def ellipsoid(shape, radii, seed):
    """The voxels of an ellipse or ellipsoid of any orientation, bool [*S]."""
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(shape), len(shape))))[0]
    place = np.indices(shape).reshape(len(shape), -1) - np.array(shape)[:, None] / 2.1
    return (((turn @ place) / np.array(radii)[:, None]) ** 2).sum(0).reshape(shape) <= 1


@pytest.mark.parametrize(
    ("shape", "radii"),
    [((60, 70), (26, 14)), ((60, 70), (25, 1.5)), ((24, 28, 26), (10, 7, 4)), ((20, 20, 20), (9, 1.2, 5))],
)
def test_what_is_convex_has_a_solidity_of_one(shape, radii):
    """The voxels within a convex body are all that their hull holds."""
    for seed in range(5):
        assert convexity.solidity(ellipsoid(shape, radii, seed).astype(np.int32) * 2).tolist() == [1, 1, 1]
    assert convexity.solidity(np.ones(shape, np.int32))[1] == 1


@pytest.mark.parametrize("arm", [1, 3, 10])
def test_crosses_fill_their_share_of_a_diamond(arm):
    """Of an octahedron in 3D; its voxels are the centred octahedral number."""
    for ndim, hull in ((2, 2 * arm**2 + 2 * arm + 1), (3, (2 * arm + 1) * (2 * arm**2 + 2 * arm + 3) // 3)):
        away = np.abs(np.indices((2 * arm + 3,) * ndim) - arm - 1)
        cross = (away > 0).sum(0) <= 1
        cross &= away.max(0) <= arm
        assert cross.sum() == 2 * ndim * arm + 1
        assert convexity.solidity(cross.astype(np.int32))[1] == cross.sum() / hull


@pytest.mark.parametrize("shape", [(60, 80), (16, 24, 28)])
def test_agrees_with_scikit_image(shape):
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 1.5)
    labels, number = ndimage.label(noise > np.quantile(noise, 0.75))
    found, compared = convexity.solidity(labels), 0
    assert found.shape == (number + 1,) and (found[1:] > 0).all() and (found <= 1).all()
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        cell = labels[box] == label
        if min(cell.shape) > 1:
            assert found[label] == cell.sum() / convex_hull_image(cell, offset_coordinates=False).sum()
            compared += 1
    assert compared >= 5 and found.min() < 0.8


def test_flat_cells_are_as_convex_as_in_their_plane():
    plane = np.ones((7, 9), np.int32)
    plane[2:, 3:6] = 0
    expected = convexity.solidity(plane)[1]
    assert expected < 0.85
    for axis in range(3):
        assert convexity.solidity(np.expand_dims(plane, axis))[1] == expected
        thick = np.stack([plane] * 4, axis)  # a prism
        assert convexity.solidity(np.pad(thick, 2))[1] == expected


@pytest.mark.parametrize("ndim", [2, 3])
def test_cells_without_area_are_convex(ndim):
    labels = np.zeros((9,) * ndim, np.int32)
    labels[(1,) * ndim] = 1  # a voxel
    labels[(slice(3, 6), *(8,) * (ndim - 1))] = 2  # a line
    labels[(0, 3)], labels[(0, 5)] = (4, 4) if ndim == 2 else (0, 0)  # a line with a gap
    labels[tuple([np.arange(4, 8)] * ndim)] = 5  # voxels that touch at their corners alone
    np.testing.assert_allclose(convexity.solidity(labels), [1, 1, 1, 1, 2 / 3, 1] if ndim == 2 else [1] * 6)
    if ndim == 3:
        slanting = np.zeros((6, 6, 6), np.int32)
        for z in range(6):
            slanting[z, z] = 1  # in the plane y = z
        assert convexity.solidity(slanting)[1] == 1
    assert convexity.solidity(np.zeros((4,) * ndim, np.int32)).tolist() == [1]
