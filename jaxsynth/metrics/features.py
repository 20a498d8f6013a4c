"""A Frechet distance between two sets of images that needs no network: local statistics at several scales.

The usual FID compares activations of a network trained on photographs; it fits neither 16-bit nor 3D images, and its
values depend on the weights, the resizing and the padding. Here the features are fixed and written down below, the
same for everybody, and one function serves (Y, X) and (Z, Y, X). Values compare with others of this package only, and
only between sets of the same patch size: judge them by the distance between two halves of the real set.

Host functions in float64 but for the filtered images; voxels count as cubes.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from jaxsynth.errors import InputError

PATCH = {2: (64, 64), 3: (16, 32, 32)}  # voxels; neighbours overlap by half
SIGMAS = {2: (1.0, 2.0, 4.0, 8.0), 3: (1.0, 2.0, 4.0)}  # voxels
QUANTILES = (0.02, 0.25, 0.5, 0.75, 0.98)
FLOOR = 0.005  # what is not seen: a quarter per cent of the range [-1, 1]


def names(ndim: int) -> tuple[str, ...]:
    """What each feature is, in the order of `features`: 25 in 2D, 21 in 3D."""
    maps = ["residual", *(f"{kind}_{sigma:g}" for sigma in SIGMAS[ndim] for kind in ("gradient", "laplacian"))]
    local = ("mean", "sd", *(f"quantile_{q:g}" for q in QUANTILES))
    return local + tuple(f"{name}_{statistic}" for name in maps for statistic in ("mean", "sd"))


def patch_shape(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The patch that suits images of all these shapes: PATCH, or less along an axis where one of them is smaller."""
    least = np.min(shapes, axis=0)
    return tuple(int(min(pair)) for pair in zip(PATCH[len(least)], least, strict=True))


def features(image: np.ndarray, patch: Sequence[int] | None = None) -> np.ndarray:
    """Local statistics of every patch: float64 [N, F], F = len(names(D)).

    Of a patch: mean and standard deviation of the image; five quantiles of the image smoothed by 1 voxel, as whole grey
    values of a dark background would jump; mean and standard deviation of the noise, |image - smoothed by 1 voxel|; and
    at each scale sigma mean and standard deviation of sigma |gradient| and of sigma^2 |Laplacian| of the image smoothed
    by sigma (scale-normalised derivatives, Lindeberg 1998; central differences). The whole image is filtered, mirrored
    at its border, before patches are cut. Patches lie half overlapping on a grid in the image's middle; up to half a
    patch along an axis belongs to none.

    Args:
      image: real [*S], in about [-1, 1]; this package passes it on the asinh scale of the real set, where the noise of
        dim and bright voxels is alike (`data.intensity`).
      patch: voxels along every axis; default PATCH.

    Raises:
      InputError: the image is smaller than the patch.
    """
    image = np.asarray(image, np.float32)
    patch = PATCH[image.ndim] if patch is None else tuple(patch)
    if len(patch) != image.ndim or any(np.less(image.shape, patch)):
        raise InputError(f"features: expected an image of at least {patch} voxels, got shape {image.shape}")
    starts = []
    for size, width in zip(image.shape, patch, strict=True):
        step = max(width // 2, 1)
        count = (size - width) // step + 1
        starts.append((size - width - (count - 1) * step) // 2 + step * np.arange(count))
    windows = [
        tuple(slice(first, first + width) for first, width in zip(start, patch, strict=True))
        for start in itertools.product(*starts)
    ]

    def moments(values):
        return [(part.mean(dtype=np.float64), part.std(dtype=np.float64)) for part in (values[w] for w in windows)]

    soft = ndimage.gaussian_filter(image, 1.0)
    columns = [moments(image), [np.quantile(soft[window], QUANTILES) for window in windows]]
    columns += [moments(response) for response in _responses(image)]
    return np.concatenate([np.asarray(column, np.float64) for column in columns], axis=1)


def _responses(image: np.ndarray) -> Iterator[np.ndarray]:
    """The filtered images, one in memory at a time."""
    yield np.abs(image - ndimage.gaussian_filter(image, 1.0))
    for sigma in SIGMAS[image.ndim]:
        smooth = ndimage.gaussian_filter(image, sigma)
        slopes = (ndimage.correlate1d(smooth, (-0.5, 0.0, 0.5), axis) for axis in range(image.ndim))
        yield sigma * np.sqrt(sum(slope**2 for slope in slopes))
        yield sigma**2 * np.abs(ndimage.laplace(smooth))


def frechet(
    features: np.ndarray, other: np.ndarray, *, reference: np.ndarray | None = None, floor: float = FLOOR
) -> float:
    """Frechet distance of the Gaussians that fit two sets of features, >= 0.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau 1982), squared as in FID, of features divided by
    their standard deviation in the reference: 1 is a shift of one feature by one standard deviation.

    Covariances of few patches are too extreme, and singular below F of them. Both are therefore drawn towards their
    diagonals, C <- (1 - a) C + a diag(C), a = F / (F + min(N, M)): the same for both, so that equal sets have distance
    0. The means of few patches still differ by chance, which adds to the distance: compare values of like counts.

    Args:
      features, other: real [N, F] and [M, F], patches of all images of a set.
      reference: [L, F] whose standard deviations are the unit, the real set's in this package; default `features`.
        For a given reference the distance is symmetric.
      floor: least difference that counts in each feature, added to the standard deviation in quadrature: what is
        constant in the reference must not be infinitely far from what is nearly so.

    Raises:
      InputError: fewer than two patches in a set, different features, or values that are not finite.
    """
    one, two = np.asarray(features, np.float64), np.asarray(other, np.float64)
    unit = one if reference is None else np.asarray(reference, np.float64)
    if one.ndim != 2 or {one.shape[1:], two.shape[1:], unit.shape[1:]} != {one.shape[1:]}:
        raise InputError(f"frechet: expected [N, F], [M, F] of one F, got {one.shape}, {two.shape}, {unit.shape}")
    if min(len(one), len(two), len(unit)) < 2:
        raise InputError(f"frechet: expected at least 2 patches in either set, got {len(one)} and {len(two)}")
    if not all(np.isfinite(rows).all() for rows in (one, two, unit)):
        raise InputError("frechet: expected finite features, got NaN or infinity")
    sd = np.sqrt(unit.var(axis=0) + floor**2)
    sd = np.where(sd > 0, sd, 1.0)
    one, two = (one - unit.mean(axis=0)) / sd, (two - unit.mean(axis=0)) / sd
    shrinkage = one.shape[1] / (one.shape[1] + min(len(one), len(two)))
    covariances = [_shrunk(np.atleast_2d(np.cov(rows, rowvar=False)), shrinkage) for rows in (one, two)]
    roots = [_root(covariance) for covariance in covariances]
    # tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2): real by construction.
    common = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    distance = np.sum((one.mean(axis=0) - two.mean(axis=0)) ** 2) + sum(map(np.trace, covariances)) - 2 * common
    return max(float(distance), 0.0)


def _shrunk(covariance, amount):
    return (1 - amount) * covariance + amount * np.diag(np.diag(covariance))


def _root(covariance):
    """The symmetric square root; rounding's negative eigenvalues count as zero."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
