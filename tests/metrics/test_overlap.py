"""Scores of segmentations against closed forms, brute force, py-ctcmetrics and StarDist."""

import itertools

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.measure import label

from jaxsynth.data import volumes
from jaxsynth.errors import InputError
from jaxsynth.metrics import overlap


def blobs(shape, seed=0, share=70, sigma=2.5):
    """Irregular cells with sparse ids, 5, 12, 19, ..."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    found = label(noise > np.percentile(noise, share))
    return np.where(found, 7 * found - 2, 0)


def perturbed(labels, seed=1):
    """The labels shifted, some cells gone, some merged, some cut in two, and others invented."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.unique(labels)[1:])
    other = np.roll(labels, 1, -1)
    third = len(ids) // 6
    other[np.isin(other, ids[:third])] = 0
    for one, two in zip(ids[third : 2 * third : 2], ids[third + 1 : 2 * third : 2], strict=False):
        other[other == two] = one
    for one in ids[2 * third : 3 * third]:
        place = np.nonzero(other == one)
        upper = place[0] < np.median(place[0])
        other[tuple(axis[upper] for axis in place)] = one + 1
    invented = (blobs(labels.shape, seed + 7, 90) > 0) & (labels == 0) & (other == 0)
    other[invented] = (label(invented) + int(labels.max()) + 10)[invented]
    return other


def brute(reference, segmentation):
    """Overlap measures [R, S] of every pair of masks."""
    masks = [[labels == i for i in np.unique(labels) if i] for labels in (reference, segmentation)]
    shared = np.array([[(a & b).sum() for b in masks[1]] for a in masks[0]], float)
    one, two = (np.array([m.sum() for m in part], float) for part in masks)
    return shared, one[:, None], two[None]


@pytest.mark.parametrize(("shape", "share"), [((70, 90), 70), ((16, 60, 60), 85)])
def test_agrees_with_brute_force(shape, share):
    reference = blobs(shape, share=share)
    segmentation = perturbed(reference)
    shared, one, two = brute(reference, segmentation)
    iou, dice = shared / (one + two - shared), 2 * shared / (one + two)
    detects = shared > 0.5 * one
    scores = overlap.measure(reference, segmentation)
    np.testing.assert_allclose(scores.jaccard, np.where(detects, iou, 0).max(1))
    np.testing.assert_allclose(scores.best_dice, dice.max(1))
    np.testing.assert_allclose(overlap.dice_per_cell(reference, segmentation), dice.max(1))
    detected = detects.sum(0)
    assert scores.missed == (detects.sum(1) == 0).sum() > 0 and scores.spurious == (detected == 0).sum() > 0
    assert scores.splits == sum(n - 1 for n in detected if n > 1) > 0
    cost = 5 * scores.splits + 10 * scores.missed + scores.spurious
    assert overlap.det(reference, segmentation) == pytest.approx(1 - cost / (10 * len(one)))
    for threshold, tp, fp, fn in zip(scores.thresholds, scores.tp, scores.fp, scores.fn, strict=True):
        assert (tp, fp, fn) == ((iou >= threshold).sum(), two.size - tp, one.size - tp)


@pytest.mark.parametrize("seed", range(4))
def test_few_segments_are_matched_as_the_best_of_all_assignments(seed):
    rng = np.random.default_rng(seed)
    # Stripes of random widths overlap several others by little: below 1/2 the matching is ambiguous.
    reference, segmentation = (np.repeat(np.arange(1, 6), rng.integers(3, 9, 5))[:24] for _ in range(2))
    segmentation = np.pad(segmentation, (rng.integers(0, 5), 0))[: len(reference)]
    reference = reference[: len(segmentation)]
    shared, one, two = brute(reference, segmentation)
    iou = shared / (one + two - shared)
    small, large = (iou, range(iou.shape[1])) if iou.shape[0] <= iou.shape[1] else (iou.T, range(iou.shape[0]))
    for threshold in (0.1, 0.3):
        every = [small[range(len(small)), order] for order in itertools.permutations(large, len(small))]
        best = max(((row >= threshold).sum(), row[row >= threshold].sum()) for row in every)
        scores = overlap.measure(reference, segmentation, [threshold])
        assert scores.tp[0] == best[0] and scores.matched_iou[0] == pytest.approx(best[1])


def test_agrees_with_stardist():
    matching = pytest.importorskip("stardist.matching").matching
    for shape, seed in (((90, 110), 0), ((60, 60), 3), ((10, 40, 40), 5)):
        reference = blobs(shape, seed)
        segmentation = perturbed(reference, seed)
        thresholds = (0.11, 0.31, 0.5, 0.62, 0.74, 0.91)
        scores = overlap.measure(reference, segmentation, thresholds)
        for i, threshold in enumerate(thresholds):
            peer = matching(reference, segmentation, threshold)
            assert (scores.tp[i], scores.fp[i], scores.fn[i]) == (peer.tp, peer.fp, peer.fn)
            assert scores.average_precision[i] == pytest.approx(peer.accuracy)
            assert scores.panoptic_quality[i] == pytest.approx(peer.panoptic_quality, rel=1e-5)


def test_agrees_with_ctcmetrics(tmp_path):
    representations = pytest.importorskip("ctc_metrics.utils.representations")
    from ctc_metrics.metrics.technical.det import det
    from ctc_metrics.metrics.technical.seg import seg

    found, images = [], []
    for frame, shape in enumerate([(80, 90), (60, 60), (90, 80)]):
        reference = blobs(shape, frame)
        images.append((reference, perturbed(reference, frame)))
        paths = [tmp_path / f"{name}{frame}.tif" for name in ("man_seg", "mask")]
        for path, labels in zip(paths, images[-1], strict=True):
            volumes.write(path, labels.astype(np.uint16))
        found.append(representations.match(*map(str, paths)))
    labels_ref, labels_comp, mapped_ref, mapped_comp, ious = zip(*found, strict=True)
    operations = representations.count_acyclic_graph_correction_operations(
        None, None, labels_ref, labels_comp, mapped_ref, mapped_comp
    )
    scores = overlap.pool(overlap.measure(*pair) for pair in images)
    assert scores.splits > 0 and scores.missed > 0 and scores.spurious > 0
    assert scores.seg == pytest.approx(seg(labels_ref, ious))
    assert scores.det == pytest.approx(det(**operations))
    assert overlap.seg(*images[0]) == pytest.approx(seg(labels_ref[:1], ious[:1]))


def test_shifted_squares_have_their_closed_form():
    reference = np.zeros((40, 60), np.uint16)
    reference[5:15, 10:20] = 3
    reference[20:30, 30:40] = 60000
    segmentation = np.roll(reference, 2, 1)  # shares 80 of 100 voxels
    assert overlap.seg(reference, segmentation) == pytest.approx(80 / 120)
    assert overlap.det(reference, segmentation) == 1.0
    np.testing.assert_array_equal(overlap.average_precision(reference, segmentation), [1] * 4 + [0] * 6)
    np.testing.assert_allclose(overlap.dice_per_cell(reference, segmentation), [0.8, 0.8])
    segmentation[35:38, 50:55] = 9  # a false segment
    assert overlap.seg(reference, segmentation) == pytest.approx(80 / 120)
    assert overlap.det(reference, segmentation) == pytest.approx(1 - 1 / 20)
    assert overlap.average_precision(reference, segmentation, [0.5])[0] == pytest.approx(2 / 3)
    found = overlap.matches(reference, segmentation)
    assert found[0].tolist() == found[1].tolist() == [3, 60000]
    segmentation[segmentation == 3] = 60000  # two cells become one segment: one correction by splitting
    assert overlap.det(reference, segmentation) == pytest.approx(1 - (5 + 1) / 20)


def test_a_half_is_not_detected_but_matched():
    reference, segmentation = np.ones((2, 10), int), np.ones((2, 10), int)
    segmentation[:, 5:] = 2
    assert overlap.seg(reference, segmentation) == 0.0 and overlap.det(reference, segmentation) == 0.0
    assert overlap.average_precision(reference, segmentation, [0.5])[0] == 0.5  # one of both, not both
    reference[0] = 2  # every pair of halves shares a third of their union
    scores = overlap.measure(reference, segmentation, [1 / 3])
    assert (scores.tp[0], scores.fp[0], scores.fn[0]) == (2, 0, 0)
    assert scores.panoptic_quality[0] == pytest.approx(1 / 3)


def test_perfect_whatever_the_ids_are():
    reference = blobs((50, 60))
    ids = np.unique(reference)
    rng = np.random.default_rng(0)
    table = np.concatenate([[0], rng.permutation(2**31 - 1 - np.arange(len(ids) - 1))])
    segmentation = table[np.searchsorted(ids, reference)]
    scores = overlap.measure(reference, segmentation)
    assert scores.seg == scores.det == 1.0 and (scores.average_precision == 1).all() and (scores.best_dice == 1).all()
    # Which ids there are does not matter to an imperfect one, either.
    other = perturbed(reference)
    assert overlap.seg(segmentation, other) == pytest.approx(overlap.seg(reference, other), abs=1e-12)
    assert overlap.det(segmentation, other) == overlap.det(reference, other)


def test_nothing_to_judge_is_undefined_and_inventions_are_wrong():
    empty, cells = np.zeros((20, 20), int), np.zeros((20, 20), int)
    cells[3:9, 3:9] = 4
    nothing, invented, missed = (overlap.measure(*pair) for pair in ((empty, empty), (empty, cells), (cells, empty)))
    assert np.isnan([nothing.seg, nothing.det, *nothing.average_precision, invented.seg]).all()
    assert invented.det == 0.0 and (invented.average_precision == 0).all() and not invented.best_dice.size
    assert (
        missed.seg == missed.det == 0.0 and (missed.average_precision == 0).all() and missed.best_dice.tolist() == [0]
    )
    both = overlap.pool([overlap.measure(cells, cells), nothing, invented])
    assert both.seg == 1.0 and both.det == pytest.approx(0.9) and both.average_precision[0] == 0.5
    assert np.isnan(overlap.seg(np.zeros((0, 4), int), np.zeros((0, 4), int)))


def test_pooled_images_count_by_their_cells():
    images = [(blobs(shape, seed), seed) for seed, shape in enumerate([(40, 90), (30, 90)])]
    pairs = [(reference, perturbed(reference, seed)) for reference, seed in images]
    # Side by side, with ids of their own, they are one image.
    step = 1 + max(int(labels.max()) for pair in pairs for labels in pair)
    joined = [np.concatenate([one, np.where(two, two + step, 0)]) for one, two in zip(*pairs, strict=True)]
    one, two = overlap.pool(overlap.measure(*pair) for pair in pairs), overlap.measure(*joined)
    assert one.seg == pytest.approx(two.seg) and one.det == two.det
    np.testing.assert_array_equal(one.tp, two.tp)
    np.testing.assert_allclose(one.best_dice, two.best_dice)
    with pytest.raises(InputError, match="equal thresholds"):
        overlap.pool([one, overlap.measure(*joined, [0.5])])
    with pytest.raises(InputError, match="scores"):
        overlap.pool([])


@pytest.mark.parametrize(
    ("reference", "segmentation", "message"),
    [
        (np.zeros((4, 5), int), np.zeros((5, 4), int), r"segmentation: .*\(4, 5\), got \(5, 4\)"),
        (np.zeros((4, 5)), np.zeros((4, 5), int), "reference: .*float64"),
        (np.zeros((4, 5), int), np.full((4, 5), -1), "segmentation: .*got -1"),
        (np.full((4, 5), 2**31), np.zeros((4, 5), int), "reference: .*2147483648"),
    ],
)
def test_what_are_no_labels_is_refused(reference, segmentation, message):
    with pytest.raises(InputError, match=message):
        overlap.measure(reference, segmentation)
    with pytest.raises(InputError, match="thresholds"):
        overlap.average_precision(np.zeros((4, 5), int), np.zeros((4, 5), int), [0.5, 1.5])
