"""The detector and the judgement on scenes whose faults are known, and on real annotated images."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.segmentation import expand_labels

from jaxsynth.data import volumes
from jaxsynth.errors import InputError
from jaxsynth.metrics import fidelity

PLANE, STACK = ((150, 170), (13.0, 13.0)), ((30, 90, 100), (8.0, 13.0, 13.0))


def scene(shape, diameter, *, seed=0, low=80.0, high=600.0):
    """(labels, image of them): cells on a jittered grid, of very different brightness, on a noisy pedestal."""
    rng = np.random.default_rng(seed)
    labels, light = np.zeros(shape, np.int32), np.zeros(shape)
    pitch = 2.2 * np.array(diameter)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    places = list(np.ndindex(*(int(n // p) for n, p in zip(shape, pitch, strict=True))))
    for cell, brightness in zip(places, np.geomspace(low, high, len(places)), strict=True):
        centre = (np.array(cell) + 0.5) * pitch + rng.uniform(-1, 1, len(shape))
        inside = (((grid - centre) / (np.array(diameter) / 2)) ** 2).sum(-1) <= 1
        labels[inside] = labels.max() + 3
        light[inside] = brightness
    smooth = ndimage.gaussian_filter(light, np.array(diameter) / 13)
    return labels, (200 + smooth + rng.normal(0, 8, shape)).astype(np.float32)


def without(image, labels, ids, seed=1):
    """The image with background in place of these cells."""
    region = np.isin(expand_labels(np.where(np.isin(labels, ids), labels, 0), 4), ids)
    return np.where(region, np.random.default_rng(seed).normal(200, 8, image.shape), image).astype(np.float32)


@pytest.mark.parametrize(("shape", "diameter"), [PLANE, STACK])
def test_vanished_cells_and_phantoms_are_found_and_nothing_else(shape, diameter):
    labels, image = scene(shape, diameter)
    ids = np.unique(labels)[1:]
    sound = fidelity.fidelity(labels, image)
    assert (sound.num_cells, sound.num_judged, sound.num_faults, sound.at_edge) == (len(ids), len(ids), 0, 0)
    gone, unlabelled = ids[[0, 3, -1]], ids[[1, 4, -2]]
    found = fidelity.fidelity(fidelity.drop(labels, unlabelled), without(image, labels, gone))
    assert found.vanished.tolist() == gone.tolist()
    at = found.detections.centre[found.phantoms]
    assert sorted(labels[tuple(np.rint(at).astype(int).T)]) == unlabelled.tolist()
    assert found.num_faults == 6 and (found.detections.contrast[found.phantoms] > fidelity.CLEAR).all()
    size = np.bincount(labels.ravel())[unlabelled]
    assert 0.4 * size.min() < found.detections.size[found.phantoms].min()


@pytest.mark.parametrize(("factor", "offset"), [(0.01, 0.0), (37.0, -20000.0)])
def test_units_change_nothing(factor, offset):
    labels, image = scene(*PLANE)
    image = without(image, labels, [3, 9])
    found = fidelity.fidelity(labels, image * np.float32(factor) + np.float32(offset))
    assert found.vanished.tolist() == [3, 9] and not len(found.phantoms)


def test_a_finer_image_of_the_same_is_judged_alike():
    """Every voxel as three by three: judged on a grid of the cells' own size, so nothing changes but positions."""
    labels, image = scene(*PLANE)
    image, labels = without(image, labels, [3, 9]), fidelity.drop(labels, [6])
    one = fidelity.fidelity(labels, image)
    other = fidelity.fidelity(*(np.kron(x, np.ones((3, 3), x.dtype)) for x in (labels, image)))
    assert one.vanished.tolist() == other.vanished.tolist() == [3, 9]
    assert len(one.phantoms) == len(other.phantoms) == 1
    at = [found.detections.centre[found.phantoms[0]] for found in (one, other)]
    np.testing.assert_allclose(at[0], (at[1] - 1) / 3, atol=2)


def test_an_uneven_background_is_no_phantom():
    """Illumination that doubles across the image."""
    labels, image = scene(*PLANE)
    slope = np.linspace(0, 200, image.shape[1], dtype=np.float32)
    found = fidelity.fidelity(labels, without(image, labels, [3]) + slope)
    assert found.vanished.tolist() == [3] and not len(found.phantoms)


@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_an_image_of_nothing_shows_nothing(noise):
    labels, _ = scene(*PLANE)
    image = np.random.default_rng(0).normal(100, noise, labels.shape)
    found = fidelity.fidelity(labels, image)
    assert len(found.vanished) == found.num_cells and not len(found.phantoms) and found.at_edge == 0


def test_an_image_of_noise_and_few_counts():
    """Photon counts: most voxels are 0."""
    labels, image = scene(*PLANE, low=300)
    counts = np.random.default_rng(0).poisson(np.maximum(image - 200, 0) / 100 + 0.05)
    assert fidelity.fidelity(labels, counts.astype(np.uint8)).num_faults == 0


def test_what_is_small_or_at_the_edge_is_told_apart():
    labels, image = scene(*PLANE)
    image = image.copy()
    image[51:63, :7] += 300  # cut by the edge, without a label
    labels[140:143, 60:63] = 500  # a sliver without signal
    labels[145:, 100:102] = 501
    found = fidelity.fidelity(labels, image)
    assert found.too_small.tolist() == [500, 501] and found.num_faults == 0 and found.at_edge == 1
    assert found.num_judged == found.num_cells - 2


def test_a_given_segmentation_takes_the_detectors_place():
    labels, _ = scene(*PLANE)
    shifted = np.roll(labels, 3, axis=1)  # cells still cover most of each other
    assert fidelity.fidelity(labels, None, detections=fidelity.given(shifted)).num_faults == 0
    other = fidelity.drop(labels, [6])
    other[1:9, 1:9] = 2**30  # ids may be large
    found = fidelity.fidelity(labels, None, detections=fidelity.given(other))
    assert found.vanished.tolist() == [6] and len(found.phantoms) == 1
    np.testing.assert_allclose(found.detections.centre[found.phantoms[0]], 4.5)
    assert found.detections.size[found.phantoms[0]] == 64 and np.isnan(found.detections.contrast).all()
    none = fidelity.fidelity(labels, None, detections=fidelity.given(np.zeros_like(labels)))
    assert len(none.vanished) == none.num_cells and not len(none.phantoms)


def test_labels_without_gaps_need_a_segmentation():
    labels, image = scene(*PLANE)
    tissue = expand_labels(labels, 100)
    with pytest.raises(InputError, match="given segmentation"):
        fidelity.fidelity(tissue, image)
    merged = fidelity.drop(tissue, [6])
    found = fidelity.fidelity(tissue, None, detections=fidelity.given(merged))
    assert found.vanished.tolist() == [6] and not len(found.phantoms)
    fidelity.check_gaps(expand_labels(labels, 3))


@pytest.mark.parametrize(("shape", "axes"), [((60, 90), (20.0, 31.0)), ((24, 40, 50), (9.0, 17.0, 25.0))])
def test_the_diameter_of_an_ellipsoid(shape, axes):
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    inside = (((grid - np.array(shape) / 2) / (np.array(axes) / 2)) ** 2).sum(-1) <= 1
    np.testing.assert_allclose(fidelity.cell_diameter(inside.astype(np.int32) * 7), axes, rtol=0.02)
    assert fidelity.cell_diameter(np.zeros(shape, np.int32)) is None


def test_dropping_keeps_all_other_ids():
    labels, _ = scene(*PLANE)
    left = fidelity.drop(labels, [3, 9, 1000])
    assert left.dtype == labels.dtype and set(np.unique(left)) == set(np.unique(labels)) - {3, 9}
    np.testing.assert_array_equal(left[left > 0], labels[left > 0])


@pytest.mark.parametrize(
    ("labels", "image", "options", "message"),
    [
        (np.zeros((30, 30), int), np.zeros((30, 31)), {}, "differ in shape"),
        (np.zeros((30, 30), int), np.zeros((30, 30)), {}, "at least one cell"),
        (np.zeros((30, 30), int), np.full((30, 30), np.nan), {"diameter_vox": 9}, "finite"),
        (np.zeros((30, 30), int), np.zeros((30, 30)), {"diameter_vox": (9, 9, 9)}, "diameter_vox"),
        (np.zeros((30, 30), int), np.zeros((30, 30)), {"diameter_vox": -9}, "diameter_vox"),
        (np.full((30, 30), -1), np.zeros((30, 30)), {"diameter_vox": 9}, "from 0 on"),
    ],
)
def test_mistakes_are_named(labels, image, options, message):
    with pytest.raises(InputError, match=message):
        fidelity.fidelity(labels, image, **options)


@pytest.mark.parametrize(("name", "vanished", "phantoms"), [("gowt1", 0.01, 0.03), ("embryo3d", 0.02, 0.06)])
def test_real_annotated_images_keep_to_their_labels(real_data, name, vanished, phantoms):
    """The floor; and with a fifth of the labels put where no cell is, those are found."""
    cells = gone = seen = put = told = 0
    for file in sorted((real_data / name / "images").iterdir())[::8]:
        image, labels = volumes.read(file), volumes.read_labels(real_data / name / "masks" / file.name)
        found = fidelity.fidelity(labels, image)
        cells, gone, seen = cells + found.num_judged, gone + len(found.vanished), seen + len(found.phantoms)
        ids = np.setdiff1d(np.unique(labels)[1::5], found.too_small)
        for moved in ids:
            voxels = np.stack(np.nonzero(labels == moved))
            away = voxels - voxels.min(axis=1, keepdims=True)
            size = away.max(axis=1) + 1
            room = ndimage.uniform_filter((labels > 0).astype(np.float32), size + 4)
            free = np.argwhere(room < 1e-6)
            free = free[((free > size // 2 + 2) & (free < np.array(labels.shape) - size // 2 - 3)).all(1)]
            if len(free):
                labels[tuple(away + (free[len(free) // 2] - size // 2)[:, None])] = 10_000 + moved
                put += 1
                found = fidelity.fidelity(labels, image)
                told += 10_000 + moved in found.vanished
                labels[labels == 10_000 + moved] = 0
    assert gone <= vanished * cells and seen <= phantoms * cells
    assert put > 5 and told >= 0.9 * put
