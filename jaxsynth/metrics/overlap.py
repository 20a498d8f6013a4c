"""How well a segmentation finds the cells of a reference: SEG, DET, average precision, Dice per cell.

Host functions on integer label images [*S] of any rank and size, 0 = background; a label's parts count as one object,
wherever they lie. `measure` takes one image's scores from one contingency table, `pool` joins those of many images as
the published scores do, over objects and not over images. A score that has nothing to judge is NaN: the segmentation
of an image without cells is neither good nor bad, unless it invents some.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxsynth.errors import InputError

THRESHOLDS = tuple(i / 100 for i in range(50, 100, 5))  # of IoU: .50, .55 ... .95
SPLIT, MISSED, FALSE = 5.0, 10.0, 1.0  # what correcting a vertex costs in DET


@dataclass(frozen=True)
class Table:
    """What overlaps what: R reference objects, S segments, P pairs that share voxels.

    Attributes:
      reference, segmentation: int64 [R], [S], the labels in use, rising.
      reference_vox, segmentation_vox: int64 [R], [S], their voxels.
      row, column: int64 [P], each pair's places among these.
      shared_vox: int64 [P] > 0.
    """

    reference: np.ndarray
    segmentation: np.ndarray
    reference_vox: np.ndarray
    segmentation_vox: np.ndarray
    row: np.ndarray
    column: np.ndarray
    shared_vox: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union (Jaccard) of the pairs, float64 [P] in (0, 1]."""
        return self.shared_vox / (self.reference_vox[self.row] + self.segmentation_vox[self.column] - self.shared_vox)

    @property
    def dice(self) -> np.ndarray:
        """Dice coefficient of the pairs, float64 [P] in (0, 1]."""
        return 2 * self.shared_vox / (self.reference_vox[self.row] + self.segmentation_vox[self.column])

    @property
    def detects(self) -> np.ndarray:
        """bool [P]: the segment covers more than half of the reference object, as at most one segment does."""
        return 2 * self.shared_vox > self.reference_vox[self.row]


@dataclass(frozen=True)
class Scores:
    """What one image's scores, or those of images pooled, are made of; scores in [0, 1], NaN where undefined.

    Attributes:
      jaccard: float64 [R], of every reference object with the segment that detects it; 0 where none does.
      best_dice: float64 [R], of every reference object with the segment most like it; 0 where none touches it.
      num_segmented: segments.
      splits: segments that detect several objects count one less than these; missed: objects no segment detects;
        spurious: segments that detect none.
      thresholds: [T], of IoU.
      tp, fp, fn: int64 [T], pairs matched one to one with at least that IoU, segments and objects left over.
      matched_iou: float64 [T], sum of the IoU of the matched pairs.
    """

    jaccard: np.ndarray
    best_dice: np.ndarray
    num_segmented: int
    splits: int
    missed: int
    spurious: int
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    matched_iou: np.ndarray
    thresholds: tuple[float, ...] = field(default=THRESHOLDS)

    @property
    def num_reference(self) -> int:
        """Reference objects."""
        return len(self.jaccard)

    @property
    def seg(self) -> float:
        """SEG; NaN without reference objects."""
        return float(self.jaccard.mean()) if len(self.jaccard) else float("nan")

    @property
    def correction(self) -> float:
        """AOGM-D: what it costs to correct the detections."""
        return SPLIT * self.splits + MISSED * self.missed + FALSE * self.spurious

    @property
    def det(self) -> float:
        """DET; NaN without reference objects, 0 where there are segments all the same."""
        if not self.num_reference:
            return 0.0 if self.num_segmented else float("nan")
        return 1 - min(self.correction / (MISSED * self.num_reference), 1.0)

    @property
    def average_precision(self) -> np.ndarray:
        """TP / (TP + FP + FN) at every threshold, float64 [T]; NaN where there are neither objects nor segments."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def panoptic_quality(self) -> np.ndarray:
        """Sum of matched IoU / (TP + FP / 2 + FN / 2), float64 [T] (Kirillov et al. 2019, eq. 1)."""
        return _ratio(self.matched_iou, self.tp + (self.fp + self.fn) / 2)


def measure(reference: np.ndarray, segmentation: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> Scores:
    """All scores of one image.

    Args:
      reference, segmentation: integers in [0, 2^31) [*S], 0 = background.
      thresholds: [T] in (0, 1], of IoU.

    Raises:
      InputError: shapes that differ, values that are no labels, thresholds out of range.
    """
    thresholds = tuple(float(t) for t in thresholds)
    if not thresholds or not all(0 < t <= 1 for t in thresholds):
        raise InputError(f"thresholds: expected numbers in (0, 1], got {thresholds}")
    table = contingency(reference, segmentation)
    num_reference, num_segmented = len(table.reference), len(table.segmentation)
    detects, iou = table.detects, table.iou
    jaccard, best_dice = np.zeros(num_reference), np.zeros(num_reference)
    jaccard[table.row[detects]] = iou[detects]
    np.maximum.at(best_dice, table.row, table.dice)
    detected = np.bincount(table.column[detects], minlength=num_segmented)  # objects, by segment
    matched = [iou[_matched(table, t)] for t in thresholds]
    tp = np.array([len(found) for found in matched])
    return Scores(
        jaccard=jaccard,
        best_dice=best_dice,
        num_segmented=num_segmented,
        splits=int(np.maximum(detected - 1, 0).sum()),
        missed=int(num_reference - detects.sum()),
        spurious=int((detected == 0).sum()),
        tp=tp,
        fp=num_segmented - tp,
        fn=num_reference - tp,
        matched_iou=np.array([found.sum() for found in matched]),
        thresholds=thresholds,
    )


def pool(scores: Iterable[Scores]) -> Scores:
    """The scores of several images, or of several annotated planes of one, as if they were one.

    Raises:
      InputError: none given, or with different thresholds.
    """
    scores = list(scores)
    if len({one.thresholds for one in scores}) != 1:
        raise InputError(f"scores: expected some of equal thresholds, got {[one.thresholds for one in scores]}")
    joined = {name: np.concatenate([getattr(one, name) for one in scores]) for name in ("jaccard", "best_dice")}
    sums = {name: sum(getattr(one, name) for one in scores)
            for name in ("num_segmented", "splits", "missed", "spurious", "tp", "fp", "fn", "matched_iou")}  # fmt: skip
    return Scores(**joined, **sums, thresholds=scores[0].thresholds)


def seg(reference: np.ndarray, segmentation: np.ndarray) -> float:
    """SEG of the Cell Tracking Challenge: mean Jaccard index of the reference objects, 0 for one not detected.

    A segment detects an object where it covers more than half of it (Maska et al. 2014). Partly annotated references
    may be given, as segments beside them do not count. Of a volume annotated in some planes measure each of these with
    its plane of the segmentation and `pool` them: every object of every plane counts once.

    Args:
      reference, segmentation: as in `measure`.

    Returns:
      In [0, 1]; NaN without reference objects.
    """
    return measure(reference, segmentation).seg


def det(reference: np.ndarray, segmentation: np.ndarray) -> float:
    """DET of the Cell Tracking Challenge: 1 - min(AOGM-D, AOGM-D0) / AOGM-D0 (Matula et al. 2015).

    AOGM-D = 5 splits + 10 missed objects + 1 spurious segment; AOGM-D0 that of an empty segmentation. The reference
    must hold every object of the image.

    Args:
      reference, segmentation: as in `measure`.

    Returns:
      In [0, 1]. Without reference objects: 0 where there are segments, NaN where there are none either.
    """
    return measure(reference, segmentation).det


def average_precision(
    reference: np.ndarray, segmentation: np.ndarray, thresholds: Sequence[float] = THRESHOLDS
) -> np.ndarray:
    """TP / (TP + FP + FN) at every IoU threshold, objects and segments matched one to one, as many as can be.

    The "average precision" of Cellpose and StarDist (the latter calls it accuracy), not the area under a curve.

    Args:
      reference, segmentation, thresholds: as in `measure`.

    Returns:
      float64 [T]; NaN where there are neither objects nor segments.
    """
    return measure(reference, segmentation, thresholds).average_precision


def dice_per_cell(reference: np.ndarray, segmentation: np.ndarray) -> np.ndarray:
    """Dice coefficient of every reference object with the segment most like it: paper 000 reports mean and deviation.

    One segment may serve several objects, and segments beside them do not count.

    Returns:
      float64 [R] in [0, 1] in the order of the labels, 0 where no segment touches the object.
    """
    return measure(reference, segmentation).best_dice


def matches(reference: np.ndarray, segmentation: np.ndarray, threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """The labels matched one to one with at least that IoU: int64 [M] of the reference, int64 [M] of the segments."""
    table = contingency(reference, segmentation)
    found = _matched(table, threshold)
    return table.reference[table.row[found]], table.segmentation[table.column[found]]


def contingency(reference: np.ndarray, segmentation: np.ndarray) -> Table:
    """Counts the voxels of every pair of labels.

    Raises:
      InputError: shapes that differ, or values that are no labels.
    """
    reference, segmentation = check_labels("reference", reference), check_labels("segmentation", segmentation)
    if reference.shape != segmentation.shape:
        raise InputError(
            f"segmentation: expected the shape of the reference, {reference.shape}, got {segmentation.shape}"
        )
    base = int(segmentation.max(initial=0)) + 1
    code = reference.astype(np.int64).ravel()
    code *= base
    code += segmentation.ravel()
    # Labels lie in runs: sorting these instead of voxels is many times faster, however large the ids.
    starts = np.flatnonzero(np.diff(code, prepend=-1))
    values, index = np.unique(code[starts], return_inverse=True)
    count = np.bincount(index, np.diff(starts, append=code.size), len(values)).astype(np.int64)
    pair = np.divmod(values, base)
    (row_ids, row), (column_ids, column) = (np.unique(part, return_inverse=True) for part in pair)
    sizes = [
        np.bincount(part, count, len(ids)).astype(np.int64) for part, ids in ((row, row_ids), (column, column_ids))
    ]
    # The background, where there is any, comes first.
    skip_row, skip_column = (int(ids.size > 0 and ids[0] == 0) for ids in (row_ids, column_ids))
    both = (pair[0] > 0) & (pair[1] > 0)
    return Table(
        row_ids[skip_row:], column_ids[skip_column:], sizes[0][skip_row:], sizes[1][skip_column:],
        row[both] - skip_row, column[both] - skip_column, count[both],
    )  # fmt: skip


def _matched(table: Table, threshold: float) -> np.ndarray:
    """Places [M] of the pairs matched one to one: as many as can be of at least the threshold, the best of these."""
    from scipy.optimize import linear_sum_assignment

    iou = table.iou
    good = np.flatnonzero(iou >= threshold)
    (rows, row), (columns, column) = (np.unique(part[good], return_inverse=True) for part in (table.row, table.column))
    if len(rows) == len(columns) == len(good):  # always so above 1/2
        return good
    gain = np.zeros((len(rows), len(columns)))
    gain[row, column] = 1 + iou[good] / (2 * len(good))
    place = np.full(gain.shape, -1)
    place[row, column] = good
    found = place[linear_sum_assignment(gain, maximize=True)]
    return np.sort(found[found >= 0])


def check_labels(name: str, labels: np.ndarray) -> np.ndarray:
    """The label image, bool or integer [*S].

    Raises:
      InputError: values that are no labels.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biu":
        raise InputError(f"{name}: expected a label image of whole numbers, got {labels.dtype}")
    if labels.size and (labels.min() < 0 or labels.max() >= 2**31):
        raise InputError(f"{name}: expected labels in 0 to 2^31 - 1, got {labels.min()} to {labels.max()}")
    return labels


def _ratio(above, below) -> np.ndarray:
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
