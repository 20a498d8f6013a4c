"""Brightness of a data set: from the data's own units to the model's range [-1, 1] and back.

Statistics come from the whole training set and travel with the checkpoint, so synthetic images have the range and
dtype of the real ones.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from scipy.special import ndtr
from skimage.filters import threshold_otsu

from jaxsynth.errors import InputError

METHODS = ("minmax_shifted", "percentile", "asinh")
SAMPLE = 2**20  # voxels of one floating-point volume that enter the histogram
TAIL = 1e-4  # fraction of voxels at either end that may be hot pixels
SCORES = np.linspace(-2.5, 2.5, 11)  # of normal noise, at which grain is told
FAR = 5.0  # standard deviations from the mean about a voxel, beyond which it is no grain
MOST_CORRELATION = 0.7  # of noise in neighbouring voxels; no kernel of three weights makes more than 1 / sqrt(2)
LEAST_CORRELATION = 0.1  # more than along the axis with the least; what is less is taken for none
LEAST_EDGE = 8  # voxels of an axis along which correlation is told
LEAST_VOXELS = 50  # that tell the grain at a grey value
BACKGROUND = 0.8  # fraction of all voxels, the darkest, that tells the noise of the background


@dataclass(frozen=True)
class Intensity:
    """How brightness maps to [-1, 1]; made by `fit`.

    Attributes:
      method: one of METHODS.
      dtype: name of the data's dtype.
      low, high: what becomes -1 and 1, data units.
      background: brightness of the empty field (mode of the set), data units.
      scale: spread of the background, data units.
      levels: (background, dim, bright) of the set in [-1, 1], for sketches that shall look like it: the median of
        the background, the 10th and the 95th percentile of the cells' voxels.
      brightness: how bright cells are, from 0 (dim) to 1 (bright): for each of some annotated images a quantile table
        (`sim.brightness`), that of a large one several times; (): not known, any.
      backgrounds: how much brighter the background of each of these images is than that of the levels, from 0 to 1
        being from dim to bright; (): not known, as the levels have it.
    """

    method: str
    dtype: str
    low: float
    high: float
    background: float
    scale: float
    levels: tuple[float, float, float]
    brightness: tuple[tuple[float, ...], ...] = ()
    backgrounds: tuple[float, ...] = ()

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        known = {"levels": self.levels, "brightness": map(list, self.brightness), "backgrounds": self.backgrounds}
        values = dataclasses.asdict(self) | {name: list(rows) for name, rows in known.items()}
        return {name: value for name, value in values.items() if value != []}

    @classmethod
    def from_dict(cls, values: dict) -> "Intensity":
        """The inverse of `to_dict`."""
        tables, backgrounds = (values.get(name, ()) for name in ("brightness", "backgrounds"))
        known = {"brightness": tuple(map(tuple, tables)), "backgrounds": tuple(backgrounds)}
        return cls(**(dict(values) | {"levels": tuple(values["levels"])} | known))


def fit(
    volumes: Sequence[np.ndarray] | Callable[[], Iterable[np.ndarray]],
    method: str,
    *,
    percentiles: tuple[float, float] = (0.1, 99.9),
) -> Intensity:
    """Measures a training set; volumes pass one at a time, twice.

    - `minmax_shifted` (Eschweiler et al. 2024, paper 001): minimum and maximum of the set become -1 and 1.
    - `percentile`: the two percentiles become -1 and 1, what lies beyond is clipped.
    - `asinh`: y = asinh((x - background) / scale), linear in the noise of the background and logarithmic above, so
      dim cells are told from the background and bright ones from each other (Lupton, Gunn and Szalay 1999). The
      range of y becomes [-1, 1]; it ends at the extremes of the set, or earlier: 10 % of the range beyond the
      outermost 0.01 % of the voxels, lest a few hot pixels take up the range. What lies beyond is clipped.

    Histograms of integer data are exact. Of floating-point data up to SAMPLE voxels per volume are drawn (the same
    on every run); their extremes are exact.

    Args:
      volumes: arrays (Y, X) or (Z, Y, X) of one dtype, or a function that returns a new iterator over them.
      method: one of METHODS.
      percentiles: for `percentile`, in 0 to 100.

    Raises:
      InputError: unknown method, no volumes, mixed dtypes, a constant set, or percentiles that coincide.
    """
    if method not in METHODS:
        raise InputError(f"normalisation {method!r} is unknown, expected one of {', '.join(METHODS)}")
    if not callable(volumes) and isinstance(volumes, Iterator):
        raise ValueError("volumes are passed over twice: give a list or a function that returns an iterator")
    passes = volumes if callable(volumes) else lambda: volumes
    values, cdf, dtype = _histogram(passes())
    if values[0] == values[-1]:
        raise InputError(f"every voxel of the training set is {values[0]}: nothing to learn from a constant image")
    background, scale = _background(values, cdf, dtype)
    if method == "percentile":
        low, high = (float(_quantile(values, cdf, p / 100)) for p in percentiles)
        if not low < high:
            raise InputError(
                f"percentiles {percentiles} of the training set coincide at {low}: choose wider ones "
                "or another normalisation"
            )
    elif method == "asinh":
        low, high = _asinh_range(values, cdf, background, scale)
    else:
        low, high = float(values[0]), float(values[-1])
    intensity = Intensity(method, dtype.name, low, high, background, scale, (-1.0, -1.0, 1.0))
    levels = normalise(np.array(_levels(passes(), background, scale)), intensity)
    return dataclasses.replace(intensity, levels=tuple(round(float(v), 4) for v in levels))


def normalise(x, intensity: Intensity):
    """Data units -> [-1, 1], float32 of the same shape; NumPy in, NumPy out; jax in, jax out, also inside jit."""
    xp = jnp if isinstance(x, jax.Array) else np
    x = xp.clip(xp.asarray(x).astype(xp.float32), intensity.low, intensity.high)
    low, high = intensity.low, intensity.high
    if intensity.method == "asinh":
        x = xp.arcsinh((x - intensity.background) / intensity.scale)
        low, high = np.arcsinh((np.array([low, high]) - intensity.background) / intensity.scale).tolist()
    return xp.clip((x - low) * (2 / (high - low)) - 1, -1, 1).astype(xp.float32)


def in_units(x, intensity: Intensity):
    """[-1, 1] -> data units, neither rounded nor clipped to the set's range; NumPy or jax, float32 or float64."""
    xp = jnp if isinstance(x, jax.Array) else np
    x = (xp.clip(x, -1, 1) + 1) / 2
    low, high = intensity.low, intensity.high
    if intensity.method != "asinh":
        return low + x * (high - low)
    low, high = np.arcsinh((np.array([low, high]) - intensity.background) / intensity.scale).tolist()
    return intensity.background + intensity.scale * xp.sinh(low + x * (high - low))


def denormalise(x, intensity: Intensity) -> np.ndarray:
    """[-1, 1] -> data units: an array of the data's dtype, rounded where that is an integer.

    Values outside [-1, 1] are clipped to it, so nothing leaves [low, high] and nothing wraps. Integers inside
    [low, high] come back exactly.

    Raises:
      ValueError: a value is NaN or infinite.
    """
    x = np.asarray(x, np.float64)
    if not np.isfinite(x).all():
        raise ValueError("the image holds NaN or infinite values")
    dtype = np.dtype(intensity.dtype)
    x = np.clip(in_units(x, intensity), intensity.low, intensity.high)
    return (np.rint(x) if dtype.kind in "iu" else x).astype(dtype)


def grain(image: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How an image's noise is distributed where it is as bright as each of `at`, and how it correlates.

    Cameras that multiply electrons have a long upper tail, integers of few counts steps, and on an asinh scale the
    noise depends on the grey value. How strong it is is told by second differences along every axis in turn, which
    leave nearly nothing of what is smooth (Immerkaer 1996, there in 2D), and the median of their sizes, which leaves
    out edges; how it is distributed, and how bright it is, by the mean of 5 x 5 voxels in the plane. Scanned and
    interpolated images have noise that correlates along an axis: that is told by fourth differences along the others,
    which leave it as it is, and taken into account where its strength is told. What correlates along all axes alike is
    texture that optics blurred.

    Args:
      image: [*S] of any scale.
      at: grey values, rising; a voxel counts for the nearest.

    Returns:
      Values at SCORES, those that normal noise has at so many standard deviations, float [len(at), len(SCORES)] in
      units of the image, NaN where fewer than LEAST_VOXELS are as bright. The correlation of neighbours along each axis
      [D], 0 or LEAST_CORRELATION to MOST_CORRELATION; NaN of an image without noise.
    """
    image = np.asarray(image, np.float32)
    axes = [axis for axis, size in enumerate(image.shape) if size >= 3]
    inner = tuple(slice(1, -1) if axis in axes else slice(None) for axis in range(image.ndim))  # differences are whole
    correlation = _correlation(image)
    left = _differences(image, axes) / math.sqrt(np.prod([_kept(x) for x in np.nan_to_num(correlation)]))
    local = ndimage.uniform_filter(image, (1,) * (image.ndim - 2) + (5, 5))
    left, away, local = left[inner], (image - local)[inner], local[inner]
    nearest = np.digitize(local, (at[1:] + at[:-1]) / 2)
    found = np.full((len(at), len(SCORES)), np.nan)
    for index, row in enumerate(found):
        own = nearest == index
        if own.sum() < LEAST_VOXELS:
            continue
        sd = _robust_sd(left[own])
        rest = away[own & (np.abs(away) <= FAR * sd)]  # farther ones are edges
        if rest.size < LEAST_VOXELS or not np.ptp(rest):
            row[:] = sd * SCORES
            continue
        rest = rest - rest.mean()
        row[:] = np.quantile(rest, ndtr(SCORES)) * (sd / rest.std())
    return found, correlation


def smoothing(correlation: float) -> tuple[float, float]:
    """The weights of a voxel and of either neighbour, whose sum over white noise has its variance, and this correlation
    between neighbours, 0 to MOST_CORRELATION."""
    beside = (1 - math.sqrt(1 - 2 * correlation**2)) / (2 * correlation) if correlation else 0.0
    whole = math.sqrt(1 + 2 * beside**2)
    return 1 / whole, beside / whole


def _differences(image: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Second differences along axes in turn, such that white noise keeps its variance."""
    for axis in axes:
        image = ndimage.convolve1d(image, np.array([-0.5, 1, -0.5]) / math.sqrt(1.5), axis=axis)
    return image


def _kept(correlation: float) -> float:
    """The share of its variance that noise keeps in `_differences` along an axis; 1 of white noise."""
    return 1 - (4 * correlation - smoothing(correlation)[1] ** 2) / 3  # the last is the correlation over two voxels


def _robust_sd(noise: np.ndarray) -> float:
    return float(np.median(np.abs(noise))) / 0.6745  # the median of a normal deviate's size


def _correlation(image: np.ndarray) -> np.ndarray:
    """Of noise, see `grain`; 0 along axes of less than LEAST_EDGE voxels, and where there is no other such axis."""
    axes = [axis for axis, size in enumerate(image.shape) if size >= LEAST_EDGE]
    inner = tuple(slice(2, -2) if axis in axes else slice(None) for axis in range(image.ndim))
    found = np.zeros(image.ndim)
    if len(axes) > 1:
        for axis in axes:
            others = [other for other in axes if other != axis]
            found[axis] = _neighbours(_differences(image, others * 2)[inner], axis)
        found[axes] = np.where(found[axes] - found[axes].min() < LEAST_CORRELATION, 0 * found[axes], found[axes])
    return np.minimum(found, MOST_CORRELATION)


def _neighbours(noise: np.ndarray, axis: int) -> float:
    """The correlation of neighbours along an axis, edges aside, at least 0; NaN without noise."""
    first, second = (np.take(noise, range(start, noise.shape[axis] + start - 1), axis) for start in (0, 1))
    far = FAR * _robust_sd(noise)
    both = (np.abs(first) < far) & (np.abs(second) < far)
    first, second = first[both], second[both]
    whole = math.sqrt(np.square(first).sum() * np.square(second).sum())
    return max(float((first * second).sum() / whole), 0.0) if whole else math.nan


def _histogram(volumes: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.dtype]:
    """Distinct values in rising order, the fraction of voxels up to each, and the dtype of the set."""
    dtype, counts, parts = None, None, []
    for index, volume in enumerate(volumes):
        volume = np.asarray(volume)
        dtype = dtype or volume.dtype
        if volume.dtype != dtype:
            raise InputError(f"training images {index} and 0 differ in dtype: {volume.dtype} and {dtype}")
        if dtype.kind in "iu" and dtype.itemsize <= 2:
            info = np.iinfo(dtype)
            shifted = volume.ravel() if info.min == 0 else volume.ravel().astype(np.int32) - info.min
            counted = np.bincount(shifted, minlength=info.max - info.min + 1)
            counts = counted if counts is None else counts + counted
        else:
            parts.append(_sample(volume, index))
    if dtype is None:
        raise InputError("the training set is empty")
    if counts is not None:
        values = np.flatnonzero(counts)
        weights, values = counts[values], values + np.iinfo(dtype).min
    else:
        values, where = np.unique(np.concatenate([v for v, _ in parts]), return_inverse=True)
        weights = np.bincount(where, np.concatenate([w for _, w in parts]))
    return values.astype(np.float64), np.cumsum(weights) / np.sum(weights), dtype


def _sample(volume: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and how many voxels each stands for."""
    flat = volume.ravel()
    if flat.size <= SAMPLE:
        return flat, np.ones(flat.size)
    drawn = np.random.default_rng(index).integers(flat.size, size=SAMPLE)
    values = np.concatenate([flat[drawn], [flat.min(), flat.max()]])
    return values, np.concatenate([np.full(SAMPLE, flat.size / SAMPLE), np.ones(2)])


def _quantile(values: np.ndarray, cdf: np.ndarray, fraction):
    return values[np.minimum(np.searchsorted(cdf, np.asarray(fraction) - 1e-12), len(values) - 1)]


def _background(values: np.ndarray, cdf: np.ndarray, dtype: np.dtype) -> tuple[float, float]:
    """Mode of the set, and root mean square distance from it of the darkest voxels.

    The darkest four fifths hold few cells; were there more, the scale would grow and the compression grow milder.
    """
    weights = np.diff(cdf, prepend=0)
    low, high = _quantile(values, cdf, [0.001, 0.9])
    if low < high:  # bins, because neighbouring grey values of 16-bit and float data are unevenly filled
        width = (high - low) / 64
        width = np.ceil(width) if dtype.kind in "iu" else width
        inside = (values >= low) & (values <= high)
        bins = ((values[inside] - low) / width).astype(int)
        best = values[inside][bins == np.argmax(np.bincount(bins, weights[inside]))]
        share = np.cumsum(weights[np.isin(values, best)])
        background = float(best[np.searchsorted(share, share[-1] / 2)])
    else:
        background = float(low)
    dark = values <= _quantile(values, cdf, BACKGROUND)
    scale = float(np.sqrt(np.average((values[dark] - background) ** 2, weights=weights[dark])))
    if scale == 0:  # an empty field of one exact value, as after thresholding: take the unit from the signal
        above = values > background
        share = np.cumsum(weights[above])
        scale = float(values[above][np.searchsorted(share, share[-1] / 2)] - background)
    return background, max(scale, 1.0) if dtype.kind in "iu" else scale


def _asinh_range(values: np.ndarray, cdf: np.ndarray, background: float, scale: float) -> tuple[float, float]:
    y = np.arcsinh((values - background) / scale)
    inner = _quantile(y, cdf, [TAIL, 1 - TAIL])
    margin = 0.1 * (inner[1] - inner[0])
    ends = (inner[0] - margin, inner[1] + margin) if margin > 0 else (y[0], y[-1])
    low, high = background + scale * np.sinh(ends)
    return float(max(low, values[0])), float(min(high, values[-1]))


def _levels(volumes: Iterable[np.ndarray], background: float, scale: float) -> tuple[float, float, float]:
    """(background, dim, bright) in data units, from the images smoothed by one voxel.

    Cells are what lies above Otsu's threshold of asinh((x - background) / scale): on a linear axis the brightest
    cells pull the threshold above the dim ones. Of the thresholds of the whole set and of each image the greater
    holds, as images of one set differ in background and some may hold no cell.
    """
    edges = np.linspace(np.arcsinh(-1e3), np.arcsinh(1e6), 1601)
    centres = (edges[1:] + edges[:-1]) / 2
    images = []
    for volume in volumes:
        y = np.arcsinh((ndimage.gaussian_filter(volume.astype(np.float32), 1.0) - background) / scale)
        images.append(np.histogram(np.clip(y, edges[0], edges[-1]), edges)[0])
    images = np.array(images)
    threshold = threshold_otsu(hist=(images.sum(0), centres))
    own = np.array([threshold_otsu(hist=(counts, centres)) for counts in images])
    cells = centres > np.maximum(threshold, own)[:, None]
    picked = []
    for part, fraction in ((~cells, 0.5), (cells, 0.10), (cells, 0.95)):
        counts = np.where(part, images, 0).sum(0)
        # Without a voxel above any threshold (a flat histogram of one bin) every level is the same.
        counts = counts if counts.any() else images.sum(0)
        picked.append(_quantile(centres, np.cumsum(counts) / counts.sum(), fraction))
    return tuple(background + scale * np.sinh(picked))
