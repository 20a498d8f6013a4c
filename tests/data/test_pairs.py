"""Annotated images for training: matched, scaled, shrunk, and cut into batches."""

import itertools

import h5py
import jax
import numpy as np
import pytest

from jaxsynth import devices, keys
from jaxsynth.data import pairs, volumes
from jaxsynth.errors import InputError

SOFT = pairs.Augmentation(0.25, 0.1, True, 1.0, 0.3, 0.1, 1.0, 0.15)


def discs(shape=(60, 80), radius=6):
    """Labels 5, 10, 15, ... of discs on a grid, and an image in which disc k is k bright."""
    grid = np.indices(shape)
    labels = np.zeros(shape, np.int32)
    number = 0
    for y in range(10, shape[0] - 8, 20):
        for x in range(10, shape[1] - 8, 20):
            number += 5
            labels[(grid[0] - y) ** 2 + (grid[1] - x) ** 2 <= radius**2] = number
    return labels, (100 + 10 * labels).astype(np.uint16)


@pytest.fixture
def folder(tmp_path):
    labels, image = discs()
    for part, array in (("images", image), ("labels", labels.astype(np.uint16))):
        (tmp_path / part).mkdir()
        for name in ("b", "a"):
            volumes.write(tmp_path / part / f"{name}.tif", array)
    return tmp_path


def test_files_are_matched_by_name(folder):
    opened, files = pairs.open_pairs(str(folder / "images"), str(folder / "labels"))
    assert [p.stem for p in opened.paths] == [p.stem for p in files] == ["a", "b"]
    labels = pairs.read_label_files(opened, files)
    assert all(own.shape == (60, 80) for own in labels)


def test_several_folders_are_matched_in_their_order(folder, tmp_path):
    labels, image = discs((30, 30))
    for part, array in (("more", image), ("more_labels", labels.astype(np.uint16))):
        (tmp_path / part).mkdir()
        volumes.write(tmp_path / part / "a.tif", array)
    places = [f"{folder / 'images'}, {tmp_path / 'more'}", f"{folder / 'labels'},{tmp_path / 'more_labels'}"]
    opened, files = pairs.open_pairs(*places)
    assert len(opened.paths) == 3
    for image_file, label_file in zip(opened.paths, files, strict=True):
        assert {"images": "labels", "more": "more_labels"}[image_file.parent.name] == label_file.parent.name


def test_what_does_not_match_is_named(folder):
    (folder / "labels" / "b.tif").unlink()
    with pytest.raises(InputError, match=r"no label image for b\.tif"):
        pairs.open_pairs(str(folder / "images"), str(folder / "labels"))
    (folder / "images" / "b.tif").unlink()
    volumes.write(folder / "labels" / "c.tif", discs()[0].astype(np.uint16))
    with pytest.raises(InputError, match=r"no image for the labels c\.tif"):
        pairs.open_pairs(str(folder / "images"), str(folder / "labels"))
    with pytest.raises(InputError, match="1 places but labels from 2"):
        pairs.open_pairs(str(folder / "images"), f"{folder / 'labels'},{folder / 'labels'}")


def test_two_files_of_one_name_are_refused(folder):
    for part in ("images", "labels"):
        (folder / "more" / part).mkdir(parents=True)
        volumes.write(folder / "more" / part / "a.tif", volumes.read(folder / part / "a.tif"))
    with pytest.raises(InputError, match="two files named a"):
        pairs.open_pairs(str(folder / "**" / "images" / "*.tif"), str(folder / "**" / "labels" / "*.tif"))


def test_labels_of_another_shape_are_refused(folder):
    volumes.write(folder / "labels" / "b.tif", discs((60, 60))[0].astype(np.uint16))
    opened, files = pairs.open_pairs(str(folder / "images"), str(folder / "labels"))
    with pytest.raises(InputError, match=r"b\.tif: labels \(60, 60\) and image \(60, 80\)"):
        pairs.read_label_files(opened, files)


def test_brightness_does_not_depend_on_units():
    image = np.random.default_rng(0).gamma(2.0, 100.0, (50, 60)).astype(np.float32)
    one = pairs.scaled(image)
    np.testing.assert_allclose(pairs.scaled(image * 37 + 1000), one, atol=1e-4)
    np.testing.assert_allclose(pairs.scaled(jax.numpy.asarray(image)), one, atol=1e-5)
    low, high = np.percentile(one, [1, 99.8])
    assert low == pytest.approx(0, abs=1e-5) and high == pytest.approx(1, abs=1e-5)
    assert np.isfinite(pairs.scaled(np.full((9, 9), 7, np.uint8))).all()
    few = np.zeros((512, 512), np.uint8)
    few[:10, :10] = 200
    assert pairs.scaled(few).max() == pytest.approx(1)
    linear = pairs.scaled(image, "percentile")  # as the published network has it
    low, high = np.percentile(image, [2, 98])
    np.testing.assert_allclose(linear, np.clip((image - low) / (high - low), 0, 1), atol=1e-5)


def test_extent_and_scale():
    labels = discs(radius=6)[0]
    assert pairs.cell_extent([labels]) == (13.0, 13.0)
    assert pairs.choose_scale((13.0, 13.0), 30) == (1.0, 1.0)
    assert pairs.choose_scale((60.0, 60.0), 30) == (0.5, 0.5)
    assert pairs.choose_scale((10.0, 60.0, 60.0), 30) == (1.0, 0.5, 0.5)
    assert pairs.choose_scale((60.0, 60.0), 0) == (1.0, 1.0)
    assert pairs.cell_extent([np.zeros((5, 5), np.int32)]) is None
    assert pairs.cell_extent([np.where(labels > 0, labels + 2 * 10**9, 0)]) == (13.0, 13.0)  # whatever the numbers


def test_shrunk_labels_stay_where_the_image_has_them():
    labels, image = discs((120, 160), radius=8)
    small = pairs.shrunk_labels(labels, (0.5, 0.4))
    assert small.shape == pairs.shrunk(image, (0.5, 0.4)).shape == (60, 64)
    assert sorted(np.unique(small)) == list(range(len(np.unique(labels))))  # without gaps
    bright = pairs.shrunk((labels > 0).astype(np.float32), (0.5, 0.4)) > 0.5
    assert (bright == (small > 0)).mean() > 0.97
    full = np.full((6, 6), 9, np.int32)
    assert (pairs.shrunk_labels(full, (1, 1)) == 1).all()  # no background at all


def feed(count, augmentation, batch_size=8, **options):
    labels, image = discs()
    own = pairs.Pairs((image.astype(np.float32),), (pairs.shrunk_labels(labels, (1, 1)),), None)
    made = pairs.batches(own, keys.root(3), patch=(32, 32), batch_size=batch_size, augmentation=augmentation, **options)
    return [jax.device_get(batch) for batch in itertools.islice(made, count)]


def test_labels_belong_to_their_image():
    for batch in feed(3, None):
        image, labels = batch["image"][..., 0], batch["labels"]
        np.testing.assert_array_equal(image[labels > 0], 100 + 50 * labels[labels > 0])
        np.testing.assert_array_equal(image[labels == 0], 100)


def test_turned_patches_keep_them_together():
    """Away from the edges of the discs the image tells which label it is."""
    limits = pairs.Augmentation(0.25, 0.1, True, 0, 0, 0, 0, 0)
    agree = []
    for batch in feed(4, limits):
        image, labels = batch["image"][..., 0], batch["labels"]
        agree.append((np.abs(image - (100 + 50 * labels)) < 1)[labels >= 0].mean())
    assert np.mean(agree) > 0.85


def test_a_batch_depends_on_its_step_alone():
    later, first = feed(1, SOFT, first_step=2)[0], feed(3, SOFT)[2]
    jax.tree.map(np.testing.assert_array_equal, later, first)
    assert (feed(1, SOFT)[0]["image"] != first["image"]).any()


def test_split_over_devices_it_is_the_same():
    mesh = devices.make_mesh()
    placed = feed(1, SOFT, split=devices.split(mesh), replicated=devices.replicated(mesh))[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), placed, feed(1, SOFT)[0])


def test_beyond_the_edge_nothing_is_known():
    labels = np.ones((10, 40), np.int32)
    own = pairs.Pairs((np.ones((10, 40), np.float32),), (labels,), None)
    batch = next(pairs.batches(own, keys.root(0), patch=(32, 32), batch_size=2, augmentation=None))
    assert ((batch["labels"] == -1).sum(1) == 22).all()
    assert (batch["image"] == 1).all()


def test_images_and_labels_of_one_hdf5_file(tmp_path):
    """The layout of the published data sets."""
    labels, image = discs()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data/image"], file["data/instance"] = image, labels.astype(np.uint16)
    opened, files = pairs.open_pairs(str(tmp_path), str(tmp_path))
    (read,) = pairs.read_label_files(opened, files, "data/instance")
    np.testing.assert_array_equal(read, labels)
