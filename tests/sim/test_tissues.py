"""Recipes: what they promise of counts, sizes, places and repeatability."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import pdist
from skimage.measure import regionprops

from jaxsynth.errors import InputError
from jaxsynth.sim import starshape, tissues, views
from jaxsynth.sim.population import Given

SMALL = {
    "nuclei": (128, 128),
    "gowt1": (320, 320),
    "hela": (160, 192),
    "celegans": (16, 64, 80),
    "tribolium": (5, 245, 170),
    "danio": (24, 48, 56),
    "harmonics": (32, 40, 64),
    "embryo_elongated": (40, 40, 250),
    "arabidopsis": (56, 112, 120),
    "drosophila": (64, 64, 64),
}
# Organisms at the paper's voxel size, so that the small volume holds a small one, and maps of few cells.
SPACING = {"arabidopsis": (0.3, 0.3, 0.3), "drosophila": (0.6, 0.6, 0.6)}
CELLS = {"tribolium": 300, "embryo_elongated": 40}


def spacing_of(name):
    return SPACING.get(name) or tissues.default_spacing(tissues.find(name), SMALL[name])


@functools.cache
def made(name, seed=0):
    return tissues.simulate(jax.random.key(seed), name, SMALL[name], spacing_of(name), CELLS.get(name))


def test_every_recipe_of_the_papers_is_there():
    assert {"celegans", "tribolium", "gowt1", "hela", "arabidopsis", "danio", "drosophila", "embryo_elongated"} <= set(
        tissues.RECIPES
    )
    assert set(SMALL) == set(tissues.RECIPES)


@pytest.mark.parametrize("name", tissues.RECIPES)
def test_specimen_by_key(name):
    first, other = made(name), made(name, 1)
    again = made.__wrapped__(name)
    labels, brightness = np.asarray(first.labels), np.asarray(first.brightness)
    np.testing.assert_array_equal(labels, again.labels)
    assert (labels != np.asarray(other.labels)).any()
    recipe = tissues.find(name)
    placed, asked = int(first.num_placed), int(first.num_asked)
    if recipe.num_cells:
        low, high = tissues.num_cells_range(recipe, SMALL[name], spacing_of(name))
        low = CELLS.get(name, low)
        assert low <= placed == asked <= high
        assert 0 < labels.max() <= placed < len(brightness)
        np.testing.assert_array_equal(first.cells.valid, np.arange(len(brightness) - 1) < placed)
    assert brightness[0] == 0 and (brightness >= 0).all() and (brightness <= 1).all()
    shown = np.unique(labels[labels > 0])
    assert len(np.unique(brightness[shown])) > 0.99 * len(shown)
    # Every cell shows, save a sliver beyond the edge or between two slices.
    assert 0.9 * placed <= len(shown) <= placed
    assert 0.8 * asked <= placed


@pytest.mark.parametrize("name", tissues.RECIPES)
def test_sketch_shows_the_labels(name):
    recipe, specimen = tissues.find(name), made(name)
    spacing = spacing_of(name)
    draw = jax.jit(lambda key, specimen: views.sketch(key, specimen, spacing, nucleoli=recipe.nucleoli))
    drawn = np.asarray(draw(jax.random.key(3), specimen))
    labels = np.asarray(specimen.labels)
    assert drawn.shape == labels.shape and drawn.min() >= -1 and drawn.max() <= 1
    if specimen.membrane is None:
        assert (drawn[labels == 0] == -1).all()
        assert (drawn[labels > 0] > -1).mean() > 0.99
    else:
        membrane = np.asarray(specimen.membrane)
        assert not (membrane & (labels > 0)).any() and membrane.any()
        assert (drawn[membrane] > -0.5).all() and (drawn[~membrane] == -1).all()
        nuclei = np.asarray(specimen.nuclei)
        np.testing.assert_array_equal(nuclei[nuclei > 0], labels[nuclei > 0])
        assert 0.5 * int(specimen.num_placed) < len(np.unique(nuclei)) - 1
    shine = jax.jit(lambda key, specimen: views.light(key, specimen, spacing))
    light = np.asarray(shine(jax.random.key(4), specimen))
    assert light.min() >= 0 and light[drawn > -1].mean() > 10 * light[drawn == -1].mean()


@pytest.mark.parametrize("name", ["hela", "drosophila"])
def test_maps(name):
    specimen, spacing = made(name), spacing_of(name)
    labels = np.asarray(specimen.labels)
    draw = jax.jit(lambda specimen: {key: show(specimen, spacing) for key, show in views.MAPS.items()})
    maps = jax.tree.map(np.asarray, draw(specimen))
    assert maps["boundary"].dtype == bool and maps["boundary"].any()
    np.testing.assert_array_equal(maps["distance"] > 0, labels > 0)
    depth = ndimage.distance_transform_edt(labels == 0, sampling=spacing)
    np.testing.assert_allclose(-maps["distance"][labels == 0], depth[labels == 0], rtol=1e-4)
    shown = np.unique(labels[labels > 0])
    np.testing.assert_array_equal(np.sort(maps["seeds"][maps["seeds"] > 0]), shown)
    # Labels alone, of interiors or of cells that touch, show the same walls, a voxel thicker at most.
    alone = specimen.replace(membrane=None)
    walls, rim = np.asarray(views.walls(alone, spacing)), np.asarray(views.boundary(alone, spacing))
    if specimen.membrane is not None:
        np.testing.assert_array_equal(maps["walls"], specimen.membrane)
        # Half of this shell's walls are its surfaces, with no cell beyond.
        assert walls[maps["walls"]].mean() > 0.4 and (walls & ~maps["walls"] & ~rim).sum() < 0.1 * walls.sum()
    assert walls[rim].all()
    inside = maps["position"] > 0
    assert np.abs(maps["position"]).max() <= 1 and inside[labels > 0].mean() > 0.97 and not inside.all()


def test_nuclei_in_3d_and_the_same_program_for_any_number():
    for num_cells in (0, 1, 12):
        specimen = tissues.simulate(jax.random.key(2), "nuclei", (16, 64, 64), None, num_cells)
        assert specimen.num_placed == num_cells
        assert len(np.unique(specimen.labels)) - 1 == num_cells


def test_one_plane():
    specimen = tissues.simulate(jax.random.key(0), "celegans", (1, 64, 80), None, 20)
    assert specimen.labels.shape == (1, 64, 80) and specimen.num_placed == 20 and specimen.labels.any()


def test_only_a_new_shape_compiles():
    before = tissues._simulate._cache_size()
    tissues.simulate(jax.random.key(3), "nuclei", (72, 72), None, 5)
    for seed, num_cells in ((4, 6), (5, None)):
        tissues.simulate(jax.random.key(seed), "nuclei", (72, 72), None, num_cells)
    assert tissues._simulate._cache_size() == before + 1


def test_cells_are_the_same_in_a_batch():
    recipe = tissues.find("nuclei")
    site = tissues.make_site(recipe, (64, 64), (0.5, 0.5), 6)
    each = jax.random.split(jax.random.key(7), 3)
    draw = functools.partial(tissues.specimen, recipe=recipe, num_cells=jnp.int32(5), site=site)
    batch = jax.jit(jax.vmap(draw))(each)
    for index in range(3):
        alone = jax.jit(draw)(each[index])
        assert (np.asarray(batch.labels[index]) != np.asarray(alone.labels)).mean() < 1e-3


def test_hela_cells_have_the_size_that_is_said():
    """At 0.645 um semi-axes are r (s, 1) with r in U(12.5, 17.5) voxels and s in U(0.57, 0.9)."""
    specimen = tissues.simulate(jax.random.key(0), "hela", (400, 400), None, 60)
    radii = np.asarray(specimen.cells.radii_um)[: int(specimen.num_placed)] / 0.645
    assert 12.5 <= radii[:, 1].min() < 13.5 and 16.5 < radii[:, 1].max() <= 17.5
    ratio = radii[:, 0] / radii[:, 1]
    assert 0.57 <= ratio.min() < 0.62 and 0.85 < ratio.max() <= 0.9
    # Drawn cells that nothing cuts keep their area on average; the bend moves outlines in and out alike.
    props = [p for p in regionprops(np.asarray(specimen.labels)) if 0 < min(p.bbox[:2]) and max(p.bbox[2:]) < 400]
    share = [p.area / (np.pi * radii[p.label - 1].prod()) for p in props]
    assert len(share) > 20 and np.median(share) == pytest.approx(1, abs=0.08)


def test_celegans_nuclei_fill_a_quarter_of_the_embryo_and_keep_their_distance():
    shape = (35, 128, 177)
    specimen = tissues.simulate(jax.random.key(0), "celegans", shape, None, 40)
    size = np.array(shape) * tissues.default_spacing(tissues.find("celegans"), shape)
    centres = np.asarray(specimen.cells.centre_um)[:40]
    radius = np.cbrt(np.prod(0.3 * size) / (3 * 40))
    assert specimen.num_placed == 40
    assert ((((centres - size / 2) / (0.3 * size)) ** 2).sum(1) <= 1 + 1e-5).all()
    assert pdist(centres).min() >= 2 * radius * (1 - 1e-5)
    # 1 / (3 n) each, less the flattening, on average 3/4.
    embryo = 4 / 3 * np.pi * 0.3**3
    assert (np.asarray(specimen.labels) > 0).mean() / embryo == pytest.approx(0.25, abs=0.03)


def test_tribolium_nuclei_lie_on_the_shell_apart():
    cells = made("tribolium").cells
    centres = np.asarray(cells.centre_um)[np.asarray(cells.valid)]
    assert len(centres) == 300
    radius = np.linalg.norm(centres - 230, axis=1)
    assert 0.94 * 230 < radius.min() and radius.max() < 1.01 * 230
    assert pdist(centres).min() > 9.99
    low, high = np.asarray(cells.radii_um)[: len(centres)].min(), np.asarray(cells.radii_um)[: len(centres)].max()
    assert 5 <= low < 5.1 and 5.9 < high <= 6


def test_long_nuclei_point_inwards():
    cells = made("embryo_elongated").cells
    valid = np.asarray(cells.valid)
    radii = np.asarray(cells.radii_um)[valid]
    ratio = radii[:, 0] / radii[:, 1]
    assert 1.5 <= ratio.min() < 1.6 and 2.9 < ratio.max() <= 3
    # Across the embryo's axis the long axis points to the middle, as far as the bend lets it.
    size = np.array(SMALL["embryo_elongated"]) * spacing_of("embryo_elongated")
    outwards = (np.asarray(cells.centre_um)[valid] - size / 2)[:, :2]
    long_axis = np.asarray(cells.rotation)[valid][:, 0, :2]
    cosine = (outwards * long_axis).sum(1) / np.linalg.norm(outwards, axis=1) / np.linalg.norm(long_axis, axis=1)
    assert np.median(np.abs(cosine)) > 0.8


def test_overlapping_cells_come_in_layers():
    specimen = tissues.simulate(jax.random.key(0), "gowt1", (320, 320), None, 12, overlap=0.6)
    labels = np.asarray(specimen.labels)
    assert labels.shape[1:] == (320, 320) and specimen.num_placed == 12
    assert (labels[1] > 0).any() and not ((labels[1] > 0) & (labels[0] == 0)).any()
    assert len(np.unique(labels)) == 13
    # The sketch adds their light.
    drawn = np.asarray(views.sketch(jax.random.key(0), specimen, (0.24, 0.24)))
    two = (labels[1] > 0) & (labels[2] == 0)
    light = 0.5 + 1.5 * np.asarray(specimen.brightness)
    np.testing.assert_allclose(drawn[two], np.minimum(-1 + light[labels[0][two]] + light[labels[1][two]], 1), atol=1e-5)


def test_given_centres_are_kept():
    points = jnp.asarray([[6.0, 8.0, 8.0], [6.0, 20.0, 16.0], [6.0, 9.0, 25.0]])
    specimen = tissues.simulate(jax.random.key(0), "danio", (24, 48, 56), given=Given(centres_um=points))
    np.testing.assert_allclose(specimen.cells.centre_um[:3], points)
    assert specimen.num_placed == 3
    at = tuple(np.floor(np.asarray(points) / 0.5).astype(int).T)
    assert np.asarray(specimen.labels)[at].tolist() == [1, 2, 3]


def test_given_mask_and_organism_bound_the_cells():
    mask = np.zeros((160, 192), bool)
    mask[40:120, 50:150] = True
    specimen = tissues.simulate(jax.random.key(0), "hela", mask.shape, None, 10, given=Given(mask=jnp.asarray(mask)))
    centres = np.floor(np.asarray(specimen.cells.centre_um)[: int(specimen.num_placed)] / 0.645).astype(int)
    assert len(centres) == 10 and mask[tuple(centres.T)].all()
    ball = jnp.full(starshape.directions(17, 3).shape[:2], 6.0)
    shape = (40, 40, 40)
    cut = tissues.simulate(jax.random.key(0), "arabidopsis", shape, (0.4,) * 3, given=Given(organism=ball))
    filled = (np.asarray(cut.labels) > 0) | np.asarray(cut.membrane)
    radius = np.linalg.norm((np.indices(shape).reshape(3, -1).T + 0.5) * 0.4 - 8, axis=1).reshape(shape)
    assert not filled[radius > 6.1].any() and filled[radius < 5].mean() > 0.9


def test_clustering_brings_cells_together():
    def nearest(probability):
        specimen = tissues.simulate(
            jax.random.key(0), "nuclei", (256, 256), None, 30, given=Given(clustering=jnp.float32(probability))
        )
        centres = np.asarray(specimen.cells.centre_um)[:30]
        apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        return np.median(np.sort(apart, axis=1)[:, 1])

    assert nearest(1.0) < 0.75 * nearest(0.0)


def test_full_field_says_how_many_were_placed(caplog):
    specimen = tissues.simulate(jax.random.key(0), "nuclei", SMALL["nuclei"], None, 120)
    assert specimen.num_placed < specimen.num_asked == 120
    assert f"placed {int(specimen.num_placed)} of 120 cells" in caplog.text


def test_crowded_blocks_are_rasterised_again_with_room():
    """At 5 um per voxel a nucleus is two voxels wide, and 100 of them meet the one block of the image."""
    specimen = tissues.simulate(jax.random.key(0), "nuclei", (32, 32), (5.0, 5.0), 100)
    assert specimen.num_placed == 100
    assert len(np.unique(specimen.labels)) - 1 > 85


def test_number_of_cells_grows_with_the_field_but_not_with_an_organism():
    nuclei, worm = tissues.find("nuclei"), tissues.find("celegans")
    assert tissues.num_cells_range(nuclei, (512, 512), (0.5, 0.5)) == (140, 340)
    assert tissues.num_cells_range(nuclei, (512, 512), (0.25, 0.25)) == (35, 85)
    spacing = tissues.default_spacing(worm, (32, 128, 128))
    assert tissues.num_cells_range(worm, (32, 128, 128), spacing) == worm.num_cells


@pytest.mark.parametrize(
    ("arguments", "more", "text"),
    [
        (("yeast", (64, 64)), {}, "expected one of nuclei, gowt1, .*; got 'yeast'"),
        (("hela", (8, 64, 64)), {}, "recipe hela is 2D; got 3D"),
        (("celegans", (64, 64)), {}, "recipe celegans is 3D; got 2D"),
        (("nuclei", (64, 0)), {}, "at least 1"),
        (("nuclei", (64, 64), (0.5,)), {}, "2 positive numbers"),
        (("nuclei", (64, 64), (0.5, -1.0)), {}, "2 positive numbers"),
        (("nuclei", (64, 64), None, -1), {}, "num_cells: expected 0 or more; got -1"),
        (("arabidopsis", (48, 96, 100), None, 5), {}, "num_cells: recipe arabidopsis fills its organism"),
        (("nuclei", (64, 64)), {"overlap": 1.0}, r"overlap: expected a share in \[0, 1\); got 1.0"),
        (("celegans", (16, 64, 80)), {"overlap": 0.5}, "overlap: goes with fields of nuclei"),
        (("nuclei", (64, 64)), {"given": Given(mask=jnp.ones((3, 3), bool))}, "mask: expected the shape"),
        (("nuclei", (64, 64)), {"given": Given(centres_um=jnp.ones((2, 3)))}, r"centres_um: expected \[M, 2\]"),
        (("tribolium", (5, 245, 170)), {"given": Given(centres_um=jnp.ones((2, 3)))}, "tribolium is a map"),
    ],
)
def test_mistakes_are_named(arguments, more, text):
    with pytest.raises(InputError, match=text):
        tissues.simulate(jax.random.key(0), *arguments, **more)


def test_map_is_drawn_in_its_own_voxels_only():
    """Another voxel size would change nothing but what the files state."""
    with pytest.raises(InputError, match=r"tribolium shows all of its map; at shape \(5, 245, 170\)"):
        tissues.simulate(jax.random.key(0), "tribolium", SMALL["tribolium"], (1.0, 1.0, 1.0))


def test_users_centres_all_count(caplog):
    """Two of three centres in a corner, where there is no plant."""
    points = jnp.asarray([[10.0, 12.0, 13.0], [0.5, 0.5, 0.5], [0.6, 0.6, 0.5]])
    specimen = tissues.simulate(
        jax.random.key(0), "arabidopsis", SMALL["arabidopsis"], SPACING["arabidopsis"], given=Given(centres_um=points)
    )
    assert specimen.num_asked == 3 and int(specimen.num_placed) == len(np.unique(specimen.labels)) - 1 < 3
    assert "of 3 cells" in caplog.text


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("tribolium", Given(clustering=0.5), "clustering: recipe tribolium has a way of its own"),
        ("arabidopsis", Given(clustering=0.5), "clustering: recipe arabidopsis"),
        ("danio", Given(clustering=0.5, centres_um=jnp.ones((2, 3))), "or centres are given"),
        ("danio", Given(mask=jnp.ones((24, 48, 56), bool), organism=jnp.ones((9, 9))), "give one of the two"),
    ],
)
def test_choices_that_do_not_apply_are_named(name, given, text):
    with pytest.raises(InputError, match=text):
        tissues.simulate(jax.random.key(0), name, SMALL[name], given=given)
