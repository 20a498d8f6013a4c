"""The GAN's batches: images and masks as the files hold them, each with its own position map."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.special import ndtr

from jaxsynth import cli, devices, gan_measure, gan_source, keys
from jaxsynth.data import intensity as intensities
from jaxsynth.data import stream, unpaired, volumes
from jaxsynth.errors import InputError
from jaxsynth.records import Specimen
from jaxsynth.sim import extent, views
from jaxsynth.train_source import Placing

CASES = {
    2: {"image": (40, 50), "labels": (43, 53), "patch": (24, 24), "spacing": (0.5, 0.5), "radius": 5},
    3: {"image": (10, 32, 28), "labels": (13, 35, 31), "patch": (12, 16, 16), "spacing": (2.0, 1.0, 1.0), "radius": 4},
}
KEY = keys.root(3)
organism = jax.jit(extent.closed, static_argnums=1)


def cells(shape, radius, number):
    """Labels of some touching balls."""
    rng = np.random.default_rng(number)
    centres = np.array(shape) * rng.uniform(0.3, 0.7, (6, len(shape)))
    away = ((np.indices(shape)[:, None] - centres.T.reshape(len(shape), 6, *(1,) * len(shape))) ** 2).sum(0)
    return np.where(away.min(0) <= radius**2, 3 * away.argmin(0) + 2, 0).astype(np.uint16)


@pytest.fixture(scope="module", params=CASES)
def files(request, tmp_path_factory):
    """A folder of images with their labels, and of labels of other sizes; one volume is smaller than the patch."""
    folder, case = tmp_path_factory.mktemp("files"), CASES[request.param]
    for part in ("images", "image_labels", "labels"):
        (folder / part).mkdir()
    for number in range(2):
        shape = tuple(n + 3 * number for n in case["image"])
        own = cells(shape, case["radius"], number)
        image = np.random.default_rng(number).normal(200, 30, shape) + 2000 * (own > 0)
        volumes.write(folder / "images" / f"{number}.tif", image.astype(np.uint16), spacing_um=case["spacing"])
        volumes.write(folder / "image_labels" / f"{number}.tif", own, spacing_um=case["spacing"])
        shape = tuple(n - 3 * number for n in case["labels"])
        file = folder / "labels" / f"l{number}.tif"
        volumes.write(file, cells(shape, case["radius"], 5 + number), spacing_um=case["spacing"])
    return folder, case


def configure(files, **overrides):
    folder, case = files
    config = cli.read_config("configs/common.py", [])
    config.task = "gan"
    config.data.path, config.data.val_fraction = str(folder / "images"), 0.0
    config.data.patch, config.data.batch_size = case["patch"], 4
    config.gan.labels, config.gan.image_labels = str(folder / "labels"), str(folder / "image_labels")
    config.gan.alpha_vox, config.gan.beta_vox = 7.0, 20.0
    with config.unlocked():
        config.update_from_flattened_dict(overrides)
    return config


def placing(count=1):
    mesh = devices.make_mesh(jax.devices()[:count])
    return Placing(devices.split(mesh), devices.replicated(mesh))


def as_saved(config, told):
    """What a checkpoint says of a run: its source's metadata and its configuration."""
    return json.loads(json.dumps(told | {"config": config.to_dict()}))


def take(config, count, first=0, saved=None, over=1):
    """(batches, validation batches, metadata, source)"""
    source = gan_source.open_source(config, saved)
    batches, val_batches, told = source.begin(KEY, first, placing(over))
    found = jax.device_get(list(itertools.islice(batches, count)))
    batches.close()
    for batch, likes in [(batch, source.batch) for batch in found] + [(val_batches[0], source.held_out_batch)]:
        assert batch.keys() == likes.keys() and len(val_batches) == 1
        assert all(batch[name].shape == like.shape and batch[name].dtype == like.dtype for name, like in likes.items())
    return found, jax.device_get(val_batches), told(), source


def expected(volume, index, start, symmetry, patch):
    """The patch by NumPy: reflected, cut, turned."""
    whole = np.pad(volume, 20, mode="reflect")
    cut = whole[tuple(slice(s + 20, s + 20 + n) for s, n in zip(start, patch, strict=True))]
    for axis in (0, 1):
        cut = np.flip(cut, axis - 2) if symmetry[axis] else cut
    return np.swapaxes(cut, -1, -2) if symmetry[2] else cut


@pytest.mark.parametrize(("files", "kind"), [(2, "cells"), (3, "boundary")], indirect=["files"])
def test_patches_are_what_the_files_hold(files, kind):
    folder, case = files
    batches, _, told, source = take(configure(files, **{"gan.mask": kind, "gan.critic_mask": True}), 2)
    scale, spacing = intensities.Intensity.from_dict(told["intensity"]), case["spacing"]
    assert told["spacing_um"] == spacing and told["num_files"] == 2 and source.held_bytes > 0

    def maps(file):
        labels = volumes.read_labels(file)
        body = np.asarray(organism(labels, spacing))
        relative = np.asarray(spacing) / spacing[-1]
        to_body = [ndimage.distance_transform_edt(part, sampling=relative) for part in (body, ~body)]
        position = np.where(body, np.tanh(to_body[0] / 7), np.tanh(-to_body[1] / 20))
        made = Specimen(jnp.asarray(labels), jnp.zeros(1), *(0,) * 4)
        mask = np.asarray(views.walls(made, case["spacing"])) if kind == "boundary" else labels > 0
        return mask.astype(np.float32), position

    images = [intensities.normalise(volumes.read(file), scale) for file in sorted((folder / "images").iterdir())]
    of_images = [maps(file) for file in sorted((folder / "image_labels").iterdir())]
    masks, of_masks = zip(*(maps(file) for file in sorted((folder / "labels").iterdir())), strict=True)
    image_masks, image_positions = zip(*of_images, strict=True)
    of_images = {"image": images, "image_position": image_positions, "image_mask": image_masks}
    named = {"images": of_images, "masks": {"mask": masks, "position": of_masks}}
    places = []
    for step, batch in enumerate(batches):
        for name, parts in named.items():
            own = keys.stream(KEY, "patches")
            shapes = np.array([part.shape for part in next(iter(parts.values()))])
            at = stream.draw(keys.stream(keys.stream(own, name), step), shapes, case["patch"], 4)
            places.append(np.asarray(at.start))
            for row, where in enumerate(zip(*map(np.asarray, (at.index, at.start, at.symmetry)), strict=True)):
                for part, wholes in parts.items():
                    wanted = expected(np.asarray(wholes[where[0]]), *where, case["patch"])
                    found = batch[part][row, ..., 0]
                    # Distances are kept to one part in 2000.
                    close = 3e-4 if part.endswith("position") else 1e-6
                    np.testing.assert_allclose(found, wanted, atol=close)
        assert set(np.unique(batch["mask"])) == {0, 1}
    assert not np.array_equal(places[0], places[1])  # images and masks are drawn independently


def test_batches_depend_on_the_key_and_their_number_alone(files):
    config = configure(files, **{"data.val_fraction": 0.5})
    batches, val_batches, told, source = take(config, 3)
    assert source.held_out and told["num_files"] == 1
    saved = as_saved(config, told)
    again, val_again, _, _ = take(configure(files, **{"data.val_fraction": 0.5}), 2, first=1, saved=saved)
    jax.tree.map(np.testing.assert_array_equal, batches[1:], again)
    jax.tree.map(np.testing.assert_array_equal, val_batches, val_again)
    split, _, _, _ = take(config, 1, over=4)
    jax.tree.map(np.testing.assert_array_equal, batches[:1], split)
    # What is held out is the last image, and is not turned.
    whole = intensities.normalise(
        volumes.read(files[0] / "images" / "1.tif"), intensities.Intensity.from_dict(told["intensity"])
    )
    shapes = np.array([whole.shape])
    at = stream.draw(keys.stream(keys.stream(KEY, "held out"), "images", 0), shapes, files[1]["patch"], 4)
    wanted = expected(whole, 0, np.asarray(at.start)[0], (0, 0, 0), files[1]["patch"])
    np.testing.assert_allclose(val_batches[0]["image"][0, ..., 0], wanted, atol=1e-6)


def test_images_without_labels_show_where_their_cells_are(files):
    """Bright cells on a dark ground: the position map by brightness is nearly that of the labels."""
    by_labels = take(configure(files), 1)[0][0]["image_position"]
    found = take(configure(files, **{"gan.image_labels": ""}), 1)[0][0]["image_position"]
    assert 0.05 < (by_labels > 0).mean() < 0.95
    assert ((found > 0) == (by_labels > 0)).mean() > 0.8
    assert np.corrcoef(found.ravel(), by_labels.ravel())[0, 1] > 0.85


def test_sketches_show_every_cell_at_a_brightness_of_its_own(files):
    """Another one in every patch, between the levels of dim and bright cells, on their background."""
    levels = (0.125, 0.25, 0.75)
    config = configure(files, **{"gan.mask": "sketch", "gan.levels": levels, "gan.image_labels": ""})
    masks = take(configure(files, **{"gan.mask": "cells"}), 2)[0]
    greys = []
    for batch, plain in zip(take(config, 2)[0], masks, strict=True):
        for patch, mask in zip(batch["mask"], plain["mask"], strict=True):
            np.testing.assert_array_equal(patch[mask == 0], levels[0])
            greys.append(np.unique(patch[mask == 1]))
            assert len(greys[-1]) <= 6  # cells of a file
    greys = np.concatenate(greys)
    assert len(np.unique(greys)) == len(greys) > 8 and levels[1] <= greys.min() and greys.max() <= levels[2]
    assert greys.max() - greys.min() > 0.25


def exposed_twice(files, out):
    """Writes images of flat cells of different brightness, the second of a longer exposure."""
    folder, case = files
    out.mkdir()
    for number in range(2):
        labels = volumes.read_labels(folder / "image_labels" / f"{number}.tif")
        image = (1 + 3 * number) * (200 + 300 * (labels > 0) + 40 * labels)
        volumes.write(out / f"{number}.tif", image.astype(np.uint16), spacing_um=case["spacing"])


def test_cells_are_as_bright_as_in_labelled_images(files, tmp_path):
    """Those of a patch as in one image; what the critic sees of real images are these images' own sketches."""
    folder, _ = files
    exposed_twice(files, tmp_path / "images")
    words = {"gan.mask": "sketch", "gan.critic_mask": True, "data.path": str(tmp_path / "images")}
    config = configure(files, **words)
    batches, _, told, _ = take(config, 8)
    scale = intensities.Intensity.from_dict(told["intensity"])
    greys, grounds = [], []
    for number in range(2):
        labels = volumes.read_labels(folder / "image_labels" / f"{number}.tif")
        image = (intensities.normalise(volumes.read(tmp_path / "images" / f"{number}.tif"), scale) + 1) / 2
        greys.append(np.unique(image[labels > 0]))
        grounds.append(image[labels == 0][0])
    assert greys[0].max() < greys[1].min()
    background, dim, bright = config.gan.levels
    by_image = sorted(set(zip(scale.backgrounds, scale.brightness, strict=True)))  # of different sizes
    ends = dim + (bright - dim) * np.array([table for _, table in by_image])[:, [0, -1]]
    np.testing.assert_allclose(ends, [[own.min(), own.max()] for own in greys], atol=1e-3)
    assert np.isclose(background, np.mean(grounds), atol=1e-3)
    np.testing.assert_allclose(background + (bright - dim) * np.unique(scale.backgrounds), grounds, atol=1e-3)
    assert grounds[0] < grounds[1] - 0.1
    drawn_as = []
    for batch in batches:
        # An image of flat cells on a flat ground is its own sketch.
        np.testing.assert_allclose(batch["image_mask"], (batch["image"] + 1) / 2, atol=1e-3)
        for patch in batch["mask"]:
            number = int(np.abs(patch - grounds[1]).min() < np.abs(patch - grounds[0]).min())
            cells = patch[np.abs(patch - grounds[number]) > 2e-3]
            if cells.size:
                drawn_as.append(number)
                assert greys[number].min() - 1e-3 <= cells.min() and cells.max() <= greys[number].max() + 1e-3
    assert 0.2 < np.mean(drawn_as) < 0.8


def test_sketches_of_images_of_several_sizes_and_without_cells():
    """A large image's table comes as often as its voxels do; an image without cells has its own background."""
    cells = np.array([0.4, 0.6])
    (usual, low, high), tables, above = gan_measure._of_sketches(
        [(300, 0.1, cells), (100, 0.3, np.zeros(0)), (100, None, cells + 0.2)]
    )
    assert (usual, low, high) == (0.2, 0.4, 0.8) and len(tables) == len(above)
    share = [np.isclose(above, own, atol=1e-3).mean() for own in (-0.25, 0.25, 0)]
    np.testing.assert_allclose(share, [0.6, 0.2, 0.2], atol=0.02)
    ends = {shift: (table[0], table[-1]) for shift, table in zip(above, tables, strict=True)}
    assert ends == {-0.25: (0, 0.5), 0.25: (0, 1), 0: (0.5, 1)}
    # Of one size each comes once; cells that are all alike leave room for backgrounds to differ.
    (usual, low, high), tables, above = gan_measure._of_sketches([(9, 0.1, cells[:1] + 0.6), (9, 0.5, cells[:1] + 0.6)])
    assert low < high <= 1 and len(tables) == 2
    np.testing.assert_allclose(usual + (high - low) * np.array(above), [0.1, 0.5], atol=1e-4)
    assert gan_measure._of_sketches([(9, 0.1, np.zeros(0))])[0] is None


@pytest.mark.parametrize("files", [2], indirect=True)
def test_sketches_of_specimens(files, tmp_path):
    own = {"gan.labels": "", "gan.recipe": "nuclei", "gan.shape": (48, 48), "gan.spacing_um": (0.5, 0.5),
           "gan.mask": "sketch", "gan.levels": (0.125, 0.25, 0.75), "data.batch_size": 2}  # fmt: skip
    found = np.stack([batch["mask"] for batch in take(configure(files, **own), 2)[0]])
    assert found.min() == 0.125 and 0.25 < found.max() <= 0.75 and len(np.unique(found)) > 3
    # As bright as in one of the labelled images, where they tell it.
    exposed_twice(files, tmp_path / "images")
    config = configure(files, **own | {"gan.levels": (), "gan.reuse": 1, "data.path": str(tmp_path / "images")})
    batches, _, told, _ = take(config, 8)
    background, dim, bright = config.gan.levels
    scale = intensities.Intensity.from_dict(told["intensity"])
    above, tables = zip(*sorted(set(zip(scale.backgrounds, scale.brightness, strict=True))), strict=True)
    dark, light = dim + (bright - dim) * np.array(tables)
    assert dark[-1] < light[0]
    grounds = background + (bright - dim) * np.array(above)
    kinds = set()
    for patch in (patch for batch in batches for patch in batch["mask"]):
        number = int(np.abs(patch - grounds[1]).min() < np.abs(patch - grounds[0]).min())
        own = patch[np.abs(patch - grounds[number]) > 1e-4]
        if own.size:
            kinds.add(
                (number, "dark" if own.max() < dark[-1] + 1e-3 else "light" if own.min() > light[0] - 1e-3 else "")
            )
    assert kinds == {(0, "dark"), (1, "light")}


@pytest.mark.parametrize("files", [2], indirect=True)
def test_specimens_instead_of_files(files):
    """Every mask is a piece of a specimen of 2D nuclei, used for two steps; a later start continues in the middle."""
    own = {"gan.labels": "", "gan.recipe": "nuclei", "gan.shape": (48, 48), "gan.spacing_um": (0.5, 0.5),
           "gan.reuse": 2, "gan.mask": "cells", "data.batch_size": 2}  # fmt: skip
    config = configure(files, **own)
    batches, _, _, source = take(config, 4)
    assert "specimens of nuclei" in source.summary
    masks = np.stack([batch["mask"] for batch in batches])
    assert set(np.unique(masks)) == {0, 1}
    for batch in batches:
        inside = batch["position"] > 0
        assert inside[batch["mask"] > 0].all() and not np.array_equal(batch["image_position"], batch["position"])
    assert not np.array_equal(masks[0], masks[1])
    again = take(configure(files, **own), 3, first=1)[0]
    jax.tree.map(np.testing.assert_array_equal, batches[1:], again)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"gan.labels": ""}, "expected either label images, gan.labels, or a recipe"),
        ({"gan.recipe": "nuclei"}, "expected either label images, gan.labels, or a recipe"),
        (
            {"gan.critic_mask": True, "gan.image_labels": ""},
            "gan.critic_mask: the critic sees the masks of real images",
        ),
        ({"gan.mask": "walls"}, "unknown gan.mask 'walls': expected one of boundary, cells"),
        ({"gan.alpha_vox": 0.0}, "gan.alpha_vox: expected a positive number"),
        ({"gan.val_image_labels": "x"}, "there is no data.val_path"),
        ({"data.device_limit_gib": 1e-9}, "raise it, or train on fewer files"),
        ({"data.allow_padding": False, "data.patch": (39, 40), "gan.labels": "{small}"}, "smaller than the patch"),
        ({"gan.labels": "{other}"}, r"expected 2D labels, as the images are; got 3D"),
        ({"gan.labels": "{empty}"}, "no label image has a cell"),
        ({"gan.image_labels": "{labels}"}, "has no label image for 0.tif"),
        ({"gan.image_labels": "{shifted}"}, "differ in shape"),
        ({"gan.labels": "", "gan.recipe": "nuclei", "gan.reuse": 0}, "gan.reuse must be at least 1"),
        (
            {"gan.labels": "", "gan.recipe": "arabidopsis", "gan.mask": "sketch"},
            "recipe arabidopsis: its sketches show membranes",
        ),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path, overrides, message):
    labels = cells((40, 50), 5, 0)
    written = {"images": [labels * 9, labels * 7], "labels": [labels], "other": [np.stack([labels] * 4)],
               "small": [labels[:30]], "empty": [0 * labels], "shifted": [labels[:-1], labels]}  # fmt: skip
    for folder, arrays in written.items():
        (tmp_path / folder).mkdir()
        for number, array in enumerate(arrays):
            name = "l" if folder == "labels" else number
            volumes.write(tmp_path / folder / f"{name}.tif", array)
    config = configure((tmp_path, {"patch": (24, 24)}), **{"gan.image_labels": ""})
    places = {folder: tmp_path / folder for folder in written}
    filled = {name: own.format(**places) if isinstance(own, str) else own for name, own in overrides.items()}
    with config.unlocked():
        config.update_from_flattened_dict(filled)
    with pytest.raises(InputError, match=message):
        gan_source.open_source(config, None)


@pytest.mark.parametrize("files", [2], indirect=True)
def test_runs_whose_weights_meant_something_else_are_not_gone_on_with(files):
    saved = {"config": {"gan": {"smooth": True}}}
    for given in ((saved, None), (None, saved)):
        with pytest.raises(InputError, match="which is no more"):
            gan_source.open_source(configure(files), *given)


@pytest.mark.parametrize("files", [2], indirect=True)
def test_background_may_have_a_label_of_its_own(tmp_path, files):
    own = sorted((files[0] / "labels").iterdir())
    for file in own:
        labels = volumes.read_labels(file)
        volumes.write(tmp_path / file.name, np.where(labels == 0, 1, labels).astype(np.uint16),
                      spacing_um=files[1]["spacing"])  # fmt: skip
    plain = take(configure(files), 1)[0]
    other = take(configure(files, **{"gan.labels": str(tmp_path), "gan.background_label": 1,
                                     "gan.image_labels": str(files[0] / "image_labels")}), 1)[0]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, plain, other)


def test_real_nuclei(real_data, tmp_path):
    """GOWT1: with its labels or by brightness, the nuclei lie in the organism, and it is more than they are."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for file in volumes.find_files(real_data / "gowt1" / part)[:1]:
            own = volumes.read_labels(file) if part == "masks" else volumes.read(file)
            volumes.write(tmp_path / part / "a.tif", own[256:768:2, 256:768:2], spacing_um=(0.48, 0.48))
    config = configure((tmp_path, {"patch": (128, 128)}), **{
        "gan.labels": str(tmp_path / "masks"), "gan.image_labels": str(tmp_path / "masks"), "gan.mask": "cells",
        "gan.alpha_vox": 50.0, "gan.beta_vox": 50.0})  # fmt: skip
    batches = take(config, 4)[0]
    inside = np.stack([batch["position"] > 0 for batch in batches])
    masks = np.stack([batch["mask"] > 0 for batch in batches])
    assert inside[masks].all() and masks.mean() < inside.mean() < 1
    config.gan.image_labels = ""
    by_light = np.stack([batch["image_position"] > 0 for batch in take(config, 4)[0]])
    by_labels = np.stack([batch["image_position"] > 0 for batch in batches])
    both = (by_light & by_labels).sum() / (by_light | by_labels).sum()
    assert both > 0.8


def test_a_residual_generators_masks_get_the_grey_values_of_the_images(files):
    """Balls of 2200 on a background of 200; what is given stays, and other generators have none."""
    config = configure(files, **{"gan.residual": True, "gan.mask": "cells", "model.noise_channel": True})
    source = gan_source.open_source(config, None)
    scale = intensities.Intensity.from_dict(source.begin(KEY, 0, placing())[2]()["intensity"])
    dark, bright = (float(intensities.in_units(2 * level - 1, scale)) for level in config.gan.levels)
    assert dark == pytest.approx(200, abs=20) and bright == pytest.approx(2200, abs=150)
    dark, *_, bright = np.asarray(config.gan.grain)[[2, -1]].std(1)
    assert dark > 30 * bright > 0
    config = configure(files, **{"gan.residual": True, "gan.levels": (0.1, 0.2)})
    gan_source.open_source(config, None)
    assert config.gan.levels == (0.1, 0.2)
    config = configure(files, **{"gan.mask": "sketch"})
    source = gan_source.open_source(config, None)
    dark, dim, bright = (float(intensities.in_units(2 * level - 1, scale)) for level in config.gan.levels)
    assert dark == pytest.approx(200, abs=10) and 2100 < dim <= bright < 2300
    told = source.begin(KEY, 0, placing())[2]()["intensity"]
    np.testing.assert_allclose((np.array(told["levels"]) + 1) / 2, config.gan.levels, atol=1e-4)
    config = configure(files, **{"gan.mask": "sketch", "gan.image_labels": ""})
    gan_source.open_source(config, None)
    assert config.gan.levels == pytest.approx([(level + 1) / 2 for level in scale.levels], abs=1e-4)
    config = configure(files)
    gan_source.open_source(config, None)
    assert config.gan.levels == ()
    # Grain is made of noise: without it none is measured, and what is given is refused.
    config = configure(files, **{"gan.residual": True, "model.noise_channel": False})
    gan_source.open_source(config, None)
    assert len(config.gan.levels) == 2 and config.gan.grain == ()
    config.gan.grain = ((0.0, 0.1), (0.0, 0.1))
    with pytest.raises(InputError, match="noise_channel"):
        gan_source.open_source(config, None)


@pytest.mark.parametrize("files", [2], indirect=True)
def test_real_grain_correlates_along_x_or_not_at_all(files, real_data):
    """HeLa's rows are interpolated, the stem cells' are not."""
    own = {"gan.residual": True, "gan.image_labels": "", "model.noise_channel": True, "data.val_fraction": 0.0}
    for name, wanted in (("hela", (0.0, 0.6)), ("gowt1", (0.0, 0.0))):
        config = configure(files, **own | {"data.path": str(sorted((real_data / name / "images").iterdir())[0])})
        gan_source.open_source(config, None)
        np.testing.assert_allclose(config.gan.grain_correlation, wanted, atol=0.03)
    config.gan.grain_correlation = (0.0, 0.0, 0.3)
    with pytest.raises(InputError, match=r"gan.grain_correlation: expected 2 numbers"):
        gan_source.open_source(config, None)


@pytest.mark.parametrize("files", [2], indirect=True)
def test_clouds_differ_on_walls_and_beside_them(files, tmp_path):
    """A wall that only the labels have leaves minus a wall, which no cell's inside has; those of the image leave more
    than the common contrast explains."""
    rows, columns = np.indices((96, 96)) // 16
    labels = 1 + 6 * rows + columns
    soft = ndimage.gaussian_filter((unpaired.of_labels(labels, None, "boundary")[0] > 0).astype(float), 1.0)
    image = 1000 + 2000 * soft * (rows > 1)  # no walls in the first two rows
    for part, array in (("images", image), ("image_labels", labels)):
        (tmp_path / part).mkdir()
        volumes.write(tmp_path / part / "0.tif", array.round().astype(np.uint16))
    own = {"data.path": str(tmp_path / "images"), "gan.image_labels": str(tmp_path / "image_labels"), "gan.sigma": 1.0}
    own |= {"gan.mask": "boundary", "gan.residual": True, "gan.clouds_vox": 16.0, "model.noise_channel": True}
    config = configure(files, **own | {"data.normalization": "minmax_shifted"})
    gan_source.open_source(config, None)
    background, walls = config.gan.levels
    _, inside, on = np.array(config.gan.clouds)
    assert walls - background > 0.3
    assert np.abs(inside).max() < 0.2  # up to what of a wall ends there
    assert on[0] < -0.3 and on[-1] > 0.1


@pytest.mark.parametrize("files", [2], indirect=True)
def test_clouds_are_what_masks_leave_unexplained(files, tmp_path):
    """With noise for them; without, cells' contrast stands for all that images vary. Outside it is darker."""
    labels = np.where(ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(128, 128)), 4) > 0.02, 7, 0)
    labels[:, 96:] = 0
    inside = unpaired.distances(labels, None) > 0
    soft = ndimage.gaussian_filter((labels > 0).astype(float), 1.0)
    field = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=labels.shape), 6)
    cloudy = np.where(inside, 300 * np.square(field / field.std() + 1), -600)  # skewed
    cloudy -= np.polyfit(soft[inside], cloudy[inside], 1)[0] * soft * inside  # what masks would explain by chance
    for part, array in (("images", 1000 + 2000 * soft + cloudy), ("image_labels", labels)):
        (tmp_path / part).mkdir()
        volumes.write(tmp_path / part / "0.tif", array.round().astype(np.uint16))
    own = {"data.path": str(tmp_path / "images"), "gan.image_labels": str(tmp_path / "image_labels"), "gan.sigma": 1.0}
    own |= {"gan.mask": "cells", "gan.residual": True, "model.noise_channel": True, "data.normalization": "percentile"}
    config = configure(files, **own | {"gan.clouds_vox": 8.0})
    source = gan_source.open_source(config, None)
    told = source.begin(KEY, 0, placing())[2]()
    scale = intensities.Intensity.from_dict(told["intensity"])

    def counts(grey):
        return np.asarray(intensities.in_units(2 * np.asarray(grey) - 1, scale), np.float64)

    dark, bright = counts(config.gan.levels)
    assert dark == pytest.approx(1000 + cloudy.mean(), abs=100) and bright - dark == pytest.approx(2000, abs=200)
    left = cloudy - cloudy.mean()
    far = ndimage.distance_transform_edt(labels == 0) > 1.5  # a blur of one voxel leaves less than a quarter there
    parts = (left[~inside], left[inside & far], left[labels > 0])
    for row, part in zip(config.gan.clouds, parts, strict=True):
        wanted = np.quantile(part, ndtr(intensities.SCORES))
        found = counts(np.array(row) + 0.5) - counts(0.5)
        np.testing.assert_allclose(found[1:-1], wanted[1:-1], atol=0.05 * np.ptp(left))  # ends are of a few voxels
    saved = as_saved(config, told)
    measured, earlier = config.gan.to_dict(), [[-0.2, 0.1], [-0.1, 0.2]]  # of two tables, of an earlier version
    for clouds in (saved["config"]["gan"]["clouds"], earlier):  # a run goes on with what it began with
        saved["config"]["gan"]["clouds"] = clouds
        config = configure(files, **own | {"gan.clouds_vox": 8.0})
        gan_source.open_source(config, saved)
        assert config.gan.to_dict() == measured | {"clouds": tuple(map(tuple, clouds))}
    given = configure(files, **own | {"gan.clouds_vox": 8.0, "gan.clouds": ((-0.1, 0.1),) * 3})
    for config, least, most in ((given, 1900, 2100), (configure(files, **own), 2300, 4000)):
        kept = config.gan.clouds
        gan_source.open_source(config, None)
        dark, bright = counts(config.gan.levels)
        assert config.gan.clouds == kept and least < bright - dark < most
