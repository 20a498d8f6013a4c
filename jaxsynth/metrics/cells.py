"""Size, shape and arrangement of the cells of label images, and how alike two sets of label images are in them.

Host functions in float64, one image at a time; rank-free: labels [*S] are (Y, X) or (Z, Y, X), 0 = background. Voxels
count as the boxes they are, so that a cell one voxel wide still has a width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxsynth.errors import InputError

# What `compare` compares, in the order of reading: per cell (whole ones only), then per image.
PER_CELL = ("size", "radius", "elongation", "solidity", "nearest")
PER_IMAGE = ("num_cells", "density", "covered", "cut")
PER = 1e6  # density is cells per so many um^D: per mm^2 of an image, per 10^6 um^3 of a volume


@dataclass(frozen=True)
class CellTable:
    """The cells of one label image: a row each, in the order of their labels. Lengths are in `unit`.

    Attributes:
      unit: "um", or "voxels" where the spacing is unknown.
      rank: D, 2 or 3; a volume of one plane is measured as the image it is.
      labels: int64 [N].
      centre: float64 [N, D], centroids, from the image's outer corner.
      size: float64 [N], area or volume, unit^D.
      radius: float64 [N], of the disc or ball of that size.
      elongation: float64 [N] >= 1, longest over shortest semi-axis of the ellipse or ellipsoid of equal second moments.
      solidity: float64 [N] in (0, 1], share of its convex hull that the cell fills.
      nearest: float64 [N], distance to the nearest other centroid; NaN for a lonely cell.
      is_cut: bool [N], touches the image's border: its size and shape tell of the border, not of the cell.
      density: cells per 10^6 unit^D of the image (per mm^2 in 2D where the unit is um).
      covered: share of the image's voxels that cells fill.
    """

    unit: str
    rank: int
    labels: np.ndarray
    centre: np.ndarray
    size: np.ndarray
    radius: np.ndarray
    elongation: np.ndarray
    solidity: np.ndarray
    nearest: np.ndarray
    is_cut: np.ndarray
    density: float
    covered: float


def measure(labels: np.ndarray, spacing_um: Sequence[float] | None = None) -> CellTable:
    """Measures every cell of a label image.

    Args:
      labels: integers >= 0 [*S], 0 = background; a label's parts count as one cell, wherever they lie.
      spacing_um: [D] micrometres per voxel; None measures in voxels.

    Raises:
      InputError: labels of another rank or kind, or empty; spacing of another length or not positive.
    """
    labels = np.asarray(labels)
    if labels.ndim not in (2, 3) or labels.dtype.kind not in "biu" or not labels.size:
        raise InputError(f"labels: expected whole numbers (Y, X) or (Z, Y, X), got {labels.dtype} {labels.shape}")
    if labels.min() < 0:
        raise InputError(f"labels: expected 0 = background and more, got {labels.min()}")
    spacing = np.ones(labels.ndim) if spacing_um is None else np.asarray(spacing_um, np.float64)
    if spacing.shape != (labels.ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise InputError(f"spacing_um: expected {labels.ndim} positive micrometres per voxel, got {spacing_um}")
    if labels.ndim == 3 and len(labels) == 1:
        labels, spacing = labels[0], spacing[1:]

    rank = labels.ndim
    voxels = np.nonzero(labels)
    ids, index = _ranks(labels[voxels])
    count = len(ids)
    num_voxels = np.bincount(index, minlength=count)
    centre = np.empty((count, rank))
    moments = np.empty((count, rank, rank))
    off = []
    for axis, place in enumerate(voxels):
        middle = np.bincount(index, place, count) / num_voxels
        centre[:, axis] = (middle + 0.5) * spacing[axis]
        off.append((place - middle[index]) * spacing[axis])
        for other in range(axis + 1):
            moment = np.bincount(index, off[axis] * off[other], count) / num_voxels
            moments[:, axis, other] = moments[:, other, axis] = moment
    moments += np.diag(spacing**2) / 12  # a voxel's own
    axes = np.linalg.eigvalsh(moments)
    size = num_voxels * spacing.prod()
    unit_ball = {2: math.pi, 3: 4 / 3 * math.pi}[rank]
    extent = labels.size * spacing.prod()
    return CellTable(
        unit="voxels" if spacing_um is None else "um",
        rank=rank,
        labels=ids,
        centre=centre,
        size=size,
        radius=(size / unit_ball) ** (1 / rank),
        elongation=np.sqrt(axes[:, -1] / axes[:, 0]),
        solidity=_solidity(voxels, index, labels.shape, num_voxels),
        nearest=_nearest(centre),
        is_cut=np.isin(ids, _border(labels)),
        density=count / extent * PER,
        covered=float(len(index) / labels.size),
    )


def _ranks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(labels in use, rising; every value's place among them). Ids in files may be large and sparse."""
    if not values.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if values.max() > max(10 * values.size, 2**16):
        ids, index = np.unique(values, return_inverse=True)
        return ids.astype(np.int64), index
    used = np.bincount(values) > 0  # no sort: several times faster on volumes
    return np.flatnonzero(used), (np.cumsum(used) - 1)[values]


def _border(labels: np.ndarray) -> np.ndarray:
    """The values on the faces of the image."""
    faces = [np.take(labels, end, axis).ravel() for axis in range(labels.ndim) for end in (0, -1)]
    return np.unique(np.concatenate(faces))


def _nearest(centre: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    if len(centre) < 2:
        return np.full(len(centre), np.nan)
    return cKDTree(centre).query(centre, k=2)[0][:, 1]


def _solidity(voxels, index, shape, num_voxels) -> np.ndarray:
    """Voxels over the volume of the hull of the middles of their faces: float64 [N].

    Unlike the hull of their corners it keeps to the outline of a smooth cell. Stretching the axes would change nothing.
    """
    from scipy.spatial import ConvexHull

    order = np.argsort(index, kind="stable")  # by cell, and within a cell by row, as voxels already were
    row = np.ravel_multi_index([place[order] for place in voxels[:-1]], shape[:-1])
    cell = index[order]
    change = (np.diff(cell) != 0) | (np.diff(row) != 0)
    # A row's inner voxels touch no vertex of the hull.
    end = np.concatenate([[True], change]) | np.concatenate([change, [True]]) if len(order) else np.zeros(0, bool)
    places = np.stack([place[order[end]] for place in voxels], -1)
    faces = np.concatenate([np.eye(len(shape)), -np.eye(len(shape))]) / 2
    starts = np.searchsorted(cell[end], np.arange(len(num_voxels) + 1))
    solidity = np.empty(len(num_voxels))
    for i, count in enumerate(num_voxels):
        points = (places[starts[i] : starts[i + 1], None] + faces).reshape(-1, len(shape))
        solidity[i] = count / ConvexHull(points).volume
    return np.minimum(solidity, 1.0)


def values(tables: Sequence[CellTable], name: str) -> np.ndarray:
    """A statistic of `PER_CELL` of all whole cells, or of `PER_IMAGE` of all images: float64 [M], undefined ones left
    out."""
    if name in PER_CELL:
        found = np.concatenate([getattr(table, name)[~table.is_cut] for table in tables] or [np.zeros(0)])
    elif name == "num_cells":
        found = np.array([len(table.labels) for table in tables], np.float64)
    elif name == "cut":
        found = np.array([table.is_cut.mean() if len(table.labels) else np.nan for table in tables])
    else:
        found = np.array([getattr(table, name) for table in tables])
    return found[np.isfinite(found)]


def unit(table: CellTable, name: str) -> str:
    """The unit of a statistic, as text; "" for shares and counts."""
    if name == "density":
        if table.unit == "um":
            return "per mm^2" if table.rank == 2 else "per 10^6 um^3"
        return "per 10^6 voxels"
    if name == "size":
        return f"um^{table.rank}" if table.unit == "um" else "voxels"
    return table.unit if name in ("radius", "nearest") else ""


def compare(real: Sequence[CellTable], synthetic: Sequence[CellTable]) -> dict:
    """How far the synthetic cells are from the real ones, statistic by statistic.

    Cells cut by the border count in density and neighbourhood, and are left out of size and shape.

    Args:
      real, synthetic: tables of `measure`, one per image, of one rank and unit.

    Returns:
      {statistic: {"unit", "real", "synthetic": {"num", "median", "quartiles"}, "wasserstein", "ks", "real_wasserstein",
      "real_ks"}}. Wasserstein distances are in standard deviations of the real values; KS is the greatest distance of
      the cumulative curves (with no p-value: among thousands of cells every difference is significant). real_* compare
      the first half of the real images with the second, the yardstick for the other two. None: undefined, as where
      nothing is whole, all real values are equal, or there is one real image.

    Raises:
      InputError: a set without images or without any cell, or sets of different rank or unit.
    """
    for name, tables in (("real", real), ("synthetic", synthetic)):
        if not any(len(table.labels) for table in tables):
            raise InputError(f"{name} label images: expected cells, got none in {len(tables)} image(s)")
    kinds = {(table.rank, table.unit) for table in (*real, *synthetic)}
    if len(kinds) > 1:
        told = " and ".join(f"{rank}D in {unit}" for rank, unit in sorted(kinds))
        raise InputError(f"label images: expected one rank and one unit, got {told}")
    half = len(real) // 2
    result = {}
    for name in (*PER_CELL, *PER_IMAGE):
        one, other = values(real, name), values(synthetic, name)
        spread = float(one.std()) if one.size else 0.0
        row = {"unit": unit(real[0], name), "real": _summary(one), "synthetic": _summary(other)}
        row["wasserstein"], row["ks"] = _distances(one, other, spread)
        parts = (values(real[:half], name), values(real[half:], name))
        row["real_wasserstein"], row["real_ks"] = _distances(*parts, spread)
        result[name] = row
    return result


def _summary(found: np.ndarray) -> dict:
    if not found.size:
        return {"num": 0, "median": None, "quartiles": None}
    low, median, high = (float(q) for q in np.percentile(found, (25, 50, 75)))
    return {"num": int(found.size), "median": median, "quartiles": [low, high]}


def _distances(one: np.ndarray, other: np.ndarray, spread: float) -> tuple[float | None, float | None]:
    from scipy.stats import wasserstein_distance

    if not one.size or not other.size:
        return None, None
    distance = float(wasserstein_distance(one, other)) / spread if spread > 0 else None
    steps = np.concatenate([one, other])
    shares = [np.searchsorted(np.sort(part), steps, side="right") / part.size for part in (one, other)]
    return distance, float(np.abs(shares[0] - shares[1]).max())
