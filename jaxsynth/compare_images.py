"""How images are measured against real ones, one by one and as sets: for `jaxsynth.evaluate` and `jaxsynth.tune`."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jaxsynth.data import intensity as intensities
from jaxsynth.metrics import distribution, features
from jaxsynth.metrics import image as metrics

NUM_BINS = 100
DISTANCES = {
    "kld": "KLD from real",
    "bhattacharyya": "Bhattacharyya distance",
    "frechet": "Fréchet distance of features",
    "spectral_distance_db": "spectral distance, dB",
}


@dataclasses.dataclass(frozen=True)
class Ruler:
    """What images are measured by; made of real images by `fit`.

    Attributes:
      scale: asinh scale, where the noise of dim and bright voxels is alike: spectra and features are taken on it.
      edges: of the histograms' bins, data units, float64.
      num_frequencies: bins of the spectra.
      patch: of the features, voxels.
      low, high: what becomes 0 and 1 for scores of pairs, data units.
    """

    scale: intensities.Intensity
    edges: np.ndarray
    num_frequencies: int
    patch: tuple[int, ...]
    low: float
    high: float


def fit(real_all: Callable[[], Iterable], real: Callable[[], Iterable], shapes: Sequence[tuple[int, ...]]) -> Ruler:
    """The ruler of a set of real images.

    Args:
      real_all: returns an iterator over the whole set, for the scale.
      real: the same over those that are compared, for the grey levels in use and the range of the pairs' scores.
      shapes: of all images, real and synthetic: small ones have fewer frequencies and smaller patches.
    """
    scale = intensities.fit(real_all, "asinh")
    ends = (np.arcsinh((end - scale.background) / scale.scale) for end in (scale.low, scale.high))
    edges = scale.background + scale.scale * np.sinh(np.linspace(*ends, NUM_BINS + 1))
    dtype = np.dtype(scale.dtype)
    first = np.iinfo(dtype).min if dtype.kind in "iu" else 0
    used, low, high = 0, np.inf, -np.inf
    for image in real():
        low, high = min(low, float(image.min())), max(high, float(image.max()))
        if dtype.kind in "iu":
            levels = np.iinfo(dtype).max - first + 1
            used = used + np.bincount(image.ravel().astype(np.int64) - first, minlength=levels)
    if dtype.kind in "iu":
        edges = distribution.snap(edges, distribution.grey_levels(used, first))
    num_frequencies = max(4, min(32, min(max(shape) for shape in shapes) // 2))
    return Ruler(scale, edges, num_frequencies, features.patch_shape(shapes), low, high)


def measure(image: np.ndarray, ruler: Ruler) -> dict:
    """Of one image [*S] in data units: "counts" of the histogram, "spectrum", "features" and "statistics" by name."""
    stable = intensities.normalise(image, ruler.scale)
    return {
        "counts": distribution.histogram(image, ruler.edges),
        "spectrum": distribution.spectrum(stable, ruler.num_frequencies),
        "features": features.features(stable, ruler.patch),
        "statistics": distribution.statistics(image),
    }


def pool(measured: Iterable[dict]) -> dict:
    """The set's from its images': counts added, spectra and statistics averaged, all patches' features."""
    measured = list(measured)
    statistics = [row["statistics"] for row in measured]
    return {
        "counts": sum(row["counts"] for row in measured),
        "spectrum": np.nanmean([row["spectrum"] for row in measured], axis=0),
        "features": np.concatenate([row["features"] for row in measured]),
        "statistics": {name: float(np.mean([row[name] for row in statistics])) for name in statistics[0]},
    }


def distances(one: dict, other: dict, real: dict) -> dict[str, float]:
    """DISTANCES between two pooled sets, `one` being the real one or a part of it; NaN what they are too small for.

    Args:
      one, other, real: of `pool`; `real` is the whole real set, whose spread is the unit of the features.
    """
    enough = min(len(row["features"]) for row in (one, other)) > 1
    return {
        "kld": distribution.kld(one["counts"], other["counts"]),
        "bhattacharyya": distribution.bhattacharyya(one["counts"], other["counts"]),
        "frechet": features.frechet(one["features"], other["features"], reference=real["features"])
        if enough
        else float("nan"),
        "spectral_distance_db": distribution.spectral_distance(one["spectrum"], other["spectrum"]),
    }


def pair(real: np.ndarray, image: np.ndarray, ruler: Ruler) -> dict[str, float]:
    """Scores of one image against the real one of the same cells.

    As in the papers, images are scaled to [0, 1] by the real set's minimum and maximum. Where nearly all voxels are
    dark that measures the few bright ones, so PSNR, SSIM and ZNCC are also given on the asinh scale.
    """
    x, y = ((volume.astype(np.float32) - ruler.low) / (ruler.high - ruler.low) for volume in (real, image))
    stable = [(intensities.normalise(volume, ruler.scale) + 1) / 2 for volume in (real, image)]
    row = {name: getattr(metrics, name)(x, y, data_range=1.0) for name in ("psnr", "ssim", "mae", "nrmse", "zncc")}
    row |= {f"{name}_asinh": getattr(metrics, name)(*stable, data_range=1.0) for name in ("psnr", "ssim", "zncc")}
    return {name: float(value) for name, value in row.items()}


def finite(tree):
    """JSON-able content without what strict JSON cannot say: infinite and undefined numbers become null."""
    if isinstance(tree, dict):
        return {name: finite(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
