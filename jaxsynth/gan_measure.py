"""What is measured of real images before a GAN learns them: their grain, and the grey values of what masks show."""

import dataclasses
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
MOST_TABLES = 4 * MOST_IMAGES  # of images of several sizes: with fewer small ones would be left out
MEASURED = ("levels", "grain", "grain_correlation", "clouds")  # of config.gan
QUANTILES = 17  # that tell how bright the cells of an image are
LEAST_SPAN = 0.001  # from the dimmest cell to the brightest, in [0, 1]
LEAST_GRAIN = 1e-3  # standard deviation, in [0, 1]
BESIDE = 1 / 4  # of what a blurred mask comes to: with less voxels lie beside it
CLOUDS_FINEST = 1 / 8  # of gan.clouds_vox: standard deviation of the blur that takes out what is finer than clouds
GREYS = np.linspace(0, 1, 9)  # at which grain is measured


def measure(
    config, opened: volumes.VolumeSet, scale: intensities.Intensity, labels_of: Callable | None
) -> intensities.Intensity:
    """Fills in `levels`, `grain`, its correlation and `clouds` of config.gan, where they are open and of use.

    Levels are, where the images have labels, those of `_of_masks` and `_of_sketches`, else the images' percentiles.
    Clouds are what masks with levels that are measured leave unexplained.

    Args:
      labels_of: index of an image, its array -> its labels int32 [*S]; None: the images have none.

    Returns:
      `scale`; where levels are found from labels and for sketches, with the brightness of cells and the backgrounds
      that go with these levels.

    Raises:
      InputError: no image has cells and background, and levels are asked for.
    """
    own = config.gan
    sketches, noise = own.mask == "sketch", config.model.noise_channel
    levels_open = (own.residual or sketches) and not own.levels
    grain_open = own.residual and not own.grain and (noise or levels_open)  # levels are told without grain
    if not (grain_open or levels_open):
        return scale
    compared = labels_of is not None and levels_open
    count = len(opened.paths)
    indices = np.unique(np.linspace(0, count - 1, min(count, MOST_IMAGES)).round().astype(int))

    def greys():
        for index, image in zip(indices, volumes.each(volumes.subset(opened, indices)), strict=True):
            labels = labels_of(index, image) if compared else None
            yield (np.asarray(intensities.normalise(image, scale), np.float64) + 1) / 2, labels

    curves, correlations, shown = [], [], []
    for grey, labels in greys():
        if grain_open:
            curve, correlation = intensities.grain(grey, GREYS)
            curves.append(curve)
            correlations.append(correlation)
        if compared and sketches:
            shown.append((grey.size, *_cells(labels, grey)))
        elif compared:  # of residual generators
            grain = _at_all(np.array(curves[-1:])) if grain_open else own.grain
            shown.append(_moments(labels, grey, grain, opened.spacing_um, own))
    if grain_open and noise:
        own.grain = _at_all(np.array(curves))
        own.grain_correlation = own.grain_correlation or _correlation(np.array(correlations))
    if levels_open:
        cloudy = compared and not sketches and noise and own.clouds_vox > 0
        if not compared:
            background, *cells = ((level + 1) / 2 for level in scale.levels)
            found = (background, *(cells if sketches else [np.mean(cells)]))
        elif sketches:
            found, tables, backgrounds = _of_sketches(shown)
            scale = dataclasses.replace(scale, brightness=tables, backgrounds=backgrounds)
        else:
            found = _of_masks(np.sum(shown, axis=0), cloudy)
        if found is None:
            raise InputError(f"{own.image_labels}: no background or no cell in any label image: set gan.levels")
        own.levels = tuple(round(float(level), 4) for level in found)
        if cloudy and not own.clouds:
            left = [_left(labels, grey, opened.spacing_um, own) for grey, labels in greys()]
            own.clouds = _table(_mean_rows(np.array(left)))
    return scale


def sketch_of(labels: np.ndarray, grey: np.ndarray, background: float | None) -> np.ndarray:
    """The sketch of a real image, each cell at its mean, as the generator sees sketches: float16 [*S] in [0, 1].

    Args:
      labels: integers [*S], 0 = background.
      grey: the image, float [*S] in [0, 1].
      background: the grey value of all backgrounds; None: each has its own mean, too.
    """
    ranks, _, _ = ranked(labels)
    own, cells = _cells(labels, grey)
    background = own if background is None else background
    return np.concatenate([[background or 0.0], cells]).astype(np.float16)[ranks]


def _cells(labels: np.ndarray, grey: np.ndarray) -> tuple[float | None, np.ndarray]:
    """The mean grey values of the background, if there is any (medians may be 0, where no grain is), and of cells."""
    ranks, ids, _ = ranked(labels)
    outside = grey[ranks == 0]
    return (outside.mean() if outside.size else None), np.asarray(ndimage.mean(grey, ranks, range(1, len(ids))))


def _of_sketches(shown: Sequence[tuple[int, float | None, np.ndarray]]) -> tuple[tuple | None, tuple, tuple]:
    """The mean background, the dimmest and the brightest cell, and between these the tables of each image, and how much
    brighter its background is than the mean.

    Patches of real images are drawn by voxels, tables with equal chance: a larger image has its own more often. One
    without cells has the table of all cells.

    Args:
      shown: of each image its voxels, and the means of its background and cells.
    """
    backgrounds = [background for _, background, _ in shown if background is not None]
    every = np.concatenate([cells for _, _, cells in shown])
    if not (backgrounds and every.size):
        return None, (), ()
    usual, low, high = (round(float(x), 4) for x in (np.mean(backgrounds), every.min(), every.max()))
    low = min(low, 1 - LEAST_SPAN)
    high = max(high, low + LEAST_SPAN)
    voxels = np.cumsum([count for count, _, _ in shown])
    even = np.ptp(np.diff(voxels, prepend=0)) == 0
    shares = (np.arange(MOST_TABLES) + 0.5) / MOST_TABLES
    at = range(len(shown)) if even else np.searchsorted(voxels, shares * voxels[-1])
    tables, above = [], []
    for _, background, cells in (shown[index] for index in at):
        tables.append(np.quantile((cells if cells.size else every) - low, np.linspace(0, 1, QUANTILES)) / (high - low))
        above.append(0.0 if background is None else round(float(background - usual) / (high - low), 4))
    return (usual, low, high), _table(np.array(tables)), tuple(above)


def _moments(labels: np.ndarray, grey: np.ndarray, grain: Sequence, spacing_um, own) -> np.ndarray:
    """Sums outside of the organism and within, [2, 6]: of voxels, of the mask, blurred as it will be, its square, its
    product with the grey values, of these, and of their squares without the grain's."""
    mask, soft, within = _drawn(labels, spacing_um, own)
    noise = np.zeros(grey.shape)  # the grain's variance, of either part of the mask as at its mean
    for part in (mask == 0, mask > 0):
        noise[part] = _variance(grain, grey[part].mean()) if part.any() else 0.0
    terms = [np.ones(grey.shape), soft, np.square(soft), soft * grey, grey, np.square(grey) - noise]
    return np.array([[term[part].sum() for term in terms] for part in (~within, within)])


def _left(labels: np.ndarray, grey: np.ndarray, spacing_um, own) -> np.ndarray:
    """What masks at own.levels leave of an image, without what is too fine for clouds: how it is distributed outside of
    the organism, within it beside masks and on them, its values at SCORES [3, len(SCORES)]; NaN of hardly any voxels.

    On masks it is not as beside them: where a wall is labelled that the image has not, it is minus a wall, which on a
    cell's inside would be a black hole. So what is fine is taken out of each part on its own.
    """
    background, cells = own.levels
    mask, soft, within = _drawn(labels, spacing_um, own)
    left = grey - np.clip(background + (cells - background) * soft, 0, 1)
    beside, on = within & (soft < BESIDE * unpaired.middle(own.mask, own.sigma)), within & (mask > 0)
    found = np.full((3, len(SCORES)), np.nan)
    for row, part in zip(found, (~within, *(part if _enough(part) else within for part in (beside, on))), strict=True):
        if _enough(part):
            row[:] = np.quantile(_smooth_within(left, part, CLOUDS_FINEST * own.clouds_vox), ndtr(SCORES))
    return found


def _enough(part: np.ndarray) -> bool:
    return np.count_nonzero(part) >= intensities.LEAST_VOXELS


def _smooth_within(values: np.ndarray, part: np.ndarray, sigma: float) -> np.ndarray:
    """The means about the voxels of a part [*S] over those of it alone, weighted by a Gaussian: [N]."""
    total, weight = (ndimage.gaussian_filter(x, sigma)[part] for x in (values * part, part.astype(np.float64)))
    return total / weight


def _drawn(labels: np.ndarray, spacing_um, own) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mask, uint8; the same blurred as it will be; and what is within the organism, bool; [*S] each."""
    mask, distances = unpaired.of_labels(labels, spacing_um, own.mask)
    return mask, ndimage.gaussian_filter(mask.astype(np.float64), own.sigma, mode="reflect"), distances > 0


def _of_masks(moments: np.ndarray, cloudy: bool) -> tuple | None:
    """The grey values with which blurred masks have the images' mean and, grain aside, spread.

    With clouds they are those that explain the images best outside of the organism and within, which clouds then tell
    apart; without them those that have all the spread, as masks do not tell all.

    Args:
      moments: as `_moments`, of all images.
    """
    count, *sums = moments.sum(0)
    soft_mean, soft_square, _, mean, square = np.array(sums) / count
    soft_spread = soft_square - soft_mean**2
    if soft_spread <= 0:
        return None
    contrast = math.sqrt(max(square - mean**2, 0) / soft_spread)
    if cloudy:
        own, soft, soft_squares, products, greys, _ = moments[moments[:, 0] > 0].T
        spread, common = (soft_squares - soft**2 / own).sum(), (products - soft * greys / own).sum()
        contrast = max(common / spread, 0.0) if spread > 0 else 0.0
    background = float(np.clip(mean - contrast * soft_mean, 0, 1))
    return background, min(background + contrast, unpaired.MOST_LEVEL)


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
    columns = [column[np.isfinite(column)] for column in found.T]
    return tuple(round(float(column.mean()), 2) if column.size else 0.0 for column in columns)


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
