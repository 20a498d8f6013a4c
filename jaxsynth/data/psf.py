"""A measured point spread function (PSF), as `sim.microscope.image` takes it."""

import math
import os
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from jaxsynth.data import formats
from jaxsynth.errors import InputError

MAX_VOXELS = 2**24  # at the image's voxel size, after trimming
MAX_FINER = 16  # PSF voxels per image voxel along an axis that are still looked at
TRIM = 1e-3  # share of the light that may lie beyond the trimmed edges, in all


def read_psf(
    path: str | os.PathLike, spacing_um: Sequence[float], psf_spacing_um: Sequence[float] | None = None
) -> np.ndarray:
    """A measured PSF at the voxel size of the images to be made.

    The picture of a bead or an average of several, of one spot well inside: the median of its outer voxels is taken
    off as background, what does not rise above their noise is set to 0, and the spot's centroid is moved to the
    central voxel, as a PSF off its centre would shift images against their labels. Where voxels of the image are larger
    than those of the PSF, light is averaged over each; a bead's own size is not deconvolved.

    Args:
      path: TIFF, PNG or HDF5, (Y, X) or (Z, Y, X) like the images.
      spacing_um: D micrometres per voxel of the images.
      psf_spacing_um: of the file, where it does not say or says wrong.

    Returns:
      float32 [*P], all sizes odd, not negative, sum 1; margins that hold next to no light are left off.

    Raises:
      InputError: the file is unreadable, of another rank, of unknown voxel size, holds NaN or infinity, no spot or one
        that its border cuts, or would have too many voxels.
    """
    measured = formats.read(path).astype(np.float64)
    ndim = len(spacing_um)
    if measured.ndim != ndim:
        raise InputError(f"{path}: expected a {ndim}D PSF for {ndim}D images; got {measured.ndim}D {measured.shape}")
    if not np.isfinite(measured).all():
        raise InputError(f"{path}: holds NaN or infinite values")
    if psf_spacing_um is None:
        psf_spacing_um = formats.spacing_um(path)
        if psf_spacing_um is None:
            raise InputError(f"{path}: the file states no voxel size; give psf_spacing_um")
    for name, steps in (("spacing_um", spacing_um), ("psf_spacing_um", psf_spacing_um)):
        if len(steps) != ndim or not all(0 < step < math.inf for step in steps):
            raise InputError(f"{name}: expected {ndim} positive micrometres per voxel; got {tuple(steps)}")
    spot = _without_background(measured)
    if not spot.any():
        raise InputError(f"{path}: no spot, nothing rises above the background of {np.median(measured):g}")
    if spot[_border(spot.shape)].max() >= spot.max() / 2:
        raise InputError(f"{path}: not a PSF of one whole spot, half of its maximum is reached at the file's border")
    centre = np.array(ndimage.center_of_mass(np.maximum(spot - spot.max() / 2, 0.0)))
    ratio = np.divide(spacing_um, psf_spacing_um)
    half = np.maximum(np.ceil(np.maximum(centre, np.subtract(spot.shape, 1) - centre) / ratio), 0).astype(int)
    finer = np.clip(np.ceil(ratio - 1e-6), 1, MAX_FINER).astype(int)
    if math.prod(2 * half + 1) * math.prod(finer) > 4 * MAX_VOXELS:
        extent = [round(size * step, 3) for size, step in zip(spot.shape, psf_spacing_um, strict=True)]
        raise InputError(f"{path}: a PSF of {extent} um makes {tuple((2 * half + 1).tolist())} voxels of "
                         f"{tuple(spacing_um)} um; crop it, or see to the voxel sizes")  # fmt: skip
    psf = _trim(_resample(spot, centre, ratio, half, finer))
    if psf.size > MAX_VOXELS:
        raise InputError(f"{path}: expected at most {MAX_VOXELS} voxels at the image's size; got {psf.shape}: crop it")
    return (psf / psf.sum()).astype(np.float32)


def _border(shape: tuple[int, ...]) -> np.ndarray:
    """The outermost voxels, bool [*P]."""
    border = np.ones(shape, bool)
    border[tuple(slice(1, -1) for _ in shape)] = False
    return border


def _without_background(measured: np.ndarray) -> np.ndarray:
    """Light above the background, 0 where it is within three standard deviations of the border's noise.

    Merely clipped at 0, noise would leave a halo that outweighs the spot in a large volume.
    """
    outer = measured[_border(measured.shape)]
    background = np.median(outer)
    noise = 1.4826 * np.median(np.abs(outer - background))
    above = measured - background
    return np.where(above > 3 * noise, above, 0.0)


def _resample(spot, centre, ratio, half, finer) -> np.ndarray:
    """Cubic interpolation at the image's voxels, averaged over `finer` points per voxel and axis: [2 half + 1]."""
    count = (2 * half + 1) * finer
    step = ratio / finer
    first = centre - (count - 1) / 2 * step
    fine = ndimage.affine_transform(spot, step, first, output_shape=tuple(count), order=3, mode="constant")
    blocks = np.maximum(fine, 0.0).reshape([part for pair in zip(2 * half + 1, finer, strict=True) for part in pair])
    return blocks.mean(axis=tuple(range(1, 2 * spot.ndim, 2)))


def _trim(psf: np.ndarray) -> np.ndarray:
    """The same centre and as much off either side of every axis as holds next to no light."""
    for axis in range(psf.ndim):
        along = psf.sum(axis=tuple(other for other in range(psf.ndim) if other != axis))
        middle = len(along) // 2
        # Light beyond each distance from the middle.
        beyond = along.sum() - np.cumsum(np.concatenate([along[middle : middle + 1],
                                                         along[middle + 1 :] + along[:middle][::-1]]))  # fmt: skip
        keep = int(np.argmax(beyond <= TRIM / psf.ndim * along.sum()))
        psf = psf.take(range(middle - keep, middle + keep + 1), axis)
    return psf
