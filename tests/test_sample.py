"""The sampling command on an untrained model: what it writes does not depend on how it was run."""

import dataclasses
import json
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from jaxsynth import checkpoint, devices, faithful, image_files, keys, specimens, trained
from jaxsynth import manifest as manifests
from jaxsynth import sample as command
from jaxsynth.data import tile_grid, volumes
from jaxsynth.diffusion import samplers
from jaxsynth.errors import InputError
from jaxsynth.metrics import fidelity
from jaxsynth.sim import tissues
from tests.toy import untrained_run

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
    untrained_run(root / "run", config)
    return root / "run"


def sample(monkeypatch, model, out, *args):
    """Runs the command; returns the name -> (image, labels, sketch) of its folder."""
    words = ["sample", "--checkpoint", model, "--out", out, "--num_evaluations", 3, *args]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    command.main()
    return read(out)


def read(out):
    names = sorted(p.stem for p in (out / "images").iterdir())
    readers = {"images": volumes.read, "labels": volumes.read_labels, "sketches": volumes.read}
    return {name: tuple(readers[folder](out / folder / f"{name}.tif") for folder in FOLDERS) for name in names}


def same(one, other, atol=0):
    assert one.keys() == other.keys()
    for name in one:
        for a, b in zip(one[name], other[name], strict=True):
            np.testing.assert_allclose(a.astype(float), b.astype(float), atol=atol)


def contents(out):
    """All bytes of a data set but those of the manifests."""
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*.tif")}


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
    # Drawn as large as the images' cells, a box of 15 x 18 voxels each.
    plan = specimens.plan("nuclei", (40, 56), None, None, checkpoint.read_metadata(model))
    assert np.pi * (tissues.find("nuclei").radius_um / plan.drawn_at_um[0]) ** 2 == pytest.approx(15 * 18, rel=0.1)
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


def test_a_batch_of_any_size_makes_the_same(dataset, model, monkeypatch, tmp_path):
    """Two images per device, with what fills up the batch; the others are those of one per device."""
    many = sample(monkeypatch, model, tmp_path / "set", *RECIPE, "--num", 11, "--batch", 16)
    same({name: many[name] for name in dataset[1]}, dataset[1], atol=1)
    assert len(many) == 11


def test_one_device_makes_what_eight_make(dataset, model, tmp_path):
    """Image by image, with and without overlap of the stages."""
    several = trained.open_trained(model)
    mesh = devices.make_mesh(jax.devices()[:1])
    one = dataclasses.replace(several, mesh=mesh, params=jax.device_put(several.params, devices.replicated(mesh)))
    settings = image_files.Settings(trained.make_plan(one, 400, num_evaluations=3))
    recipe = specimens.plan("nuclei", (40, 56), None, None, one.metadata)
    root, names = keys.root(0), list(dataset[1])
    jobs = image_files.simulated(root, recipe, one.intensity.levels, names)
    work, told = image_files.batches(one, jobs, settings), {}
    assert [batch.size for batch in work] == [1, 1, 1]
    for overlapped in (True, False):
        manifests.make_folders(tmp_path, FOLDERS)
        image_files.make(one, root, tmp_path, work, settings, told.__setitem__, overlapped=overlapped)
        same(read(tmp_path), dataset[1], atol=1)
    entries = json.loads((dataset[0] / "manifest.json").read_text())["files"]
    assert all(entries[name].items() >= json.loads(json.dumps(told[name])).items() for name in names)


def test_batches_are_of_one_shape_and_leave_out_what_is_made(model, monkeypatch):
    """Eight devices: images that fit are made one per device, large ones in tiles, unless they are many."""
    one = trained.open_trained(model)
    settings = image_files.Settings(trained.make_plan(one, 400))
    jobs = [image_files.ImageJob(f"{i}", (41, 57) if i % 3 else (64, 64), None) for i in range(30)]
    small, *_ = work = image_files.batches(one, jobs, settings, todo=[f"{i}" for i in range(5, 30)])
    assert [(batch.shape, len(batch.jobs), batch.size) for batch in work] == [
        ((64, 64), 8, 8), ((41, 57), 8, 8), ((41, 57), 8, 8), ((41, 57), 1, 8)
    ]  # fmt: skip
    assert small.tile == (64, 64) and work[1].tile == (48, 64) and all(batch.roomy for batch in work)
    assert [job.name for job in small.jobs] == [f"{i}" for i in range(6, 30, 3)]
    larger = dataclasses.replace(settings, batch=9)
    assert [batch.size for batch in image_files.batches(one, jobs, larger)] == [16, 16, 16]
    few = [image_files.ImageJob(f"{i}", (1000, 4000), None) for i in range(8)]
    assert [batch.size for batch in image_files.batches(one, few[:3], settings)] == [None] * 3
    assert [batch.size for batch in image_files.batches(one, few, settings)] == [8]
    assert trained.grid_for(one, (1000, 4000)).num_tiles > 1
    need = tile_grid.volume_bytes((41, 57), 2) + 4 * tile_grid.TILE_NUMBERS[2] * 2 * 48 * 64
    monkeypatch.setattr(tile_grid, "memory_bytes", lambda num_devices=1: round(1.5 * need))
    monkeypatch.setattr(tile_grid, "MOST_OVERHEAD", 0.0)  # none is cut but for the memory
    tight = image_files.batches(one, [job for job in jobs if int(job.name) % 3], settings)
    assert [(batch.size, batch.roomy) for batch in tight] == [(8, False)] * 3
    with pytest.raises(InputError, match="--batch 16"):
        image_files.batches(one, [job for job in jobs if int(job.name) % 3], dataclasses.replace(settings, batch=16))


@pytest.mark.parametrize(("roomy", "from_files"), [(True, False), (False, False), (False, True)])
def test_no_more_batches_are_on_the_device_than_have_room(dataset, model, tmp_path, roomy, from_files):
    """Counted when one is dispatched, and when one is drawn."""
    several = trained.open_trained(model)
    settings = image_files.Settings(trained.make_plan(several, 400, num_evaluations=3))
    recipe = specimens.plan("nuclei", (40, 56), None, None, several.metadata)
    root, names, told = keys.root(0), [f"nuclei_{i:04d}" for i in range(33)], {}
    images, before_dispatch, before_draw = [], [], []
    in_tiles, whole = image_files.generators(several, settings)

    def alive():
        return sum(image() is not None for image in images)

    def watched(*args, **options):
        before_dispatch.append(alive())
        image = whole(*args, **options)
        images.append(weakref.ref(image))
        return image

    def watching(job):
        def draw(device):
            before_draw.append(alive())
            return job.draw(device)

        return dataclasses.replace(job, draw=draw, read=from_files)

    jobs = [watching(job) for job in image_files.simulated(root, recipe, several.intensity.levels, names)]
    work = [dataclasses.replace(batch, roomy=roomy) for batch in image_files.batches(several, jobs, settings)]
    manifests.make_folders(tmp_path, FOLDERS)
    image_files.make(several, root, tmp_path, work, settings, told.__setitem__, ready=(in_tiles, watched))
    assert len(images) == 5 and len(before_draw) == len(told) == 33
    assert max(before_dispatch) <= (image_files.AHEAD if roomy else 0) and alive() == 0
    assert roomy or from_files or max(before_draw) == 0
    made = read(tmp_path)
    same({name: made[name] for name in dataset[1]}, dataset[1])


def test_a_batch_is_fetched_once_by_many_threads():
    fetch = image_files._fetcher(jnp.arange(6.0).reshape(2, 3))
    with ThreadPoolExecutor(8) as pool:
        first, *others = pool.map(lambda _: fetch(), range(32))
    assert isinstance(first, np.ndarray) and all(other is first for other in others)
    np.testing.assert_array_equal(first, [[0, 1, 2], [3, 4, 5]])


def test_a_specimen_is_the_same_on_any_device():
    recipe = specimens.plan("nuclei", (40, 56), None, 5, None)
    (job,) = image_files.simulated(keys.root(3), recipe, (-0.9, 0.0, 0.9), ["some"])
    for one, other in zip(job.draw(None)[:2], job.draw(jax.devices()[5])[:2], strict=True):
        np.testing.assert_array_equal(one, other)


def test_workers_make_what_one_run_makes(dataset, model, monkeypatch, tmp_path, capsys):
    out = tmp_path / "set"
    sample(monkeypatch, model, out, *RECIPE, "--num", 3, "--worker", "2/2")
    assert "others are not yet" in capsys.readouterr().out
    same(sample(monkeypatch, model, out, *RECIPE, "--num", 3, "--worker", "1/2"), dataset[1])
    assert (out / "manifest.json").read_text() == (dataset[0] / "manifest.json").read_text()
    sample(monkeypatch, model, out, *RECIPE, "--num", 3)
    assert "3 of 3 are finished already" in capsys.readouterr().out


INTERRUPTED = """
import itertools, os, signal
from jaxsynth import image_files, sample

write, written = image_files._write, itertools.count(1)

def interrupt_at_the_third(*args, **options):
    write(*args, **options)
    if next(written) == 3:
        os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
image_files._write = interrupt_at_the_third
sample.main()
"""


def test_interrupted_and_continued(model, monkeypatch, tmp_path):
    """Ctrl-C in a process of its own: no half file, and what is there and what comes after are what one run makes."""
    words = ["--checkpoint", model, "--num_evaluations", 3, *RECIPE, "--num", 48]
    out = tmp_path / "set"
    command = [sys.executable, "-c", INTERRUPTED, *map(str, words), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 130 and "interrupted" in done.stderr and "Traceback" not in done.stderr
    files = [file for file in out.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".tif", ".json"} and not list(out.rglob(".*"))
    told = json.loads((out / "manifest.json").read_text())["files"]
    finished = [name for name, entry in told.items() if "num_cells" in entry]
    assert 0 < len(finished) < len(told) == 48
    before = {file: file.stat().st_mtime_ns for file in files if file.stem in finished}
    assert len(before) == 3 * len(finished)
    again = sample(monkeypatch, model, out, *RECIPE, "--num", 48)
    assert all(file.stat().st_mtime_ns == at for file, at in before.items())
    same(again, sample(monkeypatch, model, tmp_path / "other", *RECIPE, "--num", 48))
    assert contents(out) == contents(tmp_path / "other")


def test_a_file_that_cannot_be_written_ends_the_run(dataset, model, monkeypatch, tmp_path, capsys):
    out = tmp_path / "set"
    (out / "sketches" / "nuclei_0001.tif" / "in the way").mkdir(parents=True)
    with pytest.raises(SystemExit) as stop:
        sample(monkeypatch, model, out, *RECIPE, "--num", 3)
    assert stop.value.code == 2 and "nuclei_0001.tif" in capsys.readouterr().err
    assert not list(out.rglob(".*"))
    (out / "sketches" / "nuclei_0001.tif" / "in the way").rmdir()
    (out / "sketches" / "nuclei_0001.tif").rmdir()
    same(sample(monkeypatch, model, out, *RECIPE, "--num", 3), dataset[1])
    assert contents(out) == contents(dataset[0])


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    """(folder of sketches of many shapes, folder of the same extended to one shape), labels beside them."""
    own, extended = (tmp_path_factory.mktemp(name) for name in ("own", "extended"))
    rng = np.random.default_rng(1)
    for i, shape in enumerate([(33, 49), (40, 56), *((40 - i, 50 + i % 6) for i in range(7))]):
        sketch = np.tanh(rng.normal(size=shape)).astype(np.float32)
        to = [(0, 40 - shape[0]), (0, 56 - shape[1])]
        for folder, one in ((own, sketch), (extended, np.pad(sketch, to, mode="reflect"))):
            for kind, volume in (("sketches", one), ("labels", (one > 1).astype(np.int32))):
                (folder / kind).mkdir(exist_ok=True)
                volumes.write(folder / kind / f"{i}.tif", volume)
    return own / "sketches", extended / "sketches"


def test_rounded_shapes_are_extended_and_cropped(sizes, model, monkeypatch, tmp_path, caplog, capsys):
    """Nine shapes, two of them multiples of 8: one program."""
    with jax.log_compiles(), caplog.at_level("WARNING"):
        own = sample(monkeypatch, model, tmp_path / "own", "--sketches", sizes[0], "--shapes", "rounded")
    assert sum("Compiling jit(run)" in record.getMessage() for record in caplog.records) == 1
    extended = sample(monkeypatch, model, tmp_path / "extended", "--sketches", sizes[1])
    assert len({image.shape for image, _, _ in own.values()}) == 9
    assert "--shapes rounded" not in capsys.readouterr().out
    for name, (image, labels, sketch) in own.items():
        assert image.shape == labels.shape == sketch.shape
        np.testing.assert_array_equal(image, extended[name][0][tuple(map(slice, image.shape))])
    settings = json.loads((tmp_path / "own" / "manifest.json").read_text())["settings"]
    assert settings["shapes"] == "rounded"


def test_many_shapes_get_a_hint(sizes, model, monkeypatch, tmp_path, capsys):
    """Said before the work is begun, which one file in the way ends here."""
    (tmp_path / "set" / "labels" / "0.tif" / "in the way").mkdir(parents=True)
    with pytest.raises(SystemExit):
        sample(monkeypatch, model, tmp_path / "set", "--sketches", sizes[0])
    printed = capsys.readouterr()
    assert "9 shapes" in printed.out and "would compile 1" in printed.out
    assert "0.tif" in printed.err


def test_a_profile_is_written(dataset, model, monkeypatch, tmp_path):
    options = ("--num", 9, "--profile", tmp_path / "trace")
    files = sample(monkeypatch, model, tmp_path / "set", *RECIPE, *options)
    same({name: files[name] for name in dataset[1]}, dataset[1])
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


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
        (("--recipe", "nuclei", "--batch", "0"), "--batch"),
        (("--recipe", "nuclei", "--batch", "2", "--scratch", "."), "--batch does not go with --scratch"),
        (("--recipe", "nuclei", "--shapes", "rounded", "--scratch", "."), "--shapes rounded does not go with"),
        (("--recipe", "nuclei", "--shapes", "square"), "--shapes"),
        (("--recipe", "nuclei", "--faithful", "drop", "--scratch", "."), "--faithful does not go with --scratch"),
        (("--recipe", "nuclei", "--faithful", "drop", "--attempts", "2"), "--attempts"),
        (("--recipe", "nuclei", "--faithful", "redraw", "--attempts", "0"), "--attempts"),
        (("--sketches", "WALLS", "--faithful", "drop"), "--faithful: labels: expected background between cells"),
        (("--recipe", "nuclei", "--worker", "3/2"), "--worker"),
        (("--recipe", "nuclei", "--labels", "x"), "--labels"),
        ((), "--recipe"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(model, monkeypatch, tmp_path, capsys, args, message):
    for name, value in (("BAD", 3.0), ("ALONE", 0.5), ("WALLS", 0.5)):
        (tmp_path / name / "sketches").mkdir(parents=True)
        sketch = np.full((24, 24), -1, np.float32)
        sketch[4:9, 4:9] = value
        volumes.write(tmp_path / name / "sketches" / "x.tif", sketch)
    (tmp_path / "BAD" / "labels").mkdir()
    volumes.write(tmp_path / "BAD" / "labels" / "x.tif", np.eye(24, dtype=np.int32))
    (tmp_path / "WALLS" / "labels").mkdir()
    volumes.write(tmp_path / "WALLS" / "labels" / "x.tif", 1 + np.indices((24, 24), np.int32).sum(0) // 8)
    args = [str(tmp_path / a / "sketches") if a in ("BAD", "ALONE", "WALLS") else a for a in args]
    with pytest.raises(SystemExit) as stop:
        sample(monkeypatch, model, tmp_path / "out", *args)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.count("\n") == 1 and error.startswith("error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("option", "value"), [("t_start", 200), ("shapes", "rounded"), ("faithful", "drop")])
def test_other_settings_do_not_mix_into_a_set(dataset, model, monkeypatch, capsys, option, value):
    with pytest.raises(SystemExit):
        sample(monkeypatch, model, dataset[0], *RECIPE, f"--{option}", value)
    assert f"was made with {option}" in capsys.readouterr().err


@pytest.fixture(scope="module")
def dim(tmp_path_factory):
    """Ten sketches of nine cells, the brightest easily seen, the dimmest as dark as the background."""
    root = tmp_path_factory.mktemp("dim")
    grid, rng = np.indices((56, 64)), np.random.default_rng(0)
    for folder in ("sketches", "labels"):
        (root / folder).mkdir()
    for i in range(10):
        labels, sketch = np.zeros((56, 64), np.int32), np.full((56, 64), -0.8, np.float32)
        for cell, level in enumerate(rng.permutation(np.linspace(-0.8, 0.7, 9))):
            centre = np.array([9 + 19 * (cell // 3), 11 + 21 * (cell % 3)]).reshape(2, 1, 1)
            inside = ((grid - centre) ** 2).sum(0) < 5.5**2
            labels[inside], sketch[inside] = 2 * cell + 2, level
        volumes.write(root / "labels" / f"{i}.tif", labels)
        volumes.write(root / "sketches" / f"{i}.tif", sketch)
    return "--sketches", root / "sketches"


def entries(out):
    return json.loads((out / "manifest.json").read_text())["files"]


def test_vanished_cells_are_dropped_from_the_labels(dim, model, monkeypatch, tmp_path, capsys):
    """The images stay, and so do all other labels; the last line tells of it, also where all is finished already."""
    plain = sample(monkeypatch, model, tmp_path / "plain", *dim)
    made = sample(monkeypatch, model, tmp_path / "set", *dim, "--faithful", "drop")
    dropped = phantoms = 0
    for name, (image, labels, sketch) in made.items():
        before = plain[name]
        np.testing.assert_array_equal(image, before[0])
        np.testing.assert_array_equal(sketch, before[2])
        found, entry = fidelity.fidelity(before[1], image), entries(tmp_path / "set")[name]
        np.testing.assert_array_equal(labels, np.where(np.isin(before[1], found.vanished), 0, before[1]))
        assert (entry["attempts"], entry["dropped"]) == (1, len(found.vanished))
        assert entry["phantoms"] == len(found.phantoms) and entry["num_cells"] == len(np.unique(labels)) - 1
        dropped, phantoms = dropped + len(found.vanished), phantoms + len(found.phantoms)
    line = f"faithful: {dropped} cells dropped of 90, {phantoms} phantoms left in"
    assert 0 < dropped < 90 and line in capsys.readouterr().out
    sample(monkeypatch, model, tmp_path / "set", *dim, "--faithful", "drop")
    assert line in capsys.readouterr().out


def test_the_best_of_several_draws_is_kept(dim, model, monkeypatch, tmp_path):
    """Each draw is one of noise of its own; the sets differ in nothing but how many draws there were."""
    sets = {1: sample(monkeypatch, model, tmp_path / "1", *dim, "--faithful", "drop")}
    for attempts in (2, 3):
        options = ("--faithful", "redraw", "--attempts", attempts)
        sets[attempts] = sample(monkeypatch, model, tmp_path / f"{attempts}", *dim, *options)
    truth, redrawn = {file.stem: volumes.read_labels(file) for file in (dim[1].parent / "labels").iterdir()}, 0
    for name, labels in truth.items():
        found = {attempts: fidelity.fidelity(labels, made[name][0]) for attempts, made in sets.items()}
        faults = [found[attempts].num_faults for attempts in (1, 2, 3)]
        assert faults == sorted(faults, reverse=True)
        same_image = [np.array_equal(sets[1][name][0], sets[attempts][name][0]) for attempts in (2, 3)]
        assert same_image == [faults[1] == faults[0], faults[2] == faults[0]]  # of equals the first
        entry, best = entries(tmp_path / "3")[name], found[3]
        assert (entry["dropped"], entry["phantoms"]) == (len(best.vanished), len(best.phantoms))
        assert entry["attempts"] == 3 or best.num_faults == 0
        assert set(np.unique(sets[3][name][1])) == set(np.unique(labels)) - set(best.vanished.tolist())
        redrawn += faults[2] < faults[0]
    assert redrawn > 0


def test_redrawn_files_depend_on_their_name_alone(dim, model, monkeypatch, tmp_path):
    """Made by two workers, fewer, or with one file lost and made again: as in one go."""
    options = (*dim, "--faithful", "redraw", "--attempts", 2)
    one = sample(monkeypatch, model, tmp_path / "one", *options)
    assert any(entry["attempts"] == 2 for entry in entries(tmp_path / "one").values())
    sample(monkeypatch, model, tmp_path / "few", *options, "--num", 9)
    (tmp_path / "few" / "labels" / "1.tif").unlink()
    sample(monkeypatch, model, tmp_path / "few", *options, "--num", 9)
    same(read(tmp_path / "few"), {name: one[name] for name in sorted(one)[:9]}, atol=1)
    for part in ("2/2", "1/2"):
        sample(monkeypatch, model, tmp_path / "two", *options, "--worker", part)
    same(read(tmp_path / "two"), one, atol=1)
    facts = ("attempts", "dropped", "phantoms", "num_cells")
    told = [{n: [e[f] for f in facts] for n, e in entries(tmp_path / out).items()} for out in ("one", "two")]
    assert told[0] == told[1]


def test_draws_end_when_nothing_is_amiss_or_no_attempt_is_left():
    jobs = tuple(image_files.ImageJob(name, (8, 8), None) for name in "abcde")
    work = [image_files.Batch(jobs[:3], (8, 8), 3, (8, 8), True), image_files.Batch(jobs[3:], (8, 8), 3, (8, 8), True)]
    draws, written = faithful.Draws(3), []

    def settle(name, dropped, phantoms=0):
        number = draws.attempt
        return draws.settle(
            name, {"dropped": dropped, "phantoms": phantoms}, lambda: written.append((name, number)) or {"at": number}
        )

    assert draws.stream("a") == ("sample", "a")
    assert settle("a", 0) == {"at": 0, "dropped": 0, "phantoms": 0, "attempts": 1}
    assert settle("b", 2, 1) is None and settle("c", 1) is None and settle("e", 3) is None
    assert draws.settle("d", {}, lambda: {"at": 0}) == {"at": 0}  # not to be judged
    (again,) = draws.again(work)
    assert [job.name for job in again.jobs] == ["b", "c", "e"] and again.size == 3
    assert draws.stream("b") == ("redraw", "b", 1)
    assert settle("b", 4) is None and settle("c", 1) is None and settle("e", 0)["attempts"] == 2
    assert [job.name for job in draws.again(work)[0].jobs] == ["b", "c"]
    assert settle("b", 2) == {"at": 2, "dropped": 2, "phantoms": 0, "attempts": 3}
    assert settle("c", 1) == {"at": 0, "dropped": 1, "phantoms": 0, "attempts": 3}  # the first of equals
    assert written == [("a", 0), ("b", 0), ("c", 0), ("e", 0), ("e", 1), ("b", 2)]
    assert draws.again(work) == []


def test_fingerprint_tells_networks_apart(model):
    params = {"a": np.ones(3, np.float32), "b": {"c": np.zeros(2, np.float32)}}
    other = jax.tree.map(np.copy, params)
    assert checkpoint.fingerprint(params) == checkpoint.fingerprint(other)
    other["b"]["c"][1] = 1e-6
    assert checkpoint.fingerprint(params) != checkpoint.fingerprint(other)


def test_checkpoints_are_found_by_run_folder_or_step(model):
    assert checkpoint.find(model) == checkpoint.find(model / "checkpoints") == checkpoint.find(model, "0")
    assert checkpoint.find(checkpoint.find(model)).name == "0"
    assert Path(checkpoint.find(model, "latest")).is_dir()
