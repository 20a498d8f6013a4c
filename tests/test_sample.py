"""The sampling command on a model trained for two steps: what it writes does not depend on how it was run."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import common
from jaxsynth import checkpoint
from jaxsynth import sample as command
from jaxsynth.data import volumes
from jaxsynth.diffusion import samplers
from jaxsynth.train import train

FOLDERS = ("images", "labels", "sketches")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run on uint8 images with a pedestal, voxel size 0.5 um."""
    root = tmp_path_factory.mktemp("model")
    (root / "real").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        image = rng.normal(60, 5, (40, 48))
        image[10:25, 12:30] += 90
        volumes.write(root / "real" / f"{i}.tif", image.astype(np.uint8), spacing_um=(0.5, 0.5))
    config = common.get_config()
    config.data.path = str(root / "real")
    config.data.patch = (16, 16)
    config.model.features = 2
    config.model.norm = "none"  # over two channels alone a norm would be a sign function, which no tiling survives
    config.diffusion.t_max = 450
    config.train.num_steps = 2
    train(config, root / "run")
    return root / "run"


def sample(monkeypatch, model, out, *args):
    """Runs the command; returns the name -> (image, labels, sketch) of its folder."""
    words = ["sample", "--checkpoint", model, "--out", out, "--num_evaluations", 3, *args]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    command.main()
    names = sorted(p.stem for p in (out / "images").iterdir())
    read = {"images": volumes.read, "labels": volumes.read_labels, "sketches": volumes.read}
    return {name: tuple(read[folder](out / folder / f"{name}.tif") for folder in FOLDERS) for name in names}


def same(one, other, atol=0):
    assert one.keys() == other.keys()
    for name in one:
        for a, b in zip(one[name], other[name], strict=True):
            np.testing.assert_allclose(a.astype(float), b.astype(float), atol=atol)


RECIPE = ("--recipe", "nuclei", "--shape", "40,56")


@pytest.fixture(scope="module")
def dataset(model, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        out = tmp_path_factory.mktemp("sampled") / "set"
        return out, sample(patch, model, out, *RECIPE, "--num", 3)


def test_files_are_an_annotated_set(dataset, model):
    out, files = dataset
    assert list(files) == [f"nuclei_{i:04d}" for i in range(3)]
    for image, labels, sketch in files.values():
        assert image.dtype == np.uint8 and image.shape == labels.shape == sketch.shape == (40, 56)
        assert labels.max() > 0 and np.abs(sketch).max() <= 1
        # The sketch is drawn from the labels: one grey per label.
        assert all(np.ptp(sketch[labels == i]) == 0 for i in np.unique(labels))
    assert volumes.spacing_um(out / "images" / "nuclei_0000.tif") == (0.5, 0.5)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["seed"] == 0
    assert manifest["settings"]["t_start"] == 400
    assert len(manifest["settings"]["checkpoint_sha256"]) == 64
    assert manifest["config"]["model"]["features"] == 2
    assert set(manifest["files"]) == set(files)
    assert manifest["files"]["nuclei_0001"]["num_cells"] == len(np.unique(files["nuclei_0001"][1])) - 1
    assert not list(out.rglob("*.part*"))


def test_skipped_files_change_nothing(dataset, model, monkeypatch, tmp_path, capsys):
    """One file lost and made again, in a set begun with a smaller number: all files as in one go."""
    out = tmp_path / "set"
    sample(monkeypatch, model, out, *RECIPE, "--num", 2)
    (out / "images" / "nuclei_0000.tif").unlink()
    capsys.readouterr()
    same(sample(monkeypatch, model, out, *RECIPE, "--num", 3), dataset[1])
    assert "1 of 3 are finished already" in capsys.readouterr().out


def test_sketches_given_back_make_the_same_images(dataset, model, monkeypatch, tmp_path):
    out, files = dataset
    again = sample(monkeypatch, model, tmp_path / "set", "--sketches", out / "sketches")
    same(again, files)


def test_tiles_and_batches_change_nothing(dataset, model, monkeypatch, tmp_path):
    """Three tiles in one image, alone or in batches, against the whole: grey values differ by rounding only."""
    one = sample(monkeypatch, model, tmp_path / "a", *RECIPE, "--num", 1, "--tile", "40,40")
    options = ("--num", 1, "--tile", "40,40", "--tile_batch", 16)
    many = sample(monkeypatch, model, tmp_path / "b", *RECIPE, *options)
    same(one, many, atol=1)
    same(one, {"nuclei_0000": dataset[1]["nuclei_0000"]}, atol=1)


def test_through_files_is_the_same(dataset, model, monkeypatch, tmp_path):
    """Volumes worked on in mapped files, tile by tile, in an order of their own."""
    (tmp_path / "scratch").mkdir()
    options = ("--sketches", dataset[0] / "sketches", "--scratch", tmp_path / "scratch", "--tile", "64,64")
    again = sample(monkeypatch, model, tmp_path / "set", *options)
    same(again, dataset[1], atol=1)
    assert not list((tmp_path / "scratch").iterdir())
    assert volumes.spacing_um(tmp_path / "set" / "images" / "nuclei_0000.tif") == (0.5, 0.5)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp", "heun"])
def test_every_sampler_can_be_asked_for(dataset, model, monkeypatch, tmp_path, sampler):
    other = sample(monkeypatch, model, tmp_path / "set", *RECIPE, "--num", 1, "--sampler", sampler)["nuclei_0000"]
    np.testing.assert_array_equal(other[1], dataset[1]["nuclei_0000"][1])
    assert np.any(other[0] != dataset[1]["nuclei_0000"][0])
    assert json.loads((tmp_path / "set" / "manifest.json").read_text())["settings"]["sampler"] == sampler


def test_help_tells_the_default():
    assert command.EVALUATIONS == samplers.DEFAULT_EVALUATIONS


def test_another_seed_makes_other_cells_and_noise(dataset, model, monkeypatch, tmp_path):
    other = sample(monkeypatch, model, tmp_path / "set", *RECIPE, "--num", 1, "--seed", 1)["nuclei_0000"]
    for a, b in zip(other, dataset[1]["nuclei_0000"], strict=True):
        assert np.mean(a != b) > 0.05


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--recipe", "nuclei", "--t_start", "451"), "t_start"),
        (("--recipe", "nuclei", "--t_start", "0"), "t_start"),
        (("--recipe", "nuclei", "--num_evaluations", "500"), "num_evaluations"),
        (("--recipe", "nuclei", "--sampler", "euler"), "euler"),
        (("--recipe", "nuclei", "--spacing", "even"), "even"),
        (("--recipe", "nuclei", "--scratch", "nowhere"), "--scratch"),
        (("--recipe", "nuclei", "--num", "0"), "--num"),
        (("--recipe", "yeast"), "nuclei"),
        (("--recipe", "celegans"), "3D"),
        (("--recipe", "nuclei", "--shape", "4x4"), "--shape"),
        (("--recipe", "nuclei", "--shape", "64,64", "--tile", "32,32"), "overlap"),
        (("--recipe", "nuclei", "--tile", "4,4"), "--tile"),
        (("--recipe", "nuclei", "--sigma", "-1"), "--sigma"),
        (("--recipe", "nuclei", "--step", "7"), "step"),
        (("--sketches", "nowhere"), "nowhere"),
        (("--sketches", "BAD"), "[-1, 1]"),
        (("--sketches", "ALONE"), "has no label image"),
        (("--recipe", "nuclei", "--seed", str(2**64)), "--seed"),
        (("--recipe", "nuclei", "--cells", "-1"), "--cells"),
        (("--recipe", "nuclei", "--tile_batch", "-3"), "tile_batch"),
        (("--recipe", "nuclei", "--sigma", "nan"), "--sigma"),
        (("--recipe", "nuclei", "--labels", "x"), "--labels"),
        ((), "--recipe"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(model, monkeypatch, tmp_path, capsys, args, message):
    for name, value in (("BAD", 3.0), ("ALONE", 0.5)):
        (tmp_path / name / "sketches").mkdir(parents=True)
        sketch = np.full((24, 24), -1, np.float32)
        sketch[4:9, 4:9] = value
        volumes.write(tmp_path / name / "sketches" / "x.tif", sketch)
    (tmp_path / "BAD" / "labels").mkdir()
    volumes.write(tmp_path / "BAD" / "labels" / "x.tif", np.eye(24, dtype=np.int32))
    args = [str(tmp_path / a / "sketches") if a in ("BAD", "ALONE") else a for a in args]
    with pytest.raises(SystemExit) as stop:
        sample(monkeypatch, model, tmp_path / "out", *args)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.count("\n") == 1 and error.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_other_settings_do_not_mix_into_a_set(dataset, model, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        sample(monkeypatch, model, dataset[0], *RECIPE, "--t_start", 200)
    assert "t_start" in capsys.readouterr().err


def test_fingerprint_tells_networks_apart(model):
    params = {"a": np.ones(3, np.float32), "b": {"c": np.zeros(2, np.float32)}}
    other = jax.tree.map(np.copy, params)
    assert checkpoint.fingerprint(params) == checkpoint.fingerprint(other)
    other["b"]["c"][1] = 1e-6
    assert checkpoint.fingerprint(params) != checkpoint.fingerprint(other)


def test_checkpoints_are_found_by_run_folder_or_step(model):
    assert checkpoint.find(model) == checkpoint.find(model / "checkpoints") == checkpoint.find(model, "2")
    assert checkpoint.find(checkpoint.find(model)).name == "2"
    assert Path(checkpoint.find(model, "latest")).is_dir()
