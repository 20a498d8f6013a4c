"""The simulate command, run as a user runs it."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from scipy import ndimage

from jaxsynth import checkpoint, simulate
from jaxsynth.data import intensity, volumes
from jaxsynth.records import TrainState

KINDS = ("labels", "sketches", "images")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command with the given words; returns its exit status and what it printed."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["simulate", *map(str, words)])
        try:
            simulate.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.tif")}


def intensity_of(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    return intensity.Intensity.from_dict(manifest["settings"]["intensity"])


@pytest.fixture
def own(tmp_path):
    """Three label images with sparse ids on background 1, and their images."""
    rng = np.random.default_rng(0)
    for index in range(3):
        labels = np.ones((48, 56), np.uint16)
        labels[4:14, 5:20], labels[20:40, 30:50], labels[30:44, 3:12] = 7, 1000, 60000
        image = np.where(labels == 1, 100, labels // 60 + 300) + rng.normal(0, 5, labels.shape)
        volumes.write(tmp_path / "masks" / f"f{index}.tif", labels, spacing_um=(0.3, 0.2))
        volumes.write(tmp_path / "real" / f"f{index}.tif", np.rint(image).astype(np.uint16))
    return tmp_path


@pytest.fixture(autouse=True)
def folders(tmp_path):
    for name in ("masks", "real"):
        (tmp_path / name).mkdir()


def test_recipe_writes_labels_sketches_images_and_manifest(command, tmp_path):
    out = tmp_path / "out"
    status, printed, _ = command("--recipe", "nuclei", "--num", 2, "--shape", "64,72", "--cells", 6, "--render",
                                 "--seed", 5, "--out", out)  # fmt: skip
    assert status == 0 and "2/2" in printed
    for name in ("nuclei_0000", "nuclei_0001"):
        labels, drawn, image = (tifffile.imread(out / kind / f"{name}.tif") for kind in KINDS)
        assert labels.shape == drawn.shape == image.shape == (64, 72)
        assert labels.dtype == np.uint16 and drawn.dtype == np.float32 and image.dtype == np.uint16
        assert len(np.unique(labels)) == 7
        assert (drawn[labels == 0] == -1).all() and drawn[labels > 0].min() >= -0.5 and drawn.max() <= 1
        means = ndimage.mean(image, labels, range(1, 7))
        greys = ndimage.mean(drawn, labels, range(1, 7))
        assert np.corrcoef(means, greys)[0, 1] > 0.8 and means.min() > image[labels == 0].mean()
        assert volumes.spacing_um(out / "labels" / f"{name}.tif") == (0.5, 0.5)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["recipe"] == "nuclei" and manifest["settings"]["spacing_um"] == [0.5, 0.5]
    assert manifest["files"]["nuclei_0001"] == {"key": ["simulate", "nuclei_0001"], "num_asked": 6, "num_placed": 6}
    assert not list(out.rglob("*.part"))


def test_files_are_the_same_whichever_were_skipped(command, tmp_path):
    words = ("--recipe", "celegans", "--shape", "8,32,40", "--cells", 5)
    assert command(*words, "--num", 3, "--out", tmp_path / "whole")[0] == 0
    part = tmp_path / "part"
    assert command(*words, "--num", 2, "--out", part)[0] == 0
    (part / "sketches" / "celegans_0000.tif").unlink()
    untouched = (part / "labels" / "celegans_0001.tif").stat().st_mtime_ns
    status, printed, _ = command(*words, "--num", 3, "--out", part)
    assert status == 0 and "1 of 3 are finished already" in printed
    assert contents(part) == contents(tmp_path / "whole") and len(contents(part)) == 6
    assert (part / "labels" / "celegans_0001.tif").stat().st_mtime_ns == untouched
    assert json.loads((part / "manifest.json").read_text())["files"]["celegans_0001"]["num_placed"] == 5


def test_other_settings_do_not_mix_in_one_folder(command, tmp_path):
    words = ("--recipe", "nuclei", "--num", 1, "--shape", "64,72", "--cells", 6, "--out", tmp_path / "out")
    assert command(*words)[0] == 0
    status, _, error = command(*words, "--seed", 1)
    assert status == 2 and "was made with seed 0, not 1" in error


def test_own_labels_with_images_keep_each_cells_mean(command, own):
    status, _, error = command("--labels", own / "masks", "--images", own / "real", "--background_label", 1,
                               "--normalization", "minmax_shifted", "--out", own / "out")  # fmt: skip
    assert status == 0, error
    used = intensity_of(own / "out")
    assert used.method == "minmax_shifted"
    for name in ("f0", "f1", "f2"):
        given = tifffile.imread(own / "masks" / f"{name}.tif")
        labels = tifffile.imread(own / "out" / "labels" / f"{name}.tif")
        np.testing.assert_array_equal(labels, np.where(given == 1, 0, given))
        image = intensity.normalise(tifffile.imread(own / "real" / f"{name}.tif"), used)
        drawn = tifffile.imread(own / "out" / "sketches" / f"{name}.tif")
        for label in (0, 7, 1000, 60000):
            np.testing.assert_allclose(drawn[labels == label], image[labels == label].mean(), atol=1e-5)
        assert volumes.spacing_um(own / "out" / "labels" / f"{name}.tif") == pytest.approx((0.3, 0.2))


def test_own_labels_without_images_get_random_greys(command, own):
    assert command("--labels", own / "masks", "--background_label", 1, "--out", own / "out")[0] == 0
    drawn = [tifffile.imread(own / "out" / "sketches" / f"f{index}.tif") for index in range(2)]
    for sketch in drawn:
        assert len(np.unique(sketch)) == 4 and sketch[0, 0] == -1 and np.sort(np.unique(sketch))[1] >= -0.5
    assert (drawn[0] != drawn[1]).any()


def test_checkpoint_gives_the_sketches_its_levels(command, own, tmp_path):
    fitted = intensity.fit([tifffile.imread(own / "real" / f"f{index}.tif") for index in range(3)], "asinh")
    state = TrainState(jnp.int32(3), {"w": jnp.zeros(2)}, {"w": jnp.zeros(2)}, {})
    with checkpoint.open_manager(tmp_path / "run") as manager:
        checkpoint.save(manager, state, {"intensity": fitted.to_dict()}, 0.5)
    words = ("--labels", own / "masks", "--background_label", 1, "--checkpoint", tmp_path / "run")
    status, _, error = command(*words, "--out", own / "out")
    assert status == 0, error
    drawn = tifffile.imread(own / "out" / "sketches" / "f0.tif")
    background, dim, bright = fitted.levels
    assert drawn[0, 0] == pytest.approx(background)
    assert dim <= np.sort(np.unique(drawn))[1] and drawn.max() <= bright
    volumes.write(own / "real" / "f0.tif", np.zeros((48, 56), np.uint8))
    status, _, error = command(*words, "--images", own / "real", "--out", own / "other")
    assert status == 2 and "f0.tif: expected uint16, as the checkpoint was trained on; got uint8" in error


def test_real_labels(command, real_data, tmp_path):
    for file in sorted((real_data / "gowt1" / "masks").iterdir())[:2]:
        shutil.copy(file, tmp_path / "masks")
    for name in sorted(file.name for file in (tmp_path / "masks").iterdir()):
        shutil.copy(real_data / "gowt1" / "images" / name, tmp_path / "real")
    status, _, error = command("--labels", tmp_path / "masks", "--images", tmp_path / "real", "--out", tmp_path / "out")
    assert status == 0, error
    used = intensity_of(tmp_path / "out")
    for file in (tmp_path / "masks").iterdir():
        drawn = tifffile.imread(tmp_path / "out" / "sketches" / file.name)
        image = intensity.normalise(volumes.read(tmp_path / "real" / file.name), used).astype(np.float64)
        labels = volumes.read_labels(file)
        for label in np.unique(labels):
            np.testing.assert_allclose(drawn[labels == label], image[labels == label].mean(), atol=1e-4)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "either --recipe NAME or --labels DIR"),
        (("--recipe", "hela", "--labels", "x"), "either --recipe NAME or --labels DIR"),
        (("--recipe", "hela"), "--num: expected the number"),
        (("--recipe", "hela", "--num", 0), "--num: expected 1 or more; got 0"),
        (("--recipe", "hela", "--num", "few"), "argument --num: invalid int value: 'few'"),
        (("--recipe", "yeast", "--num", 1), "expected one of nuclei, hela, celegans"),
        (("--recipe", "hela", "--num", 1, "--shape", "8,64,64"), "recipe hela is 2D"),
        (("--recipe", "hela", "--num", 1, "--shape", "64x64"), "expected whole numbers joined by commas"),
        (("--recipe", "hela", "--num", 1, "--shape", "64,-64"), "at least 1"),
        (("--recipe", "hela", "--num", 1, "--spacing_um", "1,nan"), "--spacing_um: expected positive numbers"),
        (("--recipe", "hela", "--num", 1, "--spacing_um", "1,1,1"), "expected 2 positive numbers"),
        (("--recipe", "hela", "--num", 1, "--cells", -3), "--cells: expected 0 or more; got -3"),
        (("--recipe", "hela", "--num", 1, "--images", "x"), "--images: goes with --labels"),
        (("--recipe", "hela", "--nums", 1), "unrecognized arguments: --nums"),
        (("--labels", "nowhere"), "nowhere"),
        (("--labels", "x", "--render"), "--render: goes with --recipe"),
        (("--labels", "x", "--normalization", "asinh"), "--normalization: goes with --images"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(command, tmp_path, words, text):
    status, _, error = command(*words, "--out", tmp_path / "out")
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert text in error
    assert not (tmp_path / "out").exists()


def test_mistakes_in_own_files_name_the_file(command, own):
    words = ("--labels", own / "masks", "--images", own / "real", "--out", own / "out")
    good = tifffile.imread(own / "real" / "f1.tif")

    def refused(text):
        status, _, error = command(*words)
        assert status == 2 and error.count("\n") == 1 and text in error, error
        assert not (own / "out").exists()

    (own / "real" / "f1.tif").unlink()
    refused("no image named f1")
    volumes.write(own / "real" / "f1.tif", good[:40])
    refused("f1.tif: expected the shape of its labels")
    volumes.write(own / "real" / "f1.tif", np.where(good > 200, np.nan, good).astype(np.float32))
    refused("f1.tif: holds NaN")
    volumes.write(own / "real" / "f1.tif", good)
    volumes.write(own / "masks" / "f2.tif", good + np.float32(0.5))
    refused("f2.tif: labels must be whole numbers")
