"""Intersection over union with a tolerance, against closed forms and brute force."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from jaxsynth.errors import InputError
from jaxsynth.metrics import tolerance


@pytest.mark.parametrize("shape", [(14, 17), (6, 8, 9)])
@pytest.mark.parametrize("vox", [0, 1, 1.5, 5])
def test_agrees_with_distances_of_every_pair_of_voxels(shape, vox):
    rng = np.random.default_rng(0)
    reference, mask = (rng.uniform(size=shape) > level for level in (0.96, 0.94))
    distance = cdist(np.argwhere(reference), np.argwhere(mask))
    tp = (distance.min(1) <= vox).sum()
    fp = (distance.min(0) > vox).sum()
    assert tolerance.tolerance_iou(reference, mask, vox) == pytest.approx(tp / (reference.sum() + fp))
    plain = (reference & mask).sum() / (reference | mask).sum()
    assert tolerance.tolerance_iou(reference, mask, 0) == pytest.approx(plain)


def test_what_lies_within_the_tolerance_is_met_and_no_more():
    reference = np.zeros((20, 20), bool)
    reference[:, 8] = True
    for off, expected in ((0, 1.0), (1, 1.0), (2, 0.0)):
        assert tolerance.tolerance_iou(reference, np.roll(reference, off, 1), 1) == expected
    thick = reference | np.roll(reference, 1, 1) | np.roll(reference, -1, 1)
    assert tolerance.tolerance_iou(reference, thick, 1) == 1.0
    assert tolerance.tolerance_iou(reference, thick | np.roll(reference, 5, 1), 1) == 0.5
    empty = np.zeros_like(reference)
    assert tolerance.tolerance_iou(reference, empty, 1) == tolerance.tolerance_iou(empty, reference, 1) == 0.0
    assert np.isnan(tolerance.tolerance_iou(empty, empty, 1))


def test_classes_of_touching_boxes():
    labels = np.zeros((9, 20, 30), int)
    labels[2:7, 4:15, 3:14] = 1
    labels[2:7, 4:15, 14:25] = 400
    masks = tolerance.class_masks(labels)
    inner = np.zeros(labels.shape, bool)
    inner[3:6, 5:14, 4:13] = inner[3:6, 5:14, 15:24] = True
    np.testing.assert_array_equal(masks["membrane"], (labels > 0) & ~inner)
    np.testing.assert_array_equal(masks["background"], labels == 0)
    assert np.argwhere(masks["centroid"]).tolist() == [[4, 9, 8], [4, 9, 19]]
    assert not tolerance.class_masks(np.zeros((5, 5), int))["centroid"].any()


def test_images_count_together_by_their_voxels():
    rng = np.random.default_rng(1)
    pairs = [[np.pad(np.kron(rng.integers(0, 4, (3, n)), np.ones((6, 6), int)), 3) for _ in range(2)] for n in (2, 9)]
    counts = [tolerance.class_counts(*pair) for pair in pairs]
    for pair, own in zip(pairs, counts, strict=True):
        assert {name: met / union for name, (met, union) in own.items()} == tolerance.class_iou(*pair)
    # As side by side in one image, farther apart than any tolerance; other labels, as one cell has one centroid.
    second = [np.where(labels, labels + 4, 0) for labels in pairs[1]]
    whole = tolerance.class_counts(*(np.concatenate(parts, 1) for parts in zip(pairs[0], second, strict=True)))
    assert whole == tolerance.pool(counts)


def test_shifted_labels_lose_membranes_first():
    labels = np.zeros((60, 60), int)
    labels[10:30, 10:50], labels[30:50, 10:50] = 1, 2
    near, far = (
        tolerance.class_iou(labels, np.roll(labels, 1, 0)),
        tolerance.class_iou(labels, np.roll(labels, 4, (0, 1))),
    )
    assert set(near.values()) == {1.0}
    assert far["membrane"] < 0.3 < 0.8 < far["background"] < 1.0
    assert far["centroid"] == 0.0  # 4 * sqrt(2) > 5
    assert tolerance.class_iou(labels, np.roll(labels, 4, 0))["centroid"] == 1.0


def test_what_are_no_masks_is_refused():
    mask = np.zeros((4, 4), bool)
    with pytest.raises(InputError, match="expected bool"):
        tolerance.tolerance_iou(mask, mask.astype(int), 1)
    with pytest.raises(InputError, match="expected bool of one shape"):
        tolerance.tolerance_iou(mask, mask[1:], 1)
    with pytest.raises(InputError, match="tolerance_vox"):
        tolerance.tolerance_iou(mask, mask, -1)
    with pytest.raises(InputError, match="labels"):
        tolerance.class_iou(mask.astype(float), mask)
