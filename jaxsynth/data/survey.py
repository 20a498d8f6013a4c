"""How large and how many the cells of unlabelled images are, roughly: so that simulated cells match without a
measurement by the user. Host code: it runs once, on a few images, before a training."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage import feature, filters

from jaxsynth.data.intensity import Intensity, normalise
from jaxsynth.data.volumes import VolumeSet, load

MAX_FILES = 8
MAX_VOXELS = 2**24  # of each file; of larger ones a central block


@dataclass(frozen=True)
class Survey:
    """What the cells of a training set look like.

    Attributes:
      radius_vox: typical radius in the plane, voxels.
      num_cells: typical number per image.
      shape: the surveyed images' median size, voxels.
    """

    radius_vox: float
    num_cells: float
    shape: tuple[int, ...]


def survey(volumes: VolumeSet, intensity: Intensity) -> Survey | None:
    """Estimates size and number of bright blobs on a dark background.

    The normalised image is smoothed and thresholded (Otsu). A first guess of the radius is the area-weighted
    distance to the background; smoothed by half of that, the maxima of the distance are the cells, and a cell's
    volume is the foreground's share of each.

    Returns:
      Survey, or None where no cell stands out (membranes, empty images).
    """
    step = max(1, len(volumes.paths) // MAX_FILES)
    aspect = np.ones(volumes.ndim)
    if volumes.spacing_um is not None:
        aspect = np.asarray(volumes.spacing_um) / volumes.spacing_um[-1]
    radii, counts = [], []
    for index in range(0, len(volumes.paths), step)[:MAX_FILES]:
        block = _centre(np.asarray(normalise(load(volumes, index), intensity)))
        found = _cells(block, aspect)
        if found is not None:
            radii.append(found[0])
            counts.append(found[1] * np.prod(volumes.shapes[index], dtype=float) / block.size)
    if not radii:
        return None
    shape = np.median(np.asarray(volumes.shapes), axis=0).astype(int)
    return Survey(round(float(np.median(radii)), 2), round(float(np.median(counts)), 1), tuple(map(int, shape)))


def _centre(image: np.ndarray) -> np.ndarray:
    """The image, or a central block of at most MAX_VOXELS."""
    share = min(1.0, (MAX_VOXELS / image.size) ** (1 / image.ndim))
    sizes = [max(1, int(size * share)) for size in image.shape]
    return image[tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(image.shape, sizes, strict=True))]


def _cells(image: np.ndarray, aspect: np.ndarray) -> tuple[float, int] | None:
    """(radius in the plane, number) of the cells of one image; `aspect`: voxel edges over the edge along x."""
    smooth = ndimage.gaussian_filter(image, 2.0 / aspect)
    if np.ptp(smooth) < 1e-3:
        return None
    inside = smooth > filters.threshold_otsu(smooth)
    if not 1e-4 < inside.mean() < 0.7:
        return None
    depth = ndimage.distance_transform_edt(inside, sampling=aspect)
    # For a disc the mean depth is r / 3, for a ball r / 4.
    guess = (image.ndim + 1) * depth[inside].mean()
    depth = ndimage.gaussian_filter(depth, 0.25 * guess / aspect)
    reach = np.maximum(np.round(0.6 * guess / aspect), 1).astype(int)
    footprint = np.ones(2 * reach + 1, bool)
    peaks = feature.peak_local_max(depth, footprint=footprint, threshold_abs=0.3 * guess / 2, exclude_border=False)
    if not len(peaks):
        return None
    volume = inside.sum() * np.prod(aspect) / len(peaks)
    radius = (volume / np.pi) ** 0.5 if image.ndim == 2 else (volume * 3 / (4 * np.pi)) ** (1 / 3)
    return float(radius), len(peaks)
