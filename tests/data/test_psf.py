"""Measured PSFs: Gaussian beads of known width, place and background, and files that hold none."""

import numpy as np
import pytest

from jaxsynth.data import psf, volumes
from jaxsynth.errors import InputError


def bead(shape, spacing, sigma_um, centre_um=None, peak=20_000.0):
    """A Gaussian at voxel centres, `centre_um` from the middle."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    offset = grid - (np.zeros(len(shape)) if centre_um is None else centre_um)
    return peak * np.exp(-0.5 * ((offset / sigma_um) ** 2).sum(-1))


def gaussian(shape, spacing, sigma_um):
    made = bead(shape, spacing, sigma_um)
    return made / made.sum()


def moments(made, spacing):
    """Offset from the central voxel and standard deviation along each axis, micrometres."""
    axes = [(np.arange(n) - n // 2) * s for n, s in zip(made.shape, spacing, strict=True)]
    along = [made.astype(float).sum(tuple(set(range(made.ndim)) - {d})) for d in range(made.ndim)]
    mean = np.array([(p * x).sum() for p, x in zip(along, axes, strict=True)])
    return mean, np.sqrt([(p * (x - m) ** 2).sum() for p, x, m in zip(along, axes, mean, strict=True)])


PLANE = ((33, 31), (0.1, 0.1), (0.25, 0.3))
STACK = ((17, 29, 31), (0.3, 0.1, 0.1), (0.6, 0.25, 0.25))


@pytest.mark.parametrize(("shape", "spacing", "sigma"), [PLANE, STACK])
def test_at_its_own_voxel_size_it_is_the_bead(tmp_path, shape, spacing, sigma):
    volumes.write(tmp_path / "psf.tif", bead(shape, spacing, sigma).astype(np.float32), spacing_um=spacing)
    read = psf.read_psf(tmp_path / "psf.tif", spacing)
    assert read.dtype == np.float32 and all(n % 2 for n in read.shape) and (read >= 0).all()
    assert read.sum() == pytest.approx(1, abs=1e-5)
    # Margins without light are left off.
    assert all(n < m for n, m in zip(read.shape, shape, strict=True))
    np.testing.assert_allclose(read, gaussian(read.shape, spacing, sigma), atol=2e-3 * read.max())


@pytest.mark.parametrize(("shape", "spacing", "sigma"), [PLANE, STACK])
@pytest.mark.parametrize("factor", [0.7, 1.9])
def test_resampled_off_centre_over_noise(tmp_path, shape, spacing, sigma, factor):
    """A bead between two voxels, on a noisy pedestal, in 16 bits: centred, as wide as before, at any voxel size."""
    rng = np.random.default_rng(0)
    centre = np.array([0.13, -0.17, 0.12])[-len(shape) :]
    noisy = bead(shape, spacing, sigma, centre) + rng.normal(500, 20, shape)
    volumes.write(tmp_path / "psf.tif", noisy.astype(np.uint16), spacing_um=spacing)
    target = tuple(factor * step for step in spacing)
    read = psf.read_psf(tmp_path / "psf.tif", target)
    mean, width = moments(read, target)
    assert read.sum() == pytest.approx(1, abs=1e-5)
    assert (np.abs(mean) < 0.05 * np.array(spacing)).all()
    # Averaging over larger voxels adds their own variance.
    added = np.maximum(np.square(target) - np.square(spacing), 0) / 12
    np.testing.assert_allclose(width, np.sqrt(np.square(sigma) + added), rtol=0.05)


def test_the_voxel_size_is_the_users_or_the_files(tmp_path):
    shape, spacing, sigma = PLANE
    volumes.write(tmp_path / "bare.tif", bead(shape, spacing, sigma).astype(np.float32))
    volumes.write(tmp_path / "wrong.tif", bead(shape, spacing, sigma).astype(np.float32), spacing_um=(1.0, 1.0))
    given = [psf.read_psf(tmp_path / name, (0.2, 0.2), spacing) for name in ("bare.tif", "wrong.tif")]
    np.testing.assert_array_equal(*given)
    np.testing.assert_allclose(moments(given[0], (0.2, 0.2))[1], np.sqrt(np.square(sigma) + 0.03 / 12), rtol=0.02)


def test_a_spot_smaller_than_a_voxel_is_one_voxel(tmp_path):
    volumes.write(tmp_path / "psf.tif", bead(*PLANE).astype(np.float32), spacing_um=PLANE[1])
    read = psf.read_psf(tmp_path / "psf.tif", (4.0, 4.0))
    np.testing.assert_allclose(read, 1.0, atol=1e-2)


def spot(shape=(15, 15), **change):
    made = bead(shape, (0.1,) * len(shape), (0.2,) * len(shape)).astype(np.float32)
    for index, value in change.get("put", {}).items():
        made[index] = value
    return made


@pytest.mark.parametrize(
    ("image", "spacing", "own", "text"),
    [
        (spot(), (1.0, 0.1, 0.1), (0.1, 0.1), "expected a 3D PSF for 3D images; got 2D"),
        (spot((5, 15, 15)), (0.1, 0.1), (0.1, 0.1, 0.1), "expected a 2D PSF for 2D images; got 3D"),
        (spot(put={(3, 4): np.nan}), (0.1, 0.1), (0.1, 0.1), "NaN or infinite"),
        (np.zeros((9, 9), np.uint8), (0.1, 0.1), (0.1, 0.1), "nothing rises above the background of 0"),
        (np.full((9, 9), 7, np.uint8), (0.1, 0.1), (0.1, 0.1), "nothing rises above the background of 7"),
        (spot()[7:], (0.1, 0.1), (0.1, 0.1), "at the file's border"),
        (
            np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8),
            (0.1, 0.1),
            (0.1, 0.1),
            "border|no spot",
        ),
        (spot(), (0.1, 0.1), None, "states no voxel size; give psf_spacing_um"),
        (spot(), (0.1, 0.1), (0.1, 0.1, 0.1), "psf_spacing_um: expected 2 positive"),
        (spot(), (0.1, -0.1), (0.1, 0.1), "spacing_um: expected 2 positive"),
        (spot(), (1e-4, 1e-4), (0.1, 0.1), "crop it"),
    ],
)
def test_mistakes_are_named(tmp_path, image, spacing, own, text):
    volumes.write(tmp_path / "psf.tif", image)
    with pytest.raises(InputError, match=text) as error:
        psf.read_psf(tmp_path / "psf.tif", spacing, own)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.tif: no such file"):
        psf.read_psf(tmp_path / "none.tif", (0.1, 0.1))
