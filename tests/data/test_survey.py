"""The survey of cell sizes: discs and balls of known radius and number, and real annotated images."""

import numpy as np
import pytest
from skimage import measure

from jaxsynth.data import intensity, volumes
from jaxsynth.data.survey import survey


def field(shape, radius, spacing, rng):
    """Bright balls on a jittered grid, dark noise around: (uint8 image, number)."""
    step = 3.2 * radius
    extent = np.array(shape) * spacing
    axes = [np.arange(step / 2, n - radius, step) for n in extent]
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))
    centres = centres + rng.uniform(-0.3, 0.3, centres.shape) * radius
    grid = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"), -1)
    image = rng.normal(20, 4, shape)
    for centre in centres:
        image[((grid - centre) ** 2).sum(-1) < radius**2] += rng.uniform(60, 150)
    return np.clip(image, 0, 255).astype(np.uint8), len(centres)


@pytest.mark.parametrize(
    ("shape", "radius", "spacing"),
    [((256, 256), 9.0, (1.0, 1.0)), ((300, 200), 16.0, (1.0, 1.0)), ((32, 96, 96), 8.0, (2.0, 1.0, 1.0))],
)
def test_balls_of_known_size_are_measured(tmp_path, shape, radius, spacing):
    rng = np.random.default_rng(0)
    for i in range(2):
        image, count = field(shape, radius, np.array(spacing), rng)
        volumes.write(tmp_path / f"{i}.tif", image, spacing_um=spacing)
    found = volumes.open_set(tmp_path)
    seen = survey(found, intensity.fit(lambda: volumes.each(found), "asinh"))
    assert abs(seen.radius_vox / radius - 1) < 0.2
    assert abs(seen.num_cells / count - 1) < 0.15
    assert seen.shape == shape


def test_a_large_image_is_counted_whole(tmp_path, monkeypatch):
    image, count = field((256, 256), 9.0, np.array((1.0, 1.0)), np.random.default_rng(0))
    volumes.write(tmp_path / "0.tif", image)
    found = volumes.open_set(tmp_path)
    monkeypatch.setattr("jaxsynth.data.survey.MAX_VOXELS", 2**14)
    seen = survey(found, intensity.fit(lambda: volumes.each(found), "asinh"))
    assert abs(seen.num_cells / count - 1) < 0.4
    assert abs(seen.radius_vox / 9.0 - 1) < 0.2


def test_noise_holds_no_cells(tmp_path):
    volumes.write(tmp_path / "0.tif", np.random.default_rng(0).integers(0, 50, (64, 64)).astype(np.uint8))
    found = volumes.open_set(tmp_path)
    seen = survey(found, intensity.fit(lambda: volumes.each(found), "asinh"))
    # Otsu always finds something; what it finds in noise is never cell-sized.
    assert seen is None or seen.radius_vox < 6


@pytest.mark.parametrize("name", ["gowt1", "hela"])
def test_real_nuclei_are_measured_to_a_third(real_data, name):
    found = volumes.subset(volumes.open_set(real_data / name / "images"), range(0, 20, 5))
    seen = survey(found, intensity.fit(lambda: volumes.each(found), "asinh"))
    radii = []
    for path in found.paths:
        labels = volumes.read_labels(real_data / name / "masks" / path.name)
        radii += [region.equivalent_diameter_area / 2 for region in measure.regionprops(labels)]
    assert abs(np.log(seen.radius_vox / np.median(radii))) < np.log(1.45)
