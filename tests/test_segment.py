"""The segmentation command as a user runs it: trained on files or without any, applied, resumed, given what it cannot
use."""

import argparse
import json
import sys

import jax
import numpy as np
import pytest

from jaxsynth import checkpoint, cli, devices, outputs, segment, segment_source, segmenter, train_source
from jaxsynth import keys as streams
from jaxsynth.data import pairs, volumes
from jaxsynth.errors import InputError
from jaxsynth.metrics import overlap
from jaxsynth.seg import segmentation
from jaxsynth.tasks import flowseg

SMALL = {
    "data.patch": "(32,32)",
    "model.features": 4,
    "model.norm": "none",
    "optim.ema_decay": 0.9,
    "optim.schedule": "constant",  # the same program however many steps
    "optim.learning_rate": 5e-3,
    "train.val_every": 0,
    "train.checkpoint_every": 0,
    "train.preview_every": 0,
    "seg.zoom": 0.1,
}


def run(*args):
    """The command, as main calls it."""
    argv, sys.argv = sys.argv, ["segment", *map(str, args)]
    try:
        segment._main()
    finally:
        sys.argv = argv


def keys(**overrides):
    return [f"--config.{name}={value}" for name, value in (SMALL | overrides).items()]


def picture(seed, shape=(72, 90), spacing=18):
    """Bright ellipses on a noisy background, and their labels."""
    rng = np.random.default_rng(seed)
    grid, labels, number = np.indices(shape), np.zeros(shape, np.int32), 0
    for y in range(6, shape[0], spacing):
        for x in range(6, shape[1], spacing):
            centre, radii = np.add((y, x), rng.uniform(-3, 3, 2)), rng.uniform(5, 7, 2)
            inside = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) <= 1
            number += 1
            labels[inside & (labels == 0)] = number
    image = 200 + 800 * (labels > 0) + rng.normal(0, 60, shape)
    return image.astype(np.uint16), labels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six annotated images of unequal sizes."""
    folder = tmp_path_factory.mktemp("annotated")
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for i in range(6):
        image, labels = picture(i, (72, 90) if i else (61, 83))
        volumes.write(folder / "images" / f"{i}.tif", image, spacing_um=(0.5, 0.5))
        volumes.write(folder / "labels" / f"{i}.tif", labels.astype(np.uint16), spacing_um=(0.5, 0.5))
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A short run, stopped after some steps and continued."""
    workdir = tmp_path_factory.mktemp("run") / "segmenter"
    args = ["train", "--images", data / "images", "--labels", data / "labels", "--workdir", workdir]
    run(*args, *keys(**{"train.num_steps": 40}))
    run(*args, *keys(**{"train.num_steps": 120}))
    return workdir


def test_it_learns_to_segment(trained, data, tmp_path, capsys):
    args = ["predict", "--checkpoint", trained, "--images", data / "images", "--out", tmp_path / "out"]
    run(*args)
    scores = []
    for file in volumes.find_files(tmp_path / "out" / "labels"):
        image, found = volumes.read(data / "images" / file.name), volumes.read(file)
        assert found.shape == image.shape and found.dtype == np.uint16
        assert sorted(np.unique(found)) == list(range(found.max() + 1))  # distinct, without gaps
        assert volumes.spacing_um(file) == (0.5, 0.5)
        scores.append(overlap.seg(volumes.read_labels(data / "labels" / file.name), found.astype(np.int32)))
    assert len(scores) == 6
    assert np.mean(scores) > 0.6, scores
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["files"]["3"]["num_cells"] == volumes.read(tmp_path / "out" / "labels" / "3.tif").max()
    capsys.readouterr()
    run(*args)
    assert "6 of 6 are finished already" in capsys.readouterr().out
    assert "convexity" not in manifest["settings"]["options"]  # older folders do not know it and are continued
    for more in (["--foreground", 0.9], ["--convexity", 0.5], ["--images", data / "labels"], ["--channel", 0]):
        with pytest.raises(InputError, match="choose another --out"):
            run(*args, *more)
    run("score", "--reference", data / "labels", "--segmentation", tmp_path / "out", "--out", tmp_path / "scores")
    assert "SEG" in capsys.readouterr().out


def test_a_continued_run_equals_an_uninterrupted_one(trained, data, tmp_path):
    """Bit for bit: parameters, their averages and the optimiser's state after the fixture's two runs."""
    import orbax.checkpoint as ocp

    whole = tmp_path / "whole"
    args = ["train", "--images", data / "images", "--labels", data / "labels", "--workdir", whole]
    run(*args, *keys(**{"train.num_steps": 120}))
    with ocp.StandardCheckpointer() as reader:
        places = [checkpoint.find(workdir, "latest").absolute() / "state" for workdir in (trained, whole)]
        found, expected = map(reader.restore, places)
    assert int(found["step"]) == 120
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_tiles_make_no_difference(trained, data):
    model = segmenter.open_segmenter(trained)
    image = pairs.scaled(picture(9, (150, 70))[0])
    whole, tiled = (np.asarray(segmenter.network(model, tile)(image)) for tile in (None, (80, 72)))
    assert whole.shape == (150, 70, 3)
    np.testing.assert_allclose(tiled, whole, atol=1e-4)


def test_large_cells_are_seen_smaller(trained, data):
    """Voxels a third as wide: the image is shrunk to the training's size, and the labels have the image's."""
    model = segmenter.open_segmenter(trained)
    large = np.kron(volumes.read(data / "images" / "2.tif"), np.ones((3, 3), np.uint16))
    labels = np.kron(volumes.read_labels(data / "labels" / "2.tif"), np.ones((3, 3), np.int32))
    scale = segmenter.scale_for(model, (0.5 / 3, 0.5 / 3))
    assert scale == pytest.approx((1 / 3, 1 / 3))
    assert segmenter.scale_for(model, None, 36.0) == pytest.approx((1 / 3, 1 / 3), rel=0.2)
    found = segmenter.segment(model, segmentation.Options())(large, scale)
    assert found.shape == large.shape
    assert overlap.seg(labels, found) > 0.6
    assert segmenter.least_size(model, scale) == pytest.approx(9 * segmenter.least_size(model, (1, 1)), rel=0.2)


def test_training_on_the_diffusion_models_images(data, tmp_path, capsys):
    from configs import common
    from tests import toy

    config = common.get_config()
    config.data.path, config.data.patch, config.model.features = str(data / "images"), (32, 32), 4
    toy.untrained_run(tmp_path / "model", config)
    run("train", "--recipe", "nuclei", "--renderer", tmp_path / "model", "--workdir", tmp_path / "run",
        *keys(**{"train.num_steps": 2, "seg.shape": "(48,48)", "data.batch_size": 4}))  # fmt: skip
    assert "rendered by" in capsys.readouterr().out
    assert segmenter.open_segmenter(tmp_path / "run").metadata["spacing_um"] == [0.5, 0.5]


def test_the_stream_has_the_labels_of_its_images(tmp_path):
    """Under a microscope the foreground is brighter."""
    config = cli.read_config("configs/flowseg.py", [*keys(**{"seg.recipe": "nuclei", "seg.reuse": 2})])
    source = segment_source.open_source(config, None)
    mesh = devices.make_mesh()
    placing = train_source.Placing(devices.split_space(mesh, 2), devices.replicated(mesh))
    batches, held_out, told = source.begin(streams.root(0), 0, placing)
    first = [jax.device_get(next(batches)) for _ in range(4)]
    image, labels = (np.stack([b[name] for b in first]) for name in ("image", "labels"))
    assert image[labels > 0].mean() > image[labels == 0].mean() + 0.3
    assert (image[0] != image[1]).any()
    later, _, _ = source.begin(streams.root(0), 3, placing)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(next(later)), first[3])
    assert len(held_out) == 2 and told()["cells"]["extent_vox"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train"], "either images"),
        (["train", "--images", "{images}"], "no labels given"),
        (["train", "--images", "{images}", "--labels", "nowhere"], "nowhere"),
        (["train", "--recipe", "gowt2"], "gowt1"),
        (["train", "--images", "{images}", "--labels", "{labels}", "--config.seg.target=heart"], "heat, centroid"),
        (["train", "--images", "{images}", "--labels", "{labels}", "--config.seg.scale=(2.0,2.0)"], "seg.scale"),
        (["train", "--images", "{images}", "--labels", "{labels}", "--config.seg.noise=-1.0"], "seg.noise"),
        (["train", "--images", "{images}", "--labels", "{labels}", "--config.data.patch=(8,8,8)"], "data.patch"),
        (["train", "--images", "{images}", "--labels", "{labels}", "--config.data.device_limit_gib=0.0"], "GiB"),
        (["train", "--images", "{images}", "--labels", "{labels}", "--val_images", "{images}"], "--val_labels"),
        (["train", "--config", "configs/ddpm.py", "--images", "{images}"], "expected flowseg"),
        (["train", "--images", "{images}", "--labels", "{labels}", "--config.seg.capacity=3"], "seg.capacity"),
        (["train", "--images", "{images}", "--labels", "{labels}", "--config.data.normalization=minmax"], "asinh"),
        (["train", "--recipe", "nuclei", "--val_images", "{images}"], "--val_images"),
        (["train", "--images", "{images}", "--labels", "{labels}", "--renderer", "{images}"], "--renderer"),
    ],
)
def test_mistakes_in_training_get_one_line(data, tmp_path, args, message):
    args = [arg.format(images=data / "images", labels=data / "labels") for arg in args]
    with pytest.raises(InputError, match=message):
        run(args[0], "--workdir", tmp_path / "run", *args[1:])
    assert not (tmp_path / "run").exists()


def test_mistakes_in_predicting_get_one_line(trained, data, tmp_path):
    volume = tmp_path / "volume.tif"
    volumes.write(volume, np.random.default_rng(0).integers(0, 99, (9, 20, 20)).astype(np.uint8))
    args = ["predict", "--checkpoint", trained, "--out", tmp_path / "out", "--images"]
    for more, message in (
        ([volume], "is 3D"),
        (["nowhere"], "nowhere"),
        ([data / "images", "--tile", "64"], "--tile"),
        ([data / "images", "--tile", "48,48"], "56 or more"),
        ([data / "images", "--foreground", "2"], "--foreground"),
        ([data / "images", "--convexity", "1.5"], "--convexity: expected a number in 0..1, got 1.5"),
        ([data / "images", "--diameter", "0"], "--diameter"),
        ([data / "images", "--flow", "1"], "--flow"),
    ):
        with pytest.raises(InputError, match=message):
            run(*args, *more)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="segments no images"):
        from configs import common
        from tests import toy

        config = common.get_config()
        config.data.path, config.data.patch, config.model.features = str(data / "images"), (32, 32), 4
        toy.untrained_run(tmp_path / "model", config)
        run("predict", "--checkpoint", tmp_path / "model", "--out", tmp_path / "out", "--images", data / "images")
    with pytest.raises(InputError, match="task=ddpm, now flowseg"):
        run("train", "--recipe", "nuclei", "--workdir", tmp_path / "model")
    with pytest.raises(InputError, match="makes no images"):
        outputs.metadata(argparse.Namespace(checkpoint=trained))


def test_labels_do_not_depend_on_the_number_of_devices():
    """The tiles of a network whose norm sees the whole of them are the same on one device and on eight."""
    own = {"model.norm": "instance", "seg.capacity": 1, "seg.scale": "(1.0,1.0)", "data.patch": "(32,32)"}
    config = cli.read_config("configs/flowseg.py", keys(**own))
    parts = flowseg.build(config)
    image = pairs.scaled(picture(3, (150, 90))[0])
    params = jax.jit(lambda: flowseg.init(parts, streams.root(0), (1, 32, 32, 1)).params)()
    found = []
    for number in (1, 8):
        mesh = devices.make_mesh(jax.devices()[:number])
        model = segmenter.Segmenter(None, {}, config, parts, jax.device_put(params, devices.replicated(mesh)), mesh)
        found.append(np.asarray(segmenter.network(model)(image)))
    np.testing.assert_allclose(*found, atol=1e-4)
