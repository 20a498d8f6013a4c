"""Batches: resident and streamed feeds agree, patches come from where they say, and the key alone decides."""

import itertools

import jax
import numpy as np
import pytest

from jaxsynth import devices, keys
from jaxsynth.data import augment, stream, volumes
from jaxsynth.data.intensity import fit, normalise

CASES = {
    2: {"shapes": [(40, 50), (64, 33), (20, 20)], "patch": (24, 24)},
    3: {"shapes": [(9, 40, 30), (16, 24, 24)], "patch": (12, 16, 16)},
}


@pytest.fixture(scope="module", params=CASES)
def images(request, tmp_path_factory):
    """Files of unequal sizes, one smaller than the patch on some axis: (set, intensity, patch)."""
    folder, case = tmp_path_factory.mktemp("images"), CASES[request.param]
    rng = np.random.default_rng(0)
    for i, shape in enumerate(case["shapes"]):
        volumes.write(folder / f"{i}.tif", rng.integers(0, 60000, shape).astype(np.uint16))
    found = volumes.open_set(folder)
    return found, fit(lambda: volumes.each(found), "minmax_shifted"), case["patch"]


def take(count, images, **options):
    found, intensity, patch = images
    options = {"patch": patch, "batch_size": 8, "resident": True} | options
    feed = stream.batches(found, intensity, jax.random.key(0), **options)
    out = [np.asarray(batch) for batch in itertools.islice(feed, count)]
    feed.close()
    return out


def test_resident_and_streamed_feed_the_same_patches(images):
    for one, other in zip(take(3, images, resident=True), take(3, images, resident=False), strict=True):
        assert one.shape == (8, *images[2], 1)
        np.testing.assert_array_equal(one, other)


def test_a_later_start_continues_the_sequence(images):
    np.testing.assert_array_equal(take(4, images)[2:], take(2, images, first_step=2))
    np.testing.assert_array_equal(take(4, images)[2:], take(2, images, first_step=2, resident=False))


def test_batches_split_over_devices_are_the_same(images):
    mesh = devices.make_mesh()
    assert mesh.size == 8
    sharded = take(2, images, split=devices.split(mesh), replicated=devices.replicated(mesh))
    np.testing.assert_array_equal(sharded, take(2, images))


def test_patches_are_cut_where_the_draw_says(images):
    """Against NumPy: reflect-pad, slice, flip, swap."""
    found, intensity, patch = images
    batch = take(1, images)[0]
    at = stream.draw(keys.stream(jax.random.key(0), 0), np.asarray(found.shapes), patch, 8)
    for got, index, start, symmetry in zip(batch, *map(np.asarray, (at.index, at.start, at.symmetry)), strict=True):
        whole = np.pad(volumes.load(found, index), 16, mode="reflect")
        cut = whole[tuple(slice(s + 16, s + 16 + n) for s, n in zip(start, patch, strict=True))]
        for axis in (0, 1):
            cut = np.flip(cut, axis - 2) if symmetry[axis] else cut
        cut = np.swapaxes(cut, -1, -2) if symmetry[2] else cut
        np.testing.assert_allclose(got[..., 0], normalise(cut, intensity), atol=1e-6)


def test_draws_cover_every_place():
    """Volumes come up in proportion to their voxels, places reach both ends, all symmetries occur."""
    shapes, patch = np.array([[40, 40], [80, 40]]), (16, 16)
    at = jax.jit(lambda k: stream.draw(k, shapes, patch, 6000))(jax.random.key(1))
    index, start = np.asarray(at.index), np.asarray(at.start)
    assert abs((index == 1).mean() - 2 / 3) < 0.03
    for i, shape in enumerate(shapes):
        assert np.array_equal(start[index == i].min(0), [0, 0])
        assert np.array_equal(start[index == i].max(0), shape - 16)
    assert len(np.unique(np.asarray(at.symmetry), axis=0)) == 8


def test_symmetries_are_the_eight_of_the_square():
    patch = np.arange(16.0).reshape(4, 4)
    seen = {
        np.asarray(augment.apply_symmetry(patch, np.array(bits, bool))).tobytes()
        for bits in itertools.product([0, 1], repeat=3)
    }
    turned = [np.rot90(p, k) for p in (patch, patch.T) for k in range(4)]
    assert seen == {t.astype(np.float32).tobytes() for t in turned}


def test_patches_that_are_not_square_are_not_swapped():
    patch = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(augment.apply_symmetry(patch, np.array([False, False, True])), patch)


def test_limit_decides_residence(images):
    found = images[0]
    size = found.num_voxels * 2
    assert stream.fits_on_device(found, size)
    assert not stream.fits_on_device(found, size - 1)
