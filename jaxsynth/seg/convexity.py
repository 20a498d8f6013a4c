"""How convex cells are, on the host: whole label images, 2D and 3D alike."""

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

NEAR = 1e-7  # voxels; a voxel so far outside a face of a hull, by rounding, is inside


def solidity(labels: np.ndarray) -> np.ndarray:
    """The share of a cell's voxels in its convex hull; 1 for cells that are convex, as discs, boxes and single voxels.

    The hull is that of the voxels' centres, and so are the voxels in it counted. It does not depend on the voxel size.

    Args:
      labels: integer [*S], 0 = background.

    Returns:
      float64 [largest label + 1], in (0, 1]; 1 for labels that are not there and for the background.
    """
    result = np.ones(int(labels.max(initial=0)) + 1)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            cell = labels[box] == label
            result[label] = np.count_nonzero(cell) / _hull_size(cell)
    return result


def _hull_size(cell: np.ndarray) -> int:
    """How many voxels have their centre in the convex hull of a cell's centres; bool [*S], its bounding box."""
    # One voxel thick, it is as convex as its cross-section, and flat for Qhull.
    cell = np.squeeze(cell)
    voxels = np.count_nonzero(cell)
    if cell.ndim < 2:
        return cell.size
    # A line of voxels along the last axis lies in the hull from one place to another, which every face may narrow.
    lines = np.argwhere(cell.any(-1))
    length = cell.shape[-1]
    rows = cell[tuple(lines.T)]
    first, last = rows.argmax(-1), length - 1 - rows[:, ::-1].argmax(-1)
    ends = np.concatenate([np.column_stack([lines, first]), np.column_stack([lines, last])])
    try:
        faces = ConvexHull(ends).equations
    except QhullError:  # all on a slanting line or plane, which no connected cell is
        return voxels
    faces = faces[np.unique(np.round(faces, 10), axis=0, return_index=True)[1]]  # Qhull cuts faces into triangles
    across = np.indices(cell.shape[:-1]).reshape(cell.ndim - 1, -1)
    low, high = np.zeros(across.shape[1]), np.full(across.shape[1], length - 1.0)
    for *normal, slope, offset in faces:
        room = NEAR - offset - normal @ across
        if slope > NEAR:
            np.minimum(high, room / slope, out=high)
        elif slope < -NEAR:
            np.maximum(low, room / slope, out=low)
        else:
            high[room < 0] = -1.0
    return int(np.maximum(np.floor(high) - np.ceil(low) + 1, 0).sum())
