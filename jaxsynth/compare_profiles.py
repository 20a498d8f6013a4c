"""Profiles and spectra of the central xz slices of two sets of images (paper 003): for `jaxsynth.evaluate`."""

from collections.abc import Iterable, Sequence

import numpy as np

from jaxsynth.compare_images import Ruler
from jaxsynth.data import intensity as intensities
from jaxsynth.metrics import profiles

NUM_POSITIONS = 128  # along the axis of a set's profiles
GRID = 129  # frequencies along either axis of a set's spectrum
DISTANCES = {
    "profile_distance": "profile along x, relative L1",
    "depth_profile_distance": "profile along z, relative L1",
    "xz_spectral_distance_db": "spectral distance of xz slices, dB",
}


def _share(image, ruler):
    """The image on the papers' scale: 0 and 1 are the real set's minimum and maximum."""
    return (image.astype(np.float32) - ruler.low) / (ruler.high - ruler.low)


def measure(image: np.ndarray, ruler: Ruler, spacing_um: Sequence[float] | None = None) -> dict:
    """Of one image [*S] in data units, on grids that images of all sizes share.

    Args:
      ruler: profiles are shares of the real images' range, spectra are taken on the asinh scale.
      spacing_um: [D] micrometres per voxel of real and synthetic images; None counts voxels as cubes.

    Returns:
      "profile" [NUM_POSITIONS]; "depth_profile" the same, in 3D; "power" [GRID, GRID] and "radial" [num_frequencies].
    """
    stable, share = intensities.normalise(image, ruler.scale), _share(image, ruler)
    found = {
        "profile": profiles.over_position(profiles.profile(share), NUM_POSITIONS),
        "power": profiles.on_grid(profiles.power_spectrum(stable), GRID),
        "radial": profiles.radial_spectrum(stable, ruler.num_frequencies, spacing_um),
    }
    if image.ndim == 3:
        found["depth_profile"] = profiles.over_position(profiles.depth_profile(share), NUM_POSITIONS)
    return found


def pool(measured: Iterable[dict]) -> dict:
    """The set's from its images': profiles one below the other [M, NUM_POSITIONS], spectra averaged."""
    measured = list(measured)
    names = [name for name in ("profile", "depth_profile", "power", "radial") if name in measured[0]]
    stacks = {name: np.stack([row[name] for row in measured]) for name in names}
    radial, known = stacks["radial"], ~np.isnan(stacks["radial"])
    mean = np.where(known, radial, 0).sum(0) / np.maximum(known.sum(0), 1)
    return stacks | {"power": stacks["power"].mean(0), "radial": np.where(known.any(0), mean, np.nan)}


def distances(one: dict, other: dict) -> dict[str, float]:
    """DISTANCES of the mean profiles and spectra of two pooled sets, `one` being the real one or a part of it."""
    found = {"profile_distance": profiles.profile_distance(one["profile"].mean(0), other["profile"].mean(0))}
    if "depth_profile" in one:
        means = (row["depth_profile"].mean(0) for row in (one, other))
        found["depth_profile_distance"] = profiles.profile_distance(*means)
        found["xz_spectral_distance_db"] = profiles.spectral_distance_db(one["radial"], other["radial"])
    return {name: float(value) for name, value in found.items()}


def pair(real: np.ndarray, image: np.ndarray, ruler: Ruler, spacing_um: Sequence[float] | None = None) -> dict:
    """DISTANCES of one image from the real one of the same cells, profiles voxel by voxel."""
    x, y = (_share(volume, ruler) for volume in (real, image))
    found = {"profile_distance": profiles.profile_distance(profiles.profile(x), profiles.profile(y))}
    if real.ndim == 3:
        deep = (profiles.depth_profile(volume) for volume in (x, y))
        found["depth_profile_distance"] = profiles.profile_distance(*deep)
        stable = (intensities.normalise(volume, ruler.scale) for volume in (real, image))
        radial = (profiles.radial_spectrum(volume, ruler.num_frequencies, spacing_um) for volume in stable)
        found["xz_spectral_distance_db"] = profiles.spectral_distance_db(*radial)
    return {name: float(value) for name, value in found.items()}
