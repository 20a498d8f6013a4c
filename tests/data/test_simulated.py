"""Simulated batches: key, step and row alone decide, every device makes its share, and no cell lacks room."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth import devices, keys
from jaxsynth.data import stream
from jaxsynth.errors import InputError
from jaxsynth.records import Specimen
from jaxsynth.sim import tissues

MAPS = ("image", "seeds")
OPTIONS = {"shape": (40, 48), "batch_size": 8, "maps": MAPS}


def take(count, recipe="nuclei", seed=0, **options):
    """The first batches on the host."""
    feed = stream.simulated(recipe, keys.root(seed), **(OPTIONS | options))
    return jax.device_get(list(itertools.islice(feed, count)))


@pytest.fixture(scope="module")
def three():
    return take(3)


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_holds_what_it_promises(three):
    for batch in three:
        assert batch.labels.shape == batch.sketch.shape == (8, 40, 48)
        assert batch.labels.dtype == np.int32 and batch.sketch.dtype == np.float32
        assert set(batch.maps) == set(MAPS)
        inside = batch.labels > 0
        assert -1 <= batch.sketch.min() and batch.sketch.max() <= 1
        # Sketch, map and picture are of these very cells: in no other specimen's are they brighter than the rest.
        assert batch.sketch[inside].min() > batch.sketch[~inside].max() == stream.LEVELS[0]
        for labels, seeds, image in zip(batch.labels, batch.maps["seeds"], batch.maps["image"], strict=True):
            np.testing.assert_array_equal(np.unique(seeds), np.unique(labels))
            assert image[labels > 0].mean() > 1.2 * image[labels == 0].mean()


def test_all_specimens_differ(three):
    rows = [labels.tobytes() for batch in three for labels in batch.labels]
    assert len(set(rows)) == 24


def test_a_later_start_continues_the_sequence(three):
    assert_equal(three[1:], take(2, first_step=1))


def test_a_specimen_does_not_depend_on_the_batch_size(three):
    for large, small in zip(three, take(2, batch_size=2), strict=False):
        assert_equal(jax.tree.map(lambda x: x[:2], large).labels, small.labels)
        for name in MAPS:
            np.testing.assert_allclose(large.maps[name][:2], small.maps[name], rtol=1e-5, atol=1e-3)


def test_split_over_devices_it_is_the_same_and_each_makes_its_share(three):
    split = devices.split(devices.make_mesh())
    assert split.mesh.size == 8
    feed = stream.simulated("nuclei", keys.root(0), split=split, **OPTIONS)
    batches = list(itertools.islice(feed, 2))
    assert all(leaf.sharding.is_equivalent_to(split, leaf.ndim) for leaf in jax.tree.leaves(batches))
    assert_equal(three[:2], jax.device_get(batches))

    def flops(split):
        recipe = tissues.find("nuclei")
        spacing_um = tissues.default_spacing(recipe, OPTIONS["shape"])
        num_range = tissues.num_cells_range(recipe, OPTIONS["shape"], spacing_um)
        site = tissues.make_site(recipe, OPTIONS["shape"], spacing_um, num_range[1])
        program = stream._simulate.lower(
            keys.root(0), 0, num_range, recipe=recipe, site=site, levels=stream.LEVELS, maps=MAPS,
            batch_size=8, split=split,
        )  # fmt: skip
        return program.compile().cost_analysis()["flops"]

    assert flops(split) < 0.2 * flops(None)


def test_only_the_first_step_compiles(three):
    before = stream._simulate._cache_size()
    take(4)
    take(2, seed=5, first_step=7)
    assert stream._simulate._cache_size() == before > 0


def test_crowded_batches_are_made_again_with_room():
    """At 5 um per voxel 30 nuclei meet the one block of the image, which lists 16 at first."""
    crowd = {"shape": (32, 32), "spacing_um": (5.0, 5.0), "num_range": (30, 30), "batch_size": 1, "maps": ()}
    before = stream._simulate._cache_size()
    batches = take(5, **crowd)
    # All have room after the first has found it, also those that were in the queue then.
    assert stream._simulate._cache_size() == before + 2
    # Neighbours two voxels wide may hide one.
    assert all(len(np.unique(batch.labels)) - 1 >= 27 for batch in batches)
    # Nor does it matter which batch is the first.
    assert_equal(batches[4:], take(1, first_step=4, **crowd))


def test_only_specimens_short_of_slots_are_made_again():
    """A tissue of 1 to 200 cells, whose labels are all the number of slots it was drawn with."""

    def draw(key, num_cells, site, given):
        number = jax.random.randint(key, (), 1, 201)
        short = number > site.max_cells
        labels = jnp.full(site.shape, site.max_cells, jnp.int32)
        brightness = jnp.full(site.max_cells + 1, number / 200)
        none = jnp.bool_(False)
        return Specimen(labels, brightness, number, number, none, short, membrane=labels > 0, nuclei=labels * number)

    recipe = dataclasses.replace(tissues.find("drosophila"), draw=draw, shape=(2, 3, 3), fills=60)
    options = {"shape": (2, 3, 3), "batch_size": 8, "maps": ("nuclei", "membrane")}
    batches = take(3, recipe, **options)
    slots = np.stack([batch.labels[:, 0, 0, 0] for batch in batches])
    number = np.stack([batch.maps["nuclei"][:, 0, 0, 0] for batch in batches]) // slots
    np.testing.assert_array_equal(slots, np.select([number <= 64, number <= 128], [64, 128], 256))
    assert set(np.unique(slots)) == {64, 128, 256}
    assert batches[0].maps["membrane"].dtype == bool
    # Nor does a resumed run, or another number of devices, draw them otherwise.
    split = devices.split(devices.make_mesh())
    assert_equal(batches[2:], take(1, recipe, first_step=2, split=split, **options))


def test_without_cells_there_is_background_alone():
    (batch,) = take(1, num_range=(0, 0))
    assert not batch.labels.any()
    assert (batch.sketch == stream.LEVELS[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "yeast"}, "recipe: expected one of nuclei"),
        ({"recipe": "celegans"}, "shape: recipe celegans is 3D; got 2D"),
        (
            {"maps": ("image", "depth")},
            "maps: recipe nuclei has boundary, walls, distance, seeds, position, image; got 'depth'",
        ),
        ({"maps": ("membrane",)}, "maps: recipe nuclei has .* got 'membrane'"),
        ({"spacing_um": (0.5,)}, "spacing_um: expected 2 positive numbers"),
        ({"num_range": (5, 4)}, r"num_range: .* got \(5, 4\)"),
        ({"recipe": "drosophila", "shape": (8, 8, 8), "num_range": (1, 2)}, "num_range: recipe drosophila fills"),
        ({"batch_size": 0}, "batch_size: expected a positive multiple of 1"),
        ({"batch_size": 12, "split": 8}, "batch_size: expected a positive multiple of 8, the devices; got 12"),
    ],
)
def test_mistakes_are_named_at_once(arguments, message):
    options = OPTIONS | arguments
    if "split" in options:
        options["split"] = devices.split(devices.make_mesh())
    with pytest.raises(InputError, match=message):
        stream.simulated(options.pop("recipe", "nuclei"), keys.root(0), **options)
