"""The sampling command on a GAN: an image depends on its labels and the position map, not on how it was made."""

import json
import sys

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import gan_nuclei
from jaxsynth import checkpoint, devices, keys, simulate, trained, trained_gan
from jaxsynth import sample as command
from jaxsynth.data import intensity as intensities
from jaxsynth.data import tile_grid, volumes
from jaxsynth.records import Specimen
from jaxsynth.sim import membranes, views
from jaxsynth.tasks import gan, gan_input
from tests import toy


def untrained(folder, mask, norm="none", **measured):
    """Saves a small GAN with random weights as a run, for 2D images of type uint8 and voxels of 0.5 um."""
    config = gan_nuclei.get_config()
    config.data.patch = (32, 32)
    config.model.features = config.gan.critic_features = 4
    config.model.norm = config.gan.critic_norm = norm
    config.model.noise_channel = config.gan.smooth_doublings = mask == "boundary"  # as their configuration has it
    config.gan.mask = mask
    parts = gan.build(config)
    state = jax.jit(lambda key: gan.init(parts, key, (1, 32, 32, 1)))(keys.root(0))
    state = state.replace(ema_params=toy.weights(state.ema_params))
    intensity = intensities.fit([np.arange(256, dtype=np.uint8).reshape(16, 16)], "percentile").to_dict()
    intensity |= {"levels": gan_input.sketch_levels(config.gan)} | measured
    metadata = {"config": config.to_dict(), "intensity": intensity, "spacing_um": [0.5, 0.5], "num_files": 1}
    with checkpoint.open_manager(folder) as manager:
        checkpoint.save(manager, state, metadata, 1.0)
        manager.wait_until_finished()
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("gan") / "run", "boundary")


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Two label images of one size, ids with gaps."""
    folder = tmp_path_factory.mktemp("labels")
    for name in ("a", "b"):
        image = np.zeros((40, 48), np.uint16)
        image[4:20, 6:20], image[20:34, 6:20], image[8:24, 20:40] = 3, 7, 11 if name == "a" else 200
        volumes.write(folder / f"{name}.tif", image, spacing_um=(0.5, 0.5))
    return folder


def sample(model, out, *words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sample", "--checkpoint", str(model), "--out", str(out), *map(str, words)])
        command.main()
    return {file.stem: volumes.read(file) for file in sorted((out / "images").iterdir())}


def test_images_of_labels_are_the_generators(model, labels, tmp_path):
    images = sample(model, tmp_path / "out", "--labels", labels)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["images", "labels", "manifest.json"]
    network = trained.open_trained(model, tasks=("gan",))
    for name, image in images.items():
        own = volumes.read_labels(labels / f"{name}.tif")
        np.testing.assert_array_equal(volumes.read_labels(tmp_path / "out" / "labels" / f"{name}.tif"), own)
        made = Specimen(jnp.asarray(own, jnp.int32), jnp.zeros(1), *(0,) * 4)
        mask, step = views.walls(made, (0.5, 0.5)), (0.5, 0.5)
        position = membranes.position_map(views.organism(made, step), step, 50.0)  # 100 voxels of 0.5 um
        own_key = keys.stream(keys.root(0), "sample", name)[None]
        maps = jnp.stack([mask.astype(jnp.float32), position], -1)[None]
        expected = gan.generate(network.parts, network.params, own_key, maps)[0, ..., 0]
        expected = intensities.denormalise(np.asarray(expected), network.intensity)
        assert image.dtype == np.uint8 and volumes.spacing_um(tmp_path / "out" / "images" / f"{name}.tif") == (0.5, 0.5)
        np.testing.assert_allclose(image.astype(int), expected.astype(int), atol=1)
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert told["settings"]["source"]["labels"] == str(labels) and told["files"]["a"]["num_cells"] == 3


def test_a_gan_of_sketches_draws_from_the_same_as_a_diffusion_model(labels, tmp_path):
    """Label images with a brightness by chance are the sketches that `simulate` draws; others come from files."""
    model = untrained(tmp_path / "run", "sketch")
    drawn = sample(model, tmp_path / "drawn", "--labels", labels)
    with pytest.MonkeyPatch.context() as patch:
        words = ["--labels", labels, "--checkpoint", model, "--out", tmp_path / "sketches"]
        patch.setattr(sys, "argv", ["simulate", *map(str, words)])
        simulate.main()
    given = sample(model, tmp_path / "given", "--sketches", tmp_path / "sketches" / "sketches")
    keys_of = [json.loads((tmp_path / name / "manifest.json").read_text())["files"]["a"]["keys"]
               for name in ("drawn", "given")]  # fmt: skip
    assert keys_of == [[["simulate", "a"]], []]  # this model has no channel of noise
    bright = volumes.read(tmp_path / "sketches" / "sketches" / "a.tif")
    assert len(np.unique(bright)) == 4
    for name, image in drawn.items():
        np.testing.assert_array_equal(given[name], image)
    volumes.write(tmp_path / "sketches" / "sketches" / "a.tif", -bright, spacing_um=(0.5, 0.5))
    mine = np.where(volumes.read_labels(labels / "b.tif") == 0, 0.9, volumes.read(tmp_path / "sketches/sketches/b.tif"))
    volumes.write(tmp_path / "sketches" / "sketches" / "b.tif", mine.astype(np.float32), spacing_um=(0.5, 0.5))
    other = sample(model, tmp_path / "other", "--sketches", tmp_path / "sketches" / "sketches")
    assert (other["a"] != drawn["a"]).any() and (other["b"] == drawn["b"]).all()  # whatever its background
    again = sample(model, tmp_path / "recipe", "--recipe", "nuclei", "--shape", "40,56", "--num", 1)
    assert again["nuclei_0000"].std() > 0


def test_cells_are_as_bright_as_those_of_the_training(labels, tmp_path):
    """Those of an image as in one of the images learned from, and so is its background, drawn by `sample` and by
    `simulate` alike."""
    model = untrained(tmp_path / "run", "sketch", brightness=[[0.0, 0.1], [0.9, 1.0]], backgrounds=[0.05, 0.3])
    ground, dim, bright = gan_input.sketch_levels(gan_nuclei.get_config().gan)
    (tmp_path / "labels").mkdir()
    own = volumes.read_labels(labels / "a.tif")
    for number in range(6):
        volumes.write(tmp_path / "labels" / f"{number}.tif", own, spacing_um=(0.5, 0.5))
    of_recipe = ["--recipe", "nuclei", "--shape", "40,56", "--num", 6]

    def simulated(kind, *words):
        with pytest.MonkeyPatch.context() as patch:
            told = [*words, "--checkpoint", model, "--out", tmp_path / f"{kind}_sketches"]
            patch.setattr(sys, "argv", ["simulate", *map(str, told)])
            simulate.main()
        return tmp_path / f"{kind}_sketches"

    def background(drawing):
        (grey,) = np.unique(drawing)
        return round((float(grey) - ground) / (bright - dim), 4)

    for kind, words in (("labels", ["--labels", tmp_path / "labels"]), ("recipe", of_recipe)):
        drawn = sample(model, tmp_path / f"{kind}_drawn", *words)
        folder = simulated(kind, *words)
        given = sample(model, tmp_path / f"{kind}_given", "--sketches", folder / "sketches")
        kinds = set()
        for name, image in drawn.items():
            np.testing.assert_array_equal(given[name], image)
            cells = volumes.read_labels(folder / "labels" / f"{name}.tif") > 0
            drawing = volumes.read(folder / "sketches" / f"{name}.tif")
            relative = (drawing[cells] - dim) / (bright - dim)
            kind = "dim" if relative.max() < 0.1001 else "bright" if relative.min() > 0.8999 else "mixed"
            kinds.add((kind, background(drawing[~cells])))
        assert kinds == {("dim", 0.05), ("bright", 0.3)}
    # Backgrounds in files are even, and no darker or brighter than any of the training.
    folder, made = tmp_path / "labels_sketches" / "sketches", []
    drawing, outside = volumes.read(folder / "0.tif"), own == 0
    brightest = np.float32(ground + 0.3 * (bright - dim))
    for name, grey in (
        ("at", brightest),
        ("beyond", 0.99),
        ("uneven", np.where(np.indices(own.shape).sum(0) % 9, 2, 0)),
    ):
        volumes.write(
            folder / "0.tif", np.where(outside, np.minimum(grey, 1), drawing).astype(np.float32), spacing_um=(0.5, 0.5)
        )
        made.append(sample(model, tmp_path / name, "--sketches", folder)["0"])
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])
    # A film has one background.
    folder, seen = simulated("film", *of_recipe, "--frames", 2, "--death_rate", 0), set()
    for film in range(1, 7):
        frames = [volumes.read(file) for file in sorted((folder / f"{film:02d}_sketches").glob("*.tif"))]
        tracks = [volumes.read_labels(file) for file in sorted((folder / f"{film:02d}_GT" / "TRA").glob("*.tif"))]
        seen.add(background(np.concatenate([a[b == 0] for a, b in zip(frames, tracks, strict=True)])))
    assert seen == {0.05, 0.3}


def test_alpha_is_the_position_maps(model, labels, tmp_path):
    near, usual = (sample(model, tmp_path / str(a), "--labels", labels, "--alpha", a) for a in (10, 100))
    default = sample(model, tmp_path / "default", "--labels", labels)
    for name, image in default.items():
        np.testing.assert_array_equal(image, usual[name])
        assert (near[name] != image).any()


def test_background_of_another_label(model, labels, tmp_path):
    (tmp_path / "other").mkdir()
    for file in labels.iterdir():
        own = volumes.read_labels(file)
        volumes.write(
            tmp_path / "other" / file.name, np.where(own == 0, 1, own).astype(np.uint16), spacing_um=(0.5, 0.5)
        )
    other = sample(model, tmp_path / "out", "--labels", tmp_path / "other", "--background_label", 1)
    for name, image in sample(model, tmp_path / "usual", "--labels", labels).items():
        np.testing.assert_array_equal(other[name], image)
    assert volumes.read_labels(tmp_path / "out" / "labels" / "a.tif").min() == 0


def test_labels_in_hdf5(model, labels, tmp_path):
    """In the data set that the training names."""
    (tmp_path / "h5").mkdir()
    with h5py.File(tmp_path / "h5" / "a.h5", "w") as file:
        file.create_dataset("data/instance", data=volumes.read_labels(labels / "a.tif"))
    found = sample(model, tmp_path / "out", "--labels", tmp_path / "h5")
    np.testing.assert_array_equal(found["a"], sample(model, tmp_path / "usual", "--labels", labels)["a"])


def test_recipes_and_batches(model, tmp_path):
    words = ("--recipe", "nuclei", "--shape", "40,56", "--num", 3)
    images = sample(model, tmp_path / "out", *words)
    assert all(image.shape == (40, 56) and image.std() > 0 for image in images.values())
    single = sample(model, tmp_path / "single", *words, "--tile", "64,64", "--batch", 8)
    for name, image in images.items():
        np.testing.assert_allclose(image.astype(int), single[name].astype(int), atol=1)


def test_tiles_change_nothing(model):
    network = trained.open_trained(model, tasks=("gan",))
    maps = np.random.default_rng(0).uniform(size=(136, 120, 2)).astype(np.float32)
    key, other = jax.random.split(keys.root(0))
    whole = trained_gan.generator(network)(key, maps)
    tiled = trained_gan.generator(network, tile=(72, 64), tile_batch=2)
    assert tile_grid.plan_tiles((136, 120), (72, 64)).num_tiles > 2
    np.testing.assert_allclose(tiled(key, maps), whole, atol=1e-5)
    assert np.abs(tiled(other, maps) - whole).max() > 1e-3  # by its noise
    small = maps[:64, :64]
    own_keys = jnp.stack([other] * 3 + [key] + [other] * 4)
    batch = trained_gan.batch_generator(network)(own_keys, jnp.asarray(np.stack([small] * 8)))
    np.testing.assert_allclose(batch[3], trained_gan.generator(network)(key, small), atol=1e-5)
    assert len(batch.sharding.device_set) == len(devices.make_mesh().devices.flat)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to start from: give --labels FOLDER or --recipe NAME"),
        (("--sketches", "LABELS"), "--sketches: this GAN draws from boundary"),
        (("--labels", "LABELS", "--t_start", 3), "--t_start is for diffusion models"),
        (("--labels", "LABELS", "--alpha", 0), "--alpha: expected more than 0"),
        (("--labels", "LABELS", "--faithful", "redraw"), "a GAN makes the same image again"),
        (("--labels", "LABELS", "--cells", 3), "--cells does not go with --labels"),
        (("--labels", "VOLUME"), "expected 2D labels"),
    ],
)
def test_mistakes_are_named(model, labels, tmp_path, capsys, words, message):
    (tmp_path / "v").mkdir()
    volumes.write(tmp_path / "v" / "a.tif", np.zeros((8, 16, 16), np.uint8))
    places = {"LABELS": labels, "VOLUME": tmp_path / "v"}
    with pytest.raises(SystemExit) as stop:
        sample(model, tmp_path / "out", *(places.get(word, word) for word in words))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
