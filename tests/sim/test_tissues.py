"""Recipes: what they promise of counts, sizes, places and repeatability."""

import jax
import numpy as np
import pytest
from scipy.spatial.distance import pdist
from skimage.measure import regionprops

from jaxsynth.errors import InputError
from jaxsynth.sim import tissues

SMALL = {"nuclei": (128, 128), "hela": (160, 192), "celegans": (16, 64, 80)}


@pytest.mark.parametrize("name", tissues.RECIPES)
def test_specimen_by_key(name):
    made = tissues.simulate_labels(jax.random.key(0), name, SMALL[name])
    again = tissues.simulate_labels(jax.random.key(0), name, SMALL[name])
    other = tissues.simulate_labels(jax.random.key(1), name, SMALL[name])
    labels, brightness = np.asarray(made.labels), np.asarray(made.brightness)
    np.testing.assert_array_equal(labels, again.labels)
    assert (labels != np.asarray(other.labels)).any()
    recipe = tissues.find(name)
    low, high = tissues.num_cells_range(recipe, SMALL[name], tissues.default_spacing(recipe, SMALL[name]))
    assert low <= made.num_placed == made.num_asked <= high
    assert 0 < labels.max() <= made.num_placed < len(brightness)
    np.testing.assert_array_equal(made.cells.valid, np.arange(len(brightness) - 1) < made.num_placed)
    assert brightness[0] == 0 and (brightness >= 0).all() and (brightness <= 1).all()
    assert len(np.unique(brightness[1 : made.num_placed + 1])) == made.num_placed
    # Every cell asked for shows, save a sliver beyond the edge or between two slices.
    assert len(np.unique(labels)) - 1 >= 0.9 * made.num_placed


def test_nuclei_in_3d_and_the_same_program_for_any_number():
    for num_cells in (0, 1, 12):
        made = tissues.simulate_labels(jax.random.key(2), "nuclei", (16, 64, 64), None, num_cells)
        assert made.num_placed == num_cells
        assert len(np.unique(made.labels)) - 1 == num_cells


def test_only_a_new_shape_compiles():
    before = tissues._simulate._cache_size()
    tissues.simulate_labels(jax.random.key(3), "nuclei", (72, 72), None, 5)
    for seed, num_cells in ((4, 6), (5, None)):
        tissues.simulate_labels(jax.random.key(seed), "nuclei", (72, 72), None, num_cells)
    assert tissues._simulate._cache_size() == before + 1


def test_hela_cells_have_the_papers_size():
    """At 0.645 um semi-axes are r (s, 1) with r in U(10, 20) voxels and s in U(0.5, 1)."""
    made = tissues.simulate_labels(jax.random.key(0), "hela", (400, 400), None, 60)
    radii = np.asarray(made.cells.radii_um)[: made.num_placed] / 0.645
    assert 10 <= radii[:, 1].min() and radii[:, 1].max() <= 20
    ratio = radii[:, 0] / radii[:, 1]
    assert 0.5 <= ratio.min() < 0.65 and 0.85 < ratio.max() <= 1
    # Drawn cells that nothing cuts keep their area on average; the warp moves outlines in and out alike.
    props = [p for p in regionprops(np.asarray(made.labels)) if 0 < min(p.bbox[:2]) and max(p.bbox[2:]) < 400]
    share = [p.area / (np.pi * radii[p.label - 1].prod()) for p in props]
    assert len(share) > 20 and np.median(share) == pytest.approx(1, abs=0.06)


def test_celegans_nuclei_fill_a_quarter_of_the_embryo_and_keep_their_distance():
    shape = (35, 128, 177)
    made = tissues.simulate_labels(jax.random.key(0), "celegans", shape, None, 40)
    size = np.array(shape) * tissues.default_spacing(tissues.find("celegans"), shape)
    centres = np.asarray(made.cells.centre_um)[:40]
    radius = np.cbrt(np.prod(0.3 * size) / (3 * 40))
    assert made.num_placed == 40
    assert ((((centres - size / 2) / (0.3 * size)) ** 2).sum(1) <= 1 + 1e-5).all()
    assert pdist(centres).min() >= 2 * radius * (1 - 1e-5)
    # 1 / (3 n) each, less the flattening, on average 3/4.
    embryo = 4 / 3 * np.pi * 0.3**3
    assert (np.asarray(made.labels) > 0).mean() / embryo == pytest.approx(0.25, abs=0.03)


def test_full_field_says_how_many_were_placed(caplog):
    made = tissues.simulate_labels(jax.random.key(0), "nuclei", SMALL["nuclei"], None, 64)
    assert made.num_placed < made.num_asked == 64
    assert f"placed {made.num_placed} of 64 cells" in caplog.text


def test_crowded_blocks_are_rasterised_again_with_room():
    """At 5 um per voxel a nucleus is two voxels wide, and 100 of them meet the one block of the image."""
    made = tissues.simulate_labels(jax.random.key(0), "nuclei", (32, 32), (5.0, 5.0), 100)
    assert made.num_placed == 100
    assert len(np.unique(made.labels)) - 1 > 85


def test_number_of_cells_grows_with_the_field_but_not_with_an_organism():
    nuclei, worm = tissues.find("nuclei"), tissues.find("celegans")
    assert tissues.num_cells_range(nuclei, (512, 512), (0.5, 0.5)) == (140, 340)
    assert tissues.num_cells_range(nuclei, (512, 512), (0.25, 0.25)) == (35, 85)
    spacing = tissues.default_spacing(worm, (32, 128, 128))
    assert tissues.num_cells_range(worm, (32, 128, 128), spacing) == worm.num_cells


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("yeast", (64, 64)), "expected one of nuclei, hela, celegans; got 'yeast'"),
        (("hela", (8, 64, 64)), "recipe hela is 2D; got 3D"),
        (("celegans", (64, 64)), "recipe celegans is 3D; got 2D"),
        (("nuclei", (64, 0)), "at least 1"),
        (("nuclei", (64, 64), (0.5,)), "2 positive numbers"),
        (("nuclei", (64, 64), (0.5, -1.0)), "2 positive numbers"),
        (("nuclei", (64, 64), None, -1), "num_cells: expected 0 or more; got -1"),
    ],
)
def test_mistakes_are_named(arguments, text):
    with pytest.raises(InputError, match=text):
        tissues.simulate_labels(jax.random.key(0), *arguments)
