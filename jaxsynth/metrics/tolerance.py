"""Intersection over union of background, membranes and centroids, with a tolerance in voxels, as paper 003 scores them.

Host functions, rank-free: masks and labels [*S].
"""

from collections.abc import Sequence

import numpy as np

from jaxsynth.errors import InputError
from jaxsynth.metrics.overlap import check_labels

# How far a voxel of each class may lie from the reference (paper 003, section 4.3).
TOLERANCE_VOX = {"background": 1.0, "membrane": 1.0, "centroid": 5.0}


def tolerance_iou(reference: np.ndarray, mask: np.ndarray, tolerance_vox: float) -> float:
    """Intersection over union of two masks where voxels that lie near the other mask count as met (paper 003, 4.3).

    TP are reference voxels at most the tolerance away from the mask, FN the others of the reference, FP voxels of the
    mask farther than that from the reference. The paper gives the tolerances and no formula; without tolerance this
    is IoU.

    Args:
      reference, mask: bool [*S].
      tolerance_vox: Euclidean distance >= 0, voxels.

    Returns:
      TP / (TP + FN + FP) in [0, 1]; NaN where both are empty.

    Raises:
      InputError: shapes that differ, masks that are not bool, a negative tolerance.
    """
    met, union = tolerance_counts(reference, mask, tolerance_vox)
    return met / union if union else float("nan")


def tolerance_counts(reference: np.ndarray, mask: np.ndarray, tolerance_vox: float) -> tuple[int, int]:
    """(TP, TP + FN + FP) of `tolerance_iou`, voxels, to be summed over images."""
    from scipy.ndimage import distance_transform_edt

    reference, mask = np.asarray(reference), np.asarray(mask)
    if reference.dtype != bool or mask.dtype != bool or reference.shape != mask.shape:
        told = f"{reference.dtype} {reference.shape} and {mask.dtype} {mask.shape}"
        raise InputError(f"reference, mask: expected bool of one shape, got {told}")
    if not tolerance_vox >= 0:
        raise InputError(f"tolerance_vox: expected 0 or more, got {tolerance_vox}")

    def away(part, other):
        """Voxels of a mask farther than the tolerance from the other one."""
        far = distance_transform_edt(~other) > tolerance_vox if other.any() else np.ones_like(other)
        return int((part & far).sum())

    total = int(reference.sum())
    return total - away(reference, mask), total + away(mask, reference)


def class_masks(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Paper 003's three classes of a label image, each bool [*S].

    "background" is label 0; "membrane" are voxels of cells with a face neighbour of another label, also of the
    background; "centroid" is one voxel per cell.
    """
    from scipy.ndimage import center_of_mass
    from skimage.segmentation import find_boundaries

    labels = check_labels("labels", labels)
    ids = np.unique(labels)
    ids = ids[ids > 0]
    centroid = np.zeros(labels.shape, bool)
    if ids.size:
        places = np.rint(center_of_mass(labels > 0, labels, ids)).astype(int)
        centroid[tuple(places.T)] = True
    membrane = find_boundaries(labels, connectivity=1, mode="inner")
    return {"background": labels == 0, "membrane": membrane, "centroid": centroid}


def class_iou(reference: np.ndarray, segmentation: np.ndarray) -> dict[str, float]:
    """`tolerance_iou` of each of the classes of `class_masks`, with the paper's tolerances (`TOLERANCE_VOX`)."""
    counts = class_counts(reference, segmentation)
    return {name: met / union if union else float("nan") for name, (met, union) in counts.items()}


def class_counts(reference: np.ndarray, segmentation: np.ndarray) -> dict[str, tuple[int, int]]:
    """`tolerance_counts` of each of these classes."""
    masks, others = class_masks(reference), class_masks(segmentation)
    return {name: tolerance_counts(masks[name], others[name], vox) for name, vox in TOLERANCE_VOX.items()}


def pool(counts: Sequence[dict[str, tuple[int, int]]]) -> dict[str, tuple[int, int]]:
    """The `class_counts` of several images together: their sums."""
    return {name: tuple(np.sum([one[name] for one in counts], 0).tolist()) for name in counts[0]}
