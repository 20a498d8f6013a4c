"""Whether images show what their labels say: vanished cells (labelled, not seen), phantoms (seen, not labelled).

Host functions in NumPy, one image at a time; rank-free: (Y, X) or (Z, Y, X). The detector sees the image alone and
knows of its cells only how large they are. What it finds amiss in real annotated images is the floor below which its
rates mean nothing: docs/fidelity.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxsynth.errors import InputError

GRID = 12  # images are judged on a grid of about so many voxels per cell diameter, where theirs is finer
SOFT = 3.0  # so many standard deviations of noise above the background brightness turns from linear to logarithmic
HAZE = 0.05  # and at least this share of the bright cells', lest the haze of an image without noise fill the scale
SEEN = 4.0  # height of what is seen, standard deviations of the noise at the scale of a cell
ROUND = 1.0  # and its height over what surrounds it within a cell's diameter, which a halo does not have
CLEAR = 15.0  # contrast from which what is seen must have a label
FAINT = 0.15  # and its least share of the image's median contrast: haze beside bright cells is none
SMALL = 0.2  # cells and detections below this share of a typical cell's size are not judged
COVERED = 0.4  # share of a cell that detections cover where it is visible
LABELLED = 0.3  # share of a phantom's voxels that may be labelled: it may touch a cell
TOUCHING = 0.4  # share of the labels' surface that faces another label, from which they have no gaps


@dataclass(frozen=True)
class Detections:
    """What was seen in an image, N blobs.

    Attributes:
      segments: int32 [*S], 0 = nothing, else 1..N.
      centre: float64 [N, D], voxels: the middle of the brightest place, or of what a given segmentation found.
      size: int64 [N], voxels.
      contrast: float64 [N], mean height over the background nearby, standard deviations of the image's own noise at
        the scale of a cell; NaN in a given segmentation.
    """

    segments: np.ndarray
    centre: np.ndarray
    size: np.ndarray
    contrast: np.ndarray


@dataclass(frozen=True)
class Fidelity:
    """How an image keeps to its labels.

    Attributes:
      num_cells: labels in the image.
      vanished: int64 [V], ids of labels without visible signal.
      too_small: int64 [T], ids of labels that were not judged: slivers, and cells of which the edge leaves little.
      phantoms: int64 [P], rows of the detections that have no label.
      at_edge: number of detections without a label that touch the image's edge and were not judged: annotators
        often leave such cells out.
      detections: what was seen.
    """

    num_cells: int
    vanished: np.ndarray
    too_small: np.ndarray
    phantoms: np.ndarray
    at_edge: int
    detections: Detections

    @property
    def num_judged(self) -> int:
        return self.num_cells - len(self.too_small)

    @property
    def num_faults(self) -> int:
        return len(self.vanished) + len(self.phantoms)


def fidelity(
    labels: np.ndarray,
    image: np.ndarray | None,
    *,
    diameter_vox: float | Sequence[float] | None = None,
    detections: Detections | None = None,
) -> Fidelity:
    """Judges an image by its labels.

    A cell is visible where detections cover `COVERED` of it, or one's centre lies on it. A phantom is a detection of
    at least `SMALL` of a typical cell's size and of contrast `CLEAR` (the bar for a fault is high on both sides),
    away from the edge, whose centre and nearly all of whose voxels lie on background.

    Args:
      labels: integers >= 0 [*S], 0 = background.
      image: [*S], any unit; not used where `detections` are given.
      diameter_vox: typical extent of a cell, one number or [D]; default: that of the labels.
      detections: of another detector that did not see the labels, see `given`; default: `detect`.

    Raises:
      InputError: labels and image differ in shape; no cell tells the diameter; labels without gaps, as between
        membranes, and no detections given; `detect` refuses the image.
    """
    shape = image.shape if detections is None else detections.segments.shape
    if shape != labels.shape:
        raise InputError(f"labels {labels.shape} and what they are compared with, {shape}, differ in shape")
    if detections is None:
        check_gaps(labels)
    ids, index, size = _compact(labels)
    if diameter_vox is None:
        diameter_vox = cell_diameter(labels)
        if diameter_vox is None:
            raise InputError("labels: expected at least one cell, or a diameter_vox; got none")
    found = detect(image, diameter_vox) if detections is None else detections
    small = SMALL * float(np.prod(_extents(diameter_vox, labels.ndim))) * {2: math.pi / 4, 3: math.pi / 6}[labels.ndim]

    seen = found.segments > 0
    covered = np.bincount(index[seen], minlength=len(ids) + 1)[1:] / size
    places = np.clip(np.rint(found.centre).astype(int), 0, np.array(labels.shape) - 1)
    under = index[tuple(places.T)]
    visible = (covered >= COVERED) | np.isin(1 + np.arange(len(ids)), under)

    count = len(found.size)
    labelled = np.bincount(found.segments[index > 0], minlength=count + 1)[1:] / np.maximum(found.size, 1)
    large = found.size >= small
    lone = large & (under == 0) & (labelled < LABELLED)
    known = found.contrast[large & ~np.isnan(found.contrast)]
    bar = max(CLEAR, FAINT * float(np.median(known))) if known.size else CLEAR
    lone &= np.isnan(found.contrast) | (found.contrast >= bar)
    edge = np.isin(1 + np.arange(count), _faces(found.segments))
    return Fidelity(
        num_cells=len(ids),
        vanished=ids[~visible & (size >= small)],
        too_small=ids[size < small],
        phantoms=np.flatnonzero(lone & ~edge),
        at_edge=int((lone & edge).sum()),
        detections=found,
    )


def detect(image: np.ndarray, diameter_vox: float | Sequence[float], *, seen: float = SEEN) -> Detections:
    """Bright blobs of about a cell's size, dim ones beside bright ones, from the image alone.

    The image is averaged to about `GRID` voxels per diameter, made logarithmic above its noise, and smoothed over a
    small part of a cell; a voxel is seen where it stands out of the low end of its surroundings and is no slope beside
    something brighter (difference of Gaussians at a cell's scale). What is seen is cut between its maxima (watershed).
    Noise is the image's own at that scale, from what is darker than its most frequent value.

    Args:
      image: [*S] numbers, any unit, cells brighter than the background, which covers a fair share of it.
      diameter_vox: typical extent of a cell in voxels, one number or [D] along the axes.
      seen: height of what is seen, standard deviations of the noise.

    Raises:
      InputError: image of another rank, or with values that are not finite; no positive diameter.
    """
    from scipy import ndimage
    from skimage import feature, segmentation

    image = np.asarray(image, np.float32)
    if image.ndim not in (2, 3) or not image.size or not np.isfinite(image).all():
        raise InputError(f"image: expected finite numbers (Y, X) or (Z, Y, X), got {image.shape}")
    diameter = _extents(diameter_vox, image.ndim)
    factor = np.maximum(1, (diameter / GRID).astype(int))
    coarse, diameter = _averaged(image, factor), diameter / factor

    def smooth(x, share):
        return ndimage.gaussian_filter(x, diameter * share, truncate=3.0)

    level, noise = _noise(smooth(coarse, 1 / 12))
    bright = float(np.percentile(coarse, 99)) - level
    stable = np.arcsinh((coarse - level) / max(SOFT * noise, HAZE * bright))
    fine, cell = smooth(stable, 1 / 12), smooth(stable, 1 / 6)
    background = _background(fine, diameter)
    level, noise = _noise(fine - background)
    background += level
    mask = (fine - background > seen * noise) & (cell - smooth(stable, 2 / 3) > ROUND * noise)

    window = np.ones(2 * np.maximum(1, np.rint(diameter / 4).astype(int)) + 1, bool)
    peaks = feature.peak_local_max(cell, footprint=window, labels=mask.astype(np.int32), exclude_border=False)
    seeds = np.zeros(coarse.shape, np.int32)
    numbers = 1 + np.arange(len(peaks))
    seeds[tuple(peaks.T)] = numbers
    segments = segmentation.watershed(-cell, seeds, mask=mask).astype(np.int32)
    height = (np.sinh(fine) - np.sinh(background)) / noise  # linear again, so that bright cells tell from dim ones
    contrast = np.asarray(ndimage.mean(height, segments, numbers), np.float64) if len(peaks) else np.zeros(0)

    for axis, repeats in enumerate(factor):
        segments = np.repeat(segments, repeats, axis)
    segments = np.ascontiguousarray(segments[tuple(map(slice, image.shape))])
    size = np.bincount(segments.ravel(), minlength=len(peaks) + 1)[1:]
    return Detections(segments, (peaks + 0.5) * factor - 0.5, size, contrast)


def given(segments: np.ndarray) -> Detections:
    """A segmentation by someone who did not see the labels, integers >= 0 [*S], as detections."""
    _, index, size = _compact(np.asarray(segments))
    voxels = np.nonzero(index)
    sums = [np.bincount(index[voxels], place, len(size) + 1)[1:] for place in voxels]
    centre = np.stack(sums, -1) / size[:, None]
    return Detections(index.astype(np.int32), centre, size, np.full(len(size), np.nan))


def drop(labels: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """The labels without those of `ids`; all others keep theirs."""
    return np.where(np.isin(labels, ids), 0, labels).astype(labels.dtype) if len(ids) else labels


def cell_diameter(labels: np.ndarray) -> np.ndarray | None:
    """The cells' typical extent along each axis, voxels: float64 [D], or None where there is none.

    The median over cells of the diameter of the disc or ball with the same second moments.
    """
    ids, index, size = _compact(labels)
    if not len(ids):
        return None
    voxels = np.nonzero(index)
    cells = index[voxels] - 1
    variance = []
    for place in voxels:
        middle = np.bincount(cells, place) / size
        variance.append(np.bincount(cells, (place - middle[cells]) ** 2) / size + 1 / 12)  # a voxel's own
    return np.median(np.sqrt({2: 16, 3: 20}[labels.ndim] * np.stack(variance, -1)), axis=0)


def check_gaps(labels: np.ndarray) -> None:
    """Raises InputError where labels have no gaps: cells between membranes are dark, and no blobs."""
    share = touching_share(labels)
    if share > TOUCHING:
        raise InputError(
            f"labels: expected background between cells, as between nuclei, but {share:.0%} of their surface touches "
            "others; membranes can be judged by a given segmentation alone"
        )


def touching_share(labels: np.ndarray) -> float:
    """How much of the surface of labels [*S] touches other labels, in [0, 1]."""
    touching = free = 0
    for axis in range(labels.ndim):
        planes = np.moveaxis(labels, axis, 0)
        one, other = planes[1:], planes[:-1]
        differ, both = one != other, (one > 0) & (other > 0)
        touching, free = touching + int((differ & both).sum()), free + int((differ & ~both).sum())
    return touching / max(touching + free, 1)


def _compact(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids int64 [N], place of every voxel's id among them + 1 or 0 [*S], voxels of each [N])."""
    if labels.dtype.kind not in "biu" or labels.min(initial=0) < 0:
        raise InputError(f"labels: expected whole numbers from 0 on, got {labels.dtype} from {labels.min()}")
    if labels.max(initial=0) < 2**20:  # no sort: several times faster on volumes
        used = np.bincount(labels.ravel()) > 0
        used[0] = False
        ids, index = np.flatnonzero(used), np.cumsum(used)[labels] * (labels > 0)
    else:
        values, index = np.unique(labels, return_inverse=True)
        ids, index = values[values > 0], index.reshape(labels.shape) + int(values[0] > 0)
    return ids.astype(np.int64), index, np.bincount(index.ravel(), minlength=len(ids) + 1)[1:]


def _extents(diameter_vox, ndim: int) -> np.ndarray:
    extents = np.asarray(diameter_vox, np.float64)
    if extents.shape not in ((), (ndim,)) or not (np.isfinite(extents) & (extents > 0)).all():
        raise InputError(f"diameter_vox: expected a positive number, or {ndim}; got {diameter_vox}")
    return np.broadcast_to(extents, (ndim,))


def _faces(labels: np.ndarray) -> np.ndarray:
    """The values on the faces of the image; a lone plane has none above and below."""
    axes = [axis for axis, size in enumerate(labels.shape) if size > 1]
    return np.unique(np.concatenate([np.take(labels, end, axis).ravel() for axis in axes for end in (0, -1)] or [[0]]))


def _averaged(image: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Means of blocks; the last ones are filled up with the image's last voxels."""
    image = np.pad(image, [(0, -n % f) for n, f in zip(image.shape, factor, strict=True)], mode="edge")
    shape = [part for n, f in zip(image.shape, factor, strict=True) for part in (n // f, f)]
    return image.reshape(shape).mean(axis=tuple(range(1, 2 * image.ndim, 2)))


def _noise(x: np.ndarray) -> tuple[float, float]:
    """(most frequent value, robust standard deviation of what lies below it): cells, which lie above, do not count.

    The mode is the half-sample mode (Bickel & Fruehwirth 2006), halved four times.
    """
    values = np.sort(x.ravel()[:: max(1, x.size // 2**20)])
    top, bottom = float(values[-1]), values
    for _ in range(4):
        half = -(-len(values) // 2)
        start = int(np.argmin(values[half - 1 :] - values[: len(values) - half + 1]))
        values = values[start : start + half]
    mode = float(np.median(values))
    below = mode - bottom[bottom < mode]
    spread = 1.4826 * float(np.median(below)) if below.size else 0.0
    return mode, max(spread, 1e-4 * (top - mode)) or 1.0  # an image without noise has steps all the same


def _background(fine: np.ndarray, diameter: np.ndarray) -> np.ndarray:
    """The low end of every neighbourhood three cells wide, interpolated between them: [*S]."""
    from scipy import ndimage

    counts = [max(1, round(n / (3 * d))) for n, d in zip(fine.shape, diameter, strict=True)]
    low = np.empty(counts, np.float32)
    for place in np.ndindex(*counts):
        tile = (slice(i * n // c, (i + 1) * n // c) for i, n, c in zip(place, fine.shape, counts, strict=True))
        low[place] = np.percentile(fine[tuple(tile)], 10)
    low = ndimage.gaussian_filter(low, 0.7)
    at = [(np.arange(n) + 0.5) * c / n - 0.5 for n, c in zip(fine.shape, counts, strict=True)]
    return ndimage.map_coordinates(low, np.meshgrid(*at, indexing="ij"), order=1, mode="nearest")
