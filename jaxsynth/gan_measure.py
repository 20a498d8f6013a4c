"""What is measured of real images before a GAN learns them: their grain, and the grey values of what masks show."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage
from scipy.special import ndtr, ndtri

from jaxsynth.data import intensity as intensities
from jaxsynth.data import unpaired, volumes
from jaxsynth.data.intensity import SCORES
from jaxsynth.errors import InputError
from jaxsynth.sim.brightness import ranked

MOST_IMAGES = 64  # that are read for it, evenly over the set
QUANTILES = 17  # that tell how bright the cells of an image are
LEAST_GRAIN = 1e-3  # standard deviation, in [0, 1]
GREYS = np.linspace(0, 1, 9)  # at which grain is measured


def measure(
    config, opened: volumes.VolumeSet, scale: intensities.Intensity, labels_of: Callable | None
) -> tuple[tuple[float, ...], ...]:
    """Fills in `levels`, `grain`, its correlation and `clouds` of config.gan, where they are open and of use.

    Levels are, where the images have labels, those of `_of_masks` and `_of_sketches`, else the images' percentiles.
    Clouds are what masks with levels that are measured leave unexplained.

    Args:
      labels_of: index of an image, its array -> its labels int32 [*S]; None: the images have none.

    Returns:
      `Intensity.brightness` for these levels, where they are found from labels and for sketches; else ().

    Raises:
      InputError: no image has cells and background, and levels are asked for.
    """
    own, brightness = config.gan, ()
    sketches, noise = own.mask == "sketch", config.model.noise_channel
    levels_open = (own.residual or sketches) and not own.levels
    grain_open = own.residual and not own.grain and (noise or levels_open)  # levels are told without grain
    if not (grain_open or levels_open):
        return ()
    compared = labels_of is not None and levels_open
    count = len(opened.paths)
    indices = np.unique(np.linspace(0, count - 1, min(count, MOST_IMAGES)).round().astype(int))
    curves, correlations, shown, clouds = [], [], [], []
    for index, image in zip(indices, volumes.each(volumes.subset(opened, indices)), strict=True):
        grey = (np.asarray(intensities.normalise(image, scale), np.float64) + 1) / 2
        if grain_open:
            curve, correlation = intensities.grain(grey, GREYS)
            curves.append(curve)
            correlations.append(correlation)
        if compared:
            labels = labels_of(index, image)
            if sketches:
                shown.append(_cells(labels, grey))
            else:  # of residual generators
                grain = _at_all(np.array(curves[-1:])) if grain_open else own.grain
                moments, left = _moments(labels, grey, grain, opened.spacing_um, own)
                shown.append(moments)
                clouds.append(left)
    if grain_open and noise:
        own.grain = _at_all(np.array(curves))
        own.grain_correlation = own.grain_correlation or _correlation(np.array(correlations))
    if levels_open:
        if not compared:
            background, *cells = ((level + 1) / 2 for level in scale.levels)
            found = (background, *(cells if sketches else [np.mean(cells)]))
        elif sketches:
            found, brightness = _of_sketches(shown)
        else:
            cloudy = not own.clouds and noise and own.clouds_vox > 0
            found = _of_masks(np.sum(shown, axis=0), cloudy)
            if cloudy:
                own.clouds = _table(_mean_rows(np.array(clouds)))
        if found is None:
            raise InputError(f"{own.image_labels}: no background or no cell in any label image: set gan.levels")
        own.levels = tuple(round(float(level), 4) for level in found)
    return brightness


def sketch_of(labels: np.ndarray, grey: np.ndarray, background: float) -> np.ndarray:
    """The sketch of a real image, each cell at its mean, as the generator sees sketches: float16 [*S] in [0, 1].

    Args:
      labels: integers [*S], 0 = background.
      grey: the image, float [*S] in [0, 1].
      background: the grey value of all backgrounds.
    """
    ranks, ids, _ = ranked(labels)
    means = ndimage.mean(grey, ranks, range(1, len(ids)))
    return np.concatenate([[background], means]).astype(np.float16)[ranks]


def _cells(labels: np.ndarray, grey: np.ndarray) -> tuple[float | None, np.ndarray]:
    """The mean grey values of the background, if there is any (medians may be 0, where no grain is), and of cells."""
    ranks, ids, _ = ranked(labels)
    outside = grey[ranks == 0]
    return (outside.mean() if outside.size else None), np.asarray(ndimage.mean(grey, ranks, range(1, len(ids))))


def _of_sketches(shown: Sequence[tuple[float | None, np.ndarray]]) -> tuple[tuple | None, tuple]:
    """The background, the dimmest and the brightest cell, and between these the tables of each image with cells."""
    backgrounds = [background for background, _ in shown if background is not None]
    images = [cells for _, cells in shown if len(cells)]
    if not (backgrounds and images):
        return None, ()
    low, high = min(cells.min() for cells in images), max(cells.max() for cells in images)
    tables = [np.quantile((cells - low) / ((high - low) or 1.0), np.linspace(0, 1, QUANTILES)) for cells in images]
    return (np.mean(backgrounds), low, high), tuple(tuple(round(float(x), 4) for x in row) for row in tables)


def _moments(labels: np.ndarray, grey: np.ndarray, grain: Sequence, spacing_um, own) -> tuple[np.ndarray, np.ndarray]:
    """Sums over an image: of voxels, of its mask, blurred as it will be, its square, its product with the grey values,
    of these, and of their squares without the grain's. And how what the mask leaves of the image, blurred alike, is
    distributed: its values at SCORES, outside of the organism and within [2, len(SCORES)]; NaN where nothing lies."""
    mask = unpaired.mask(labels, spacing_um, own.mask)
    soft, plain = (ndimage.gaussian_filter(x.astype(np.float64), own.sigma, mode="reflect") for x in (mask, grey))
    noise = 0.0  # of either part as at its mean
    for part in (grey[mask == 0], grey[mask > 0]):
        noise += part.size * _variance(grain, part.mean()) if part.size else 0.0
    sums = [soft.size, soft.sum(), np.square(soft).sum(), (soft * grey).sum(), grey.sum()]
    sums = np.array([*sums, np.square(grey).sum() - noise])
    left = plain - _explained(sums) * soft
    left -= left.mean()  # not that of either part: outside it is darker
    within = unpaired.distances(labels, spacing_um) > 0
    parts = (left[~within], left[within])
    return sums, np.array([np.quantile(x, ndtr(SCORES)) if x.size else np.full(len(SCORES), np.nan) for x in parts])


def _explained(moments: np.ndarray) -> float:
    """The contrast of a blurred mask that explains the image best; at least 0."""
    soft_mean, soft_square, product, mean = moments[1:5] / moments[0]
    spread = soft_square - soft_mean**2
    return max((product - soft_mean * mean) / spread, 0.0) if spread > 0 else 0.0


def _of_masks(moments: np.ndarray, cloudy: bool) -> tuple | None:
    """The grey values with which blurred masks, with clouds, have the images' mean and spread, grain aside.

    With clouds they are those that explain the images best, without them those that have all the spread, as masks do
    not tell all.
    """
    soft_mean, soft_square, _, mean, square = moments[1:] / moments[0]
    soft_spread, spread = soft_square - soft_mean**2, square - mean**2
    if soft_spread <= 0:
        return None
    contrast = _explained(moments) if cloudy else math.sqrt(max(spread, 0) / soft_spread)
    background = mean - contrast * soft_mean
    return tuple(np.clip((background, background + contrast), 0, 1))


def _variance(grain: Sequence, grey: float) -> float:
    """Of grain, rows as in `gan_input.Drawn`, at a grey value."""
    rows = np.asarray(grain)
    even = ndtri((np.arange(200) + 0.5) / 200)  # normal noise
    each = [np.var(np.interp(even, np.linspace(SCORES[0], SCORES[-1], len(row)), row)) for row in rows]
    return float(np.interp(grey, np.linspace(0, 1, len(rows)), each))


def _at_all(found: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """The mean over images [images, len(GREYS), len(SCORES)] of grain; with a little more, as of none the generator
    could not learn any."""
    return _table(_mean_rows(found) + LEAST_GRAIN * SCORES)


def _correlation(found: np.ndarray) -> tuple[float, ...]:
    """The mean over images [images, D] that have noise."""
    known = found[np.isfinite(found).all(1)]
    mean = known.mean(0) if len(known) else np.zeros(found.shape[1])
    return tuple(round(float(x), 2) for x in mean)


def _mean_rows(found: np.ndarray) -> np.ndarray:
    """The mean over images [images, rows, len(SCORES)]; rows that none has, NaN, are as the nearest that some have."""
    known = np.isfinite(found[..., 0])
    some = np.flatnonzero(known.any(0))
    mean = np.zeros(found.shape[1:])
    for index in range(len(mean)) if some.size else ():
        nearest = some[np.abs(some - index).argmin()]
        mean[index] = found[known[:, nearest], nearest].mean(0)
    return mean


def _table(rows: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """Rows as config.gan has them."""
    return tuple(tuple(round(float(x), 4) for x in row) for row in np.clip(rows, -1, 1))
