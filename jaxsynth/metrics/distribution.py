"""How alike two sets of images are that show different cells: histograms, spectra, and numbers that name a fault.

Host functions in float64, one image at a time (the images of a set may differ in size); rank-free: image [*S] is
(Y, X) or (Z, Y, X), and voxels count as cubes (frequencies are cycles per voxel along every axis). A set's histogram
is the sum of its images' counts, its spectrum and statistics the mean over its images.
"""

import numpy as np
from scipy import fft, ndimage

from jaxsynth.errors import InputError

SMOOTHING = 1e-8
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)


def bin_edges(low: float, high: float, num_bins: int, *, integer: bool = False) -> np.ndarray:
    """Edges of `num_bins` equal bins over [low, high]: float64 [num_bins + 1].

    For integer images the edges are moved to the half-integers around (fewer bins where the range is short): bins
    that held now two and now three grey levels would give the histogram teeth.
    """
    if not low < high:
        raise InputError(f"histogram: expected low < high, got {low} and {high}")
    return snap(np.linspace(low, high, num_bins + 1)) if integer else np.linspace(low, high, num_bins + 1)


def snap(edges: np.ndarray, levels: np.ndarray | None = None) -> np.ndarray:
    """Rising edges moved between grey levels, repeated ones dropped: float64 [at most len(edges)].

    Args:
      edges: [N].
      levels: the grey values in use, rising (`grey_levels`): edges move to the nearest middle of two, so that every
        bin holds a level. Default: every integer, then edges move outward to half-integers.
    """
    if levels is None:
        return np.unique(np.concatenate([[np.ceil(edges[0]) - 0.5], np.floor(edges[1:]) + 0.5]))
    middles = (levels[1:] + levels[:-1]) / 2
    if not middles.size:
        return np.array([edges[0] - 0.5, edges[-1] + 0.5])
    after = np.clip(np.searchsorted(middles, edges[1:-1]), 1, max(len(middles) - 1, 1))
    pair = middles[np.stack([after - 1, np.minimum(after, len(middles) - 1)])]
    nearest = np.where(edges[1:-1] - pair[0] < pair[1] - edges[1:-1], pair[0], pair[1])
    inner = nearest[(nearest > edges[0]) & (nearest < edges[-1])]
    return np.unique(np.concatenate([[edges[0] - 0.5], inner, [edges[-1] + 0.5]]))


def grey_levels(counts: np.ndarray, first: int = 0, reach: int = 8) -> np.ndarray:
    """The grey values that integer images really use: float64 [L], rising.

    Images stretched to a wider range use only every third grey value or so. Compared on finer bins they would be far
    from any image that uses all, although no eye tells the two apart.

    Args:
      counts: voxels of grey value first, first + 1, ...: [N].
      first: the grey value of counts[0].
      reach: a value used less than 1 % as often as one within so many steps is taken for a stray.
    """
    counts = np.asarray(counts)
    used = (counts > 0) & (counts >= 0.01 * ndimage.maximum_filter1d(counts, 2 * reach + 1))
    return np.flatnonzero(used) + float(first)


def histogram(image: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Voxels per bin: int64 [len(edges) - 1]. What lies beyond the edges counts in the first and last bin."""
    edges = np.asarray(edges, np.float64)
    image = np.clip(np.asarray(image).reshape(-1), edges[0], edges[-1])
    return np.histogram(image, edges)[0]


def kld(counts: np.ndarray, other: np.ndarray, smoothing: float = SMOOTHING) -> float:
    """Kullback-Leibler divergence KL(counts || other) = sum p ln(p / q) in nats, >= 0.

    Args:
      counts, other: histograms on the same bins, [N], counts or densities; each is divided by its sum, then
        `smoothing` is added to every bin and each is divided by its sum again, so that an empty bin costs a finite
        amount. The first is the real set in this package.
    """
    p, q = _probabilities(counts, smoothing), _probabilities(other, smoothing)
    return max(float(np.sum(p * np.log(p / q))), 0.0)


def bhattacharyya(counts: np.ndarray, other: np.ndarray, smoothing: float = SMOOTHING) -> float:
    """Bhattacharyya distance -ln sum sqrt(p q), >= 0 and symmetric; arguments as in `kld`."""
    p, q = _probabilities(counts, smoothing), _probabilities(other, smoothing)
    # sum sqrt(p q) = 1 - sum (sqrt p - sqrt q)^2 / 2, which is exact for equal histograms.
    return float(-np.log1p(-0.5 * np.sum((np.sqrt(p) - np.sqrt(q)) ** 2)))


def _probabilities(counts, smoothing):
    counts = np.asarray(counts, np.float64)
    total = counts.sum()
    if not total > 0:
        raise InputError("histogram: expected at least one voxel, got none")
    return (counts / total + smoothing) / (1 + smoothing * counts.size)


def frequencies(num_bins: int) -> np.ndarray:
    """Centres of the bins of `spectrum`, cycles per voxel in (0, 0.5): float64 [num_bins]."""
    return (np.arange(num_bins) + 0.5) * 0.5 / num_bins


def spectrum(image: np.ndarray, num_bins: int = 32) -> np.ndarray:
    """Power spectrum averaged over all directions, up to 0.5 cycles per voxel: float64 [num_bins].

    The mean is taken off and a Hann window laid over the image, so that its borders do not add power. Scaled such
    that white noise of variance v has the flat spectrum v. The unit is the image's squared. NaN where no frequency
    of the image falls into a bin.
    """
    image = np.asarray(image, np.float64)
    # Half-voxel Hann: positive everywhere, so that even an axis of one or two voxels keeps its content.
    window = np.ones(())
    for size in image.shape:
        window = np.multiply.outer(window, np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2)
    mean = np.sum(image * window) / np.sum(window)
    power = np.abs(fft.rfftn((image - mean) * window)) ** 2 / np.sum(window**2)
    squared = np.zeros(())
    for axis, size in enumerate(image.shape):
        f = fft.rfftfreq(size) if axis == image.ndim - 1 else fft.fftfreq(size)
        squared = np.add.outer(squared, f**2)
    # rfftn keeps one of each conjugate pair along the last axis.
    twice = np.full(power.shape[-1], 2.0)
    twice[0] = 1
    if image.shape[-1] % 2 == 0:
        twice[-1] = 1
    weight = np.broadcast_to(twice, power.shape)
    index = np.floor(np.sqrt(squared) * 2 * num_bins).astype(int)
    index[np.sqrt(squared) == 0.5] = num_bins - 1
    inside = index < num_bins
    total = np.bincount(index[inside], (power * weight)[inside], num_bins)
    modes = np.bincount(index[inside], weight[inside], num_bins)
    return np.divide(total, modes, out=np.full(num_bins, np.nan), where=modes > 0)


def spectral_difference(power: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Difference of two spectra at each frequency in dB, 10 log10(other / power): float64 [N].

    Positive where `other` has more power. NaN where one of them is zero or NaN.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = 10 * (np.log10(other) - np.log10(power))
    return np.where(np.isfinite(difference), difference, np.nan)


def spectral_distance(power: np.ndarray, other: np.ndarray) -> float:
    """Root mean square of `spectral_difference` over frequencies, dB (the log-spectral distance); NaN where none."""
    difference = spectral_difference(power, other)
    known = difference[np.isfinite(difference)]
    return float(np.sqrt(np.mean(known**2))) if known.size else float("nan")


def statistics(image: np.ndarray) -> dict[str, float]:
    """Numbers that name what is wrong with an image, each in the image's unit unless said otherwise.

    - `background_level`: median of the darker half. The half is told after a blur of 2 voxels, so that noise does
      not choose its own pixels; so are the next two.
    - `background_noise_sd`: standard deviation of (image - blurred image) there without outliers beyond 6 sd,
      scaled such that white noise gives its standard deviation. (The median absolute deviation would say nothing
      where most of the background is cut off at one grey value.)
    - `background_noise_correlation`: correlation of that difference with its neighbour along X, without the
      same outliers. Near 0 for white noise (the difference itself makes it a little less), towards 1 for blurred.
    - `texture_scale_vox`: standard deviation in voxels of the Gaussian that would blur white noise to this image's
      mean squared slope within (Y, X); larger for softer or larger structure. From the image blurred by 1 voxel,
      so that its noise does not count, and with that blur taken off again.
    - `quantile_*`: brightness below which that share of the voxels lies.
    """
    image = np.asarray(image, np.float64)
    blurred = ndimage.gaussian_filter(image, 2.0)
    dark = blurred <= np.median(blurred)
    residual = image - blurred
    gain = np.sqrt(1 - 2 * _peak(2.0, image.shape) + _energy(2.0, image.shape))
    noise, quiet = _clipped_sd(residual, dark)
    both = quiet[..., 1:] & quiet[..., :-1]
    correlation = _correlation(residual[..., 1:][both], residual[..., :-1][both])
    found = {
        "background_level": float(np.median(image[dark])),
        "background_noise_sd": float(noise / gain),
        "background_noise_correlation": correlation,
        "texture_scale_vox": _texture_scale(image),
    }
    for q, value in zip(QUANTILES, np.quantile(image, QUANTILES), strict=True):
        found[f"quantile_{q:g}"] = float(value)
    return found


def _clipped_sd(residual, inside, limit=6.0, rounds=20):
    """Standard deviation of the voxels `inside`, outliers left out until no more are found; and which voxels stayed."""
    kept = inside
    for _ in range(rounds):
        centre, sd = residual[kept].mean(), residual[kept].std()
        now = inside & (np.abs(residual - centre) <= limit * sd)
        if np.array_equal(now, kept) or not now.any():
            break
        kept = now
    return sd, kept


def _kernel(sigma, size):
    """The line through ndimage's Gaussian; an axis of one voxel is left as it is."""
    radius = int(4 * sigma + 0.5)
    delta = np.zeros(2 * radius + 1)
    delta[radius] = 1
    return ndimage.gaussian_filter1d(delta, sigma, mode="constant") if size > 1 else delta


def _peak(sigma, shape):
    return float(np.prod([_kernel(sigma, size).max() for size in shape]))


def _energy(sigma, shape):
    return float(np.prod([np.sum(_kernel(sigma, size) ** 2) for size in shape]))


def _correlation(x, y):
    if x.size < 2:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt(np.mean(x**2) * np.mean(y**2))
    return float(np.mean(x * y) / norm) if norm > 0 else float("nan")


def _texture_scale(image):
    """White noise blurred with sigma s has variance / mean squared slope along an axis = 2 s^2."""
    soft = ndimage.gaussian_filter(image, [0.0] * (image.ndim - 2) + [1.0, 1.0])
    slope = np.mean([np.mean(np.gradient(soft, axis=axis) ** 2) for axis in (-2, -1)])
    if not slope > 0:
        return float("nan")
    return float(np.sqrt(max(np.var(soft) / (2 * slope) - 1.0, 0.0)))
